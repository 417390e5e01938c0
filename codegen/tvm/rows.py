"""Nests that reduce their innermost dimension: every row is finished by one thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from plait.codegen.core import core, simd
from plait.codegen.tiles import ceil_div
from plait.codegen.tvm.loops import (
    LEAST,
    PARALLEL_WORK,
    Flat,
    arranged,
    loop,
    prefetch,
    put,
    sequence,
    unflatten,
    vector,
    vectors,
)
from plait.codegen.tvm.nest import Nest, Phases, Read, Span
from plait.codegen.tvm.scalars import const
from plait.codegen.tvm.staggered import in_flight, staggered
from plait.codegen.tvm.totals import Total, total
from plait.ir.types import LINE_BYTES
from plait.passes.memory import elementwise_only

PrimExpr = Any
Stmt = Any
UNROLL = 4  # vectors of partial results
MAX_ROW_BYTES = 256 * 1024


class Rows(Phases):
    """One row of a nest that reduces its innermost dimension.

    ahead: the row to ask for meanwhile, if any.
    """

    def __init__(
        self, nest: Nest, row: dict[int, PrimExpr], length: int,
        ahead: dict[int, PrimExpr] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(nest, row)
        self.ahead = ahead or {}
        self.inner = nest.space.shape[self.reduced[-1]]
        self.outer = [nest.space.shape[d] for d in self.reduced[:-1]]
        self.length = length
        self.totals: dict[int, Total] = {}

    def index(self, outer: Sequence[PrimExpr], at: PrimExpr) -> list[PrimExpr]:
        return self.point([*outer, at])

    def place(self, outer: Sequence[PrimExpr], at: PrimExpr) -> PrimExpr:
        """Position inside the row."""
        position: PrimExpr = const(0, "int32")
        for i, n in zip(outer, self.outer, strict=True):
            position = position * n + i
        return position * self.inner + at

    def over_row(
        self,
        wide: Callable[[list[PrimExpr], PrimExpr, PrimExpr], Stmt],
        narrow: Callable[[list[PrimExpr], PrimExpr], Stmt],
        asking: bool = False,
    ) -> Stmt:
        """Statements for every element: `wide(outer, at, slot)` inside a vector loop, where slot
        numbers the accumulator, and `narrow(outer, at)` for the rest.  With `asking`, the row
        ahead is asked for, line by line."""
        step = UNROLL * simd()
        blocks, rest = divmod(self.inner, step)
        count, tail = divmod(rest, simd())

        def inside(p: PrimExpr) -> Stmt:
            outer = unflatten(p, self.outer)

            def block(base: PrimExpr, n: int) -> list[Stmt]:
                return vectors(n, lambda u, v: wide(outer, base + u * simd() + v, u * simd() + v))

            parts: list[Stmt] = []
            if blocks:
                parts.append(loop(blocks, lambda j: sequence([
                    *(self._ask(outer, j * step) if asking else []), *block(j * step, UNROLL),
                ]), None, "j"))  # fmt: skip
            parts += block(blocks * step, count)
            base, left = blocks * step + count * simd(), tail % LEAST
            if tail > left:
                parts.append(vector(lambda v: wide(outer, base + v, v), tail - left))
            if left:
                base = self.inner - left
                parts.append(loop(left, lambda v: narrow(outer, base + v), None, "tail"))
            return sequence(parts)

        return loop(math.prod(self.outer), inside, None, "o")

    def _ask(self, outer: list[PrimExpr], base: PrimExpr) -> list[Stmt]:
        """Ask for what a block of vectors from `base` is in the row ahead, and for the lines that
        results go to if those are beyond the caches."""
        parameters, space = self.n.parameters, self.n.space
        asked = [(f, False) for f in parameters.inputs]
        if 4 * math.prod(space.shape) > core().asked_beyond:
            asked += [(f, True) for f in parameters.outputs if not f.past]
        stmts: list[Stmt] = []
        for f, write in asked:
            if f.type.shape == space.shape and f.steps[self.reduced[-1]] == 1:
                line = LINE_BYTES // f.type.dtype.itemsize
                for at in range(0, UNROLL * simd(), line):
                    point = arranged([*self.ahead, *self.reduced],
                                     [*self.ahead.values(), *outer, base + at])  # fmt: skip
                    stmts.append(prefetch(f.buffer, f.at(point), write))
        return stmts

    def _lent(self, level: int, kept: Sequence[int]) -> dict[int, Flat]:
        """Values to keep in the memory of the result until that is known.

        It may be an operand's memory too, so all operands must have been read by then; and the
        result must read the value nowhere but in its own place.
        """
        body = self.n.body
        if len(kept) != 1 or len(body.outputs) != 1:
            return {}
        (v,), (out,), (f,) = kept, body.outputs, self.n.parameters.outputs
        alike = body.types[v].with_layout(None) == body.types[out].with_layout(None)
        fits = out != v and alike and elementwise_only(body, v, 0)
        inputs = range(len(body.inputs))
        read = any(self._read_since(level, i, v) for i in inputs if self.n.is_full(i))
        if not fits or read:
            return {}
        f.past = False  # it is read again
        return {v: f}

    def _read_since(self, level: int, v: int, kept: int) -> bool:
        """Whether a value is read from the phase of this level on, but for what makes `kept`."""
        body = self.n.body
        if v == kept:
            return False
        if v in body.outputs:
            return True
        for u in body.users[v]:
            for r in body.results(u):
                reduced = body.nodes[u].op.startswith("reduce_")
                if self.n.levels[r] >= level if reduced else self._read_since(level, r, kept):
                    return True
        return False

    def reduce(self, level: int) -> list[Stmt]:
        body = self.n.body
        kept = [v for v in self.worth_keeping(level - 1) if self._row_bytes(v) <= MAX_ROW_BYTES]
        lent = self._lent(level, kept)
        kept = [v for v in kept if v not in lent]
        early = lent | {
            v: f for v, f in self.outputs(full=True)
            if self.n.levels[v] == level - 1 and body.users[v] and v not in kept
        }  # fmt: skip
        spaces = {v: self.allocate(self.length, body.types[v].dtype, f"kept{v}") for v in kept}
        totals = {v: total(self, v, UNROLL) for v in self.n.reductions(level)}
        self.totals |= totals

        def shared(outer: list[PrimExpr], at: PrimExpr) -> list[Stmt]:
            """Store what later phases read again, to be read back in this one."""
            index = self.index(outer, at)
            place = self.place(outer, at)
            stmts = [put(space, place, self.n.element(v, index)) for v, space in spaces.items()]
            return stmts + [self.n.store(v, f, index) for v, f in early.items()]

        def wide(outer: list[PrimExpr], at: PrimExpr, slot: PrimExpr) -> Stmt:
            read = [self._read(a.source, spaces, early, outer, at) for a in totals.values()]
            taken = [a.take(a.lanes, slot, x) for a, x in zip(totals.values(), read, strict=True)]
            return sequence([*shared(outer, at), *taken])

        def narrow(outer: list[PrimExpr], at: PrimExpr) -> Stmt:
            zero = const(0, "int32")
            read = [self._read(a.source, spaces, early, outer, at) for a in totals.values()]
            taken = [a.take(a.total, zero, x) for a, x in zip(totals.values(), read, strict=True)]
            return sequence([*shared(outer, at), *taken])

        loops = self.over_row(wide, narrow, bool(self.ahead) and 1 < level == self.n.depth)
        for v in kept:
            self.n.keep(v, self._row_reader(spaces[v]))
        for v, f in early.items():
            self.n.keep(v, f.load)
        begun = [s for a in totals.values() for s in a.begin()]
        return [*begun, loops, *(s for a in totals.values() for s in a.fold())]

    def _read(
        self, v: int, spaces: dict[int, Any], early: dict[int, Flat], outer: list[PrimExpr],
        at: PrimExpr,
    ) -> PrimExpr:  # fmt: skip
        """A value's element, from memory if this very phase has just stored it."""
        if v in spaces:
            return spaces[v][self.place(outer, at)]
        index = self.index(outer, at)
        return early[v].load(self.n.row_index(v, index)) if v in early else self.n.element(v, index)

    def _row_reader(self, buffer: Any) -> Read:
        def read(index: Sequence[PrimExpr]) -> PrimExpr:
            outer = [index[d] for d in self.reduced[:-1]]
            return buffer[self.place(outer, index[self.reduced[-1]])]

        return read

    def _row_bytes(self, v: int) -> int:
        full = self.n.body.types[v].shape == self.n.space.shape
        return self.length * self.n.body.types[v].dtype.itemsize if full else MAX_ROW_BYTES + 1

    def finish_level(self, level: int) -> list[Stmt]:
        """Reductions and what follows from them alone become numbers of this row."""
        zero = const(0, "int32")
        for v in self.n.reductions(level):
            self.n.keep(v, _number(self.totals[v].total))
        stmts: list[Stmt] = []
        index = self.index([zero] * len(self.outer), zero)
        for v in self.row_values(level):
            buffer = self.allocate(1, self.n.body.types[v].dtype, f"row{v}")
            stmts.append(put(buffer, zero, self.n.element(v, index)))
            self.n.keep(v, _number(buffer))
        return stmts

    def final(self) -> list[Stmt]:
        zero = const(0, "int32")
        late = [(v, f) for v, f in self.outputs(full=True) if self.n.kept(v) != f.load]

        def stores(outer: list[PrimExpr], at: PrimExpr) -> Stmt:
            index = self.index(outer, at)
            return sequence([self.n.store(v, f, index) for v, f in late])

        stmts = [self.over_row(lambda outer, at, _: stores(outer, at), stores)] if late else []
        index = self.index([zero] * len(self.outer), zero)
        return stmts + [self.n.store(v, f, index) for v, f in self.outputs(full=False)]


def _number(buffer: Any) -> Read:
    return lambda _: buffer[const(0, "int32")]


def rows(nest: Nest, span: Span | None = None) -> list[Stmt]:
    """The rows of a nest, shared among threads if there is enough work, or some of them."""
    kept = [d for d in nest.space.order if d not in nest.space.axes]
    extents = [nest.space.shape[d] for d in kept]
    count = math.prod(extents)
    if count == 0:
        return []
    length = math.prod(nest.space.shape[a] for a in nest.space.axes)
    busy = count >= 2 and count * length * nest.cost >= PARALLEL_WORK

    def place(r: PrimExpr) -> dict[int, PrimExpr]:
        return dict(zip(kept, unflatten(r, extents), strict=True))

    if span is None and in_flight(nest, count, length):
        return staggered(nest, count, length, place)

    def row(r: PrimExpr) -> Stmt:
        later = tirx.min(r + ceil_div(core().rows_ahead, max(1, length)), count - 1)
        ahead = place(later) if core().rows_ahead else None
        return Rows(nest, place(r), length, ahead).build()

    if span is not None:
        return [loop(span.count, lambda r: row(span.first + r), None, "row")]
    return [loop(count, row, tirx.ForKind.PARALLEL if busy else None, "row")]
