"""Register tiles of matrix products, chosen by a model of the core.

The model is the slowest of four things in one step of the reduction: the latency of a chain of
multiply-adds, their two ports, the two load ports, and what the L2 cache delivers.  It is within
10 % of measurements for every tile that fits the registers.  Sizes are in elements of float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from plait.codegen.core import core, simd
from plait.ir.types import LINE_BYTES

MOST_VECTORS = 8  # of a row: chains of multiply-adds that fill both ports
LOOP_CYCLES = 0.5  # loop overhead of one step
TILE_CYCLES = 40  # around a tile's reduction: zeroing, epilogue, write-back
PART_CYCLES = 60  # between two parts of it: sums out and in again
LEAST_PART = 256  # steps of a part
MOST_PARTS = 16
ORDER = 1.02  # what the worse order of loops is taken to cost
# Factors of time when rows of A are read again for every panel of B: from the last-level cache, or
# from memory; and when all panels are, for every tile of rows.
ROWS_AGAIN, PANELS_AGAIN = (1.02, 1.2), (1.05, 1.5)
# A panel of more columns computes longer for the same rows; of more vectors than this it needs the
# room that rows have in L2.
ROWS_NEAR, WIDE = 0.9, 3
BEYOND = 0.3  # of one row's time: what each L2 of weights beyond the first costs tiles that ask
MEMORY_BYTES = 6  # from memory in a cycle
# Rows of A, or pixels, that lie a multiple of so many bytes apart fall into one set of L1, which
# holds as many lines as it has ways: the factor of time for tiles of more rows.
SET_BYTES, WAYS, CROWDED = 4096, 8, 1.07
PARALLEL_CYCLES = 8_000  # below about 2 us, waking a second thread costs more than it saves
LINE = LINE_BYTES // 4  # elements of four bytes in a cache line
L2_BYTES = 512 * 1024
L3_BYTES = 32 << 20
SHARED_BYTES = L3_BYTES // 4  # what a kernel may count on to find again in the last-level cache
NEAR_WEIGHTS = 5 * L2_BYTES // 4  # of which hardly any come from beyond L2
# Where parts of several panels take turns: a part of all rows of a block, and the sums so far.
PART_BYTES, KEPT_BYTES = 3 * L2_BYTES // 8, L2_BYTES // 8


@dataclass(frozen=True)
class GemmShape:
    """`batch` products of an m by k with a k by n matrix."""

    batch: int
    m: int
    n: int
    k: int

    @property
    def asks(self) -> bool:
        """Whether tiles that all panels pass by (outer "m") ask for the rows of the next: rows come
        from beyond L2, the weights hardly do, two tiles' rows find room beside each other, and sums
        are long, or read by few panels, so that asking costs little."""
        far = 4 * self.m * self.k > L2_BYTES and 4 * self.k * self.n <= NEAR_WEIGHTS
        roomy = 4 * self.k % SET_BYTES != 0
        return core().tiles_ask and far and roomy and (self.k >= 8 * LINE or self.n <= 8 * LINE)


@dataclass(frozen=True)
class Tile:
    """How a product is cut: `mr` rows by `nr` columns of the result stay in registers.

    outer: the tile loop walked outermost: "n" keeps a panel of B in cache while rows of A pass by.
    chunks: pieces that rows are cut into for even shares of threads (if the kernel packs B).
    parallel: whether the outer loop is shared among threads.
    blocks: blocks of rows, one after the other; a panel passes by the rows of a block (outer "n").
    depth: parts of the reduction, each for all rows of a block before the next (outer "n").
    span: panels whose parts take turns: the first part of each, then the second (with parts).
    """

    mr: int
    nr: int
    outer: Literal["m", "n"] = "n"
    chunks: int = 1
    parallel: bool = True
    blocks: int = 1
    depth: int = 1
    span: int = 1


def ceil_div(a: int, b: int) -> int:
    """`a / b`, rounded up."""
    return -(-a // b)


def is_far(size: int) -> bool:
    """Whether so many bytes come from the last-level cache, not from L2, and not from memory."""
    return L2_BYTES < size <= SHARED_BYTES


def register_tiles(m: int, n: int) -> list[tuple[int, int]]:
    """All `(mr, nr)`, no larger than needed, that fit the registers beside operands."""
    lanes, registers = simd(), core().registers
    return [
        (mr, nv * lanes)
        for mr in range(1, min(m, core().most_rows) + 1)
        for nv in range(1, min(ceil_div(n, lanes), MOST_VECTORS) + 1)
        # One row of A uses each vector of B once, straight from memory.
        if mr * nv + (nv if mr > 1 else 1) + 1 <= registers
    ]


def step_cycles(mr: int, nv: int) -> float:
    """Cycles of one step of the reduction for a tile of `mr` rows by `nv` vectors."""
    busiest = max(core().latency, mr * nv / 2, (mr + nv) / 2, nv * core().l2_cycles)
    return busiest + nv * core().line_cycles + mr * core().row_cycles + LOOP_CYCLES


def gemm_cycles(
    shape: GemmShape, mr: int, nr: int, threads: int,
    blocks: int = 1, depth: int = 1, span: int = 1,
) -> float:  # fmt: skip
    """Cycles of the busiest thread when a product is cut into `mr` by `nr` tiles."""
    row_tiles = ceil_div(ceil_div(shape.m, mr), blocks) * blocks
    step = step_cycles(mr, nr // simd())
    step *= crowding(mr, 4 * shape.k, step)
    step *= deepness(4 * nr * shape.k // depth, mr if row_tiles > 1 else None)
    panels = shape.batch * ceil_div(shape.n, nr)
    around = TILE_CYCLES + (depth - 1) * PART_CYCLES
    # Threads share register tiles, or all rows of some panels where sums go on in parts.
    together = row_tiles // blocks * span if depth > 1 else 1
    tiles = ceil_div(ceil_div(row_tiles * panels, together), threads) * together
    computing = tiles * (shape.k * step + around)
    reading = 4 * shape.k * nr * ceil_div(panels, threads) / core().far_bytes
    # Neither hides all of the other.
    return max(computing, reading) + core().exposed / 2 * min(computing, reading)


def gemm_tiles(shape: GemmShape, threads: int, packed: bool = True) -> list[tuple[float, Tile]]:
    """Estimated cycles and tile of every candidate, best first.

    Of equals, and of those that may be the best one within doubt, the largest: it loads the least.
    Only products with packed panels have more than one block of rows.
    """
    tiles = register_tiles(shape.m, shape.n)
    if min(gemm_cycles(shape, *tile, 1) for tile in tiles) < PARALLEL_CYCLES:
        threads = 1
    found = []
    for mr, nr in tiles:
        panels = shape.batch * ceil_div(shape.n, nr)
        uneven = panels % threads != 0 and panels < 8 * threads
        for outer, blocks, depth, span in _orders(shape, mr, nr, packed):
            cycles = gemm_cycles(shape, mr, nr, threads, blocks, depth, span)
            tile = Tile(mr, nr, outer, threads if uneven else 1, threads > 1, blocks, depth, span)
            again = _again(shape, tile, cycles, threads, packed)
            found.append((cycles * again, tile))
    found.sort(key=lambda c: (c[0], -c[1].mr * c[1].nr, c[1].mr))
    near = (c for c in found if c[0] <= found[0][0] * (1 + core().doubt))
    first = max(near, key=lambda c: c[1].mr * c[1].nr)
    return [(found[0][0], first[1]), *(c for c in found if c is not first)]


def choose_tile(shape: GemmShape, threads: int) -> Tile:
    """The tile of a product by the model alone."""
    return gemm_tiles(shape, threads)[0][1]


def block_count(tiles: int, least: int) -> int:
    """At least about `least` blocks of `tiles` tiles, with few tiles of padding in the last one."""
    near = range(min(least, tiles), min(least + least // 4, tiles) + 1)
    return min(near, key=lambda count: (ceil_div(tiles, count) * count, count))


def _orders(
    shape: GemmShape, mr: int, nr: int, packed: bool
) -> list[tuple[Literal["m", "n"], int, int, int]]:
    """Outer loops, with the numbers of blocks of rows, of parts of the sum, and of the panels that
    take turns with theirs, worth trying."""
    tiles, size = ceil_div(shape.m, mr), 4 * shape.m * shape.k
    sizes = (L2_BYTES // 2, 4 * L2_BYTES) if packed else ()
    counts = sorted({1, *(block_count(tiles, ceil_div(size, part)) for part in sizes)})
    depth = _depth(shape.k, nr) if packed and tiles > 1 else 1
    orders: list[tuple[Literal["m", "n"], int, int, int]]
    orders = [("n", count, parts, 1) for count in counts for parts in sorted({1, depth})]
    if depth > 1 and core().exposed:
        count = block_count(tiles, ceil_div(size, depth * PART_BYTES))
        panels, kept = ceil_div(shape.n, nr), 4 * nr * mr * ceil_div(tiles, count)
        span = ceil_div(panels, ceil_div(panels, max(1, KEPT_BYTES // kept)))
        if span > 1:
            orders.append(("n", count, depth, span))
    return [*orders, ("m", 1, 1, 1)]


def _depth(k: int, nr: int) -> int:
    """The fewest equal parts of a sum whose part of a panel is no more than a third of L2; 1 if
    there are none."""
    deep = (depth for depth in range(1, min(k // LEAST_PART, MOST_PARTS) + 1)
            if k % depth == 0 and 12 * (k // depth) * nr <= L2_BYTES)  # fmt: skip
    return next(deep, 1)


def _again(shape: GemmShape, tile: Tile, cycles: float, threads: int, packed: bool) -> float:
    """The factor for what is read again and again, a block of rows or all panels."""
    if tile.outer == "m":
        size = 4 * shape.k * shape.n
        if packed and shape.asks:
            return 1 + BEYOND / tile.mr * max(0.0, size / L2_BYTES - 1)
        return 1.0 if shape.m <= tile.mr else all_weights_again(size, cycles, tile.mr)
    rows = ceil_div(shape.m, tile.blocks)
    size = 4 * shape.k * rows
    near, far = ROWS_AGAIN
    if tile.span > 1:
        size //= tile.depth
    local = size <= L2_BYTES // 2 or shape.n <= tile.nr
    if not core().exposed:  # else what is waited for is counted
        near = 1 + ROWS_NEAR / min(tile.nr, WIDE * simd())
    place = 1.0 if local else near if size <= SHARED_BYTES else far
    place += _waiting(shape, tile, threads, local) / cycles
    return place + (2 / rows if tile.blocks > 1 else 0.0)


def _waiting(shape: GemmShape, tile: Tile, threads: int, local: bool) -> float:
    """Cycles in which the last-level cache is waited for: rows of A that all panels read again, or
    all turns of several panels, unless a block of them is `local` to L2; and panels that each block
    after the first does."""
    panels = ceil_div(shape.batch * ceil_div(shape.n, tile.nr), threads)
    passes = panels / tile.span
    rows = 0.0 if local and tile.span == 1 else 4.0 * shape.m * shape.k * passes
    if 4 * shape.k * ceil_div(shape.m, tile.blocks) <= 2 * L2_BYTES:
        rows /= 4  # most of them stay
    again = 4 * shape.k * tile.nr * panels * (tile.blocks - 1) / 4
    return core().exposed * (rows + again) / core().far_bytes


def deepness(size: int, rows: int | None = None) -> float:
    """The factor of time for panels of `size` bytes: L2 also holds rows, and the next panel.

    rows: of a tile of a product, if several tiles pass by each panel.
    """
    each = core().deep + (core().deep_rows / rows if rows else 0.0)
    return 1 + each * max(0.0, size / L2_BYTES - 1 / 3)


def crowding(rows: int, pitch: int, step: float) -> float:
    """The factor of time for tiles of so many rows, which lie `pitch` bytes apart, in steps of so
    many cycles."""
    if rows <= WAYS or pitch % SET_BYTES != 0:
        return 1.0
    return CROWDED + core().refill * (rows - WAYS) / step


def lateness(rows: int) -> float:
    """The factor of time where weights for tiles of so many rows come from the last-level cache."""
    wanted = 8 * simd() / rows  # bytes a cycle, at the peak
    return max(1.0, math.sqrt(wanted / core().far_bytes))


def all_weights_again(size: int, cycles: float, rows: int) -> float:
    """The factor where `size` bytes of weights pass by each tile of so many rows: the first one
    waits for memory, and what does not fit L2 comes from the last-level cache, in time or not."""
    near, far = (factor * lateness(rows) for factor in PANELS_AGAIN)
    place = 1.0 if size <= L2_BYTES // 2 else near if size <= SHARED_BYTES else far
    if L2_BYTES // 2 < size <= 2 * L2_BYTES:
        place = 1 + (near - 1) / 4
    return place + size / MEMORY_BYTES / cycles
