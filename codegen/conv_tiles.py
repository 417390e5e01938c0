"""Shapes and register tiles of convolutions and windows, chosen by a model of the core.

The model is fitted to a core of 100 GFLOP/s; nothing is measured when a tile is chosen.  Images
are [n, h, w, c] here; a sequence is an image of width 1.  Sizes are in elements of float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from plait.codegen.core import Core, core, simd
from plait.codegen.tiles import (
    L2_BYTES,
    L3_BYTES,
    LINE,
    MEMORY_BYTES,
    ORDER,
    PARALLEL_CYCLES,
    SET_BYTES,
    SHARED_BYTES,
    all_weights_again,
    ceil_div,
    crowding,
    deepness,
    lateness,
)


@dataclass(frozen=True)
class WindowShape:
    """Windows of [kh, kw] that slide over images of [n, h, w, c] and give [n, oh, ow] positions.

    `low` and `high` are the (row, column) paddings before and after; negative ones crop.
    """

    n: int
    h: int
    w: int
    c: int
    kh: int
    kw: int
    stride: tuple[int, int] = (1, 1)
    low: tuple[int, int] = (0, 0)
    high: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def _positions(self, size: int, window: int, axis: int) -> int:
        span = size + self.low[axis] + self.high[axis] - self.dilation[axis] * (window - 1) - 1
        return span // self.stride[axis] + 1

    @property
    def oh(self) -> int:
        """Output rows."""
        return self._positions(self.h, self.kh, 0)

    @property
    def ow(self) -> int:
        """Output columns."""
        return self._positions(self.w, self.kw, 1)

    @property
    def positions(self) -> int:
        """Output positions, batch included."""
        return self.n * self.oh * self.ow

    @property
    def padded(self) -> bool:
        """Whether some element of a window may lie outside its image."""
        return max(*self.low, *self.high) > 0

    @property
    def overlap(self) -> bool:
        """Whether windows have pixels in common."""
        taps = zip((self.kh, self.kw), self.dilation, self.stride, strict=True)
        return any((k - 1) * dilation + 1 > stride for k, dilation, stride in taps)

    @property
    def asks(self) -> bool:
        """Whether images are so large that they are worth asking for."""
        return 4 * self.n * self.h * self.w * self.c > core().asked_beyond

    @property
    def pointwise(self) -> bool:
        """Whether position p reads pixel p and no other."""
        steps = (self.kh, self.kw, *self.stride)
        return steps == (1, 1, 1, 1) and not any((*self.low, *self.high))

    @property
    def turned(self) -> WindowShape:
        """The same windows with rows and columns exchanged."""

        def turn(pair: tuple[int, int]) -> tuple[int, int]:
            return pair[1], pair[0]

        return WindowShape(self.n, self.w, self.h, self.c, self.kw, self.kh, turn(self.stride),
                           turn(self.low), turn(self.high), turn(self.dilation))  # fmt: skip


@dataclass(frozen=True)
class ConvShape:
    """A convolution: its windows, output channels and groups."""

    window: WindowShape
    oc: int
    groups: int = 1

    @property
    def inputs(self) -> int:
        """Input channels of a group."""
        return self.window.c // self.groups

    @property
    def outputs(self) -> int:
        """Output channels of a group."""
        return self.oc // self.groups

    @property
    def taps(self) -> int:
        """Terms of the sum that makes an output."""
        return self.window.kh * self.window.kw * self.inputs

    @property
    def read_bytes(self) -> int:
        """Bytes of the images that windows read."""
        window = self.window
        pixels = min(window.h * window.w, window.oh * window.ow * window.kh * window.kw)
        return 4 * window.n * pixels * window.c

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, not padded to panels."""
        return 4 * self.taps * self.oc

    @property
    def nbytes(self) -> int:
        """Bytes of the images that are read and written."""
        window = self.window
        return 4 * (window.n * window.h * window.w * window.c + window.positions * self.oc)

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.window.positions * self.oc * self.taps

    @property
    def asks(self) -> bool:
        """Whether tiles of points ask for the next tile's pixels: images come from beyond L2, the
        weights stay there, and the pixels of two tiles find room beside each other."""
        window = self.window
        images = 4 * window.n * window.h * window.w * window.c
        points = window.kh == window.kw == 1 and not window.padded
        roomy = 4 * window.c * window.stride[1] % SET_BYTES != 0
        far = images > 2 * L2_BYTES and self.weight_bytes <= L2_BYTES
        return core().tiles_ask and points and roomy and far


