"""Attention's second product: a register tile of weights times V, in one sum or block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx

from plait.codegen.tvm.blocks import ZERO, scratch
from plait.codegen.tvm.loops import across, loop, put, unrolled
from plait.codegen.tvm.scalars import const

if TYPE_CHECKING:
    from plait.codegen.tvm.attend import Task

PrimExpr = Any
Stmt = Any


@dataclass(frozen=True)
class ProductTile:
    """A register tile of weights times V: `rows` query rows from `row` of the tile of rows that
    begins at `first`, by `width` columns from `column`.
    """

    task: Task
    first: PrimExpr
    row: PrimExpr
    rows: int
    column: PrimExpr
    width: int

    def each(self, stmt: Callable[[PrimExpr, PrimExpr], Stmt]) -> Stmt:
        if self.width == 1:
            return across(self.rows, lambda r: stmt(r, const(0, "int32")))
        return unrolled(self.rows, lambda r: across(self.width, lambda e: stmt(r, e)))

    def build(self, count: PrimExpr, base: PrimExpr | None) -> Stmt:
        """The sum over `count` keys, from `base` on if there are several blocks."""
        task, width = self.task, self.width
        acc = scratch(self.rows * width, "acc")
        origin = base if base is not None else const(0, "int32")

        def start(r: PrimExpr, e: PrimExpr) -> Stmt:
            old = task.sums[self.place(r, e)] * task.factor[self.row + r]
            return put(acc, r * width + e, ZERO if base is None else old)

        def add(n: PrimExpr, r: PrimExpr, e: PrimExpr) -> Stmt:
            value = task.value(origin + n, self.column, width, e)
            product = task.scores[n * task.lanes + self.row + r] * value
            return put(acc, r * width + e, product + acc[r * width + e])

        def keep(r: PrimExpr, e: PrimExpr) -> Stmt:
            return put(task.sums, self.place(r, e), acc[r * width + e])

        return tirx.SeqStmt([
            tirx.AllocBuffer(acc), self.each(start),
            loop(count, lambda n: self.each(lambda r, e: add(n, r, e)), None, "n"),
            self.stores(acc) if base is None else self.each(keep),
        ])  # fmt: skip

    def place(self, r: PrimExpr, e: PrimExpr) -> PrimExpr:
        return (self.row + r) * self.task.op.width + self.column + e

    def stores(self, acc: Any) -> Stmt:
        """The tile, divided, to the output; rows beyond the last are left out."""
        task, op = self.task, self.task.op

        def end(r: PrimExpr, e: PrimExpr) -> Stmt:
            value = acc[r * self.width + e] * task.factor[self.row + r]
            return op.store(task.head, self.first + self.row + r, self.column + e, value)

        if op.rows % task.lanes == 0:
            return self.each(end)

        def guarded(r: PrimExpr) -> Stmt:
            single = self.width == 1
            stmt = end(r, const(0, "int32")) if single else across(self.width, lambda e: end(r, e))
            return tirx.IfThenElse(self.first + self.row + r < op.rows, stmt, None)

        return unrolled(self.rows, guarded)
