"""A tile of sums in registers: what products and convolutions share from zeroing to writing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Op, TensorLoad

from plait.codegen.core import core, simd
from plait.codegen.tiles import LINE, ceil_div
from plait.codegen.tvm.loops import loop, prefetch, put, sequence
from plait.codegen.tvm.scalars import const

PrimExpr = Any
Stmt = Any
MOST_UNROLLED = 12  # operations and loads of an epilogue that is repeated for each vector
_NO_WORK = (tirx.IntImm, tirx.FloatImm, tirx.Var, tirx.Let, Op)
UNROLLED, VECTORIZED = tirx.ForKind.UNROLLED, tirx.ForKind.VECTORIZED


def lanes_of(width: int) -> list[tuple[int, int]]:
    """(first, lanes) of the vectors that make up `width` neighbours."""
    return [(k, min(simd(), width - k)) for k in range(0, width, simd())]


def vectorized(lanes: int, stmt: Any) -> Stmt:
    """`stmt` at 0..lanes-1 in one vector."""
    return stmt(const(0, "int32")) if lanes == 1 else loop(lanes, stmt, VECTORIZED, "q")


def work_of(epilogue: PrimExpr) -> int:
    """Operations and loads of an epilogue: what is used twice counts once, addresses do not."""
    found: set[Any] = set()

    def visit(node: Any) -> Any:
        if isinstance(node, _NO_WORK):
            return None
        key = tvm_ffi.structural.StructuralKey(node)
        inside = key not in found and not isinstance(node, TensorLoad)
        found.add(key)
        return None if inside else tvm_ffi.structural.WalkResult.SKIP

    tvm_ffi.structural_walk(epilogue, (tirx.Expr, visit), order="pre")
    return len(found)


def loads_of(value: PrimExpr) -> list[Any]:
    """The loads from memory in an expression, each once."""
    found: dict[Any, Any] = {}

    def visit(node: Any) -> Any:
        found.setdefault(tvm_ffi.structural.StructuralKey(node), node)

    tvm_ffi.structural_walk(value, (TensorLoad, visit), order="pre")
    return list(found.values())


def ask_loads(value: PrimExpr, size: int) -> Stmt:
    """Ask for the lines of what an expression loads from tensors of so many elements."""
    loads = [load for load in loads_of(value) if int(load.source.shape[0]) == size]
    return sequence([prefetch(load.source, load.indices[0]) for load in loads])


def share_of(rows: int, panels: int, panel: PrimExpr) -> list[PrimExpr]:
    """Which of a tile's rows a panel asks for, so that all panels ask for all."""
    each = ceil_div(rows, panels)
    return [tirx.min(panel * each + k, rows - 1) for k in range(each)]


def is_heavy(epilogue: PrimExpr) -> bool:
    """Whether an epilogue is too much code to repeat for every vector of a tile."""
    return work_of(epilogue) > MOST_UNROLLED


def steps_of(
    count: int, step: Callable[[PrimExpr], Stmt], rows: int,
    claim: Callable[[PrimExpr], Stmt] | None,
) -> Stmt:  # fmt: skip
    """The steps of a sum; in the last ones `claim(row)` asks for what a row is written to, which
    would else be waited for."""
    each = core().claimed
    before = count - rows * each
    if claim is None or not each or before < 0:
        return loop(count, step, None, "k")

    def row(m: PrimExpr) -> Stmt:
        begin = before + m * each
        return sequence([claim(m), loop(each, lambda k: step(begin + k), None, "k")])

    first = loop(before, step, None, "k") if before else None
    return sequence([first, loop(rows, row, None, "claimed")])


def in_lines(count: int, step: Callable[[PrimExpr], Stmt], ask: Callable[[PrimExpr], Stmt]) -> Stmt:
    """The steps of a sum, a line of elements at a time; `ask(first)` comes before those of each."""
    lines, rest = divmod(count, LINE)

    def steps(first: PrimExpr, size: int) -> Stmt:
        return sequence([ask(first), loop(size, lambda c: step(first + c), None, "k")])

    whole = loop(lines, lambda k: steps(k * LINE, LINE), None, "line") if lines else None
    return sequence([whole, steps(const(lines * LINE, "int32"), rest) if rest else None])


@dataclass(frozen=True)
class LastPanel:
    """Panels of which the last is not full: it has so many `columns`.

    full: whether a tile is of another panel; None if there is no other.
    """

    columns: int
    full: PrimExpr | None


