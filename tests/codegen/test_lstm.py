"""The LSTM kernel against its reference in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plait.codegen.tvm.target import cpu_target
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.passes.packing import GatePanels
from plait.runtime.compiler import Module, compile_graph

Array = NDArray[Any]


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def weights(units: int) -> Array:
    return random(9, 4 * units, units) / np.sqrt(np.float32(units))


def layer(
    steps: int, batch: int, units: int, reverse: bool = False, constant: bool = True,
    results: tuple[int, ...] = (0, 1, 2),
) -> tuple[Graph, list[Array]]:  # fmt: skip
    """A graph of one layer that gives some of its results, and inputs."""
    b = Builder("lstm")
    shapes = [(steps, batch, 4 * units), (batch, units), (batch, units)]
    operands = [b.input(TensorType(t.f32, s)) for s in shapes]
    inputs = [random(k, *s) for k, s in enumerate(shapes)]
    if constant:
        operands.append(b.constant(weights(units), "w"))
    else:
        operands.append(b.input(TensorType(t.f32, (4 * units, units))))
        inputs.append(weights(units))
    made = b.emit_all("lstm", operands, {"reverse": reverse})
    return b.finish([made[k] for k in results]), inputs


def check(graph: Graph, inputs: list[Array]) -> Module:
    module = compile_graph(graph)
    assert [k.schedule.partition("{")[0] for k in module.kernels] == ["lstm"]
    want = interpret(graph, inputs)
    one, two = (module.load(threads)(*inputs) for threads in (1, 2))
    for got, other, right in zip(one, two, want, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=3e-6)
        np.testing.assert_array_equal(got, other)
    return module


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("steps", "batch", "units"),
    [(5, 1, 8), (1, 1, 32), (4, 2, 13), (3, 3, 5), (7, 1, 27), (2, 7, 24), (6, 4, 16)],
)
def test_sizes(steps: int, batch: int, units: int, reverse: bool) -> None:
    check(*layer(steps, batch, units, reverse))


@pytest.mark.parametrize(("batch", "units"), [(1, 116), (2, 100)])
def test_threads_share_a_step(batch: int, units: int) -> None:
    module = check(*layer(12, batch, units))
    assert "shared=1" in module.kernels[0].schedule


@pytest.mark.parametrize(("batch", "units"), [(1, 20), (2, 16), (1, 120)])
def test_weights_that_are_an_input(batch: int, units: int) -> None:
    module = check(*layer(4, batch, units, constant=False))
    assert "packed=0" in module.kernels[0].schedule


@pytest.mark.parametrize("results", [(0,), (1,), (2,), (2, 0), (1, 2)])
def test_some_of_the_results(results: tuple[int, ...]) -> None:
    check(*layer(3, 2, 9, results=results))


def test_a_long_sequence_stays_accurate() -> None:
    check(*layer(200, 1, 24))


def test_saturated_gates() -> None:
    graph, inputs = layer(3, 1, 8)
    inputs[0] *= 100
    check(graph, inputs)


def test_panels_are_recovered() -> None:
    w = weights(13)
    b = Builder()
    form = GatePanels(8)
    packed = form.pack(w)
    assert packed.shape == (2, 13, 4, 8)
    value = form.unpack(b, b.constant(packed, "w"), TensorType(t.f32, w.shape))
    np.testing.assert_array_equal(interpret(b.finish([value]), [])[0], w)


def test_what_is_taken() -> None:
    good = tuple(TensorType(t.f32, s) for s in ((2, 1, 16), (1, 4), (1, 4), (16, 4)))
    assert cpu_target().takes("lstm", good)
    assert not cpu_target().takes("lstm", tuple(ty.with_dtype(t.f64) for ty in good))
