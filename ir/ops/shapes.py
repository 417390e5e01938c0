"""Helpers shared by the families: broadcasting, axes, index arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.ir import expr as e
from plait.ir.dims import Dim, equal
from plait.ir.errors import TypeRuleError
from plait.ir.types import TensorType


def broadcast(op: str, shapes: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """Numpy's broadcasting on ints and symbols (a symbol never equals 1 silently)."""
    rank = max((len(s) for s in shapes), default=0)
    result: list[Dim] = []
    for d in range(rank):
        size: Dim = 1
        for shape in shapes:
            k = d - rank + len(shape)
            if k < 0 or equal(shape[k], 1):
                continue
            if not equal(size, 1) and not equal(size, shape[k]):
                raise TypeRuleError(
                    f"dimension {d - rank} has sizes {size} and {shape[k]}, which do not broadcast",
                    op=op,
                )
            size = shape[k]
        result.append(size)
    return tuple(result)


def load(operand: int, type: TensorType, index: Sequence[e.Expr]) -> e.Expr:
    return e.Load(operand, tuple(index), type.dtype)


def broadcast_load(operand: int, type: TensorType, index: Sequence[e.Expr]) -> e.Expr:
    """Element of an operand that broadcasts to the result's index."""
    own = index[len(index) - type.rank :] if type.rank else ()
    zero = e.Lit(0, own[0].dtype) if own else None
    picked = [
        zero if zero is not None and equal(n, 1) else i
        for i, n in zip(own, type.shape, strict=True)
    ]
    return load(operand, type, [p for p in picked if p is not None])


def normalize_axis(axis: int, rank: int) -> int:
    """A dimension number in [0, rank); negative ones count from the end."""
    if not -max(rank, 1) <= axis < max(rank, 1):
        raise TypeRuleError(f"dimension {axis} is out of range for rank {rank}", op="axis")
    return axis % rank if rank else 0


def normalize_axes(axes: Sequence[int] | int | None, rank: int) -> tuple[int, ...]:
    """Sorted distinct dimension numbers; None or an empty list means all of them.

    Torch lets a scalar be reduced along its dimension 0, which it does not have.
    """
    if axes is None or (not isinstance(axes, int) and not len(axes)):
        return tuple(range(rank))
    chosen = [axes] if isinstance(axes, int) else list(axes)
    return tuple(sorted({normalize_axis(a, rank) for a in chosen})) if rank else ()


def widen(x: Any) -> Any:
    """Floats in float64, in which references accumulate; other arrays as they are."""
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def pad_or_crop(x: Any, low: Sequence[int], high: Sequence[int], value: Any) -> Any:
    """An array with `value` added before and after each dimension; negative amounts crop."""
    amounts = list(zip(low, high, strict=True))
    if not amounts:
        return x
    out = np.pad(x, [(max(lo, 0), max(hi, 0)) for lo, hi in amounts], constant_values=value)
    return out[
        tuple(
            slice(-min(lo, 0), n + min(hi, 0))
            for (lo, hi), n in zip(amounts, out.shape, strict=True)
        )
    ]


def all_of(tests: Sequence[e.Expr]) -> e.Expr | None:
    """The conjunction of tests, None for none."""
    result: e.Expr | None = None
    for test in tests:
        result = test if result is None else result & test
    return result
