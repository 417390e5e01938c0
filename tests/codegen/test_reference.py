"""The reference target: what the passes made of a graph, run without a code generator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plait.codegen.reference import reference_target, run_lowered, run_planned, standing_for
from plait.codegen.target import Target
from plait.codegen.triton.target import cuda_target
from plait.fuzz.generate import Settings, generate, random_inputs
from plait.fuzz.oracle import settled
from plait.fuzz.samples import SAMPLES, Sample
from plait.ir import types as t
from plait.ir.agreement import compare
from plait.ir.builder import Builder
from plait.ir.errors import InputMismatch, Unsupported
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.passes.context import Context
from plait.passes.memory import MemoryPlan
from plait.passes.pipeline import DEFAULT_PIPELINE, parse_pipeline


def lower(graph: Graph, target: Target) -> tuple[Graph, MemoryPlan]:
    context = Context(target)
    lowered = parse_pipeline(DEFAULT_PIPELINE).run(graph, context)
    assert context.plan is not None
    return lowered, context.plan


def cpu() -> Target:
    """The reference in place of the CPU target: its layouts, packing and polynomials."""
    pytest.importorskip("tvm", reason="TVM comes with the compile extra")
    from plait.codegen.tvm.target import cpu_target

    return standing_for(cpu_target())


def check(graph: Graph, inputs: Any, target: Target) -> None:
    """Both ways of running agree with the interpreter on the graph as it came."""
    lowered, plan = lower(graph, target)
    want = interpret(graph, inputs)
    ways = run_lowered(lowered, inputs, target), run_planned(lowered, plan, inputs, target)
    for got in ways:
        for k, (mine, other) in enumerate(zip(got, want, strict=True)):
            outcome = compare(mine, other)
            fair = outcome.agrees or not settled(graph, inputs, want)[k]
            assert fair, f"{outcome.reason}\n{lowered}"


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.op != "aten"], ids=str)
def test_every_op(sample: Sample) -> None:
    check(sample.graph(), sample.arrays, reference_target())
    check(sample.graph(), sample.arrays, cpu())


def image_model() -> Graph:
    """Convolution (packed weights, channels innermost), pooling, a transpose, a product."""
    rng = np.random.default_rng(0)
    b = Builder("image")
    x = b.input(TensorType(t.f32, (2, 3, 9, 9)), "x")
    w = b.constant(rng.standard_normal((10, 3, 3, 3)).astype(np.float32) / 5, "w")
    v = b.constant(rng.standard_normal((10, 40)).astype(np.float32) / 3, "v")
    y = b.emit("conv", x, w, stride=(1, 1), low=(1, 1), high=(1, 1), dilation=(1, 1))
    y = b.emit("gelu", y)
    rows = b.reshape(b.transpose(y, (0, 2, 3, 1)), (2, 81, 10))
    z = b.emit("dot_general", rows, v, lhs_contract=(2,), rhs_contract=(0,))
    return b.finish([b.emit("softmax", b.emit("relu", z), axis=2), y])


def test_a_model_with_layouts_and_packing() -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 9, 9)).astype(np.float32)
    target = cpu()
    lowered, _ = lower(image_model(), target)
    assert any(ty.layout is not None for ty in lowered.types)
    assert any("#" in n.attrs["value"].name for n in lowered.nodes if n.op == "constant")
    check(image_model(), (x,), target)
    check(image_model(), (x,), reference_target())


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int) -> None:
    graph = generate(seed, Settings(symbols=(), layouts=False, kernels=False))
    check(graph, random_inputs(graph, seed), reference_target())


def small() -> tuple[Graph, Any]:
    b = Builder()
    x = b.input(TensorType(t.f32, (4, 8)), "x")
    graph = b.finish([b.emit("softmax", x * 2.0, axis=1)])
    return graph, np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def test_a_block_reused_too_early_shows() -> None:
    """The plan's memory is real: two values in one place spoil the result."""
    b = Builder()
    x = b.input(TensorType(t.f32, (8, 8)), "x")
    left = b.emit("dot_general", x, x, lhs_contract=(1,), rhs_contract=(0,))
    right = b.emit("dot_general", x, left, lhs_contract=(1,), rhs_contract=(1,))
    last = b.emit("dot_general", left, right, lhs_contract=(1,), rhs_contract=(0,))
    graph = b.finish([last])
    target = reference_target()
    lowered, plan = lower(graph, target)
    assert len(plan.blocks) == 2
    inputs = [np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)]
    broken = replace(plan, blocks=tuple(replace(block, offset=0) for block in plan.blocks))
    (want,) = interpret(graph, inputs)
    assert compare(run_planned(lowered, plan, inputs, target)[0], want).agrees
    assert not compare(run_planned(lowered, broken, inputs, target)[0], want).agrees


def test_refuses_a_wrong_argument() -> None:
    graph, _ = small()
    lowered, plan = lower(graph, reference_target())
    wrong = [np.zeros((4, 9), np.float32)]
    for run in (
        lambda: run_lowered(lowered, wrong, reference_target()),
        lambda: run_planned(lowered, plan, wrong, reference_target()),
    ):
        with pytest.raises(InputMismatch, match="'x'"):
            run()


def test_refuses_memory_for_what_is_no_kernel() -> None:
    sample = next(s for s in SAMPLES if s.op == "aten")
    lowered, plan = lower(sample.graph(), reference_target())
    with pytest.raises(Unsupported, match="'aten' outside a kernel"):
        run_planned(lowered, plan, sample.arrays, reference_target())


def test_stands_for_another_target() -> None:
    """Decisions are the other target's, kernels are Python."""
    graph, x = small()
    target = standing_for(cuda_target())
    assert target.name == "reference for cuda"
    lowered, _ = lower(graph, target)
    schedules = [n.attrs["schedule"] for n in lowered.nodes if n.op == "kernel"]
    assert schedules == [n.attrs["schedule"] for n in lower(graph, cuda_target())[0].nodes
                         if n.op == "kernel"]  # fmt: skip
    check(graph, (x,), target)
