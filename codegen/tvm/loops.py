"""What makes TIR loops and flat memory: shared by every template that writes TIR directly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tvm import tirx

from plait.codegen.tvm.scalars import FUNCTIONS, const, dtype_of, tir_dtype
from plait.ir import types as t
from plait.ir.dims import Dim
from plait.ir.layout import strides
from plait.ir.types import TensorType

PrimExpr = Any
Stmt = Any
LANES = 8
# Below about this many elementary operations a second thread costs more than it saves.
PARALLEL_WORK = 30_000


def loop(n: int, body: Callable[[Any], Stmt], kind: Any = None, name: str = "i") -> Stmt:
    """A loop of `n` iterations; one or none needs no loop."""
    if n == 1 and kind != tirx.ForKind.VECTORIZED:
        return body(const(0, "int32"))
    var = tirx.Var(name, "int32")
    start, end = const(0, "int32"), const(n, "int32")
    return tirx.For(var, start, end, kind or tirx.ForKind.SERIAL, body(var))


def sequence(stmts: Sequence[Stmt]) -> Stmt:
    kept = [s for s in stmts if s is not None]
    if not kept:
        return tirx.Evaluate(const(0, "int32"))
    return kept[0] if len(kept) == 1 else tirx.SeqStmt(kept)


def unflatten(position: PrimExpr, extents: Sequence[int]) -> list[PrimExpr]:
    """The index of a row-major position."""
    index: list[PrimExpr] = []
    for n in reversed(extents[1:]):
        index.append(tirx.floormod(position, n))
        position = tirx.floordiv(position, n)
    return ([position, *reversed(index)]) if extents else []


@dataclass
class Flat:
    """A tensor as flat memory, addressed by logical index."""

    type: TensorType
    buffer: Any
    steps: tuple[Dim, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.steps = strides(self.type)

    def at(self, index: Sequence[PrimExpr]) -> PrimExpr:
        offset: PrimExpr = const(0, "int32")
        for i, step, n in zip(index, self.steps, self.type.shape, strict=True):
            if n != 1:
                offset = offset + i * step if step != 1 else offset + i
        return offset

    def load(self, index: Sequence[PrimExpr]) -> PrimExpr:
        return self.buffer[self.at(index)]

    def store(self, index: Sequence[PrimExpr], value: PrimExpr) -> Stmt:
        return tirx.BufferStore(self.buffer, value, [self.at(index)])


def flat(type: TensorType, name: str) -> Flat:
    size = max(1, math.prod(type.static("TVM code generation")))
    return Flat(type, tirx.decl_buffer((size,), tir_dtype(type.dtype), name=name))


def as_stored(value: PrimExpr, dtype: t.DType) -> PrimExpr:
    """Index arithmetic is int32; memory has the full width."""
    want = tir_dtype(dtype)
    return value if dtype_of(value) == want else value.astype(want)


def vector(stmt: Callable[[PrimExpr], Stmt]) -> Stmt:
    return loop(LANES, stmt, tirx.ForKind.VECTORIZED, "v")


def vectors(count: int, stmt: Callable[[int, PrimExpr], Stmt]) -> list[Stmt]:
    """`stmt(u, lane)` for vectors u = 0..count-1, one vector loop after the other."""
    return [vector(partial(stmt, u)) for u in range(count)]


def fill(buffer: Any, value: PrimExpr) -> Callable[[PrimExpr], Stmt]:
    """A statement that stores one value at a position of a buffer."""
    return lambda at: tirx.BufferStore(buffer, value, [at])


def combine(kind: str, dtype: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """One step of a reduction; `a` is the accumulator."""
    name = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}[kind]
    return FUNCTIONS[name](dtype, a, b)
