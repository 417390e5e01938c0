"""Layouts: channels innermost around convolutions, views where they exist, meaning unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.layout import is_view, row_major, strides
from plait.ir.types import TensorType
from plait.passes.layout import FEW_CHANNELS, channels_last
from tests.passes.graphs import TARGET, build, ops_of, random_graphs, run, same_meaning

LAST = channels_last(4)
IMAGE, WEIGHTS = (2, 8, 6, 5), (3, 8, 3, 3)


def conv(b: Builder, x: Value, w: Value) -> Value:
    return b.emit("conv", x, w, stride=(1, 1), low=(1, 1), high=(1, 1), dilation=(1, 1), groups=1)


def pool(b: Builder, x: Value) -> Value:
    return b.emit("max_pool", x, window=(2, 2), stride=(2, 2), low=(0, 0), high=(0, 0),
                  dilation=(1, 1))  # fmt: skip


def layouts(graph: Graph) -> dict[str, tuple[int, ...] | None]:
    """The layout of the last node of every op."""
    return {n.op: n.types[0].layout for n in graph.nodes}


def test_channels_are_innermost_from_the_first_convolution_on() -> None:
    graph = build(lambda b, x, w: pool(b, b.emit("relu", conv(b, x, w) + 1.0)), IMAGE, WEIGHTS)
    after = run("layout", graph)
    assert ops_of(after) == ["relayout", "conv", "constant", "add", "relu", "max_pool", "relayout"]
    assert {n.types[0].layout for n in after.nodes[:-1] if n.op != "constant"} == {LAST}
    assert after.output_types[0].layout is None
    same_meaning(graph, after)


def test_a_chain_of_convolutions_moves_data_once() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        for _ in range(3):
            x = b.emit("relu", conv(b, x, w))
        return x

    graph = build(make, IMAGE, (8, 8, 3, 3))
    assert ops_of(run("layout", graph)).count("relayout") == 2


def test_few_channels_stay_where_they_are() -> None:
    shape = (1, FEW_CHANNELS, 6, 5)
    after = run("layout", build(conv, shape, (8, FEW_CHANNELS, 3, 3)))
    assert ops_of(after) == ["conv", "relayout"]


def test_a_residual_adopts_the_layout_of_most_operands() -> None:
    def make(b: Builder, x: Value, w: Value, y: Value) -> Value:
        return conv(b, x, w) + y

    after = run("layout", build(make, IMAGE, WEIGHTS, (2, 3, 6, 5)))
    add = next(n for n in after.nodes if n.op == "add")
    assert add.types[0].layout == LAST


def test_a_mean_of_an_image_needs_no_movement() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        mean = b.emit("reduce_sum", conv(b, x, w), axes=(2, 3), keepdims=True)
        return b.reshape(mean, (2, 3))

    graph = build(make, IMAGE, WEIGHTS)
    after = run("layout", graph)
    assert ops_of(after) == ["relayout", "conv", "reduce_sum", "reshape"]
    assert row_major(after.output_types[0])
    same_meaning(graph, after)


@pytest.mark.parametrize(
    "make",
    [
        lambda b, x: b.emit("exp", b.transpose(x, (0, 2, 1, 3))),
        lambda b, x: b.transpose(b.reshape(x, (2, 8, 30)), (0, 2, 1)),
        lambda b, x: b.reshape(b.transpose(x, (2, 3, 0, 1)), (30, 2, 8)),
        lambda b, x: b.reshape(x, (2, 4, 2, 30, 1)),
    ],
)
def test_movement_is_a_view(make: object) -> None:
    graph = build(make, IMAGE)  # type: ignore[arg-type]
    after = run("layout", graph)
    moved = [n for n in after.nodes if n.op in ("transpose", "reshape")]
    assert moved and all(is_view(n, after.types[n.operands[0]]) for n in moved)
    same_meaning(graph, after)


def test_a_reshape_without_a_view_gets_row_major_memory() -> None:
    graph = build(lambda b, x: b.reshape(b.transpose(x, (0, 2, 3, 1)), (2, 240)), IMAGE)
    after = run("layout", graph)
    assert ops_of(after) == ["transpose", "relayout", "reshape"]
    assert is_view(after.nodes[2], after.types[after.nodes[2].operands[0]])
    same_meaning(graph, after)


def test_the_target_decides() -> None:
    graph = build(conv, IMAGE, WEIGHTS)
    assert run("layout", graph, replace(TARGET, channels_last=False)) == graph


def test_outputs_and_fallbacks_are_row_major() -> None:
    def make(b: Builder, x: Value) -> list[Value]:
        moved = b.transpose(x, (0, 2, 1, 3))
        call = {"target": "aten.neg.default", "arguments": '{"args": [{"$": 0}], "kwargs": {}}',
                "dtypes": ("float32",), "shapes": ((2, 6, 8, 5),)}  # fmt: skip
        return [b.emit("aten", moved, **call), moved, x]

    after = run("layout", build(make, TensorType(t.f32, IMAGE, (3, 1, 2, 0))))
    assert all(row_major(ty) for ty in after.output_types)
    for node in after.nodes:
        if node.op == "aten":
            assert all(row_major(after.types[v]) for v in node.operands)


def test_strides_follow_the_order() -> None:
    assert strides(TensorType(t.f32, IMAGE, LAST)) == (240, 1, 40, 8)


def test_random_graphs_keep_their_meaning() -> None:
    for seed, graph in random_graphs(range(60)):
        after = run("layout", graph)
        assert all(row_major(ty) for ty in after.output_types), seed
        same_meaning(graph, after, seed)
