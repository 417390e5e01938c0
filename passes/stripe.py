"""Stripes: chains of kernels that pass large tensors on become one kernel each.

A kernel whose result only one other kernel reads may be computed a few rows at a time, just before
they are read, so that the result never exists whole.  The target knows which kernels can be cut in
this way and where it pays.  The joined kernel's body holds the kernels themselves, so it still says
what it means, and each of them keeps its schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from plait.ir.builder import Builder, Value
from plait.ir.graph import Attrs, Graph, Node
from plait.ir.layout import is_view
from plait.passes.context import Context
from plait.passes.pipeline import Pass, register_pass
from plait.passes.rewrite import eliminate_dead

VIEWS = frozenset({"reshape", "transpose"})


@dataclass(frozen=True)
class Link:
    """A kernel in a chain: its number, its node, and the operand that the one before it makes.

    views: the nodes, in order, through which that operand is seen; `entry` of the first link is -1.
    """

    number: int
    node: Node
    entry: int = -1
    views: tuple[int, ...] = ()


@dataclass(frozen=True)
class Block:
    """Links [first, last] of a chain as one kernel with this schedule."""

    first: int
    last: int
    schedule: str


def chains(graph: Graph) -> Iterator[list[Link]]:
    """The longest chains of two kernels or more in which each alone reads the one before it.

    Of several that one kernel alone reads, the one with the largest result leads to it.
    """
    found = {k: link for k in range(len(graph.nodes)) if (link := _only_reader(graph, k))}
    leading: dict[int, int] = {}
    for k in sorted(found, key=lambda k: _size(graph.nodes[k])):
        leading[found[k].number] = k
    following = {k: found[k] for k in leading.values()}
    for k in sorted(following):
        if k in leading:
            continue
        chain = [Link(k, graph.nodes[k])]
        while chain[-1].number in following:
            chain.append(following[chain[-1].number])
        yield chain


def _size(node: Node) -> int:
    return math.prod(n for n in node.types[0].shape if isinstance(n, int))


def _only_reader(graph: Graph, k: int) -> Link | None:
    """The kernel that alone reads, once and perhaps through views, all that kernel `k` makes."""
    if graph.nodes[k].op != "kernel" or len(graph.nodes[k].types) != 1:
        return None
    (value,) = graph.results(k)
    views: list[int] = []
    while value not in graph.outputs and len(graph.users[value]) == 1:
        (reader,) = graph.users[value]
        node = graph.nodes[reader]
        if node.op == "kernel":
            once = node.operands.count(value) == 1
            return Link(reader, node, node.operands.index(value), tuple(views)) if once else None
        if node.op not in VIEWS or not is_view(node, graph.types[value]):
            return None
        views.append(reader)
        (value,) = graph.results(reader)
    return None


class Joiner:
    """Rebuilds a graph with some parts of its chains as one kernel each."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.b = Builder(graph.name)
        self.env: dict[int, Value] = {}

    def run(self, parts: dict[int, tuple[list[Link], str]]) -> Graph:
        """`parts` gives the links and the schedule of a part by the number of its last kernel."""
        graph = self.graph
        for k, given in enumerate(graph.inputs):
            self.env[k] = self.b.input(given.type, given.name)
        for k, node in enumerate(graph.nodes):
            with self.b.at(node.loc):
                if k in parts:
                    made: tuple[Value, ...] = (self._join(*parts[k]),)
                else:
                    made = self.b.add(node.with_operands(self.env[v].id for v in node.operands))
            self.env.update(zip(graph.results(k), made, strict=True))
        return eliminate_dead(self.b.finish(self.env[v] for v in graph.outputs))

    def _join(self, links: list[Link], schedule: str) -> Value:
        graph = self.graph
        members = [k for link in links for k in (*link.views, link.number)][len(links[0].views) :]
        inside = {v for k in members for v in graph.results(k)}
        read = [v for k in members for v in graph.nodes[k].operands]
        taken = [v for v in dict.fromkeys(read) if v not in inside]
        inner = Builder("+".join(link.node.attrs["body"].name for link in links))
        env = {v: inner.input(graph.types[v]) for v in taken}
        for k in members:
            node = graph.nodes[k]
            made = inner.add(node.with_operands(env[v].id for v in node.operands))
            env.update(zip(graph.results(k), made, strict=True))
        (result,) = graph.results(links[-1].number)
        attrs = Attrs(body=inner.finish([env[result]]), schedule=schedule, pitch=())
        operands = tuple(self.env[v].id for v in taken)
        (joined,) = self.b.add(Node("kernel", operands, attrs, (graph.types[result],),
                                    links[0].node.loc))  # fmt: skip
        return joined


@register_pass
@dataclass(frozen=True)
class Stripe(Pass):
    """Join kernels whose intermediate results need not exist whole.

    Requires and leaves stage `selected`.
    """

    name = "stripe"
    leaves = "selected"

    def apply(self, graph: Graph, context: Context) -> Graph:
        target = context.require_target(self.name)
        parts: dict[int, tuple[list[Link], str]] = {}
        for chain in chains(graph):
            for block in target.blocks(chain):
                links = chain[block.first : block.last + 1]
                parts[links[-1].number] = links, block.schedule
        return Joiner(graph).run(parts) if parts else graph
