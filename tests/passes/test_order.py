"""Ordering: another sequence only where it saves memory, and always a topological one."""

from __future__ import annotations

from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.verify import verify
from plait.passes.memory import Planner
from plait.passes.memory_check import check_plan
from plait.passes.order import greedy_order, reordered
from tests.passes.graphs import build, random_graphs, run, same_meaning

SQUARE = (16, 16)


def dot(b: Builder, x: Value, w: Value) -> Value:
    return b.emit("dot_general", x, w, lhs_contract=(x.rank - 1,), rhs_contract=(0,))


def size(graph: Graph) -> int:
    return Planner(graph).run().size


def test_branches_are_finished_one_by_one() -> None:
    """All wide branches first would keep them all; a greedy order narrows each at once."""

    def make(b: Builder, *xs: Value) -> Value:
        wide = [dot(b, x, x) for x in xs]
        narrow = [dot(b, b.emit("slice", x, start=(0, 0), step=(1, 1), size=(1, 16)), x)
                  for x in wide]  # fmt: skip
        total = narrow[0]
        for x in narrow[1:]:
            total = dot(b, total + x, xs[0])
        return total

    before = run("layout,fuse,select", build(make, *[SQUARE] * 4))
    after = run("order", before)
    assert size(before) >= 4 * 1024
    assert size(after) <= 2 * 1024 + 64
    same_meaning(before, after)


def test_a_chain_stays_a_chain() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        for _ in range(4):
            x = dot(b, b.emit("exp", x), w)
        return x

    graph = run("layout,fuse,select", build(make, SQUARE, SQUARE))
    assert greedy_order(graph) == list(range(len(graph.nodes)))
    assert run("order", graph) is graph


def test_random_graphs_are_never_worse() -> None:
    for seed, graph in random_graphs(range(60), 16):
        before = run("layout,fuse,select", graph)
        sequence = greedy_order(before)
        assert sorted(sequence) == list(range(len(before.nodes))), seed
        verify(reordered(before, sequence), "selected")
        after = run("order", before)
        assert size(after) <= size(before), seed
        check_plan(after, Planner(after).run())
        same_meaning(before, after, seed)


def test_names_and_locations_travel_along() -> None:
    b = Builder("net")
    x = b.input(build(lambda b, x: x, SQUARE).input_types[0], "x")
    with b.at("model.py:1"):
        first = b.emit("exp", x)
    with b.at("model.py:2"):
        second = b.emit("neg", x)
    graph = reordered(b.finish([first, second]), [1, 0])
    assert [n.loc for n in graph.nodes] == ["model.py:2", "model.py:1"]
    assert (graph.name, graph.inputs[0].name, graph.outputs) == ("net", "x", (2, 1))
