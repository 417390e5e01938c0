"""Kernels checked one by one: right ones pass, a wrong one is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Graph
from plait.ir.text import parse_graph
from plait.ir.types import TensorType
from plait.passes.hooks import random_inputs
from plait.runtime.compiler import compile_graph
from plait.runtime.kernel_check import check_kernels, logical, physical


def convnet() -> Graph:
    """A convolution, a norm over its channels, and an empty slice beside it."""
    b = Builder()
    x = b.input(TensorType(t.f32, (2, 8, 6, 5)))
    w = b.constant(np.random.default_rng(0).standard_normal((8, 8, 3, 3), np.float32), "w")
    for _ in range(2):
        x = b.emit("conv", x, w, stride=(1, 1), low=(1, 1), high=(1, 1), dilation=(1, 1), groups=1)
        x = b.emit("relu", x * 0.1)
    none = b.emit("slice", x, start=(0,) * 4, step=(1,) * 4, size=(2, 0, 6, 5))
    return b.finish([b.emit("softmax", x, axis=1), b.emit("exp", none)])


def test_right_kernels() -> None:
    module = compile_graph(convnet())
    findings = list(check_kernels(module, random_inputs(convnet())))
    assert {f.symbol for f in findings} == {k.symbol for k in module.kernels}
    assert len(findings) == len(module.kernels), "each symbol once"
    assert all(f.error < 1e-5 for f in findings)
    assert {f.schedule for f in findings} == {k.schedule for k in module.kernels}
    assert all(module.graph.nodes[f.node].op == "kernel" for f in findings)


def test_a_wrong_kernel_is_found() -> None:
    """A graph that says something else than what was compiled."""
    b = Builder()
    x = b.input(TensorType(t.f32, (4, 9)))
    total = b.emit("reduce_sum", b.emit("exp", x), axes=(1,))
    graph = b.finish([total * 2.0, b.emit("reduce_max", x, axes=(0,))])
    module = compile_graph(graph)
    text = str(module.graph)
    assert "float32[]: 2.0" in text
    changed = replace(module, graph=parse_graph(text.replace("float32[]: 2.0", "float32[]: 4.0")))
    inputs = random_inputs(graph)
    assert all(f.error < 1e-5 for f in check_kernels(module, inputs))
    (bad,) = [f for f in check_kernels(changed, inputs) if f.error > 1e-3]
    assert bad.error == pytest.approx(0.5, rel=1e-3)
    assert "mul" in [n.op for n in module.graph.nodes[bad.node].attrs["body"].nodes]


@pytest.mark.parametrize("layout", [None, (0, 2, 3, 1), (3, 1, 0, 2)])
def test_physical_and_logical_are_inverse(layout: tuple[int, ...] | None) -> None:
    ty = TensorType(t.f32, (2, 3, 4, 5), layout)
    x = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    flat = physical(x, ty)
    np.testing.assert_array_equal(logical(flat, ty), x)
    assert (layout is None) == bool((flat == np.arange(120)).all())
    scalar = TensorType(t.f32, ())
    assert logical(physical(np.float32(3), scalar), scalar).shape == ()
