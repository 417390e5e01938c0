"""Fusion: what shares a kernel, what is copied into its readers, and what never changes."""

from __future__ import annotations

from typing import Any

import pytest

from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.errors import VerifyError
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from plait.ir.verify import verify
from tests.passes.graphs import Make, bodies, build, ops_of, random_graphs, run, same_meaning

X = (4, 6)


def fused(make: Make, *shapes: tuple[int, ...]) -> Graph:
    """The fused graph, once its meaning and its stage are checked."""
    before = build(make, *shapes)
    after = run("fuse", before)
    verify(after, "fused")
    same_meaning(before, after)
    return after


def dot(b: Builder, x: Value, w: Value) -> Value:
    return b.emit("dot_general", x, w, lhs_contract=(x.rank - 1,), rhs_contract=(0,))


def total(b: Builder, x: Value, axes: tuple[int, ...] = (1,), keepdims: bool = True) -> Value:
    return b.emit("reduce_sum", x, axes=axes, keepdims=keepdims)


def view(b: Builder, x: Value) -> Value:
    return b.reshape(x, (6, 4))


# Anchors and their epilogues


def test_an_epilogue_joins_its_product() -> None:
    graph = fused(lambda b, x, w, r: b.emit("relu", dot(b, x, w) + 1.0) + r, X, (6, 5), (4, 5))
    assert bodies(graph) == [["dot_general", "add", "relu", "add"]]


def test_an_epilogue_ends_at_a_second_reader() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        y = b.emit("relu", dot(b, x, w))
        return dot(b, y, w) + dot(b, b.emit("exp", y), w)

    graph = fused(make, (6, 6), (6, 6))
    assert bodies(graph)[0] == ["dot_general", "relu"]


def swish(b: Builder, y: Value) -> Value:
    return b.emit("relu", y * b.emit("sigmoid", y))


def test_an_epilogue_may_part_and_meet_again() -> None:
    graph = fused(lambda b, x, w, r: swish(b, dot(b, x, w) + r) + r, X, (6, 5), (4, 5))
    assert bodies(graph) == [["dot_general", "add", "sigmoid", "mul", "relu", "add"]]


def test_an_epilogue_ends_where_one_of_its_parts_leaves() -> None:
    """By a reader that needs more than elements, or by an output."""

    def summed(b: Builder, x: Value, w: Value) -> Value:
        gate = b.emit("sigmoid", y := dot(b, x, w))
        return y * gate + total(b, gate)

    def returned(b: Builder, x: Value, w: Value) -> list[Value]:
        gate = b.emit("sigmoid", y := dot(b, x, w))
        return [y * gate, gate]

    for make in (summed, returned):
        assert bodies(fused(make, X, (6, 5)))[0] == ["dot_general"]


def test_an_epilogue_ends_at_an_output() -> None:
    graph = fused(lambda b, x, w: [y := dot(b, x, w), b.emit("exp", y)], X, (6, 5))
    assert bodies(graph) == [["dot_general"], ["exp"]]


def test_an_epilogue_keeps_the_shape() -> None:
    graph = fused(lambda b, x, w, r: dot(b, x, w) + r, X, (6, 5), (3, 4, 5))
    assert bodies(graph) == [["dot_general"], ["add"]]


def test_two_anchors_never_share_a_kernel() -> None:
    graph = fused(lambda b, x, w: dot(b, x, w) + dot(b, b.emit("neg", x), w), X, (6, 5))
    found = bodies(graph)
    assert all(body.count("dot_general") <= 1 for body in found)
    assert ["dot_general"] in found or ["dot_general", "add"] in found


def test_reductions_follow_a_product_in_their_own_kernel() -> None:
    graph = fused(lambda b, x, w: total(b, dot(b, x, w)), X, (6, 5))
    assert bodies(graph) == [["dot_general"], ["reduce_sum"]]


# Rows


def test_a_norm_is_one_kernel() -> None:
    def make(b: Builder, x: Value) -> Value:
        mean = total(b, x) / 6.0
        centred = x - mean
        var = total(b, centred * centred) / 6.0
        return centred * b.emit("rsqrt", var + 1e-5)

    graph = fused(make, X)
    assert len(bodies(graph)) == 1


def test_sibling_reductions_share_a_pass() -> None:
    def make(b: Builder, x: Value) -> list[Value]:
        return [total(b, y := x * x), b.emit("reduce_max", y, axes=(1,), keepdims=True)]

    graph = fused(make, X)
    assert bodies(graph) == [["mul", "reduce_sum", "reduce_max"]]


def test_reductions_over_other_dimensions_do_not() -> None:
    graph = fused(lambda b, x: [total(b, y := x * x), total(b, y, (0,))], X)
    assert len(bodies(graph)) == 2


def test_a_kernel_may_have_several_outputs() -> None:
    graph = fused(lambda b, x: [y := b.emit("exp", x), y * 2.0, total(b, y)], X)
    (kernel,) = [n for n in graph.nodes if n.op == "kernel"]
    assert [ty.shape for ty in kernel.types] == [(4, 6), (4, 6), (4, 1)]


