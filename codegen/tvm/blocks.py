"""Pieces of hand-built kernels: loops, register tiles and polynomial functions as TIR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from plait.codegen.tvm.loops import LEAST
from plait.codegen.tvm.lower import lower
from plait.codegen.tvm.scalars import const
from plait.ir import approx
from plait.ir import expr as e
from plait.ir import types as t

PrimExpr = Any
Stmt = Any

ZERO = const(0.0, "float32")
MINUS_INFINITY = const(float("-inf"), "float32")
SQUARE = LEAST  # rows and columns of what `transpose8` turns


def scratch(size: int, name: str) -> Any:
    """A float32 buffer of the kernel's own: below 4 KiB on the stack or in registers."""
    return tirx.decl_buffer((size,), "float32", name=name)


LOG2E = 1.4426950408889634


def weight(x: PrimExpr) -> PrimExpr:
    """2**x for x <= 0 or NaN, 0 below 2**-126: half the work of `exp`, for softmax in base 2."""
    argument = e.Load(0, (), t.f32)
    held = e.select(argument < -127.0, e.lit(-127.0, t.f32), argument)
    fraction, power = approx.exp2_factors(held)
    return lower(fraction * power, lambda k, index: x, {})


def bounded(index: PrimExpr, last: int, needed: bool) -> PrimExpr:
    """`index`, held to `last` if it may exceed it."""
    return tirx.min(index, const(last, "int32")) if needed else index


_TRANSPOSE = (
    ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)),
    ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)),
    ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)),
)


def transpose8(rows: Any, put_column: Callable[[int, PrimExpr], Stmt]) -> list[Stmt]:
    """Columns of an 8 by 8 tile in a buffer, `put_column(j, vector)` for each.

    Three rounds of shuffles of two vectors each; source of the idea: any transposition of 2**n
    by 2**n is n rounds of pairwise interleaving.
    """

    def load(buffer: Any, k: int) -> PrimExpr:
        return tirx.BufferLoad(buffer, [tirx.Ramp(const(k * SQUARE, "int32"), 1, SQUARE)])

    def mix(a: PrimExpr, b: PrimExpr, picks: tuple[int, ...]) -> PrimExpr:
        return tirx.Shuffle([a, b], [const(p, "int32") for p in picks])

    stmts: list[Stmt] = []
    current = rows
    for level, distance in ((0, 1), (1, 2)):
        following = scratch(SQUARE * SQUARE, f"t{level}")
        stmts.append(tirx.AllocBuffer(following))
        for a in (k for k in range(SQUARE) if not k & distance):
            pair = load(current, a), load(current, a + distance)
            for half, picks in enumerate(_TRANSPOSE[level]):
                place = tirx.Ramp(const((a + half * distance) * SQUARE, "int32"), 1, SQUARE)
                stmts.append(tirx.BufferStore(following, mix(*pair, picks), [place]))
        current = following
    for a, column in enumerate((0, 2, 1, 3)):
        pair = load(current, a), load(current, a + 4)
        stmts += [put_column(column + 4 * half, mix(*pair, picks))
                  for half, picks in enumerate(_TRANSPOSE[2])]  # fmt: skip
    return stmts
