"""Between what numbers a value lies, whatever the inputs: intervals by what it is computed from."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from plait.ir import op as ops
from plait.ir.builder import Builder, Value

DEPTH = 24  # of the computations that are looked at
PRODUCT = 1e30  # more than any product or convolution of a model comes to
Range: TypeAlias = tuple[float, float]  # the least and the largest


def _union(*ranges: Range) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _ends(combine: Callable[[float, float], float]) -> Callable[[Range, Range], Range]:
    """The range of a function of two numbers whose extremes lie where those of both do."""

    def found(a: Range, b: Range) -> Range:
        made = [combine(x, y) for x in a for y in b]
        return min(made), max(made)

    return found


RANGES: dict[str, Callable[..., Range]] = {
    "add": _ends(operator.add), "sub": _ends(operator.sub), "mul": _ends(operator.mul),
    "div": _ends(operator.truediv), "max": _ends(max), "min": _ends(min), "select": _union,
    "neg": lambda a: (-a[1], -a[0]), "relu": lambda a: (max(a[0], 0.0), max(a[1], 0.0)),
}  # fmt: skip


def value_range(b: Builder, value: Value, depth: int = DEPTH) -> Range | None:
    """Between what numbers a value is, by what it is computed from; None if that is not known.

    Two things are taken for granted: products are no larger than a model computes, and numbers that
    are not floats are flags, 0 or 1.
    """
    node = b.producer(value)
    if node is None or depth == 0 or not (node.operands or node.op == "constant"):
        return None
    if node.op == "constant":
        array = node.attrs["value"].array
        return (float(array.min()), float(array.max())) if np.isfinite(array).all() else None
    if ops.has_trait(node.op, "contraction"):
        return -PRODUCT, PRODUCT
    operands = [x for v in node.operands if (x := b.value(v)).dtype.is_float]
    if not operands or node.op == "sigmoid":
        return 0.0, 1.0
    ranges = [r for x in operands if (r := value_range(b, x, depth - 1)) is not None]
    if len(ranges) < len(operands):
        return None
    if any(ops.has_trait(node.op, trait) for trait in ("movement", "gather")):
        return _union(*ranges)
    if node.op == "div" and ranges[1][0] <= 0 <= ranges[1][1]:
        return None
    return RANGES[node.op](*ranges) if node.op in RANGES else None
