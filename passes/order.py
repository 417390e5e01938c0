"""Ordering: the sequence of steps with a small memory peak."""

from __future__ import annotations

from dataclasses import dataclass

from plait.ir.graph import Graph
from plait.passes.context import Context
from plait.passes.memory import Planner, block_bytes
from plait.passes.pipeline import Pass, register_pass
from plait.passes.rewrite import reordered


def greedy_order(graph: Graph) -> list[int]:
    """List scheduling: of the ready steps, the one after which the fewest bytes are live.

    Ties go to the step that came first, so that a chain stays a chain.
    """
    sizes = [block_bytes(ty) for ty in graph.types]
    free = {v for k, n in enumerate(graph.nodes) if n.op == "constant" for v in graph.results(k)}
    free.update(range(len(graph.inputs)))
    readers = [len(u) + graph.outputs.count(v) for v, u in enumerate(graph.users)]
    sequence: list[int] = []

    def change(k: int) -> int:
        grown = sum(sizes[v] for v in graph.results(k) if v not in free)
        freed = sum(
            sizes[v] for v in set(graph.nodes[k].operands) if v not in free and readers[v] == 1
        )
        return grown - freed

    waiting: dict[int, set[int]] = {
        k: {p[0] for v in n.operands if (p := graph.producers[v])}
        for k, n in enumerate(graph.nodes)
    }
    ready = [k for k, w in waiting.items() if not w]
    while ready:
        k = min(ready, key=lambda r: (change(r), r))
        ready.remove(k)
        sequence.append(k)
        for v in set(graph.nodes[k].operands):
            readers[v] -= 1
        for u in {u for v in graph.results(k) for u in graph.users[v]}:
            waiting[u].discard(k)
            if not waiting[u]:
                ready.append(u)
    return sequence


@register_pass
@dataclass(frozen=True)
class Order(Pass):
    """Take the greedy order if its arena is smaller than that of the order at hand."""

    name = "order"
    leaves = "placed"

    def apply(self, graph: Graph, context: Context) -> Graph:
        sequence = greedy_order(graph)
        if sequence == list(range(len(graph.nodes))):
            return graph
        other = reordered(graph, sequence)
        return other if Planner(other).run().size < Planner(graph).run().size else graph
