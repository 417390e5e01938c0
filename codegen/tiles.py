"""Register tiles of matrix products on AVX2, chosen by a model of the core.

The model is the slowest of four things in one step of the reduction: the latency of a chain of
multiply-adds, their two ports, the two load ports, and what the L2 cache delivers.  It is within
10 % of measurements for every tile that fits the registers.  Sizes are in elements of float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LANES = 8  # float32 lanes of a vector register
REGISTERS = 16  # vector registers
MAX_ROWS = 7  # each row of A takes an address register too
FMA_LATENCY = 4  # cycles from an FMA's operand to its result
LOOP_CYCLES = 0.5  # loop overhead of one step
TILE_CYCLES = 40  # around a tile's reduction: zeroing, epilogue, write-back
ORDER = 1.02  # what the worse order of loops is taken to cost
PARALLEL_CYCLES = 15_000  # below about 4 us, waking a second thread costs more than it saves
L2_BYTES = 512 * 1024


@dataclass(frozen=True)
class GemmShape:
    """`batch` products of an m by k with a k by n matrix."""

    batch: int
    m: int
    n: int
    k: int


@dataclass(frozen=True)
class Tile:
    """How a product is cut: `mr` rows by `nr` columns of the result stay in registers.

    outer: the tile loop walked outermost: "n" keeps a panel of B in cache while rows of A pass by.
    chunks: pieces that rows are cut into for even shares of threads (if the kernel packs B).
    parallel: whether the outer loop is shared among threads.
    """

    mr: int
    nr: int
    outer: Literal["m", "n"] = "n"
    chunks: int = 1
    parallel: bool = True


def ceil_div(a: int, b: int) -> int:
    """`a / b`, rounded up."""
    return -(-a // b)


def register_tiles(m: int, n: int) -> list[tuple[int, int]]:
    """All `(mr, nr)`, no larger than needed, that fit the registers beside operands."""
    return [
        (mr, nv * LANES)
        for mr in range(1, min(m, MAX_ROWS) + 1)
        for nv in range(1, min(ceil_div(n, LANES), REGISTERS // 2) + 1)
        # One row of A uses each vector of B once, straight from memory.
        if mr * nv + (nv if mr > 1 else 1) + 1 <= REGISTERS
    ]


def gemm_cycles(shape: GemmShape, mr: int, nr: int, threads: int) -> float:
    """Cycles of the busiest thread when a product is cut into `mr` by `nr` tiles."""
    nv = nr // LANES
    step = max(FMA_LATENCY, mr * nv / 2, (mr + nv) / 2, nv) + LOOP_CYCLES
    tiles = shape.batch * ceil_div(shape.m, mr) * ceil_div(shape.n, nr)
    return ceil_div(tiles, threads) * (shape.k * step + TILE_CYCLES)


def gemm_tiles(shape: GemmShape, threads: int) -> list[tuple[float, Tile]]:
    """Estimated cycles and tile of every candidate, best first; of equals, the largest."""
    tiles = register_tiles(shape.m, shape.n)
    if min(gemm_cycles(shape, *tile, 1) for tile in tiles) < PARALLEL_CYCLES:
        threads = 1
    found = []
    for mr, nr in tiles:
        cycles = gemm_cycles(shape, mr, nr, threads)
        panels = shape.batch * ceil_div(shape.n, nr)
        uneven = panels % threads != 0 and panels < 8 * threads
        for outer, penalty in _outer_loops(shape, mr, nr):
            tile = Tile(mr, nr, outer, threads if uneven else 1, threads > 1)
            found.append((cycles * penalty, tile))
    return sorted(found, key=lambda c: (c[0], -c[1].mr * c[1].nr, c[1].mr))


def choose_tile(shape: GemmShape, threads: int) -> Tile:
    """The tile of a product by the model alone."""
    return gemm_tiles(shape, threads)[0][1]


def _outer_loops(
    shape: GemmShape, mr: int, nr: int
) -> tuple[tuple[Literal["m", "n"], float], tuple[Literal["m", "n"], float]]:
    """Both orders with their factor: first the one that moves fewer bytes into the L2 cache."""
    left, right = 4 * shape.m * shape.k, 4 * shape.n * shape.k
    by_panel = right + left * (ceil_div(shape.n, nr) if left > L2_BYTES else 1)
    by_row = left + right * (ceil_div(shape.m, mr) if right > L2_BYTES // 2 else 1)
    return (("n", 1.0), ("m", ORDER)) if by_panel <= by_row else (("m", 1.0), ("n", ORDER))
