"""The rewrite driver: equal nodes once, dead nodes never, and an end to every rewriting."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from plait.ir.builder import Builder, Value
from plait.ir.errors import RewriteLoop, VerifyError
from plait.ir.graph import Graph, Node
from plait.passes.context import Context
from plait.passes.rewrite import (
    Match,
    Replacement,
    apply_rules,
    eliminate_dead,
    rule,
    transform,
    use_counts,
)
from tests.passes.graphs import build, ops_of, random_graphs, same_meaning


def rebuilt(graph: Graph) -> Graph:
    return transform(graph, lambda b, node, operands: None)


def test_a_rebuilt_graph_is_freed_without_collecting_garbage() -> None:
    array = np.zeros(5)
    gone = weakref.ref(array)
    b = Builder()
    graph = rebuilt(b.finish([b.constant(array, "w")]))
    gc.disable()
    try:
        del array, b, graph
        assert gone() is None
    finally:
        gc.enable()


def test_equal_nodes_are_built_once() -> None:
    graph = build(lambda b, x: b.emit("exp", x + 1.0) * b.emit("exp", x + 1.0), (3,))
    assert ops_of(rebuilt(graph)) == ["constant", "add", "exp", "mul"]
    same_meaning(graph, rebuilt(graph))


def test_unequal_nodes_stay_apart() -> None:
    def make(b: Builder, x: Value) -> Value | list[Value]:
        sums = [b.emit("reduce_sum", x, axes=(k,)) for k in (0, 1)]
        return [*sums, b.scalar(1, sums[0].dtype), b.constant([1], "other")]

    graph = build(make, (3, 3))
    assert rebuilt(graph) == graph


def test_opaque_nodes_are_never_merged() -> None:
    def make(b: Builder, x: Value) -> Value | list[Value]:
        call = {"target": "aten.bernoulli.default", "arguments": "{}", "dtypes": ("float32",),
                "shapes": ((3,),)}  # fmt: skip
        return [b.emit("aten", x, **call), b.emit("aten", x, **call)]

    graph = build(make, (3,))
    assert ops_of(rebuilt(graph)) == ["aten", "aten"]


def test_dead_nodes_go_and_inputs_stay() -> None:
    def make(b: Builder, x: Value, y: Value) -> Value | list[Value]:
        b.emit("exp", b.emit("tanh", y))
        return b.emit("neg", x)

    graph = build(make, (3,), (4,))
    kept = eliminate_dead(graph)
    assert ops_of(kept) == ["neg"] and kept.input_types == graph.input_types
    assert eliminate_dead(kept) is kept


def test_use_counts() -> None:
    graph = build(lambda b, x: [(x * x) + 1.0, x], (3,))
    assert use_counts(graph) == [3, 1, 1, 1]


@rule("neg")
def _drop_double(m: Match) -> Replacement:
    """neg(neg(x)) -> x."""
    inner = m.made_by(m.operands[0], "neg")
    return None if inner is None else m.b.value(inner.operands[0])


@rule("add")
def swap_operands(m: Match) -> Replacement:
    """A rule without end."""
    return m.b.emit("add", m.operands[1], m.operands[0])


def test_rules_are_named_and_know_their_source() -> None:
    assert _drop_double.name == "drop-double"
    assert _drop_double.ops == {"neg"}
    assert "test_rewrite.py:" in _drop_double.source


def test_a_chain_falls_to_the_end() -> None:
    def make(b: Builder, x: Value) -> Value | list[Value]:
        for _ in range(7):
            x = b.emit("neg", x)
        return x

    graph = build(make, (3,))
    context = Context()
    assert ops_of(apply_rules(graph, [_drop_double], context)) == ["neg"]
    assert context.fired == {"drop-double": 3}


def test_a_loop_is_an_error_that_names_its_rules() -> None:
    graph = build(lambda b, x, y: b.emit("neg", -(x + y)), (3,), (3,))
    with pytest.raises(RewriteLoop) as caught:
        apply_rules(graph, [_drop_double, swap_operands], Context(), limit=5)
    message = str(caught.value)
    assert "did not converge after 5 rounds" in message
    assert message.endswith("swap-operands, swap-operands, swap-operands, swap-operands")


def test_a_match_knows_constants_and_uses() -> None:
    seen: list[tuple[object, tuple[int, ...]]] = []

    @rule("mul")
    def look(m: Match) -> Replacement:
        seen.append((m.scalar(m.operands[1]), tuple(map(m.readers, m.operands))))
        assert m.constant(m.operands[0]) is None
        return None

    ones = np.ones((2, 2), np.float32)
    graph = build(lambda b, x: [x * 2.0, b.emit("mul", x, b.constant(ones)), x * x], (2, 2))
    apply_rules(graph, [look], Context())
    assert seen == [(2.0, (4, 1)), (1.0, (4, 1)), (None, (4, 4))]


@rule("neg")
def broadcast_wrongly(m: Match) -> Replacement:
    return m.b.emit("broadcast_to", m.operands[0], shape=(2, 3))


def test_a_replacement_of_another_type_is_an_error() -> None:
    graph = build(lambda b, x: b.emit("neg", x), (3,))
    with pytest.raises(VerifyError, match=r"rule broadcast-wrongly: gives .* for neg of"):
        apply_rules(graph, [broadcast_wrongly], Context())


def test_replacements_keep_the_location() -> None:
    b = Builder()
    x = b.input(build(lambda b, x: x, (3,)).input_types[0])
    with b.at("model.py:3"):
        y = x + 1.0

    def visit(b: Builder, node: Node, operands: tuple[Value, ...]) -> Replacement:
        if node.op != "add":
            return None
        return b.emit("sub", operands[0], b.emit("neg", operands[1]))

    changed = transform(b.finish([y]), visit)
    assert [n.loc for n in changed.nodes if n.op in ("neg", "sub")] == ["model.py:3"] * 2


def test_random_graphs_keep_their_meaning() -> None:
    for seed, graph in random_graphs(range(25)):
        same_meaning(graph, rebuilt(graph), seed)
