"""Local rewrites: named rules as data, and the driver that applies them to a fixed point."""

from __future__ import annotations

import inspect
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from plait.ir import op as ops
from plait.ir.builder import Builder, Value
from plait.ir.errors import RewriteLoop, VerifyError
from plait.ir.graph import Attrs, Graph, Node
from plait.ir.logs import logger
from plait.passes.context import Context

_log = logger(__name__)
Replacement: TypeAlias = "Value | tuple[Value, ...] | None"


@dataclass(frozen=True)
class Match:
    """A node under consideration, with its operands in the graph being built."""

    b: Builder
    node: Node
    operands: tuple[Value, ...]
    counts: Mapping[int, int]

    @property
    def attrs(self) -> Attrs:
        return self.node.attrs

    def readers(self, value: Value) -> int:
        """How many operand slots and outputs read a value that the graph had before this round."""
        return self.counts.get(value.id, 0)

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
    graph: Graph,
    visit: Callable[[Builder, Node, tuple[Value, ...]], Replacement],
    placed: Callable[[int, Value], None] | None = None,
) -> Graph:
    """Rebuild a graph; `visit` gives each node's replacement, or None to keep it.

    Equal nodes are built once (common-subexpression elimination) and unused ones dropped.
    `placed` is told the new value of every old one.
    """
    b = Builder(graph.name)
    env: dict[int, Value] = {}
    for k, given in enumerate(graph.inputs):
        env[k] = b.input(given.type, given.name)
        if placed is not None:
            placed(k, env[k])
    b.on_emit = _deduplicator(b)
    for k, node in enumerate(graph.nodes):
        operands = tuple(env[v] for v in node.operands)
        with b.at(node.loc):
            found = visit(b, node, operands)
            if found is None:
                found = b.add(node.with_operands(v.id for v in operands))
        results = found if isinstance(found, tuple) else (found,)
        for number, value in zip(graph.results(k), results, strict=True):
            env[number] = value
            if placed is not None:
                placed(number, value)
    b.on_emit = None  # it refers to the builder, which would live on, with all arrays, as garbage
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
    return graph if len(kept) == len(graph.nodes) else reordered(graph, kept[::-1])


def reordered(graph: Graph, sequence: Sequence[int]) -> Graph:
    """The graph with the given nodes alone, in that order, which must be topological."""
    number = {k: k for k in range(len(graph.inputs))}
    nodes: list[Node] = []
    for k in sequence:
        nodes.append(graph.nodes[k].with_operands(number[v] for v in graph.nodes[k].operands))
        for v in graph.results(k):
            number[v] = len(number)
    outputs = tuple(number[v] for v in graph.outputs)
    return Graph(graph.inputs, tuple(nodes), outputs, graph.name)


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
        before = context.fired.total()
        graph = _round(graph, by_op, context, recent)
        if context.fired.total() == before:
            return graph
    raise RewriteLoop(limit=limit, rules=", ".join(recent))


def _round(
    graph: Graph, by_op: Mapping[str, Sequence[Rule]], context: Context, recent: deque[str]
) -> Graph:
    """Try the rules once at every node."""
    counts = use_counts(graph)
    readers: Counter[int] = Counter()

    def placed(number: int, value: Value) -> None:
        readers[value.id] += counts[number]

    def visit(b: Builder, node: Node, operands: tuple[Value, ...]) -> Replacement:
        for r in by_op.get(node.op, ()):
            found = r.rewrite(Match(b, node, operands, readers))
            if found is not None:
                _check_replacement(r, node, found)
                context.fired[r.name] += 1
                recent.append(r.name)
                _log.debug("%s at %s (%s)", r.name, node.op, node.loc or "no source")
                return found
        return None

    return transform(graph, visit, placed)


def _check_replacement(r: Rule, node: Node, found: Value | tuple[Value, ...]) -> None:
    """A replacement has the dtypes and logical shapes of what it replaces."""
    results = found if isinstance(found, tuple) else (found,)
    got = [v.type.with_layout(None) for v in results]
    want = [ty.with_layout(None) for ty in node.types]
    if got != want:
        shown = ", ".join(map(str, got)), ", ".join(map(str, want))
        raise VerifyError(f"gives {shown[0]} for {node.op} of {shown[1]}", where=f"rule {r.name}")


def use_counts(graph: Graph) -> list[int]:
    """For every value: how many operand slots and outputs read it."""
    counts = [0] * len(graph.types)
    for node in graph.nodes:
        for v in node.operands:
            counts[v] += 1
    for v in graph.outputs:
        counts[v] += 1
    return counts
