"""Reductions of rows: vectors of partial results, and how they become numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plait.codegen.core import simd
from plait.codegen.nans import shows_anyway
from plait.codegen.tvm.loops import combine, fill, put, vector, vectors
from plait.codegen.tvm.nest import Phases
from plait.codegen.tvm.scalars import const, tir_dtype
from plait.ir import expr as e
from plait.ir import types as t

PrimExpr = Any
Stmt = Any


@dataclass(frozen=True)
class Total:
    """A reduction in progress: partial results in vector lanes, and the number they end in.

    numbers: whether it need not keep NaN.
    vectors: of partial results; four hide the latency of an addition.
    """

    source: int
    kind: str
    dtype: t.DType
    lanes: Any
    total: Any
    numbers: bool
    vectors: int

    def take(self, buffer: Any, at: PrimExpr, value: PrimExpr) -> Stmt:
        """Reduce one more value into an element of `buffer`."""
        return put(buffer, at, combine(self.kind, self.dtype, buffer[at], value, self.numbers))

    def begin(self) -> list[Stmt]:
        start = const(e.identity(self.kind, self.dtype), tir_dtype(self.dtype))
        store = fill(self.lanes, start)
        return [
            fill(self.total, start)(const(0, "int32")),
            *vectors(self.vectors, lambda u, i: store(u * simd() + i)),
        ]

    def fold(self) -> list[Stmt]:
        """Lanes to one number, in a fixed order."""
        stmts: list[Stmt] = []
        half = self.vectors * simd() // 2
        while half:
            width = min(half, simd())
            stmts += [self._halve(half, at, width) for at in range(0, half, width)]
            half //= 2
        zero = const(0, "int32")
        return [*stmts, self.take(self.total, zero, self.lanes[zero])]

    def _halve(self, half: int, start: int, width: int) -> Stmt:
        """Take `width` lanes of the upper half from `start` on into those of the lower half."""

        def lane(v: PrimExpr) -> Stmt:
            return self.take(self.lanes, start + v, self.lanes[half + start + v])

        return vector(lane, max(2, width))  # one lane too many: a maximum of two numbers branches


def total(phases: Phases, v: int, vectors: int) -> Total:
    """The reduction that a value is, with memory of its own."""
    source, kind, dtype = phases.n.reduction(v)
    lanes = phases.allocate(vectors * simd(), dtype, f"acc{v}")
    numbers = kind in ("max", "min") and shows_anyway(phases.n.body, v)
    return Total(source, kind, dtype, lanes, phases.allocate(1, dtype, f"red{v}"), numbers, vectors)