@dataclass(frozen=True)
class ConvTile:
    """How a convolution is cut: `mr` positions by `nr` output channels stay in registers.

    order: "oc" walks positions inside a panel of weights, "pos" panels inside a position tile.
    parallel: whether tiles are shared among threads.
    blocks: blocks of positions, one after the other (order "oc").
    """

    mr: int
    nr: int
    order: Literal["oc", "pos"] = "oc"
    parallel: bool = True
    blocks: int = 1

    def __post_init__(self) -> None:
        assert self.blocks == 1 or self.order == "oc", self

    def panels(self, shape: ConvShape) -> int:
        """Panels of weights in a group; the last one may be padded."""
        return ceil_div(shape.outputs, self.nr)


def window_shape(x: Sequence[int], window: Sequence[int], attrs: Mapping[str, Any]) -> WindowShape:
    """Windows over data of logical shape [N, C, H, W] or [N, C, W], from an op's attributes."""

    def pair(values: Sequence[int], missing: int) -> tuple[int, int]:
        return (values[0], values[1]) if len(values) == 2 else (values[0], missing)

    h, w = pair(x[2:], 1)
    kh, kw = pair(window, 1)
    return WindowShape(x[0], h, w, x[1], kh, kw, pair(attrs["stride"], 1), pair(attrs["low"], 0),
                       pair(attrs["high"], 0), pair(attrs["dilation"], 1))  # fmt: skip


# Fraction of its peak that a core reaches in a tile (rows, vectors of channels), on shapes the tile
# divides: with 16 registers, with 32, and with 32 and half the latency.
# Zen 4's are not fitted tile by tile: races judged what is chosen by them (benchmarks/NOTES.md).
# What limits: latency below 8 accumulators, loads below 4 rows, registers above their number.
_SIXTEEN = {
    (6, 2): 0.99, (5, 2): 0.98, (4, 3): 0.97, (3, 3): 0.94, (4, 2): 0.92, (2, 4): 0.93,
    (2, 5): 0.95, (3, 2): 0.75, (2, 3): 0.75, (2, 2): 0.52, (1, 8): 0.5, (1, 4): 0.48,
    (1, 2): 0.29, (8, 1): 0.72, (7, 1): 0.73, (6, 1): 0.66, (5, 1): 0.6, (4, 1): 0.48,
    (2, 1): 0.25, (1, 1): 0.13,
}  # fmt: skip
_THIRTY_TWO = {
    (9, 3): 0.97, (8, 3): 0.97, (6, 4): 0.97, (12, 2): 0.92, (5, 5): 0.95, (7, 3): 0.95,
    (14, 2): 0.93, (10, 2): 0.9, (6, 3): 0.93, (4, 6): 0.92, (4, 4): 0.92, (5, 3): 0.9,
    (8, 2): 0.9, (7, 2): 0.87, (6, 2): 0.84, (4, 3): 0.84, (3, 4): 0.82, (2, 8): 0.75,
    (4, 2): 0.75, (3, 3): 0.73, (2, 4): 0.72,
    (14, 1): 0.66, (3, 2): 0.64, (12, 1): 0.64, (2, 3): 0.64, (8, 1): 0.6, (2, 2): 0.56,
    (6, 1): 0.55, (1, 8): 0.5, (4, 1): 0.48, (1, 4): 0.45, (1, 2): 0.29, (2, 1): 0.25, (1, 1): 0.13,
}  # fmt: skip
_ZEN4 = {
    (9, 3): 0.98, (8, 3): 0.98, (6, 4): 0.98, (12, 2): 0.98, (5, 5): 0.98, (7, 3): 0.98,
    (14, 2): 0.98, (10, 2): 0.98, (6, 3): 0.97, (4, 6): 0.97, (4, 4): 0.96, (5, 3): 0.96,
    (8, 2): 0.98, (7, 2): 0.97, (6, 2): 0.97, (4, 3): 0.96, (3, 4): 0.95, (2, 8): 0.95,
    (4, 2): 0.96, (3, 3): 0.94, (2, 4): 0.94,
    (14, 1): 0.96, (3, 2): 0.93, (12, 1): 0.96, (2, 3): 0.9, (8, 1): 0.95, (2, 2): 0.9,
    (6, 1): 0.94, (1, 8): 0.9, (4, 1): 0.9, (1, 4): 0.85, (1, 2): 0.5, (2, 1): 0.5, (1, 1): 0.25,
}  # fmt: skip
_REACHED = {"avx2": _SIXTEEN, "avx512": _THIRTY_TWO, "zen4": _ZEN4}
FROM_L2 = {1: 0.6, 2: 0.8, 3: 0.93, 4: 0.97}  # further factor, by rows, of weights beyond L1
L1_PANEL_BYTES = 24 * 1024
L2_WEIGHT_BYTES = L2_BYTES * 3 // 8
IN_L3, IN_MEMORY = 1.04, 1.12  # images beyond L2, which order "oc" visits once for every panel
IRREGULAR = 1.06  # order "pos" where rows of a tile have no fixed distance
TILE_CYCLES = 20
ROW_CYCLES = 10  # the address of a row that is no fixed distance from the tile's first
FEW_INPUTS = 4  # channels; the address then takes a cycle more in each pixel of the window
# Cycles that a vector is waited for, for each column that a tile reads in turns with the others:
# from L3, from memory where rows are asked for ahead, and where they are not.
COLUMN_FROM_L3, COLUMN_ASKED, COLUMN_FROM_MEMORY = 0.1, 0.4, 1.0
NARROW = 4  # so few output channels leave most lanes of a vector empty


