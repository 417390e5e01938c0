"""Every sample of every op, compiled for the CPU, gives what the interpreter gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.fuzz.generate import Settings, generate, random_inputs
from plait.fuzz.oracle import settled
from plait.fuzz.samples import SAMPLES, Sample
from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.runtime.compiler import compile_graph

ops.load_all()
# What runs on the host, and what only passes make.
NOT_COMPILED = {"aten", "kernel", "relayout"}


def groups() -> dict[str, list[Sample]]:
    """Samples in parts of like size; a part is compiled as one graph, its kernels together."""
    kept = [s for s in SAMPLES if s.op not in NOT_COMPILED]
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in kept:
        record = ops.get(sample.op)
        kind = "elementwise" if "elementwise" in record.traits else "other"
        found[f"{kind}-{sample.op[0]}"].append(sample)
    return found


GROUPS = groups()


def together(graphs: Sequence[Graph]) -> Graph:
    """One graph that computes all, each on inputs of its own."""
    b = Builder()
    given = [[b.input(ty) for ty in g.input_types] for g in graphs]
    made: list[Value] = []
    for graph, inputs in zip(graphs, given, strict=True):
        made += b.inline(graph, inputs)
    return b.finish(made)


def run_together(graphs: Sequence[Graph], arguments: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The outputs of each graph, computed by one compiled module."""
    model = compile_graph(together(graphs)).load(threads=2)
    outputs = iter(model(*[a for given in arguments for a in given]))
    return [[next(outputs) for _ in g.outputs] for g in graphs]


def difference(got: Any, want: Any, tolerance: float, scaled: bool) -> str:
    """What differs, empty if nothing does."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
    if want.dtype.kind != "f":
        return "" if np.array_equal(got, want) else f"{got} instead of {want}"
    largest = float(np.abs(want[np.isfinite(want)]).max(initial=0.0)) if scaled else 0.0
    close = np.isclose(got, want, tolerance, tolerance * largest, equal_nan=True)
    return "" if close.all() else f"{got[~close][:4]} instead of {want[~close][:4]}"


@pytest.mark.parametrize("name", GROUPS)
def test_samples(name: str) -> None:
    samples = GROUPS[name]
    graphs = [s.graph() for s in samples]
    found = run_together(graphs, [s.arrays for s in samples])
    wrong = []
    with np.errstate(all="ignore"):
        for sample, graph, outputs in zip(samples, graphs, found, strict=True):
            scaled = ops.get(sample.op).precision in ("sum", "approx")
            for got, want in zip(outputs, interpret(graph, sample.arrays), strict=True):
                gap = difference(got, want, 1e-5, scaled)
                wrong += [f"{sample}: {gap}"] if gap else []
    assert not wrong, "\n".join(wrong)


def test_every_op_is_sampled() -> None:
    assert {s.op for part in GROUPS.values() for s in part} == set(ops.OPS) - NOT_COMPILED


def _squares(b: Builder, x: Value, g: Value) -> list[Value]:
    """Reductions of a square, with vectors of its size along its rows."""

    def total(x: Value, keep: bool, kind: str = "sum") -> Value:
        return b.emit(f"reduce_{kind}", x, axes=(1,), keepdims=keep)

    return [
        b.emit("layer_norm", x, g, g, dims=1, eps=1e-5),
        b.emit("rms_norm", x, g, dims=1, eps=1e-5),
        b.emit("softmax", x + g, axis=1),
        b.emit("log_softmax", x * g, axis=0),
        total(x * g, keep=False),
        total(x * g, keep=False) + g,
        x - total(x * g, keep=False),
        x - total(x, keep=True) * g,
        b.emit("exp", x - total(x, False, "max")) / total(g - x, keep=True),
    ]


def _square_batches(b: Builder, x: Value, g: Value) -> list[Value]:
    """The same along an inner dimension, beside a dimension of 1."""
    kept = b.emit("reduce_sum", x * g, axes=(2,), keepdims=False)
    rows = b.emit("reduce_max", x, axes=(1,), keepdims=False)
    return [kept + g, x * kept, x - rows, x - b.reshape(rows, (4, 1))]


def test_equal_sizes() -> None:
    """Where sizes are equal, the shape of a value does not tell its dimensions apart."""
    graphs = []
    for make, shapes in ((_squares, [(4, 4), (4,)]), (_square_batches, [(1, 4, 4), (1, 4)])):
        b = Builder(make.__name__)
        graphs.append(b.finish(make(b, *(b.input(TensorType(t.f32, s)) for s in shapes))))
    arguments = [random_inputs(g, 1) for g in graphs]
    found = run_together(graphs, arguments)
    for graph, given, outputs in zip(graphs, arguments, found, strict=True):
        for k, (got, want) in enumerate(zip(outputs, interpret(graph, given), strict=True)):
            gap = difference(got, want, 1e-5, scaled=True)
            assert not gap, f"{graph.name}, output {k}: {gap}"


SEEDS = [range(at, at + 8) for at in range(0, 24, 8)]


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
def test_random_graphs(seeds: range) -> None:
    graphs = [generate(s, Settings(kernels=False, symbols=(), layouts=False)) for s in seeds]
    arguments = [random_inputs(g, s) for g, s in zip(graphs, seeds, strict=True)]
    found = run_together(graphs, arguments)
    wrong = []
    with np.errstate(all="ignore"):
        for seed, graph, given, outputs in zip(seeds, graphs, arguments, found, strict=True):
            wanted = interpret(graph, given)
            for k, (got, want) in enumerate(zip(outputs, wanted, strict=True)):
                gap = difference(got, want, 1e-4, scaled=True)
                if gap and settled(graph, given, wanted)[k]:
                    wrong.append(f"seed {seed}, output {k}: {gap}")
    assert not wrong, "\n".join(wrong)
