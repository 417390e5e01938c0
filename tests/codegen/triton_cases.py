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


DIVISIONS = ("floordiv", "truncdiv", "mod", "fmod")


def _divisions(b: Builder, x: Value, y: Value) -> tuple[Value, ...]:
    """By data, by literals that need no care, and by those that do."""
    by = [y, *(b.scalar(n, x.dtype) for n in (3, -3, 0, -1))]
    made = [b.emit(op, x, n) for n in by for op in DIVISIONS]
    return *made, *(b.emit(op, b.scalar(-7, x.dtype), y) for op in DIVISIONS)


def _positions(b: Builder, x: Value) -> tuple[Value, ...]:
    """Numbers of elements divided by one another: 0 by 0 too."""
    n = b.emit("iota", shape=x.shape, axis=0)
    return tuple(b.emit(op, n, m) + x for op in DIVISIONS for m in (n, b.scalar(4, t.i64)))


def _shifts(b: Builder, x: Value, y: Value) -> tuple[Value, ...]:
    """By data, and by literals inside and outside the width."""
    by = [y, *(b.scalar(n, x.dtype) for n in (3, x.dtype.bits))]
    by += [b.scalar(-1, x.dtype)] if x.dtype.kind == "i" else []
    return tuple(b.emit(op, x, n) for op in ("shl", "shr") for n in by)


def _float_divisions(b: Builder, x: Value, y: Value) -> tuple[Value, ...]:
    return tuple(b.emit(op, x, y) for op in DIVISIONS)


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
    **{
        f"whole_divisions_{dtype}": graph(_divisions, (64,), (64,), dtype=dtype)
        for dtype in (t.i8, t.i32, t.i64)
    },
    "whole_positions": graph(_positions, (70_000,), dtype=t.i64),  # too many to fold
    **{
        f"whole_shifts_{dtype}": graph(_shifts, (64,), (64,), dtype=dtype)
        for dtype in (t.i8, t.u8, t.i32, t.i64)
    },
    "float_divisions": graph(_float_divisions, (64,), (64,)),
}  # fmt: skip


def arguments(case: str) -> list[Any]:
    """Random inputs of a case; one row of `extremes` holds a NaN, divisions meet every edge."""
    types = CASES[case].input_types
    if case.startswith("whole"):
        info = np.iinfo(types[0].dtype.numpy)
        left = [info.min, info.min + 1, -7 if info.min else 7, 0, 1, 7, info.max - 1, info.max]
        right = [0, 1, 2, 5, info.bits - 1, info.bits, info.max, info.min]
        right[2:4] = [-1, -2] if info.min else [2, 5]
        pairs = np.array([(a, b) for a in left for b in right], types[0].dtype.numpy)
        return [np.resize(pairs[:, k], ty.static("test")) for k, ty in enumerate(types)]
    if case == "float_divisions":
        edges = [0.0, 0.1, -0.1, 1.0, -7.5, 3.0, np.inf, np.nan]
        pairs = np.array([(a, b) for a in edges for b in edges], np.float32)
        return [pairs[:, k].copy() for k in range(2)]
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
    found = {}
    for name, graph in CASES.items():
        # What machines leave undefined must not be asked of them, though numpy defines it.
        with np.errstate(divide="raise" if name.startswith("whole") else "ignore"):
            found[name] = difference(graph, arguments(name), "cpu")
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