@cache
def _efficiency(of: Core) -> dict[tuple[int, int], float]:
    known = _REACHED[of.name]
    return {(rows, vectors * of.lanes): part for (rows, vectors), part in known.items()}


def efficiency() -> dict[tuple[int, int], float]:
    """The register tiles worth trying, (rows, channels), and the part of the peak each reaches."""
    return _efficiency(core())


def floats_per_cycle() -> int:
    """Multiply-adds of a core at its peak."""
    return 2 * simd()


def rows_are_regular(window: WindowShape, mr: int) -> bool:
    """Whether the rows of every tile lie at fixed distances."""
    if window.pointwise or window.ow % mr == 0:
        return True
    plane = window.oh * window.ow
    return 1 in (window.oh, window.ow) and (window.n == 1 or plane % mr == 0)


def conv_cycles(shape: ConvShape, mr: int, nr: int, threads: int) -> float:
    """Cycles of the busiest thread when a convolution is cut into `mr` by `nr` tiles."""
    window = shape.window
    speed = floats_per_cycle() * efficiency().get((mr, nr), 0.4)
    overhead = TILE_CYCLES
    if shape.taps * nr * 4 > L1_PANEL_BYTES:
        speed *= FROM_L2.get(mr, 1.0)
    pitch, step = 4 * window.c * window.stride[1], mr * nr / speed
    speed /= crowding(mr, pitch, step) * deepness(4 * shape.taps * nr)
    if not rows_are_regular(window, mr):
        pixels = window.kh * window.kw if shape.inputs <= FEW_INPUTS else 0
        overhead += (ROW_CYCLES + pixels) * mr
        if mr > core().addressed_rows:
            speed *= 0.6
    panels = shape.groups * ceil_div(shape.outputs, nr)
    tiles = ceil_div(panels * ceil_div(window.positions, mr), threads)
    first = 4 * shape.taps * nr * panels / MEMORY_BYTES
    summing = shape.taps * mr * nr / speed
    if rows_worth_cutting(shape) and not cuts_rows(shape, mr):
        summing /= 1 - dead_part(window)  # speeds were fitted where such rows are cut
    if 4 * shape.taps * nr <= core().held_bytes:
        late = core().exposed / 2 * first  # what arithmetic does not hide of the way from memory
        return tiles * (summing + overhead) + late
    # A panel that L2 does not hold comes from memory once, and then again for every tile.
    return tiles * (summing * lateness(mr) + overhead) + first


