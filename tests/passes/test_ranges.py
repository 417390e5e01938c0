"""Intervals of values, and what is not known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.passes.ranges import PRODUCT, Range, value_range
from tests.passes.graphs import typed


def builder() -> Builder:
    """With the inputs x, y and hide."""
    b = Builder()
    for given in (typed((2, 3)), typed((3, 2)), typed((3,), t.bool_)):
        b.input(given)
    return b


def flags(b: Builder) -> Value:
    return b.emit("cast", b.value(2), dtype=t.f32)


def numbers(b: Builder) -> Value:
    return b.constant(np.array([-2, 0, 3], np.float32))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (numbers, (-2, 3)),
        (flags, (0, 1)),
        (lambda b: 1.0 - flags(b), (0, 1)),
        (lambda b: (1.0 - flags(b)) * -1e9, (-1e9, 0)),
        (lambda b: numbers(b) * numbers(b), (-6, 9)),
        (lambda b: numbers(b) / -2.0, (-1.5, 1)),
        (lambda b: -numbers(b) - flags(b), (-4, 2)),
        (lambda b: b.emit("relu", numbers(b)), (0, 3)),
        (lambda b: b.emit("sigmoid", numbers(b)) + 1.0, (1, 2)),
        (lambda b: b.emit("max", numbers(b), flags(b)), (0, 3)),
        (lambda b: b.emit("select", b.value(2), flags(b), numbers(b)), (-2, 3)),
        (lambda b: b.reshape(numbers(b), (1, 3)), (-2, 3)),
        (lambda b: b.emit("dot_general", b.value(0), b.value(1),
                          lhs_contract=(1,), rhs_contract=(0,)), (-PRODUCT, PRODUCT)),
        (lambda b: b.value(0), None),
        (lambda b: numbers(b) + b.value(0), None),
        (lambda b: 1.0 / numbers(b), None),
        (lambda b: b.emit("iota", shape=(3,), axis=0), None),
        (lambda b: b.emit("log", flags(b)), None),
        (lambda b: b.constant(np.array([0, np.inf], np.float32)), None),
        (lambda b: b.constant(np.array([0, np.nan], np.float32)), None),
    ],
)  # fmt: skip
def test_range(make: Callable[[Builder], Value], found: Range | None) -> None:
    b = builder()
    assert value_range(b, make(b)) == found


def test_long_computations_are_not_looked_at_whole() -> None:
    b = Builder()
    x = numbers(b)
    for _ in range(30):
        x = b.emit("relu", x)
    assert value_range(b, x) is None
