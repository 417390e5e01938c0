"""Nests that reduce, but keep their innermost dimension: vectors of columns reduced together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvm import tirx

from plait.codegen.core import core, simd
from plait.codegen.tiles import LINE
from plait.codegen.tvm.loops import (
    LEAST,
    PARALLEL_WORK,
    Flat,
    across,
    along,
    combine,
    fill,
    loop,
    put,
    sequence,
    unflatten,
)
from plait.codegen.tvm.nest import Nest, Phases, Read
from plait.codegen.tvm.register_tile import ask_loads
from plait.codegen.tvm.scalars import const, tir_dtype
from plait.ir import expr as e
from plait.ir import types as t

PrimExpr = Any
Stmt = Any
CHEAP = 8  # operations an element
MANY_VECTORS = 16  # of columns, whose accumulators are all that registers hold
MOST_COLUMNS = 4096  # whose accumulators lie in L1
PART = 4 * LINE  # elements of a row that are asked for at once
MANY_TILES = 16  # so many that one more or less for a thread is little


class Columns(Phases):
    """`width` columns of a nest that keeps its innermost dimension."""

    def __init__(self, nest: Nest, row: dict[int, PrimExpr], base: PrimExpr, width: int) -> None:
        self.column = nest.space.order[-1]
        super().__init__(nest, {**row, self.column: base})
        self.base, self.width = base, width
        self.extents = [nest.space.shape[d] for d in self.reduced]

    def index(self, reduced: Sequence[PrimExpr], lane: PrimExpr) -> list[PrimExpr]:
        index = self.point(reduced)
        index[self.column] = self.base + lane
        return index

    def lanes(self, stmt: Callable[[PrimExpr], Stmt]) -> Stmt:
        if self.width == 1:
            return stmt(const(0, "int32"))
        return (along if self.whole else across)(self.width, stmt)

    @property
    def whole(self) -> bool:
        """Whether the tile is whole rows that come from memory: more than registers hold."""
        return self.width > MANY_VECTORS * simd()

    def over(self, stmt: Callable[[list[PrimExpr], PrimExpr], Stmt]) -> Stmt:
        return loop(
            math.prod(self.extents),
            lambda p: self.lanes(partial(stmt, unflatten(p, self.extents))),
            None,
            "r",
        )

    def streamed(
        self, stmt: Callable[[list[PrimExpr], PrimExpr], Stmt], sources: Sequence[int]
    ) -> Stmt:
        """As `over`, for whole rows: they are asked for `Core.ahead`, and so are one stream."""
        full = math.prod(self.n.space.shape)

        def part(p: PrimExpr, c: PrimExpr) -> Stmt:
            reduced, first = unflatten(p, self.extents), c * PART
            ahead = [self.index(reduced, first + k + core().ahead) for k in range(0, PART, LINE)]
            asks = [ask_loads(self.n.element(v, at), full) for at in ahead for v in sources]
            return sequence([*asks, across(PART, lambda q: stmt(reduced, first + q))])

        def row(p: PrimExpr) -> Stmt:
            return loop(self.width // PART, partial(part, p), None, "c")

        return loop(math.prod(self.extents), row, None, "r")

    def reduce(self, level: int) -> list[Stmt]:
        before: list[Stmt] = []
        updates: dict[int, tuple[int, str, Any]] = {}
        for v in self.n.reductions(level):
            source, kind, dtype = self.n.reduction(v)
            acc = self.allocate(self.width, dtype, f"acc{v}")
            start = const(e.identity(kind, dtype), tir_dtype(dtype))
            before.append(self.lanes(fill(acc, start)))
            updates[v] = source, kind, acc

        def step(reduced: list[PrimExpr], lane: PrimExpr) -> Stmt:
            index = self.index(reduced, lane)
            stmts = []
            for v, (source, kind, acc) in updates.items():
                dtype = self.n.body.types[v].dtype
                total = combine(kind, dtype, acc[lane], self.n.element(source, index))
                stmts.append(put(acc, lane, total))
            return sequence(stmts)

        sources = [source for source, _, _ in updates.values()]
        loops = self.streamed(step, sources) if self.whole else self.over(step)
        for v, (_, _, acc) in updates.items():
            self.n.keep(v, self._lane_reader(acc, v))
        return [*before, loops]

    def _lane_reader(self, buffer: Any, v: int) -> Read:
        at = self.n.row_index(v, list(range(len(self.n.space.shape)))).index(self.column)
        return lambda index: buffer[index[at] - self.base]

    def finish_level(self, level: int) -> list[Stmt]:
        stmts: list[Stmt] = []
        for v in filter(self._varies, self.row_values(level)):
            buffer = self.allocate(self.width, self.n.body.types[v].dtype, f"row{v}")
            stmts.append(self.lanes(partial(self._store_row, v, buffer)))
            self.n.keep(v, self._lane_reader(buffer, v))
        return stmts

    def _store_row(self, v: int, buffer: Any, lane: PrimExpr) -> Stmt:
        return put(buffer, lane, self.n.element(v, self._row_at(lane)))

    def _row_at(self, lane: PrimExpr) -> list[PrimExpr]:
        """The index of a value that does not vary along the reduced dimensions."""
        return self.index([const(0, "int32")] * len(self.reduced), lane)

    def _varies(self, v: int) -> bool:
        names = self.n.row_index(v, list(range(len(self.n.space.shape))))
        return self.column in names and self.n.body.types[v].shape[names.index(self.column)] != 1

    def final(self) -> list[Stmt]:
        late, rows = self.outputs(full=True), self.outputs(full=False)

        def stores(reduced: list[PrimExpr], lane: PrimExpr) -> Stmt:
            return sequence([self.n.store(v, f, self.index(reduced, lane)) for v, f in late])

        stmts = [self.over(stores)] if late else []
        return stmts + [self.lanes(partial(self._store_output, v, f)) for v, f in rows]

    def _store_output(self, v: int, out: Flat, lane: PrimExpr) -> Stmt:
        return self.n.store(v, out, self._row_at(lane))


def _widths(nest: Nest, rows: int, columns: int) -> list[int]:
    """Columns that are reduced together: all, many or four vectors, one, and single ones for the
    tail.

    All or many where a level is one cheap reduction, where enough tiles are left to share among
    threads, and where that adds no second loop: all if they come from memory, which delivers whole
    rows faster than pieces of them, else as many as registers hold accumulators for.
    """
    wide = MANY_VECTORS * simd()
    levels = [nest.reductions(k + 1) for k in range(nest.depth)]
    lean = nest.cost <= CHEAP and all(
        len(level) == 1 and nest.reduction(level[0])[2] == t.f32 for level in levels
    )
    far = 4 * math.prod(nest.space.shape) > core().asked_beyond
    all_of_them = wide < columns <= MOST_COLUMNS and columns % PART == 0
    if lean and far and all_of_them and rows >= MANY_TILES:
        return [columns]
    whole = columns % wide == 0 or columns % (4 * simd()) != 0
    many = [wide] if lean and whole and rows * (columns // wide) >= MANY_TILES else []
    return [*many, 4 * simd(), simd(), *([LEAST] if simd() > LEAST else []), 1]


def columns(nest: Nest) -> list[Stmt]:
    """The columns of a nest in tiles, widest first, shared among threads where it pays."""
    order = nest.space.order
    outer = [d for d in order[:-1] if d not in nest.space.axes]
    extents = [nest.space.shape[d] for d in outer]
    inner = nest.space.shape[order[-1]]
    rows = math.prod(extents)
    if rows == 0 or inner == 0:
        return []
    length = math.prod(nest.space.shape[a] for a in nest.space.axes)

    def tile(width: int, start: int, tiles: int, p: PrimExpr) -> Stmt:
        row = unflatten(tirx.floordiv(p, tiles), extents)
        base = const(start, "int32") + tirx.floormod(p, tiles) * width
        return Columns(nest, dict(zip(outer, row, strict=True)), base, width).build()

    parts: list[Stmt] = []
    at = 0
    for width in _widths(nest, rows, inner):
        tiles = (inner - at) // width
        if not tiles:
            continue
        work = rows * tiles * width * length * nest.cost
        busy = rows * tiles >= 2 and work >= PARALLEL_WORK
        kind = tirx.ForKind.PARALLEL if busy else None
        parts.append(loop(rows * tiles, partial(tile, width, at, tiles), kind, "tile"))
        at += tiles * width
    return parts