def test_parts_that_meet_beyond_the_limit_stay_out() -> None:
    graph = build(lambda b, x, w: swish(b, dot(b, x, w) + 1.0), X, (6, 5))
    assert bodies(run("fuse{limit=3}", graph))[0] == ["dot_general", "add"]
    assert bodies(run("fuse{limit=4}", graph))[0] == ["dot_general", "add", "sigmoid", "mul"]


def test_the_limit_holds() -> None:
    def make(b: Builder, x: Value) -> Value:
        for _ in range(9):
            x = b.emit("tanh", x)
        return x

    before = build(make, X)
    after = run("fuse{limit=4}", before)
    assert [len(body) for body in bodies(after)] == [4, 4, 1]
    same_meaning(before, after)


# What is copied


def test_slices_and_broadcasts_are_copied_into_readers() -> None:
    def make(b: Builder, x: Value, y: Value) -> list[Value]:
        part = b.emit("slice", x, start=(0, 1), step=(2, 1), size=(2, 5))
        wide = b.emit("broadcast_to", y, shape=(2, 5))
        return [part + wide, dot(b, part, b.emit("iota", shape=(5, 3), axis=0, dtype=t.f32))]

    graph = fused(make, X, (5,))
    assert bodies(graph) == [
        ["slice", "broadcast_to", "add"], ["slice", "iota", "dot_general"],
    ]  # fmt: skip


def test_a_copied_slice_that_is_an_output_exists_once_more() -> None:
    def make(b: Builder, x: Value) -> list[Value]:
        part = b.emit("slice", x, start=(0, 1), step=(1, 1), size=(4, 5))
        return [part, b.emit("exp", part)]

    assert sorted(bodies(fused(make, X))) == [["slice"], ["slice", "exp"]]


def test_views_cost_nothing() -> None:
    graph = fused(lambda b, x: b.emit("exp", view(b, b.emit("tanh", x))), X)
    assert ops_of(graph) == ["kernel", "reshape", "kernel"]


def test_scalars_live_inside_kernels() -> None:
    assert ops_of(fused(lambda b, x: x * 3.0 + 1.0, X)) == ["kernel"]


# Cycles


def _through_a_product(b: Builder, x: Value) -> Value:
    y = b.emit("exp", x)
    return y + dot(b, y, y)


def _through_a_view(b: Builder, x: Value) -> Value:
    y = b.emit("exp", x)
    z = b.reshape(b.emit("tanh", view(b, y)), (4, 6))
    return y * z


def _through_two_groups(b: Builder, x: Value) -> Value:
    y = b.emit("exp", x)
    rows = total(b, y)
    columns = total(b, y * rows, (0,))
    return (y + columns) * rows


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (_through_a_product, (4, 4)),
        (_through_a_view, X),
        (_through_two_groups, X),
    ],
)
def test_no_cycles(make: Any, shape: tuple[int, ...]) -> None:
    fused(make, shape)


def test_kernels_are_emitted_after_what_they_read() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        late = b.emit("exp", x)
        y = dot(b, x, w)
        return b.emit("tanh", dot(b, y, w) + late)

    fused(make, (6, 6), (6, 6))


def test_reductions_that_drop_their_dimensions_are_refused() -> None:
    """The layout pass keeps them: after it, a shape tells where in a space a value lies."""
    graph = build(lambda b, x: total(b, x, keepdims=False), X)
    with pytest.raises(VerifyError, match="reductions that keep their dimensions"):
        run("fuse", graph)
    after = run("layout,fuse", graph)
    assert ops_of(after) == ["kernel", "reshape"]
    same_meaning(graph, after)


def test_opaque_nodes_stand_alone() -> None:
    call = {"target": "aten.neg.default", "arguments": "{}", "dtypes": ("float32",),
            "shapes": (X,)}  # fmt: skip
    graph = build(lambda b, x: b.emit("aten", b.emit("exp", x), **call) * 2.0, X)
    assert ops_of(run("fuse", graph)) == ["kernel", "aten", "kernel"]


@pytest.mark.parametrize("nodes", [6, 14])
def test_random_graphs_keep_their_meaning(nodes: int) -> None:
    for seed, graph in random_graphs(range(60), nodes):
        after = run("layout,fuse", graph)
        try:
            verify(after, "fused")
            same_meaning(graph, after, seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


def test_random_graphs_with_few_nodes_in_a_kernel() -> None:
    for seed, graph in random_graphs(range(30), 12):
        same_meaning(graph, run("canonicalize,layout,fuse{limit=2}", graph), seed)


def test_a_relayout_joins_the_loop_before_it() -> None:
    graph = build(lambda b, x: b.emit("exp", x), TensorType(t.f32, X, (1, 0)))
    after = run("layout,fuse", graph)
    assert bodies(after) == [["exp", "relayout"]]
    assert after.output_types[0].layout is None
    same_meaning(graph, after)
