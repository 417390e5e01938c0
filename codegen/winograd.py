"""Convolutions by minimal filtering: how they are cut, and what they cost.

The model is of the core that `conv_tiles` describes; nothing is measured when a tile is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from plait.codegen.conv_tiles import (
    FROM_L2,
    L1_PANEL_BYTES,
    TILE_CYCLES,
    ConvShape,
    efficiency,
    floats_per_cycle,
)
from plait.codegen.core import core, simd
from plait.codegen.tiles import L3_BYTES, PARALLEL_CYCLES, ceil_div
from plait.ir.winograd import POINTS, TAPS

PAD = 16  # floats that keep equal offsets of neighbouring planes in different cache sets
DATA_BYTES = (1 << 20, 4 << 20, 16 << 20)  # transformed data of a block: in L2, or in L3
MOST_ROWS = 8  # of a register tile: many meet in the same few sets of the first-level cache
GROUP_ROWS = 16  # tiles that a panel of weights meets while it is in the first-level cache
# Cycles of a transform of one tile in one vector of channels.
DATA_CYCLES = {2: 90, 4: 170}
RESULT_CYCLES = {2: 65, 4: 130}
LAUNCH_CYCLES = 6_000
# Bytes a cycle, for all threads together: weights from L3, data to L3 and back; and the bytes of
# weights that stay there.
FROM_L3, THROUGH_L3 = 12.0, 36.0
L3_WEIGHT_BYTES = L3_BYTES // 2


@dataclass(frozen=True)
class WinogradTile:
    """How a filtered convolution is cut.

    Tiles of `m` by `m` results are rows of products with the transformed weights; `mr` of them by
    `nr` output channels stay in registers. An item is `group` such register tiles in all
    (m + 2)**2 planes. `block` tiles are transformed at a time.
    order: "pos" walks panels of weights inside a group of tiles, "oc" groups inside a panel.
    """

    m: int
    mr: int
    nr: int
    group: int
    block: int
    order: Literal["oc", "pos"] = "pos"
    parallel: bool = True

    @property
    def size(self) -> int:
        """Rows and columns of a tile of data."""
        return self.m + TAPS - 1

    @property
    def planes(self) -> int:
        """Multiplications of a tile for each pair of channels."""
        return self.size**2

    @property
    def rows(self) -> int:
        """Tiles of an item."""
        return self.mr * self.group


def tile_count(shape: ConvShape, m: int) -> int:
    """Tiles of m by m results that cover all images."""
    window = shape.window
    return window.n * ceil_div(window.oh, m) * ceil_div(window.ow, m)


def can_filter(shape: ConvShape) -> bool:
    """3 x 3 windows with steps of 1, one group, and channels in whole vectors."""
    window = shape.window
    return (
        (window.kh, window.kw) == (TAPS, TAPS)
        and window.stride == window.dilation == (1, 1)
        and shape.groups == 1
        and shape.inputs % simd() == shape.oc % simd() == 0
    )


def winograd_cycles(shape: ConvShape, tile: WinogradTile, threads: int) -> float:
    """Cycles of the busiest thread."""
    tiles, planes = tile_count(shape, tile.m), tile.planes
    blocks = ceil_div(tiles, tile.block)
    panels = ceil_div(shape.oc, tile.nr)
    speed = floats_per_cycle() * efficiency()[tile.mr, tile.nr]
    if 4 * shape.inputs * tile.nr > L1_PANEL_BYTES:
        speed *= FROM_L2.get(tile.mr, 1.0)
    step = shape.inputs * tile.mr * tile.nr / speed + TILE_CYCLES
    result = tile.rows * tile.nr / simd() * RESULT_CYCLES[tile.m]
    items = ceil_div(ceil_div(tile.block, tile.rows) * panels, threads)
    panel = 4 * planes * shape.inputs * tile.nr
    late = core().exposed * panel / core().far_bytes  # each item reads a panel of each plane
    products = items * (tile.group * planes * step + result + late)
    weights = panel * panels
    memory = core().memory_bytes
    again = FROM_L3 if weights <= L3_WEIGHT_BYTES else memory
    streams = weights / memory + (blocks - 1) * weights / again
    held = 4 * planes * shape.inputs * tile.block
    through = THROUGH_L3 if held <= core().kept_bytes else memory
    spilled = 0 if held <= core().near_bytes else 2 * held / through
    data = ceil_div(tile.block, threads) * shape.inputs / simd() * DATA_CYCLES[tile.m]
    launches = LAUNCH_CYCLES if threads > 1 else 0
    return max(blocks * products, streams) + blocks * (data + spilled + launches)


def winograd_tiles(shape: ConvShape, threads: int) -> list[tuple[float, WinogradTile]]:
    """Estimated cycles and tile of every candidate, best first; none where it does not apply."""
    if not can_filter(shape):
        return []
    found: list[tuple[float, WinogradTile]] = []
    for m in POINTS:
        tiles = tile_count(shape, m)
        for (mr, nr), reached in efficiency().items():
            if mr > min(tiles, MOST_ROWS) or reached < 0.9:
                continue
            for tile in dict.fromkeys(_cut(shape, m, mr, nr, size) for size in DATA_BYTES):
                cycles = winograd_cycles(shape, tile, threads)
                if cycles < PARALLEL_CYCLES:
                    tile = replace(tile, parallel=False)
                    cycles = winograd_cycles(shape, tile, 1)
                found.append((cycles, tile))
    return sorted(found, key=lambda c: (c[0], -c[1].mr, c[1].block))


def _cut(shape: ConvShape, m: int, mr: int, nr: int, size: int) -> WinogradTile:
    """The groups and order for a register tile, in blocks of about `size` bytes of data."""
    tiles, planes = tile_count(shape, m), (m + TAPS - 1) ** 2
    group = max(1, min(round(GROUP_ROWS / mr), ceil_div(tiles, mr)))
    rows = mr * group
    fits = max(rows, size // (4 * planes * shape.inputs))
    blocks = ceil_div(tiles, fits)
    block = ceil_div(ceil_div(tiles, blocks), rows) * rows
    by_panel = shape.oc > block  # weights are then more bytes than data: pass over them once
    return WinogradTile(m, mr, nr, group, block, "oc" if by_panel else "pos")


def terms(row: Any) -> list[tuple[float, int]]:
    """(factor, index) of a matrix row; those without a multiplication come first."""
    found = [(float(c), k) for k, c in enumerate(row) if c]
    return sorted(found, key=lambda term: (term[0] != 1, abs(term[0]) != 1, term[1]))
