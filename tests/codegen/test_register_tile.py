"""What an epilogue is counted as, and what is repeated for every vector of a tile."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from plait.codegen.tvm.register_tile import MOST_UNROLLED, is_heavy, work_of
from plait.codegen.tvm.scalars import const

PrimExpr = Any


def at_most(x: PrimExpr, most: float) -> PrimExpr:
    """The lesser of the two as a selection, which names `x` twice."""
    return tirx.Select(const(most, "float32") < x, const(most, "float32"), x)


def test_what_is_used_twice_is_counted_once() -> None:
    """As trees, four limits in a row would be 62 operations and loads."""
    total = tirx.Var("total", "float32")
    bias = tirx.decl_buffer((8,), "float32", name="bias")
    x = total + bias[tirx.Var("i", "int32") * 2 + 1]
    assert work_of(x) == 2  # a load and an addition: no address
    for count in range(1, 5):
        x = at_most(x, float(count))
        assert work_of(x) == 2 + 2 * count
    assert not is_heavy(x)


def test_much_is_heavy() -> None:
    x = tirx.Var("total", "float32")
    for _ in range(MOST_UNROLLED):
        x = x * x
    assert work_of(x) == MOST_UNROLLED and not is_heavy(x)
    assert is_heavy(x + const(1.0, "float32"))


def test_a_name_is_no_work() -> None:
    x, y = tirx.Var("x", "float32"), tirx.Var("y", "float32")
    assert work_of(tirx.Let(y, x * x, y + y)) == 2
    assert work_of(tirx.exp(x)) == 1


def test_addends_of_equal_type_are_not_the_same() -> None:
    a, b = (tirx.decl_buffer((8,), "float32", name=name) for name in "ab")
    i = tirx.Var("i", "int32")
    assert work_of(a[i] + b[i]) == 3
    assert work_of(a[i] + a[i]) == 2