def conv_tiles(shape: ConvShape, threads: int) -> list[tuple[float, ConvTile]]:
    """Estimated cycles and tile of every candidate, best first."""
    options = [(mr, nr) for mr, nr in efficiency() if mr <= shape.window.positions]
    if min(conv_cycles(shape, *o, 1) for o in options) < PARALLEL_CYCLES:
        threads = 1
    found = []
    for mr, nr in options:
        cycles = conv_cycles(shape, mr, nr, threads)
        tile = ConvTile(mr, nr, "oc", threads > 1)
        panels = shape.groups * tile.panels(shape)
        oc, pos = _order_factors(shape, cycles, mr, nr * panels)
        blocks = position_blocks(shape, tile, threads)
        found.append((cycles * (oc if panels > 1 else 1.0), replace(tile, blocks=blocks)))
        if panels > 1:
            found.append((cycles * pos, replace(tile, order="pos")))
    return sorted(found, key=lambda c: (c[0], c[1].mr, c[1].nr))


def position_blocks(shape: ConvShape, tile: ConvTile, threads: int) -> int:
    """Blocks of positions, each for all panels before the next, so that its images stay in L2.

    Weights are read again for each: only those that are found in the last-level cache.
    """
    size = core().block_bytes
    far = shape.weight_bytes > SHARED_BYTES
    if not size or 2 * shape.read_bytes <= 3 * size or far or tile.panels(shape) == 1:
        return 1
    even = ceil_div(ceil_div(shape.read_bytes, size), threads) * threads
    return min(even, ceil_div(shape.window.positions, tile.mr))


def _order_factors(shape: ConvShape, cycles: float, mr: int, columns: int) -> tuple[float, float]:
    """What the orders "oc" and "pos" cost: the images or the weights are read again and again."""
    weights, images = 4 * shape.taps * columns, shape.nbytes
    regular = rows_are_regular(shape.window, mr)
    oc = 1.0 if images <= 2 * L2_BYTES else IN_L3 if images <= SHARED_BYTES else IN_MEMORY
    if weights <= L2_WEIGHT_BYTES and regular:
        return max(oc, ORDER), 1.0
    waits = not regular and not shape.asks  # for pixels that nothing foresees
    return oc, all_weights_again(weights, cycles, mr) * (IRREGULAR if waits else 1.0)


def choose_conv_tile(shape: ConvShape, threads: int) -> ConvTile:
    """The tile with the least estimated time."""
    return conv_tiles(shape, threads)[0][1]


@cache
def dead_part(window: WindowShape) -> float:
    """The part of a convolution's kernel rows, over all output rows, that meets only padding."""
    step, gap, top = window.stride[0], window.dilation[0], window.low[0]
    live = sum(0 <= i * step - top + k * gap < window.h
               for i in range(window.oh) for k in range(window.kh))  # fmt: skip
    return 1 - max(live, 1) / (window.oh * window.kh)  # all may be dead where windows are dilated


def rows_worth_cutting(shape: ConvShape) -> bool:
    """Whether skipping kernel rows that meet only padding pays for its 20 cycles a tile."""
    dead = dead_part(shape.window)
    return dead * shape.taps > 8 and dead > 0.01


def cuts_rows(shape: ConvShape, mr: int) -> bool:
    """Whether tiles skip kernel rows that meet only padding; no tile may then span two images."""
    window = shape.window
    apart = window.n == 1 or window.oh * window.ow % mr == 0
    return apart and rows_worth_cutting(shape)


