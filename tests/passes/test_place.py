"""Parts inside wholes: which concats and slices are no kernels, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plait.codegen.reference import run_planned, standing_for
from plait.codegen.tvm.target import cpu_target
from plait.fuzz.generate import random_inputs
from plait.ir.builder import Builder, Value
from plait.ir.errors import PlanError
from plait.ir.graph import Graph, Node
from plait.ir.interp import interpret
from plait.ir.verify import verify
from plait.passes.context import Context
from plait.passes.memory import MemoryPlan, Storage
from plait.passes.memory_check import check_plan
from plait.passes.pipeline import DEFAULT_PIPELINE, parse_pipeline
from plait.runtime.compiler import compile_graph
from tests.passes.graphs import Make, build, random_graphs

WITHOUT = DEFAULT_PIPELINE.replace("place,", "")
ROWS = (128, 256)  # 128 KiB: worth more than a kernel that copies


def lowered(make: Make, *shapes: tuple[int, ...]) -> tuple[Graph, MemoryPlan]:
    """The graph after all passes, its plan checked, and run in the memory that the plan gives."""
    before = build(make, *shapes)
    return planned(before)


def planned(before: Graph, seed: int = 0) -> tuple[Graph, MemoryPlan]:
    context = Context(cpu_target())
    after = parse_pipeline(DEFAULT_PIPELINE).run(before, context)
    assert context.plan is not None
    verify(after, "placed")
    check_plan(after, context.plan)
    inputs = random_inputs(before, seed)
    with np.errstate(all="ignore"):
        found = run_planned(after, context.plan, inputs, standing_for(cpu_target()))
        for got, want in zip(found, interpret(after, inputs), strict=True):
            np.testing.assert_array_equal(got, want)
    return after, context.plan


def bare(graph: Graph, op: str) -> list[Node]:
    return [n for n in graph.nodes if n.op == op]


def kernels(graph: Graph) -> int:
    return len(bare(graph, "kernel"))


def cat(b: Builder, *parts: Value, axis: int = 0) -> Value:
    return b.emit("concat", *parts, axis=axis)


def cut(b: Builder, x: Value, start: int, size: int, axis: int = 0) -> Value:
    starts, sizes = [0] * x.rank, list(x.shape)
    starts[axis], sizes[axis] = start, size
    return b.emit("slice", x, start=starts, step=[1] * x.rank, size=sizes)


def dot(b: Builder, x: Value, w: Value) -> Value:
    return b.emit("dot_general", x, w, lhs_contract=(x.rank - 1,), rhs_contract=(0,))


def conv(b: Builder, x: Value, w: Value) -> Value:
    pad = w.type.static("test")[2] // 2
    pads = {"low": (pad, pad), "high": (pad, pad)}
    return b.emit("conv", x, w, stride=(1, 1), dilation=(1, 1), groups=1, **pads)


SQUARE = (256, 256)


def test_products_write_their_parts_of_an_output() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        return cat(b, dot(b, x, w), dot(b, b.emit("relu", x), w))

    graph, plan = lowered(make, ROWS, SQUARE)
    (whole,) = bare(graph, "concat")
    half = 4 * 128 * 256
    homes = [plan.storage[v] for v in whole.operands]
    assert homes == [Storage("output", 0), Storage("output", 0, half)]


def test_a_whole_in_the_arena_lives_as_long_as_its_parts() -> None:
    def make(b: Builder, x: Value, w: Value) -> tuple[Value, Value]:
        part = dot(b, x, w)
        whole = cat(b, part, dot(b, b.emit("relu", x), w))
        used = dot(b, whole, w)
        return used, dot(b, b.emit("relu", dot(b, part, w)), w)

    graph, plan = lowered(make, ROWS, SQUARE)
    (whole,) = bare(graph, "concat")
    (block,) = {plan.storage[v].index for v in whole.operands}
    part = whole.operands[0]
    assert plan.blocks[block].last >= max(graph.users[part])


@pytest.mark.parametrize("kind", ["input", "twice", "output", "crooked"])
def test_what_cannot_lie_inside_is_copied(kind: str) -> None:
    """An input, a part that comes twice, one that is an output too, one that begins off a line."""

    def make(b: Builder, x: Value, w: Value) -> tuple[Value, ...]:
        y = dot(b, x, w)
        other = {"input": x, "twice": y, "output": y, "crooked": y}[kind]
        parts = [y, other, y] if kind == "twice" else [y, dot(b, b.emit("relu", x), w), other]
        if kind == "crooked":
            parts = [cut(b, b.reshape(x, (128 * 256,)), 0, 3), b.reshape(y, (128 * 256,))]
        whole = cat(b, *parts)
        return (whole, y) if kind == "output" else (whole,)

    graph, _ = lowered(make, ROWS, SQUARE)
    assert len(bare(graph, "concat")) <= 1


def test_a_small_part_is_not_worth_copies() -> None:
    def make(b: Builder, x: Value, y: Value, w: Value) -> Value:
        return cat(b, dot(b, x, w), y)

    graph, _ = lowered(make, (4, 256), (4, 256), SQUARE)
    assert not bare(graph, "concat")


def test_a_slice_that_a_convolution_reads_is_a_view() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        return conv(b, cut(b, conv(b, x, w), 1, 2), w)

    graph, _ = lowered(make, (4, 16, 8, 8), (16, 16, 3, 3))
    assert len(bare(graph, "slice")) == 1


def test_channels_of_an_image_are_written_apart_and_read_by_loops() -> None:
    def make(b: Builder, x: Value, w: Value, v: Value) -> Value:
        first = b.emit("relu", conv(b, x, w))
        second = conv(b, first, v)
        one = cat(b, first, second, axis=1)
        third = conv(b, b.emit("relu", one), b.constant(np.ones((16, 48, 1, 1), np.float32)))
        return b.emit("relu", cat(b, one, third, axis=1))

    def constant(b: Builder, x: Value) -> Value:
        rng = np.random.default_rng(0)
        w, v = (b.constant(rng.standard_normal((n, 32, 1, 1)).astype(np.float32)) for n in (32, 16))
        return make(b, x, w, v)

    graph, plan = lowered(constant, (2, 32, 6, 6))
    del plan
    assert all(len(n.attrs["pitch"]) in (0, len(n.operands) + 1) for n in bare(graph, "kernel"))


@pytest.mark.parametrize("seeds", [range(k, k + 15) for k in range(0, 60, 15)])
def test_random_graphs_keep_their_meaning(seeds: range) -> None:
    for seed, graph in random_graphs(seeds):
        planned(graph, seed)


def test_compiled_kernels_agree_bit_for_bit_with_copies() -> None:
    """Every template that can write apart, parts in one whole and nested in a larger one."""
    rng = np.random.default_rng(1)

    def weight(b: Builder, *shape: int) -> Value:
        return b.constant((rng.standard_normal(shape) / 9).astype(np.float32))

    def make(b: Builder, x: Value) -> tuple[Value, Value]:
        y = b.emit("relu", conv(b, x, weight(b, 32, 32, 1, 1)))
        parts = [conv(b, y, weight(b, 32, 32, 3, 3)), conv(b, y, weight(b, 16, 32, 5, 5)),
                 b.emit("max_pool", y, window=(3, 3), stride=(1, 1), low=(1, 1), high=(1, 1),
                        dilation=(1, 1)),
                 b.emit("tanh", y)]  # fmt: skip
        small = cat(b, *parts, axis=1)
        scaled = b.emit("relu", small * 2.0)
        large = cat(b, small, conv(b, scaled, weight(b, 24, 112, 1, 1)), axis=1)
        after = b.emit("relu", large * 0.5)
        mean = b.emit("reduce_sum", large, axes=(2, 3), keepdims=False)
        return conv(b, after, weight(b, 8, 136, 1, 1)), mean

    graph = build(make, (2, 32, 14, 14))
    inputs = random_inputs(graph, 0)
    placed, copied = (compile_graph(graph, pipeline=p) for p in (DEFAULT_PIPELINE, WITHOUT))
    check_plan(placed.graph, placed.memory)
    assert bare(placed.graph, "concat")
    assert any(n.attrs["pitch"] for n in bare(placed.graph, "kernel"))
    for threads in (1, 2):
        pairs = zip(placed.load(threads)(*inputs), copied.load(threads)(*inputs), strict=True)
        for got, want in pairs:
            np.testing.assert_array_equal(got, want)


def test_the_validator_sees_a_part_out_of_place_and_a_wrong_pitch() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        return cat(b, dot(b, x, w), dot(b, b.emit("relu", x), w))

    graph, plan = lowered(make, ROWS, SQUARE)
    (whole,) = bare(graph, "concat")
    storage = list(plan.storage)
    storage[whole.operands[1]] = Storage("output", 0, 64)
    with pytest.raises(PlanError, match="its bytes hold"):
        check_plan(graph, replace(plan, storage=tuple(storage)))
