"""Local rewrites: named rules as data, and the driver that applies them to a fixed point."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from plait.ir import op as ops
from plait.ir.builder import Builder, Value
from plait.ir.errors import RewriteLoop
from plait.ir.graph import Attrs, Graph, Node
from plait.passes.context import Context

Replacement: TypeAlias = "Value | tuple[Value, ...] | None"


@dataclass(frozen=True)
class Match:
    """A node under consideration, with its operands in the graph being built."""

    b: Builder
    node: Node
    operands: tuple[Value, ...]
    uses: tuple[int, ...]
    context: Context

    @property
    def attrs(self) -> Attrs:
        return self.node.attrs

    def producer(self, k: int) -> Node | None:
        """The node that makes operand `k`."""
        return self.b.producer(self.operands[k])

    def made_by(self, value: Value, *names: str) -> Node | None:
        """The producer of a value if it is one of the named ops."""
        node = self.b.producer(value)
        return node if node is not None and node.op in names else None

    def constant(self, value: Value) -> Any:
        """The array of a constant value, None for any other."""
        node = self.made_by(value, "constant")
        return None if node is None else node.attrs["value"].array

    def scalar(self, value: Value) -> int | float | bool | None:
        """The number held by a constant whose elements are all equal."""
        array = self.constant(value)
        if array is None or array.size == 0 or array.size > 4096:
            return None
        first = array.flat[0]
        return first.item() if (array == first).all() else None


@dataclass(frozen=True)
class Rule:
    """A rewrite of nodes whose op is in `ops`: gives the replacement or None."""

    name: str
    ops: frozenset[str]
    rewrite: Callable[[Match], Replacement]
    source: str


def rule(*names: str) -> Callable[[Callable[[Match], Replacement]], Rule]:
    """Decorator: a function `(match) -> replacement | None` as a rule for the named ops."""

    def make(fn: Callable[[Match], Replacement]) -> Rule:
        where = f"{inspect.getsourcefile(fn)}:{fn.__code__.co_firstlineno}"
        return Rule(fn.__name__.strip("_").replace("_", "-"), frozenset(names), fn, where)

    return make


def transform(
    graph: Graph, visit: Callable[[Builder, Node, tuple[Value, ...]], Replacement],
    deduplicate: bool = True,
) -> Graph:  # fmt: skip
    """Rebuild a graph; `visit` gives each node's replacement, or None to keep it.

    Equal nodes are built once (common-subexpression elimination) and unused ones dropped.
    """
    b = Builder(graph.name)
    env: dict[int, Value] = {}
    for k, given in enumerate(graph.inputs):
        env[k] = b.input(given.type, given.name)
    if deduplicate:
        b.on_emit = _deduplicator(b)
    for k, node in enumerate(graph.nodes):
        operands = tuple(env[v] for v in node.operands)
        with b.at(node.loc):
            found = visit(b, node, operands)
            if found is None:
                moved = Node(
                    node.op, tuple(v.id for v in operands), node.attrs, node.types, node.loc
                )
                found = b.add(moved)
        results = found if isinstance(found, tuple) else (found,)
        env.update(zip(graph.results(k), results, strict=True))
    return eliminate_dead(b.finish(env[v] for v in graph.outputs))


def _deduplicator(
    b: Builder,
) -> Callable[[Node, tuple[Value, ...]], tuple[Value, ...] | None]:
    """Gives the results of an equal node emitted before, if there is one."""
    seen: dict[Any, tuple[int, ...]] = {}

    def on_emit(node: Node, _: tuple[Value, ...]) -> tuple[Value, ...] | None:
        if ops.has_trait(node.op, "opaque"):
            return None
        key = (node.op, node.operands, node.attrs, node.types)
        if key in seen:
            return tuple(b.value(v) for v in seen[key])
        first = len(b.types)
        seen[key] = tuple(range(first, first + len(node.types)))
        return None

    return on_emit


def eliminate_dead(graph: Graph) -> Graph:
    """Drop nodes that no output needs."""
    needed = [False] * len(graph.types)
    for v in graph.outputs:
        needed[v] = True
    kept: list[int] = []
    for k in range(len(graph.nodes) - 1, -1, -1):
        if any(needed[v] for v in graph.results(k)):
            kept.append(k)
            for v in graph.nodes[k].operands:
                needed[v] = True
    if len(kept) == len(graph.nodes):
        return graph
    env = {k: k for k in range(len(graph.inputs))}
    nodes: list[Node] = []
    at = len(graph.inputs)
    for k in reversed(kept):
        node = graph.nodes[k]
        nodes.append(Node(node.op, tuple(env[v] for v in node.operands), node.attrs, node.types,
                          node.loc))  # fmt: skip
        for v in graph.results(k):
            env[v] = at
            at += 1
    return Graph(graph.inputs, tuple(nodes), tuple(env[v] for v in graph.outputs), graph.name)


def apply_rules(graph: Graph, rules: Sequence[Rule], context: Context, limit: int = 50) -> Graph:
    """Apply rules until none fires; each rule must lower a measure that its list states.

    Raises `RewriteLoop` with the last rules fired when `limit` rounds do not suffice.
    """
    by_op: dict[str, list[Rule]] = {}
    for r in rules:
        for name in r.ops:
            by_op.setdefault(name, []).append(r)
    recent: deque[str] = deque(maxlen=8)
    for _ in range(limit):
        fired = False

        def visit(b: Builder, node: Node, operands: tuple[Value, ...]) -> Replacement:
            nonlocal fired
            for r in by_op.get(node.op, ()):
                uses = tuple(counts[v] for v in node.operands)  # noqa: B023 (lives one round)
                found = r.rewrite(Match(b, node, operands, uses, context))
                if found is not None:
                    fired = True
                    context.fired[r.name] += 1
                    recent.append(r.name)
                    return found
            return None

        counts = use_counts(graph)
        graph = transform(graph, visit)
        if not fired:
            return graph
    raise RewriteLoop(limit=limit, rules=", ".join(recent))


def use_counts(graph: Graph) -> list[int]:
    """For every value: how many operand slots and outputs read it."""
    counts = [0] * len(graph.types)
    for node in graph.nodes:
        for v in node.operands:
            counts[v] += 1
    for v in graph.outputs:
        counts[v] += 1
    return counts
