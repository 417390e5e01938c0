"""A graph with ``aten`` nodes as a host program: compiled segments between torch's operators."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from plait.ir.graph import Graph, Input, Node
from plait.ir.ops.aten import draws


@dataclass(frozen=True)
class HostCall:
    """Torch's operator on values of the whole graph."""

    node: Node
    operands: tuple[int, ...]
    results: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """A graph without ``aten`` nodes; its inputs and outputs are values of the whole graph."""

    graph: Graph
    operands: tuple[int, ...]
    results: tuple[int, ...]


def split(graph: Graph) -> tuple[HostCall | Segment, ...]:
    """Steps that compute the graph, in order, with as few segments as the host calls allow.

    A node's stage counts the segments that must run before it: a host call stands one stage after
    the segment that feeds it, a compiled node in the segment after the host calls that feed it.
    Calls that draw random numbers keep their order. Constants belong to every segment that reads
    them and are no results of any.
    """
    stages = _stages(graph)
    steps: list[HostCall | Segment] = []
    for stage in range(max(stages, default=0) + 1):
        chosen = [k for k, s in enumerate(stages) if s == stage]
        steps += [_host_call(graph, k) for k in chosen if graph.nodes[k].op == "aten"]
        compiled = [k for k in chosen if not _on_host(graph.nodes[k])]
        if compiled:
            steps.append(_segment(graph, compiled))
    return tuple(steps)


def _on_host(node: Node) -> bool:
    return node.op in ("aten", "constant")


def _stages(graph: Graph) -> list[int]:
    stages: list[int] = []
    last_draw = 0
    for node in graph.nodes:
        stage = 0
        for value in node.operands:
            made = graph.producers[value]
            if made is not None:
                maker = graph.nodes[made[0]]
                crossing = node.op == "aten" and not _on_host(maker)
                stage = max(stage, stages[made[0]] + crossing)
        if node.op == "aten" and draws(node):
            stage = last_draw = max(stage, last_draw)
        stages.append(stage)
    return stages


def _host_call(graph: Graph, index: int) -> HostCall:
    node = graph.nodes[index]
    return HostCall(node, node.operands, tuple(graph.results(index)))


def _segment(graph: Graph, chosen: Sequence[int]) -> Segment:
    """The chosen nodes, with the constants that they read, as a graph of their own."""
    inside = set(chosen)
    constants: dict[int, None] = {}
    operands: dict[int, None] = {}
    for k in chosen:
        for value in graph.nodes[k].operands:
            made = graph.producers[value]
            if made is not None and graph.nodes[made[0]].op == "constant":
                constants[made[0]] = None
            elif made is None or made[0] not in inside:
                operands[value] = None
    outputs = set(graph.outputs)
    results = tuple(
        value
        for k in chosen
        for value in graph.results(k)
        if value in outputs or any(user not in inside for user in graph.users[value])
    )
    order = [*constants, *chosen]
    number = {value: n for n, value in enumerate(operands)}
    for k in order:
        for value in graph.results(k):
            number[value] = len(number)
    nodes = tuple(_renumbered(graph.nodes[k], number) for k in order)
    names = dict(enumerate(graph.inputs))
    inputs = tuple(
        Input(graph.types[v], names[v].name if v in names else f"v{v}") for v in operands
    )
    inner = Graph(inputs, nodes, tuple(number[v] for v in results), graph.name)
    return Segment(inner, tuple(operands), results)


def _renumbered(node: Node, number: dict[int, int]) -> Node:
    operands = tuple(number[v] for v in node.operands)
    return Node(node.op, operands, node.attrs, node.types, node.loc)


def last_uses(steps: Sequence[HostCall | Segment], outputs: Sequence[int]) -> list[list[int]]:
    """For every step, the values that nothing reads after it."""
    last: dict[int, int] = {}
    for at, step in enumerate(steps):
        last.update(dict.fromkeys((*step.operands, *step.results), at))
    dead: dict[int, list[int]] = defaultdict(list)
    for value, at in last.items():
        if value not in outputs:
            dead[at].append(value)
    return [dead[at] for at in range(len(steps))]
