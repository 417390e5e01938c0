"""Parts inside wholes: which concats and slices are no kernels, and that nothing else changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from plait.codegen.reference import run_planned, standing_for
from plait.codegen.tvm.target import cpu_target
from plait.fuzz.generate import random_inputs
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.errors import PlanError
from plait.ir.graph import Attrs, Graph, Node
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.ir.verify import verify
from plait.passes import place
from plait.passes.context import Context
from plait.passes.memory import MemoryPlan, Planner, Storage
from plait.passes.memory_check import check_plan
from plait.passes.pipeline import DEFAULT_PIPELINE, parse_pipeline
from plait.runtime.compiler import compile_graph
from tests.passes.graphs import Make, build, same_meaning

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
    same_meaning(before, after, seed)
    return after, context.plan


def bare(graph: Graph, op: str) -> list[Node]:
    return [n for n in graph.nodes if n.op == op]


def copying(graph: Graph) -> list[Node]:
    return [n for n in bare(graph, "kernel") if n.attrs["body"].name == "copy"]


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


@pytest.mark.parametrize(
    ("kind", "concats", "copies"),
    [("input", 1, 1), ("twice", 1, 1), ("output", 1, 1), ("crooked", 1, 2), ("two wholes", 2, 2)],
)
def test_what_cannot_lie_inside_is_copied(kind: str, concats: int, copies: int) -> None:
    """An input, a part that comes twice, one that is an output too, one that begins off a line,
    one that lies in another whole."""

    def make(b: Builder, x: Value, w: Value, three: Value) -> tuple[Value, ...]:
        y = dot(b, x, w)
        parts = [dot(b, b.emit("relu", x), w), dot(b, b.emit("neg", x), w)]
        if kind == "two wholes":
            return cat(b, y, *parts), dot(b, cat(b, y, dot(b, b.emit("abs", x), w), y), w)
        if kind == "crooked":
            flat = [b.reshape(v, (128 * 256,)) for v in (y, *parts)]
            return (cat(b, *flat[:2], three, flat[2]),)
        last = {"input": x, "twice": parts[0], "output": y}[kind]
        whole = cat(b, *parts, last)
        return (whole, y) if kind == "output" else (whole,)

    graph, _ = lowered(make, ROWS, SQUARE, (3,))
    assert len(bare(graph, "concat")) == concats
    assert len(copying(graph)) == copies


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


def weight(b: Builder, *shape: int) -> Value:
    values = np.random.default_rng(sum(shape)).standard_normal(shape) / 9
    return b.constant(values.astype(np.float32))


def test_channels_of_an_image_are_written_apart_and_read_by_loops() -> None:
    def make(b: Builder, x: Value) -> tuple[Value, ...]:
        first = b.emit("relu", conv(b, x, weight(b, 32, 32, 1, 1)))
        second = conv(b, b.emit("tanh", first), weight(b, 16, 32, 3, 3))
        one = cat(b, first, second, axis=1)
        halved = conv(b, b.emit("relu", one * 0.5), weight(b, 16, 48, 1, 1))
        two = cat(b, one, halved, axis=1)
        sums = (b.emit("reduce_sum", v, axes=(2, 3), keepdims=False) for v in (one, two))
        return conv(b, two, weight(b, 8, 64, 1, 1)), *sums

    graph, plan = lowered(make, (2, 32, 20, 20))
    inner, outer = bare(graph, "concat")
    assert graph.types[outer.operands[0]] == inner.types[0]  # nested, in one piece of memory
    homes = {(plan.storage[v].space, plan.storage[v].index) for v in (*inner.operands,
                                                                      *outer.operands)}  # fmt: skip
    assert len(homes) == 1
    pitches = [n.attrs["pitch"] for n in bare(graph, "kernel") if n.attrs["pitch"]]
    assert {p for pitch in pitches for p in pitch} == {0, 64}
    writers = [pitch for pitch in pitches if pitch[-1]]
    readers = [pitch for pitch in pitches if any(pitch[:-1])]
    assert len(writers) >= 3 and readers


@pytest.mark.parametrize("first", [32, 4])
def test_a_part_that_comes_twice_is_copied_from_where_its_rows_lie_apart(first: int) -> None:
    """Also where the place that it lies in comes after the one off a vector."""

    def make(b: Builder, x: Value) -> tuple[Value, ...]:
        y = b.emit("relu", conv(b, x, weight(b, 32, 32, 1, 1)))
        others = [conv(b, x, weight(b, n, 32, 1, 1)) for n in (first, 32 - first % 32, 64)]
        whole = cat(b, others[0], y, *others[1:], y, axis=1)
        return conv(b, whole, weight(b, 8, whole.type.static("test")[1], 1, 1)), y * 2.0

    graph, _ = lowered(make, (1, 32, 64, 64))
    (whole,) = bare(graph, "concat")
    copies = [n.attrs["pitch"] for n in copying(graph)]
    width = whole.types[0].static("test")[1]
    assert (width, width) in copies


def test_a_reader_that_takes_no_rows_apart_keeps_a_part_whole() -> None:
    def make(b: Builder, x: Value) -> tuple[Value, Value]:
        first = conv(b, x, weight(b, 32, 32, 1, 1))
        second = conv(b, first, weight(b, 16, 32, 3, 3))  # reads the part as its data
        return cat(b, first, second, axis=1), second

    graph, _ = lowered(make, (2, 32, 20, 20))
    assert not any(any(n.attrs["pitch"][:-1]) for n in bare(graph, "kernel") if n.attrs["pitch"])


def test_what_else_a_kernel_computes_reads_no_part_in_vain() -> None:
    def make(b: Builder, x: Value, w: Value) -> tuple[Value, Value]:
        whole = cat(b, dot(b, x, w), dot(b, b.emit("relu", x), w))
        return whole, b.emit("tanh", whole)

    graph, _ = lowered(make, ROWS, SQUARE)
    (whole,) = bare(graph, "concat")
    (rest,) = (n for n in bare(graph, "kernel") if n.attrs["body"].nodes[-1].op == "tanh")
    assert rest.operands == (graph.results(graph.nodes.index(whole))[0],)


def test_a_result_is_not_written_over_a_run_that_is_read_elsewhere() -> None:
    """The last kernel reads place by place what it also reads a slice of."""
    b = Builder()

    def kernel(body: Graph, *operands: Value) -> Value:
        attrs = Attrs(body=body, schedule="loops", pitch=())
        ids = tuple(v.id for v in operands)
        return b.add(Node("kernel", ids, attrs, body.output_types))[0]

    relu = build(lambda b, x: b.emit("relu", x), (128, 64))
    added = build(lambda b, x, run: x + b.emit("reduce_sum", run, axes=(0,), keepdims=True),
                  (128, 64), (32, 64))  # fmt: skip
    x = kernel(relu, b.input(TensorType(t.f32, (128, 64))))
    y = kernel(added, x, cut(b, x, 64, 32))
    graph = b.finish([kernel(relu, y)])
    verify(graph, "placed")
    plan = Planner(graph).run()
    assert not plan.storage[x.id].shares(plan.storage[y.id])
    check_plan(graph, plan)


@pytest.mark.parametrize("asked", ["output", "part"])
def test_a_slice_that_must_be_elsewhere_is_copied(asked: str) -> None:
    def make(b: Builder, x: Value, w: Value) -> tuple[Value, ...]:
        y = dot(b, x, w)
        half = cut(b, y, 0, 64)
        if asked == "output":
            return half, dot(b, y, w)
        return (cat(b, half, dot(b, b.emit("relu", y), w)),)

    graph, _ = lowered(make, ROWS, SQUARE)
    assert not bare(graph, "slice")


def images(seed: int) -> Graph:
    """A random network of convolutions, elementwise ops, concats and slices of images."""
    r, b = Random(seed), Builder()
    shape = (r.choice([1, 2]), r.choice([8, 16, 32]), r.choice([1, 4]), r.choice([1, 6]))
    values = [b.input(TensorType(t.f32, shape)) for _ in range(2)]
    for _ in range(12):
        x, kind = r.choice(values[-4:]), r.choice(["conv", "unary", "concat", "concat", "slice"])
        if kind == "conv":
            y = conv(b, x, weight(b, r.choice([8, 16, 24]), x.type.static("test")[1], 3, 3))
        elif kind == "unary":
            y = b.emit(r.choice(["relu", "tanh", "neg"]), x)
        elif kind == "concat":
            axis = r.choice([0, 1, 1])
            like = [v for v in values if [n for d, n in enumerate(v.shape) if d != axis]
                    == [n for d, n in enumerate(x.shape) if d != axis]]  # fmt: skip
            y = cat(b, x, *r.choices(like, k=r.choice([1, 2])), axis=axis)
        else:
            axis = r.choice([0, 1])
            n = x.type.static("test")[axis]
            y = conv(
                b,
                cut(b, x, r.choice([0, n // 2]), max(1, n // 2), axis),
                weight(b, 8, x.type.static("test")[1] if axis == 0 else max(1, n // 2), 3, 3),
            )
        if max(y.type.static("test")) <= 256:
            values.append(y)
    return b.finish([values[-1], *r.sample(values[2:], 2)])


def test_random_images_keep_their_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "COPY", 64)
    counts = Counter[str]()
    for seed in range(120):
        graph, _ = planned(images(seed), seed)
        counts["concat"] += bool(bare(graph, "concat"))
        counts["slice"] += bool(bare(graph, "slice"))
        counts["pitch"] += any(n.attrs["pitch"] for n in bare(graph, "kernel"))
    assert min(counts["concat"], counts["slice"]) >= 10 and counts["pitch"] >= 5


def test_compiled_kernels_agree_bit_for_bit_with_copies() -> None:
    """Every template that can write apart, parts in one whole and nested in a larger one."""

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


def test_the_validator_sees_a_part_out_of_place() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        return cat(b, dot(b, x, w), dot(b, b.emit("relu", x), w))

    graph, plan = lowered(make, ROWS, SQUARE)
    (whole,) = bare(graph, "concat")
    storage = list(plan.storage)
    storage[whole.operands[1]] = Storage("output", 0, 64)
    with pytest.raises(PlanError, match="its bytes hold"):
        check_plan(graph, replace(plan, storage=tuple(storage)))


def test_the_validator_sees_a_wrong_pitch() -> None:
    def make(b: Builder, x: Value) -> Value:
        y = b.emit("relu", conv(b, x, weight(b, 32, 32, 1, 1)))
        return b.transpose(cat(b, y, b.emit("tanh", y), axis=1), (0, 2, 3, 1))

    graph, plan = lowered(make, (2, 32, 20, 20))
    at = next(k for k, n in enumerate(graph.nodes) if n.op == "kernel" and n.attrs["pitch"])
    node = graph.nodes[at]
    for wrong in ((), tuple(p and p - 8 for p in node.attrs["pitch"])):
        nodes = list(graph.nodes)
        nodes[at] = node.with_attrs(pitch=wrong)
        with pytest.raises(PlanError):
            check_plan(replace(graph, nodes=tuple(nodes)), plan)
