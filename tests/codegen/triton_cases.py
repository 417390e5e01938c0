"""Graphs for the tests of the CUDA target, and their run through Triton's interpreter.

Triton decides at import whether it interprets, so the run is a process of its own:
`TRITON_INTERPRET=1 python -m tests.codegen.triton_cases` prints, as JSON, what differs from the
numpy interpreter, by case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from plait.codegen.reference import run_planned
from plait.codegen.triton.loops import TritonKernel
from plait.codegen.triton.target import cuda_target
from plait.fuzz.samples import SAMPLES
from plait.ir import types as t
from plait.ir.agreement import compare
from plait.ir.builder import Builder, Value
from plait.ir.errors import Unsupported
from plait.ir.graph import Graph, Node
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.passes.context import Context
from plait.passes.memory import MemoryPlan
from plait.passes.pipeline import DEFAULT_PIPELINE, parse_pipeline

# Functions of CUDA's own library, which Triton's interpreter does not have.
LIBRARY = ("log10", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh",
           "pow", "atan2")  # fmt: skip


def graph(make: Callable[..., Any], *shapes: tuple[int, ...], dtype: t.DType = t.f32) -> Graph:
    """A graph of `make(builder, *inputs)`."""
    b = Builder()
    made = make(b, *[b.input(TensorType(dtype, shape)) for shape in shapes])
    return b.finish(made if isinstance(made, tuple) else (made,))


def _chain(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    inner = b.emit("gelu", x + y)
    return inner, b.emit("silu", inner * 2.0)


def _wide(b: Builder, x: Value, scale: Value) -> Value:
    """More than one program, tanh by its polynomial, a transposed operand."""
    return b.emit("gelu", b.transpose(x, (1, 0)) * scale, form="tanh")


def _pieces(b: Builder, x: Value, y: Value) -> Value:
    """Guards inside guards: neither branch may load where the other is chosen."""
    joined = b.emit("concat", x, y, axis=1)
    fill = b.scalar(-1.0, x.dtype)
    padded = b.emit("pad", joined, fill, low=(1, 0), high=(0, 2))
    return b.emit("relu", padded) + 0.5


def _two_norms(b: Builder, x: Value, w: Value, c: Value) -> Value:
    return b.emit("softmax", b.emit("layer_norm", x, w, c, dims=1), axis=1)


def _extremes(b: Builder, x: Value) -> tuple[Value, Value]:
    """Rows with a NaN give NaN; results of both widths leave the kernel."""
    top = b.emit("reduce_max", x, axes=(1,), keepdims=False)
    low = b.emit("reduce_min", x, axes=(1,), keepdims=True)
    return top, x - low


CASES: dict[str, Graph] = {
    "chain": graph(_chain, (3, 37, 5), (37, 1)),
    "wide": graph(_wide, (37, 71), (37,)),
    "pieces": graph(_pieces, (5, 3), (5, 4)),
    "softmax": graph(lambda b, x: b.emit("softmax", x, axis=1), (7, 129)),
    "columns": graph(lambda b, x: b.emit("log_softmax", x, axis=1), (5, 13, 3)),
    "layer_norm": graph(
        lambda b, *xs: b.emit("layer_norm", *xs, dims=1), (2, 5, 100), (100,), (100,)
    ),
    "two_norms": graph(_two_norms, (6, 64), (64,), (64,)),
    "half": graph(_two_norms, (6, 33), (33,), (33,), dtype=t.f16),
    "double": graph(_two_norms, (6, 33), (33,), (33,), dtype=t.f64),
    "extremes": graph(_extremes, (6, 33)),
}  # fmt: skip


def arguments(case: str) -> list[Any]:
    """Random inputs of a case; one row of `extremes` holds a NaN."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal(ty.static("test")).astype(ty.dtype.numpy)
        for ty in CASES[case].input_types
    ]
    if case == "extremes":
        arrays[0][2, 5] = np.nan
    return arrays


def lower(graph: Graph) -> tuple[Graph, MemoryPlan]:
    """The graph after all passes for the CUDA target, and its memory plan."""
    context = Context(cuda_target())
    lowered = parse_pipeline(DEFAULT_PIPELINE).run(graph, context)
    assert context.plan is not None
    return lowered, context.plan


def kernels(graph: Graph) -> Iterator[TritonKernel]:
    """The kernels of a graph."""
    for node in lower(graph)[0].nodes:
        if node.op == "kernel":
            yield cuda_target().build(node.attrs["body"], node.attrs["schedule"])


def launcher(device: str) -> Callable[[Node, Any], Callable[..., Sequence[Any]]]:
    """Makes numpy functions of kernels by running them on a torch device."""
    import torch

    from plait.codegen.triton.compile import launch

    def wrap(node: Node, kernel: TritonKernel) -> Callable[..., Sequence[Any]]:
        def call(*arrays: Any) -> Sequence[Any]:
            given = [
                torch.from_numpy(a.transpose(ty.order).copy()).to(device)
                for a, ty in zip(arrays, kernel.inputs, strict=True)
            ]
            made = [
                torch.from_numpy(
                    np.zeros(ty.static("test"), ty.dtype.numpy).transpose(ty.order).copy()
                ).to(device)
                for ty in kernel.outputs
            ]
            launch(kernel, *given, *made)
            return [
                out.cpu().numpy().transpose(np.argsort(ty.order).tolist())
                for out, ty in zip(made, kernel.outputs, strict=True)
            ]

        return call

    return wrap


def difference(graph: Graph, inputs: Sequence[Any], device: str) -> str:
    """How a graph's outputs differ from the numpy interpreter's; empty if they agree."""
    lowered, plan = lower(graph)
    got = run_planned(lowered, plan, inputs, cuda_target(), launcher(device))
    outcomes = [compare(a, b) for a, b in zip(got, interpret(graph, inputs), strict=True)]
    return "; ".join(outcome.reason for outcome in outcomes if not outcome.agrees)


def main() -> None:
    found = {name: difference(graph, arguments(name), "cpu") for name, graph in CASES.items()}
    for sample in SAMPLES:
        if sample.op in (*LIBRARY, "aten", "kernel"):
            continue
        try:
            found[f"sample {sample}"] = difference(sample.graph(), sample.arrays, "cpu")
        except Unsupported as error:
            found[f"sample {sample}"] = f"unsupported: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
