"""Index expressions as linear forms: which loads may become operands with an indexing map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.ir.dims import Dim, bounds, equal
from plait.ir.expr import Apply, Axis, Expr, Index, Lit, Load
from plait.ir.types import TensorType


@dataclass(frozen=True)
class Linear:
    """The sum of `constant` and each axis times its coefficient (none of them zero)."""

    terms: tuple[tuple[Axis, int], ...] = ()
    constant: int = 0

    def plus(self, other: Linear, factor: int = 1) -> Linear:
        """`self + factor * other`."""
        total = dict(self.terms)
        for axis, coefficient in other.terms:
            total[axis] = total.get(axis, 0) + factor * coefficient
        kept = tuple((a, c) for a, c in total.items() if c)
        return Linear(kept, self.constant + factor * other.constant)

    @property
    def axis(self) -> Axis | None:
        """The axis, when the form is one axis and nothing else."""
        plain = self.constant == 0 and len(self.terms) == 1 and self.terms[0][1] == 1
        return self.terms[0][0] if plain else None


def linear(expr: Expr) -> Linear | None:
    """The linear form of an integer expression, None when it has none."""
    match expr:
        case Index():
            return Linear(((expr.axis, 1),))
        case Lit(value=int() as value):
            return Linear(constant=value)
        case Apply(fn="neg", args=(x,)):
            inner = linear(x)
            return Linear().plus(inner, -1) if inner else None
        case Apply(fn="add" | "sub" | "mul", args=(x, y)):
            return _combine(expr.fn, linear(x), linear(y))
    return None


def _combine(fn: str, a: Linear | None, b: Linear | None) -> Linear | None:
    if a is None or b is None:
        return None
    if fn != "mul":
        return a.plus(b, 1 if fn == "add" else -1)
    if not a.terms:
        a, b = b, a
    return None if b.terms else Linear().plus(a, b.constant)


def _fits(form: Linear, size: Dim, loops: Sequence[Axis]) -> bool:
    """Whether linalg accepts the form for a dimension of `size`: inside it for every index.

    A bare loop variable states that the loop runs over the whole dimension.
    """
    if any(a not in loops for a, _ in form.terms):
        return False
    if form.axis is not None:
        return equal(form.axis.extent, size)
    low = high = form.constant
    for axis, coefficient in form.terms:
        last = coefficient * (bounds(axis.extent)[1] - 1)
        low, high = low + min(last, 0), high + max(last, 0)
    return low >= 0 and high < bounds(size)[0]


def affine_index(
    load: Load, types: Sequence[TensorType], loops: Sequence[Axis]
) -> tuple[Linear, ...] | None:
    """Linear forms of a load's index that are provably inside its operand, or None."""
    forms: list[Linear] = []
    for expr, size in zip(load.index, types[load.operand].shape, strict=True):
        form = linear(expr)
        if form is None or not _fits(form, size, loops):
            return None
        forms.append(form)
    return tuple(forms)
