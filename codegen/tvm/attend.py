"""Attention, tile by tile of query rows: their scores are never a whole matrix in memory.

A tile of query rows is transposed into scratch, so that the rows are the lanes of vectors.  Block
by block of keys, the scores [keys, lanes] are register-tiled products whose maxima are kept as they
come; they become weights in place, without a sum across lanes; and their product with V is
accumulated.  Maxima and sums are carried from block to block and results rescaled (Milakov and
Gimelshein 2018; Dao 2023).  A row's value depends neither on threads nor on tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any

from tvm import tirx

from plait.codegen.core import core, simd
from plait.codegen.tiles import ceil_div
from plait.codegen.tvm.blocks import (
    LOG2E,
    MINUS_INFINITY,
    SQUARE,
    ZERO,
    bounded,
    scratch,
    transpose8,
    weight,
)
from plait.codegen.tvm.loops import LEAST, across, along, loop, put, sequence, unrolled
from plait.codegen.tvm.operands import Operands
from plait.codegen.tvm.scalars import const
from plait.codegen.tvm.weigh import ProductTile

PrimExpr = Any
Stmt = Any

# Query rows of a register tile by the vectors of V in it (0 for a single column), for tiles of
# rows that are a multiple of six or not: twelve accumulators where they fit, and with 32 registers
# 24.
SIXES = {16: {2: 6, 1: 8, 0: 8}, 32: {4: 6, 3: 8, 2: 12, 1: 16, 0: 16}}
FOURS = {16: {3: 4, 2: 4, 1: 8, 0: 8}, 32: {4: 4, 3: 8, 2: 8, 1: 16, 0: 16}}


@dataclass(frozen=True)
class Tiles:
    """The kernel for several query rows.

    lanes: query rows of a tile; key_tile: keys of a register tile; block: keys whose scores are
    held at once; chunks: tasks that share a head; copy: whether a task copies K and V first;
    shared: whether threads share the tasks.
    """

    op: Operands
    lanes: int
    key_tile: int
    block: int
    chunks: int
    copy: int
    shared: int

    @cached_property
    def block_keys(self) -> int:
        """Keys of a block in whole register tiles."""
        return ceil_div(self.block, self.key_tile) * self.key_tile

    @cached_property
    def blocks(self) -> int:
        return ceil_div(self.op.keys, self.block_keys)

    @cached_property
    def tile_rows(self) -> dict[int, int]:
        return (FOURS if self.lanes % 6 else SIXES)[core().registers]

    @cached_property
    def panels(self) -> list[tuple[int, int, int]]:
        """Panels of columns of V, alike ones together: first column, width, number."""
        vectors, rest = divmod(self.op.width, simd())
        count = ceil_div(vectors, max(self.tile_rows))
        widths = [simd() * (vectors // count + (k < vectors % count)) for k in range(count)]
        short, single = divmod(rest, LEAST)
        widths += [LEAST] * short + [1] * single
        found, at = list[tuple[int, int, int]](), 0
        for width, alike in groupby(widths):
            number = len(list(alike))
            found.append((at, width, number))
            at += number * width
        return found

    @cached_property
    def padded_keys(self) -> int:
        return ceil_div(self.op.keys, self.key_tile) * self.key_tile

    def build(self) -> Stmt:
        memory = Memory(self)

        def item(at: PrimExpr) -> Stmt:
            task = Task(self, memory, at // self.chunks, at % self.chunks)
            return tirx.SeqStmt([*memory.allocations(), task.build()])

        kind = tirx.ForKind.PARALLEL if self.shared else None
        return loop(self.op.heads * self.chunks, item, kind, "item")


class Memory:
    """Scratch of a task."""

    def __init__(self, tiles: Tiles) -> None:
        op = tiles.op
        self.queries = scratch(op.depth * tiles.lanes, "queries")
        self.scores = scratch(tiles.block_keys * tiles.lanes, "scores")
        self.keys = scratch(tiles.padded_keys * op.depth, "keys")
        self.values = scratch(op.keys * op.width, "values")
        self.sums = scratch(tiles.lanes * op.width, "sums")
        self.used = [self.queries, self.scores]
        self.used += [self.keys, self.values] if tiles.copy else []
        self.used += [self.sums] if tiles.blocks > 1 else []

    def allocations(self) -> list[Stmt]:
        return [tirx.AllocBuffer(b) for b in self.used]


class Task:
    """The work on one head: its tiles of query rows, or every `chunks`th of them."""

    def __init__(self, tiles: Tiles, memory: Memory, head: PrimExpr, chunk: PrimExpr) -> None:
        self.tiles, self.op, self.head, self.chunk = tiles, tiles.op, head, chunk
        self.lanes = tiles.lanes
        self.queries, self.scores, self.sums = memory.queries, memory.scores, memory.sums
        self.keys, self.values = memory.keys, memory.values
        self.top, self.base = scratch(self.lanes, "top"), scratch(self.lanes, "base")
        self.total, self.factor = scratch(self.lanes, "total"), scratch(self.lanes, "factor")

    def build(self) -> Stmt:
        buffers = (self.top, self.base, self.total, self.factor)
        whole, chunks = ceil_div(self.op.rows, self.lanes), self.tiles.chunks

        def tile(i: PrimExpr) -> Stmt:
            number = self.chunk + i * chunks
            stmt = self.row_tile(number * self.lanes)
            return stmt if whole % chunks == 0 else tirx.IfThenElse(number < whole, stmt, None)

        return tirx.SeqStmt([
            *(tirx.AllocBuffer(b) for b in buffers),
            *(self.copies() if self.tiles.copy else []),
            loop(ceil_div(whole, chunks), tile, None, "tile"),
        ])  # fmt: skip

    # Operands

    def row(self, m: PrimExpr) -> PrimExpr:
        """A row of the last tile beyond the end repeats the last row."""
        return bounded(m, self.op.rows - 1, self.op.rows % self.lanes != 0)

    def key_row(self, n: PrimExpr) -> PrimExpr:
        """A key of the last register tile beyond the end repeats the last key."""
        return bounded(n, self.op.keys - 1, self.tiles.padded_keys != self.op.keys)

    def copies(self) -> list[Stmt]:
        """K of the head, contiguous, and V as panels, contiguous each."""
        op = self.op

        def key(n: PrimExpr) -> Stmt:
            source = self.key_row(n)
            return along(op.depth, lambda d: put(
                self.keys, n * op.depth + d, op.key(self.head, source, d)))  # fmt: skip

        def panel(n: PrimExpr, first: int, width: int, p: PrimExpr) -> Stmt:
            column = first + p * width
            at = self.place(n, column, width)
            return along(width, lambda e: put(
                self.values, at + e, op.value(self.head, n, column + e)))  # fmt: skip

        def value(n: PrimExpr) -> Stmt:
            return sequence([
                loop(number, partial(panel, n, first, width), None, "panel")
                for first, width, number in self.tiles.panels
            ])  # fmt: skip

        return [loop(self.tiles.padded_keys, key, None, "n"), loop(op.keys, value, None, "n")]

    def place(self, n: PrimExpr, column: PrimExpr, width: int) -> PrimExpr:
        """Where the copy of V has key n in the panel of `width` columns from `column` on."""
        return column * self.op.keys + n * width

    def key(self, n: PrimExpr, d: PrimExpr) -> PrimExpr:
        if self.tiles.copy:
            return self.keys[n * self.op.depth + d]
        return self.op.key(self.head, self.key_row(n), d)

    def value(self, n: PrimExpr, column: PrimExpr, width: int, e: PrimExpr) -> PrimExpr:
        """Element e of a panel's row."""
        if self.tiles.copy:
            return self.values[self.place(n, column, width) + e]
        return self.op.value(self.head, n, column + e)

    # A tile of rows

    def row_tile(self, first: PrimExpr) -> Stmt:
        op, tiles = self.op, self.tiles
        visible: PrimExpr = const(op.keys, "int32")
        if op.causal:
            visible = tirx.min(visible, first + self.lanes)
        start = [*self.transposed(first), self.fill(self.top, MINUS_INFINITY),
                 self.fill(self.total, ZERO)]  # fmt: skip
        if tiles.blocks == 1:
            steps = [self.block(first, const(0, "int32"), visible)]
            return tirx.SeqStmt([*start, *steps, self.inverse(), *self.products(first, visible)])
        size = tiles.block_keys

        def step(b: PrimExpr) -> Stmt:
            base = b * size
            count = tirx.min(visible - base, const(size, "int32"))
            return tirx.SeqStmt([self.block(first, base, count),
                                 *self.products(first, count, base)])  # fmt: skip

        zero = along(self.lanes * op.width, lambda i: put(self.sums, i, ZERO))
        rounds = (visible + (size - 1)) // size if op.causal else tiles.blocks
        return tirx.SeqStmt([*start, zero, loop(rounds, step, None, "block"), self.inverse(),
                             self.finish(first)])  # fmt: skip

    def fill(self, buffer: Any, value: PrimExpr) -> Stmt:
        return across(self.lanes, lambda i: put(buffer, i, value))

    def transposed(self, first: PrimExpr) -> list[Stmt]:
        """The tile's queries as [depth, lanes], times the scale."""
        op, lanes = self.op, self.lanes
        scale = const(op.scale * LOG2E, "float32")

        def square(i: PrimExpr) -> Stmt:
            """Eight rows by eight of the depth."""
            group, d = i % (lanes // SQUARE), i // (lanes // SQUARE) * SQUARE
            rows = scratch(SQUARE * SQUARE, "rows")

            def load(r: PrimExpr) -> Stmt:
                m = self.row(first + group * SQUARE + r)
                return loop(SQUARE, lambda v: put(
                    rows, r * SQUARE + v, op.query(self.head, m, d + v) * scale),
                    tirx.ForKind.VECTORIZED, "v")  # fmt: skip

            def column(k: int, values: PrimExpr) -> Stmt:
                place = tirx.Ramp((d + k) * lanes + group * SQUARE, 1, SQUARE)
                return tirx.BufferStore(self.queries, values, [place])

            return tirx.SeqStmt([tirx.AllocBuffer(rows), unrolled(SQUARE, load),
                                 *transpose8(rows, column)])  # fmt: skip

        def single(d: PrimExpr) -> Stmt:
            return loop(lanes, lambda v: put(
                self.queries, d * lanes + v, op.query(self.head, self.row(first + v), d) * scale),
                None, "lane")  # fmt: skip

        whole, rest = divmod(op.depth, SQUARE)
        squares = loop(whole * (lanes // SQUARE), square, None, "square") if whole else None
        singles = loop(rest, lambda d: single(whole * SQUARE + d), None, "d") if rest else None
        return [s for s in (squares, singles) if s is not None]

    def block(self, first: PrimExpr, base: PrimExpr, count: PrimExpr) -> Stmt:
        """Powers of `count` keys from `base`, with the running maxima, sums and factors."""
        size = self.tiles.key_tile
        tiles = loop((count + (size - 1)) // size, lambda i: self.score_tile(first, base, i),
                       None, "keys")  # fmt: skip
        before = scratch(self.lanes, "before")

        def rescale(i: PrimExpr) -> Stmt:
            top = self.top[i]
            return put(self.base, i, tirx.Select(top > MINUS_INFINITY, top, ZERO))

        def decay(i: PrimExpr) -> Stmt:
            factor = weight(before[i] - self.base[i])
            return tirx.SeqStmt([put(self.factor, i, factor),
                                 put(self.total, i, self.total[i] * self.factor[i])])  # fmt: skip

        def power(n: PrimExpr) -> Stmt:
            def lane(i: PrimExpr) -> Stmt:
                at = n * self.lanes + i
                value = weight(self.scores[at] - self.base[i])
                total = self.total[i] + self.scores[at]
                return tirx.SeqStmt([put(self.scores, at, value), put(self.total, i, total)])

            return across(self.lanes, lane)

        online = self.tiles.blocks > 1
        keep = [tirx.AllocBuffer(before), across(self.lanes, lambda i: put(before, i, self.top[i]))]
        return tirx.SeqStmt([
            *(keep if online else []), tiles, across(self.lanes, rescale),
            *([across(self.lanes, decay)] if online else []), loop(count, power, None, "n"),
        ])  # fmt: skip

    def score_tile(self, first: PrimExpr, base: PrimExpr, number: PrimExpr) -> Stmt:
        """Scores of a register tile: `key_tile` keys by all lanes; maxima are raised."""
        op, lanes, size = self.op, self.lanes, self.tiles.key_tile
        acc = scratch(size * lanes, "acc")
        offset = number * size

        def each(stmt: Callable[[PrimExpr, PrimExpr], Stmt]) -> Stmt:
            return unrolled(size, lambda k: across(lanes, lambda i: stmt(k, i)))

        def add(d: PrimExpr, k: PrimExpr, i: PrimExpr) -> Stmt:
            product = self.key(base + offset + k, d) * self.queries[d * lanes + i]
            return put(acc, k * lanes + i, product + acc[k * lanes + i])

        def finish(k: PrimExpr, i: PrimExpr) -> Stmt:
            at = (offset + k) * lanes + i
            n = self.key_row(base + offset + k)
            score = op.masked(acc[k * lanes + i], self.head, self.row(first + i), n)
            raised = tirx.max(self.top[i], self.scores[at])
            return tirx.SeqStmt([put(self.scores, at, score), put(self.top, i, raised)])

        return tirx.SeqStmt([
            tirx.AllocBuffer(acc), each(lambda k, i: put(acc, k * lanes + i, ZERO)),
            loop(op.depth, lambda d: each(lambda k, i: add(d, k, i)), None, "d"), each(finish),
        ])  # fmt: skip

    def inverse(self) -> Stmt:
        """`factor` becomes what the sums are divided by, as a factor; 0 for rows without keys."""

        def lane(i: PrimExpr) -> Stmt:
            total = self.total[i]
            value = tirx.Select(total > ZERO, const(1.0, "float32") / total, total)
            return put(self.factor, i, value)

        return across(self.lanes, lane)

    # Products with V

    def products(self, first: PrimExpr, count: PrimExpr, base: PrimExpr | None = None
                 ) -> list[Stmt]:  # fmt: skip
        """Weights times V: into the output, or with `base` onto the rescaled sums."""
        return [
            loop(number, self.panel(first, count, base, at, width), None, "panel")
            for at, width, number in self.tiles.panels
        ]

    def panel(self, first: PrimExpr, count: PrimExpr, base: PrimExpr | None, start: int,
              width: int) -> Callable[[PrimExpr], Stmt]:  # fmt: skip
        """Panel p from column `start` on, one register tile of rows at a time."""
        rows = self.tiles.tile_rows[0 if width == 1 else ceil_div(width, simd())]

        def build(p: PrimExpr) -> Stmt:
            def group(g: PrimExpr) -> Stmt:
                tile = ProductTile(self, first, g * rows, rows, start + p * width, width)
                return tile.build(count, base)

            return loop(self.lanes // rows, group, None, "rows")

        return build

    def finish(self, first: PrimExpr) -> Stmt:
        """The sums of a tile, divided, to the output."""
        op = self.op

        def line(r: PrimExpr) -> Stmt:
            stmt = along(op.width, lambda e: op.store(
                self.head, first + r, e, self.sums[r * op.width + e] * self.factor[r]))  # fmt: skip
            return tirx.IfThenElse(first + r < op.rows, stmt, None)

        return loop(self.lanes, line, None, "row")
