"""Symbolic dimensions against plain integers: arithmetic, bounds, text form."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.ir import dims
from plait.ir import types as t
from plait.ir.dims import Dim, SymDim, bounds, equal, evaluate, floordiv, symbol
from plait.ir.errors import UnsupportedSymbol
from plait.ir.graph import Graph, Input
from plait.ir.text import parse_graph, print_graph
from plait.ir.types import TensorType

RANGES = {"a": (1, 9), "b": (0, 5), "c": (2, 2**62), "d": (3, 4)}
SYMBOLS = {name: symbol(name, low, high) for name, (low, high) in RANGES.items()}
Sizes = dict[str, int]

sizes = st.fixed_dictionaries({n: st.integers(lo, min(hi, 99)) for n, (lo, hi) in RANGES.items()})
leaves = st.one_of(st.integers(-6, 6), st.sampled_from(sorted(SYMBOLS)))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from("+-*"), inner, inner),
        st.tuples(st.just("/"), inner, st.integers(1, 5)),
    ),
    max_leaves=8,
)
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def build(tree: Any, leaf: Any) -> Any:
    """The value of an expression tree whose names are looked up in `leaf`."""
    if isinstance(tree, tuple):
        fn, left, right = tree
        return OPERATORS[fn](build(left, leaf), build(right, leaf))
    return leaf[tree] if isinstance(tree, str) else tree


@given(trees, sizes)
def test_arithmetic_commutes_with_evaluation(tree: Any, chosen: Sizes) -> None:
    assert evaluate(build(tree, SYMBOLS), chosen) == build(tree, chosen)


@given(trees, sizes)
def test_bounds_hold(tree: Any, chosen: Sizes) -> None:
    low, high = bounds(build(tree, SYMBOLS))
    assert low <= build(tree, chosen) <= high


@given(trees, trees, trees)
def test_ring_laws_hold_structurally(x: Any, y: Any, z: Any) -> None:
    a, b, c = (build(tree, SYMBOLS) for tree in (x, y, z))
    assert equal(a + b, b + a) and equal(a * b, b * a)
    assert equal((a + b) * c, a * c + b * c) and equal((a * b) * c, a * (b * c))
    assert equal(a - a, 0) and equal(a * 1, a) and equal(a * 0, 0) and equal(a + 0, a)


@given(trees, st.integers(1, 7), sizes)
def test_division_is_that_of_integers(tree: Any, by: int, chosen: Sizes) -> None:
    dim = build(tree, SYMBOLS)
    value = build(tree, chosen)
    assert evaluate(floordiv(dim, by), chosen) == value // by
    assert equal(floordiv(dim * by, by), dim)


@given(trees, st.sampled_from(["a", "c", "d"]))
def test_division_by_a_symbol_undoes_multiplication(tree: Any, name: str) -> None:
    dim, by = build(tree, SYMBOLS), SYMBOLS[name]
    assert equal(floordiv(dim * by, by), dim)


@given(st.lists(trees, max_size=4))
def test_the_text_form_gives_the_same_dimension(given_: list[Any]) -> None:
    shape: tuple[Dim, ...] = tuple(build(tree, SYMBOLS) for tree in given_)
    graph = Graph((Input(TensorType(t.f32, shape)),), (), (0,))
    assert parse_graph(print_graph(graph)) == graph


def test_what_cannot_be_divided_says_so() -> None:
    with pytest.raises(ValueError, match=r"cannot divide 1 \+ a by d"):
        floordiv(SYMBOLS["a"] + 1, SYMBOLS["d"])


def test_a_symbol_of_one_size_is_that_size() -> None:
    assert symbol("n", 4, 4) == 4
    assert dims.as_symbol(SYMBOLS["a"]) == dims.Symbol("a", 1, 9)
    assert dims.as_symbol(SYMBOLS["a"] * 2) is None


def test_a_static_shape_names_the_symbol_in_its_way() -> None:
    ty = TensorType(t.f32, (2, SYMBOLS["a"] * 3))
    with pytest.raises(UnsupportedSymbol, match=r"layout needs a static size.*'3\*a'"):
        ty.static("layout")
    assert str(ty) == "float32[2, 3*a]" and isinstance(ty.size, SymDim)
    assert evaluate(ty.size, {"a": 5}) == 2 * 15
    assert TensorType(t.f16, (2, 3)).nbytes("layout") == 12