@dataclass
class RegisterTile:
    """Sums of `rows` rows by `width` columns."""

    rows: int
    width: int
    acc: Any = field(init=False)

    def __post_init__(self) -> None:
        self.acc = self._buffer("acc")

    def _buffer(self, name: str) -> Any:
        return tirx.decl_buffer((self.rows * self.width,), "float32", name=name)

    def each(self, stmt: Callable[[PrimExpr, PrimExpr, PrimExpr], Stmt]) -> Stmt:
        """`stmt(cell, row, lane)` for every sum, in vectors."""

        def row(m: PrimExpr) -> Stmt:
            return sequence([
                vectorized(lanes, lambda q, k=k: stmt(m * self.width + k + q, m, k + q))
                for k, lanes in lanes_of(self.width)
            ])  # fmt: skip

        return loop(self.rows, row, UNROLLED, "m")

    def lines(self, stmt: Callable[[PrimExpr, PrimExpr], Stmt]) -> Stmt:
        """`stmt(row, lane)` for the first of every line of sums."""

        def row(m: PrimExpr) -> Stmt:
            count = ceil_div(self.width, LINE)
            return loop(count, lambda c: stmt(m, c * LINE), UNROLLED, "c")

        return loop(self.rows, row, UNROLLED, "m")

    def clear(self) -> list[Stmt]:
        """Make the tile, of zeros."""
        zero = const(0.0, "float32")
        zeros = self.each(lambda cell, _m, _lane: put(self.acc, cell, zero))
        return [tirx.AllocBuffer(self.acc), zeros]

    def resume(self, kept: Any, at: PrimExpr) -> list[Stmt]:
        """Make the tile, of the sums that lie in a buffer from `at` on."""
        load = self.each(lambda cell, _m, _lane: put(self.acc, cell, kept[at + cell]))
        return [tirx.AllocBuffer(self.acc), load]

    def keep(self, kept: Any, at: PrimExpr) -> Stmt:
        """Put the sums into a buffer, from `at` on."""
        return self.each(lambda cell, _m, _lane: put(kept, at + cell, self.acc[cell]))

    def add(self, term: Callable[[PrimExpr, PrimExpr], PrimExpr]) -> Stmt:
        """Add `term(row, lane)` to every sum."""
        return self.each(lambda cell, m, k: put(self.acc, cell, self.acc[cell] + term(m, k)))

    def finish(
        self,
        store: Callable[[PrimExpr, PrimExpr, PrimExpr], Stmt],
        heavy: bool,
        owned: Callable[[PrimExpr], PrimExpr] | None = None,
        last: LastPanel | None = None,
    ) -> list[Stmt]:
        """`store(sum, row, lane)` for every sum, of rows that the tile owns and columns that exist.

        A heavy store is a loop over vectors, which reads a copy: registers have no index.  Of two
        nested loops LLVM would think that they run more often than the sum's, and keep constants
        in registers rather than the sums.
        """

        def row(source: Any, m: PrimExpr) -> Stmt:
            return self._if(owned, m, sequence(self._row(source, store, m, last)))

        if not heavy:
            return [loop(self.rows, lambda m: row(self.acc, m), UNROLLED, "m")]
        stage = self._buffer("stage")
        copy = [tirx.AllocBuffer(stage), self.keep(stage, const(0, "int32"))]
        if last is not None or self.width % simd():
            return [*copy, loop(self.rows, lambda m: row(stage, m), None, "m")]
        vectors = self.width // simd()

        def one(k: PrimExpr) -> Stmt:
            m, v = tirx.floordiv(k, vectors), tirx.floormod(k, vectors)
            return self._if(owned, m, self._vector(stage, store, m, v * simd(), simd()))

        return [*copy, loop(self.rows * vectors, one, None, "k")]

    def _if(self, owned: Any, m: PrimExpr, stmt: Stmt) -> Stmt:
        return stmt if owned is None else tirx.IfThenElse(owned(m), stmt, None)

    def _vector(self, source: Any, store: Any, m: PrimExpr, k: PrimExpr, lanes: int) -> Stmt:
        """Store `lanes` neighbours of one row, from lane `k` on."""
        width = self.width
        return vectorized(lanes, lambda q: store(source[m * width + k + q], m, k + q))

    def _row(
        self, source: Any, store: Any, m: PrimExpr, last: LastPanel | None
    ) -> list[Stmt | None]:
        """Store one row; the last panel may hold fewer columns than lanes."""
        stmts: list[Stmt | None] = []
        for k, lanes in lanes_of(self.width):
            at = const(k, "int32")
            stmt = self._vector(source, store, m, at, lanes)
            left = lanes if last is None else min(last.columns - k, lanes)
            if last is not None and left < lanes:
                rest = self._vector(source, store, m, at, left) if left > 0 else None
                stmt = rest if last.full is None else tirx.IfThenElse(last.full, stmt, rest)
            stmts.append(stmt)
        return stmts
