"""Rows in flight together: the results are those of rows one by one, and which nests do it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.codegen.core import AVX2, ZEN4, Core, making_for
from plait.codegen.tvm.loopnest import build_nest
from plait.codegen.tvm.workspace import workspace
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from tests.codegen.graphs import Array, loaded, normal

Make = Callable[[Builder, Value], Value]
staggering = pytest.mark.parametrize(
    "core", [ZEN4, replace(ZEN4, past_bytes=1000)], indirect=True, ids=["kept", "past the caches"]
)


def largest(b: Builder, x: Value) -> Value:
    return b.emit("reduce_max", x, axes=(x.type.rank - 1,), keepdims=True)


def total(b: Builder, x: Value) -> Value:
    return b.emit("reduce_sum", x, axes=(x.type.rank - 1,), keepdims=True)


def softmax(b: Builder, x: Value) -> Value:
    powers = b.emit("exp", x - largest(b, x))
    return powers * (1.0 / total(b, powers))


def log_softmax(b: Builder, x: Value) -> Value:
    shifted = x - largest(b, x)
    return shifted - b.emit("log", total(b, b.emit("exp", shifted)))


def biased_softmax(b: Builder, x: Value) -> Value:
    """Operands of a row's length, and of one number for each row."""
    *rows, length = x.type.static("test")
    scales, offsets = (b.input(TensorType(t.f32, tuple(s))) for s in ([length], [*rows, 1]))
    return softmax(b, x * scales) + offsets


def kept_from_the_first_phase(b: Builder, x: Value) -> Value:
    """The first phase's work is read in the second and in the last, the second's in the last."""
    y = b.emit("exp", x)
    powers = b.emit("exp", y - largest(b, y))
    return powers / total(b, powers) + y * total(b, powers)


def normed(b: Builder, x: Value) -> Value:
    """A norm whose last phase takes work, and whose numbers have different ages in it."""
    mean = total(b, x) * (1.0 / 64)
    centred = x - mean
    scale = b.emit("rsqrt", total(b, centred * centred)) * mean
    return b.emit("tanh", centred * scale) + mean


def made(make: Make, *shape: int) -> Graph:
    b = Builder()
    return b.finish([make(b, b.input(TensorType(t.f32, shape)))])


def is_staggered(graph: Graph) -> bool:
    return "turn" in build_nest(graph).script()


def operands(graph: Graph) -> list[Array]:
    return [normal(k, *i.type.static("test")) for k, i in enumerate(graph.inputs)]


def by_kernel(graph: Graph, *xs: Array, over: int | None = None) -> Array:
    """The result, in the place of the operand `over` if given."""
    shape = graph.output_types[0].static("test")
    flat = [x.reshape(-1).copy() for x in xs]
    y = np.full(math.prod(shape), np.nan, np.float32)
    loaded(build_nest(graph), graph, over).run_into(flat, [y])
    return (y if over is None else flat[over]).reshape(shape)


@staggering
@pytest.mark.parametrize("shape", [(128, 32), (300, 64), (7, 70, 96), (520, 1024)])
@pytest.mark.parametrize(
    "make", [softmax, log_softmax, biased_softmax, kept_from_the_first_phase, normed]
)
def test_rows_in_flight_are_what_they_are_one_by_one(make: Make, shape: tuple[int, ...]) -> None:
    graph = made(make, *shape)
    assert is_staggered(graph)
    xs = operands(graph)
    (want,) = interpret(graph, xs)
    np.testing.assert_allclose(by_kernel(graph, *xs), want, rtol=1e-5, atol=1e-6)


@staggering
def test_results_may_lie_where_the_operand_does() -> None:
    graph = made(softmax, 300, 64)
    x = normal(0, 300, 64)
    np.testing.assert_array_equal(by_kernel(graph, x, over=0), by_kernel(graph, x))


@staggering
def test_a_row_of_extremes_spoils_no_other() -> None:
    """Numbers of several rows are alive at once."""
    graph = made(softmax, 300, 64)
    x = normal(0, 300, 64)
    clean = by_kernel(graph, x)
    odd = [0, 1, 77, 150, 298, 299]
    for row, value in zip(odd, (np.nan, np.inf, -np.inf, np.nan, 1e38, np.nan), strict=True):
        x[row, row % 64] = value
    (want,) = interpret(graph, [x])
    got = by_kernel(graph, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    rest = np.delete(np.arange(300), odd)
    np.testing.assert_array_equal(got[rest], clean[rest])


@staggering
def test_rows_that_are_kept_lie_in_no_stack() -> None:
    """There they would begin at no line."""
    assert workspace(build_nest(made(softmax, 300, 32))).thread == 4096
    assert workspace(build_nest(made(softmax, 300, 1024))).thread == 4 * 4096


def row_numbers(b: Builder, x: Value) -> Value:
    return b.emit("log", total(b, b.emit("exp", x - largest(b, x))))


@pytest.mark.parametrize("core", [ZEN4], indirect=True)
@pytest.mark.parametrize(
    ("make", "shape"),
    [(softmax, (127, 64)), (softmax, (300, 72)), (softmax, (300, 2048)), (row_numbers, (300, 64))],
)
def test_few_rows_long_rows_and_such_that_leave_a_rest_go_one_by_one(
    make: Make, shape: tuple[int, ...]
) -> None:
    graph = made(make, *shape)
    assert not is_staggered(graph)
    xs = operands(graph)
    (want,) = interpret(graph, xs)
    np.testing.assert_allclose(by_kernel(graph, *xs), want, rtol=1e-5, atol=1e-6)


def test_what_only_reads_goes_one_by_one_and_so_does_all_on_other_cores(core: Core) -> None:
    def centred(b: Builder, x: Value) -> Value:
        y = x - total(b, x)
        return y * total(b, y)

    assert core is AVX2
    assert not is_staggered(made(softmax, 300, 64))
    with making_for(ZEN4):
        assert is_staggered(made(softmax, 300, 64))
        assert not is_staggered(made(centred, 300, 64))
