"""Attention as one kernel: which forms there are, and the choice among them.

A single query row is `decode`; more go tile by tile (`tiles`), a head of a batch at a time.
"""

from __future__ import annotations

from typing import Any

from plait.codegen.core import core, simd
from plait.codegen.schedule import Schedule
from plait.codegen.target import Template, single
from plait.codegen.tiles import PARALLEL_CYCLES, ceil_div
from plait.codegen.tvm.attend import Tiles
from plait.codegen.tvm.decode import build_decode
from plait.codegen.tvm.operands import Operands
from plait.ir.graph import Graph
from plait.passes.select import Selection

KEY_BLOCK = 128  # keys of a block: its scores for 24 rows and a panel of V fit an L1 cache
SINGLE_BLOCK = 384  # up to so many keys need no second block
# Query rows of a tile, if there are many, with their relative cost and the keys of a register tile.
# With 16 registers 6 by 16 or 4 by 24 scores leave room for operands, and a panel of V has 12
# accumulators only with 24.
ROW_LANES = {
    16: {16: (1.03, (4, 5, 6)), 24: (1.0, (4,))},
    32: {16: (1.1, (8, 12)), 32: (1.03, (8, 10, 12)), 48: (1.0, (6, 8))},
}


def choose(body: Graph, constant: tuple[bool, ...], threads: int) -> Selection | None:
    """Any body of attention; `decode` for a single query row, else tiles and tasks."""
    if not any(n.op == "attention" for n in body.nodes):
        return None
    op = Operands(body)
    parts = threads if _cycles(op) >= PARALLEL_CYCLES else 1
    if op.rows == 1:
        return Selection(str(Schedule.make("attention", form="decode", shared=int(parts > 1))))
    lanes = _lanes(op.rows)
    tiles = ceil_div(op.rows, lanes)
    even = op.heads % parts == 0 or op.heads >= 8 * parts
    chunks = 1 if even else min(parts, tiles)
    schedule = Schedule.make(
        "attention", form="tiles", lanes=lanes, keys=_key_tile(op.keys, lanes),
        block=_block(op.keys), chunks=chunks, copy=int(ceil_div(tiles, chunks) >= 3),
        shared=int(parts > 1),
    )  # fmt: skip
    return Selection(str(schedule))


def _cycles(op: Operands) -> int:
    """Cycles of one thread, roughly: 16 multiply-adds each."""
    return op.heads * op.rows * op.keys * (op.depth + op.width) // 16


def _lanes(rows: int) -> int:
    """Query rows of a tile: few wasted ones."""
    if rows <= simd():
        return simd()
    known = ROW_LANES[core().registers]
    return min(known, key=lambda n: ceil_div(rows, n) * n * known[n][0])


def _key_tile(keys: int, lanes: int) -> int:
    """Keys of a register tile: few wasted ones, and enough chains of multiply-adds."""
    known = ROW_LANES[core().registers]
    tiles = known[max(lanes, min(known))][1]
    return min(tiles, key=lambda n: (ceil_div(keys, n) * (max(n, 4) + 0.5), -n))


def _block(keys: int) -> int:
    """Keys of a block, even shares."""
    if keys <= SINGLE_BLOCK:
        return keys
    return ceil_div(keys, ceil_div(keys, KEY_BLOCK))


def build(body: Graph, schedule: Schedule) -> Any:
    """The PrimFunc over flat buffers: inputs, then the output."""
    op = Operands(body)
    if schedule.parameters["form"] == "decode":
        return op.function(build_decode(op, bool(schedule.number("shared"))))
    numbers = (schedule.number(k) for k in ("lanes", "keys", "block", "chunks", "copy", "shared"))
    return op.function(Tiles(op, *numbers).build())


ATTENTION = Template("attention", single(choose), build)
