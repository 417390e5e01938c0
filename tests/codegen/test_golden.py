"""What the CPU target makes of a few kernels, and the passes of a small model, as text.

A diff here is a change of generated code: read it, then accept it with `make golden`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.codegen.core import AVX2, ZEN4, Core
from plait.codegen.tvm.target import cpu_target
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from plait.passes.context import Context
from plait.passes.pipeline import DEFAULT_PIPELINE, parse_pipeline


def graph(make: Callable[..., Value], *shapes: tuple[int, ...]) -> Graph:
    """A graph of `make(builder, *inputs)` on float32."""
    b = Builder()
    return b.finish([make(b, *[b.input(TensorType(t.f32, shape)) for shape in shapes])])


def lower(graph: Graph, core: Core = AVX2) -> Graph:
    return parse_pipeline(DEFAULT_PIPELINE).run(graph, Context(cpu_target(core=core)))


def kernels(graph: Graph, core: Core = AVX2) -> Iterator[str]:
    """The schedule and the TVMScript of every kernel."""
    for node in lower(graph, core).nodes:
        if node.op == "kernel":
            func = cpu_target().build(node.attrs["body"], node.attrs["schedule"])
            yield f"# {node.attrs['schedule']}\n{func.script()}"


def weights(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A constant whose name and size, not whose values, stand in the text."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def _product(b: Builder, x: Value, residual: Value) -> Value:
    """relu(x @ w + bias) + residual: one kernel with packed weights."""
    w, bias = b.constant(weights(16, 24), "w"), b.constant(weights(24), "bias")
    y = b.emit("dot_general", x, w, lhs_contract=(1,), rhs_contract=(0,))
    return b.emit("relu", y + bias) + residual


KERNELS = {
    "elementwise": graph(lambda b, x, y: b.emit("relu", x * y + 1.0), (3, 13), (13,)),
    "softmax": graph(lambda b, x: b.emit("softmax", x, axis=1), (5, 32)),
    "product": graph(_product, (6, 16), (6, 24)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"{name}.py.txt", "\n".join(kernels(KERNELS[name])))


def test_rows_in_flight(golden: Callable[[str, str], None]) -> None:
    made = graph(lambda b, x: b.emit("softmax", x, axis=1), (128, 32))
    golden("staggered.py.txt", "\n".join(kernels(made, ZEN4)))


def test_building_a_kernel_twice_gives_one_text() -> None:
    """Text that depends on the process or on history would make every cache miss."""
    for made in KERNELS.values():
        assert list(kernels(made)) == list(kernels(made))


def block() -> Graph:
    """A convolution with its norm, pooled, and a classifier: packing, layouts, fusion."""
    b = Builder("block")
    x = b.input(TensorType(t.f32, (1, 8, 6, 6)), "image")
    w = b.constant(weights(16, 8, 3, 3), "conv.weight")
    zeros, ones = np.zeros(16, np.float32), np.ones(16, np.float32)
    statistics = [b.constant(zeros, "norm.mean"), b.constant(ones, "norm.var")]
    affine = [b.constant(ones, "norm.scale"), b.constant(weights(16), "norm.shift")]
    head = b.constant(weights(16, 24), "head")
    y = b.emit("conv", x, w, stride=(1, 1), low=(1, 1), high=(1, 1), dilation=(1, 1))
    y = b.emit("relu", b.emit("batch_norm", y, *statistics, *affine, eps=1e-5))
    pooled = b.emit("reduce_max", y, axes=(2, 3), keepdims=False)
    scores = b.emit("dot_general", pooled, head, lhs_contract=(1,), rhs_contract=(0,))
    return b.finish([b.emit("softmax", scores, axis=1)])


def test_lowered_model(golden: Callable[[str, str], None]) -> None:
    golden("block.ir", f"{block()}\n\n# {DEFAULT_PIPELINE}\n{lower(block())}")