def is_narrow(shape: ConvShape) -> bool:
    """Whether lanes are better filled with input channels than with output channels."""
    return shape.groups == 1 and shape.oc <= NARROW and shape.window.c % simd() == 0


@dataclass(frozen=True)
class WindowTile:
    """`mr` output columns by `vectors` vectors of channels stay in registers.

    chunks: pieces that channels are cut into for even shares of threads.
    """

    mr: int
    vectors: int
    chunks: int = 1
    parallel: bool = True


def window_cycles(shape: WindowShape, tile: WindowTile, threads: int) -> float:
    """Cycles of the busiest thread for windows that keep channels apart.

    A tap is one load for each accumulator and one for each vector of weights, two a cycle; 8
    cycles a vector moved, and what it waits for data.
    """
    cells = tile.mr * tile.vectors
    taps = shape.kh * shape.kw * (cells + tile.vectors) / 2
    blocks = ceil_div(shape.c, tile.vectors * simd()) * ceil_div(shape.ow, tile.mr)
    items = ceil_div(shape.n * shape.oh * blocks, threads)
    computing = items * (taps + 8 * cells + TILE_CYCLES)
    arriving, waiting = _arrival(shape, tile, threads)
    return max(computing, arriving) + waiting


def _arrival(shape: WindowShape, tile: WindowTile, threads: int) -> tuple[float, float]:
    """Cycles in which data that is not in L2 arrives, and in which it is waited for.

    A tile reads all its input columns in turns, each a stream of its own: the more there are, the
    less the hardware fetches ahead.  What is asked for arrives while tiles are computed.
    """
    vectors = shape.n * (shape.h * shape.w + shape.oh * shape.ow) * shape.c / simd() / threads
    nbytes = 4 * simd() * vectors * threads
    if nbytes <= L2_BYTES * threads:
        return 0.0, 0.0
    near, far = core().asked if shape.asks else (0.0, 0.0)
    columns = (tile.mr - 1) * shape.stride[1] + (shape.kw - 1) * shape.dilation[1] + 1
    if nbytes <= L3_BYTES:
        wait, arriving = COLUMN_FROM_L3, near
    else:
        wait, arriving = COLUMN_ASKED if shape.asks else COLUMN_FROM_MEMORY, far
    return arriving * vectors, wait * columns * vectors


def window_tiles(shape: WindowShape, threads: int) -> list[tuple[float, WindowTile]]:
    """Estimated cycles and tile of every candidate, best first.

    Of equals the one whose vectors fill a line of each column comes first.
    """
    vectors = shape.positions * ceil_div(shape.c, simd())
    parallel = threads > 1 and vectors * shape.kh * shape.kw > PARALLEL_CYCLES
    chunks = _even_chunks(shape, threads) if parallel else 1
    found = []
    for mr in [m for m in (8, 7, 6, 5, 4, 3, 2, 1) if m < shape.ow] + [min(shape.ow, 8)]:
        for wide in (1, 2, 4):
            if wide == 1 or (mr * wide <= 8 and shape.c // chunks >= wide * simd()):
                tile = WindowTile(mr, wide, chunks, parallel)
                cycles = window_cycles(shape, tile, threads if parallel else 1)
                found.append((cycles, tile))
    return sorted(found, key=lambda c: (c[0], -c[1].mr, c[1].vectors * simd() != LINE))


def choose_window_tile(shape: WindowShape, threads: int) -> WindowTile:
    """The tile with the least estimated time."""
    return window_tiles(shape, threads)[0][1]


def _even_chunks(shape: WindowShape, threads: int) -> int:
    """Pieces of channels that give threads equal shares, or so many that one more is noise."""
    rows, (blocks, rest) = shape.n * shape.oh, divmod(shape.c, simd())
    whole = [k for k in (1, 2, 4, 8, 3, 5, 7) if rest == 0 and blocks % k == 0] or [1]
    fair = (k for k in whole if rows * k % threads == 0 or rows * k > 64)
    return next(fair, whole[-1])
