"""Reductions that need not keep NaN, as it shows in all results anyway."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.codegen.nans import shows_anyway
from plait.codegen.tvm.loopnest import build_nest
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from tests.codegen.graphs import both_cores, loaded

ROWS, LENGTH = 6, 75  # two vectors of 32 elements, one of 8, and single ones


def largest(b: Builder, x: Value) -> Value:
    return b.emit("reduce_max", x, axes=(1,), keepdims=True)


def total(b: Builder, x: Value) -> Value:
    return b.emit("reduce_sum", x, axes=(1,), keepdims=True)


def softmax(b: Builder, x: Value) -> list[Value]:
    powers = b.emit("exp", x - largest(b, x))
    return [powers * (1.0 / total(b, powers))]


def log_softmax(b: Builder, x: Value) -> list[Value]:
    shifted = x - largest(b, x)
    return [shifted - b.emit("log", total(b, b.emit("exp", shifted)))]


def softmax_of_product(b: Builder, x: Value) -> list[Value]:
    return softmax(b, x * 0.5)


def softmin(b: Builder, x: Value) -> list[Value]:
    powers = b.emit("exp", b.emit("reduce_min", x, axes=(1,), keepdims=True) - x)
    return [powers / total(b, powers)]


def centred(b: Builder, x: Value) -> list[Value]:
    """Only the elements that are NaN would show it."""
    return [x - largest(b, x)]


def softmax_and_largest(b: Builder, x: Value) -> list[Value]:
    top = largest(b, x)
    powers = b.emit("exp", x - top)
    return [powers * (1.0 / total(b, powers)), top]


def softmax_of_what_is_positive(b: Builder, x: Value) -> list[Value]:
    """The sum is of other values than the maximum: a select drops NaN."""
    kept = b.emit("select", b.emit("gt", x, b.scalar(0.0, t.f32)), x, b.scalar(0.0, t.f32))
    powers = b.emit("exp", kept - largest(b, x))
    return [powers * (1.0 / total(b, powers))]


Make = Callable[[Builder, Value], list[Value]]
SHOWN: list[Make] = [softmax, log_softmax, softmax_of_product, softmin]
HIDDEN: list[Make] = [centred, softmax_and_largest]


def made(make: Make) -> Graph:
    b = Builder()
    return b.finish(make(b, b.input(TensorType(t.f32, (ROWS, LENGTH)))))


def of_extremes(graph: Graph) -> list[int]:
    ops = ("reduce_max", "reduce_min")
    return [v for k, n in enumerate(graph.nodes) if n.op in ops for v in graph.results(k)]


@pytest.mark.parametrize("make", SHOWN)
def test_what_ends_in_a_sum_shows_a_nan_anyway(make: Make) -> None:
    graph = made(make)
    assert [shows_anyway(graph, v) for v in of_extremes(graph)] == [True]


@pytest.mark.parametrize("make", HIDDEN)
def test_what_is_read_elsewhere_must_keep_it(make: Make) -> None:
    graph = made(make)
    assert not any(shows_anyway(graph, v) for v in of_extremes(graph))


def test_a_select_hides_it() -> None:
    graph = made(softmax_of_what_is_positive)
    # exp(kept - largest) is not NaN by `kept`, and `largest` is what is asked about.
    assert [shows_anyway(graph, v) for v in of_extremes(graph)] == [False]


@both_cores
@pytest.mark.parametrize("make", [*SHOWN, centred, softmax_of_what_is_positive])
@pytest.mark.parametrize("place", [0, 40, 66, LENGTH - 1])
def test_kernels_give_nan_where_the_reference_does(make: Make, place: int) -> None:
    graph = made(make)
    x = np.random.default_rng(0).normal(size=(ROWS, LENGTH)).astype(np.float32)
    x[1, place], x[2, place], x[3, place] = np.nan, np.inf, -np.inf
    x[4, place], x[4, (place + 1) % LENGTH] = np.nan, np.inf
    (want,) = interpret(graph, [x])
    got = np.empty(want.size, np.float32)
    loaded(build_nest(graph), graph).run_into([x.reshape(-1)], [got])
    np.testing.assert_allclose(got, want.reshape(-1), rtol=1e-5, atol=1e-6)
