"""Fusion: every computation goes into a kernel with as much of its neighbourhood as fits.

A kernel has at most one anchor (contraction, window, scan, or a composite taken whole), a
contraction or a window with the elementwise nodes that follow it; or it is a loop nest over one
space: elementwise nodes and reductions over one set of dimensions.  Cheap movement (slices,
broadcasts, iota, scalars) is copied into its readers, so that it never exists in memory.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property

from plait.ir import op as ops
from plait.ir.builder import Builder, Value
from plait.ir.dims import Dim
from plait.ir.graph import Attrs, Graph, Node
from plait.ir.layout import is_view
from plait.ir.verify import fail
from plait.passes.context import Context
from plait.passes.layout import row_space
from plait.passes.pipeline import Pass, register_pass
from plait.passes.rewrite import eliminate_dead

# Traits of ops that compute over a space of their own; composites are left where a target takes
# them whole.
ANCHORS = frozenset({"contraction", "window", "scan", "composite"})
WITH_EPILOGUE = frozenset({"contraction", "window"})
# Anchors that read operands through index arithmetic, and so take inlined movement.
READS_ANYWHERE = frozenset({"dot_general", "attention"})
INLINE = frozenset({"slice", "broadcast_to", "iota"})
VIEWS = frozenset({"reshape", "transpose", "relayout"})


def _has_any(op: str, traits: frozenset[str]) -> bool:
    return not traits.isdisjoint(ops.get(op).traits)


def is_anchor(op: str) -> bool:
    """Whether a kernel can have but one op of this name, around which it is made."""
    return _has_any(op, ANCHORS)


def anchors(body: Graph) -> list[int]:
    """The nodes of a body that are anchors."""
    return [k for k, node in enumerate(body.nodes) if is_anchor(node.op)]


@dataclass(eq=False)
class Group:
    """A kernel in the making; `space` and `axes` are set for loop nests."""

    members: list[int]
    anchor: int | None
    space: tuple[Dim, ...] = ()
    axes: tuple[int, ...] = ()


class Fuser:
    """Works on one graph; `run` gives the fused one."""

    def __init__(self, graph: Graph, limit: int) -> None:
        self.graph = graph
        self.limit = limit
        self.kinds = [self._kind(k) for k in range(len(graph.nodes))]
        self.groups: list[Group] = []
        self.group_of: list[Group | None] = [None] * len(graph.nodes)

    def _kind(self, k: int) -> str:
        node = self.graph.nodes[k]
        if node.op == "constant":
            return "scalar" if node.types[0].rank == 0 else "constant"
        if node.op in VIEWS and is_view(node, self.graph.types[node.operands[0]]):
            return "view"
        if is_anchor(node.op):
            return "anchor"
        if node.op in INLINE:
            return "inline"
        if node.op.startswith("reduce_"):
            if not node.attrs["keepdims"]:
                raise fail(self.graph, k, "fusion needs reductions that keep their dimensions")
            return "reduce"
        return "opaque" if ops.has_trait(node.op, "opaque") else "point"

    @cached_property
    def inlinable(self) -> list[bool]:
        """For every node: whether a reader copies it instead of loading its result."""
        result: list[bool] = []
        for k, node in enumerate(self.graph.nodes):
            kind = self.kinds[k]
            source = self.graph.producers[node.operands[0]] if node.operands else None
            through = kind == "view" and source is not None and result[source[0]]
            result.append(kind in ("scalar", "inline") or through)
        return result

    def readers(self, k: int) -> set[int]:
        """Nodes that read any result of node `k`."""
        return {u for v in self.graph.results(k) for u in self.graph.users[v]}

    def is_output(self, k: int) -> bool:
        return any(v in self.outputs for v in self.graph.results(k))

    @cached_property
    def outputs(self) -> frozenset[int]:
        return frozenset(self.graph.outputs)

    def producers_of(self, k: int) -> list[int]:
        made = (self.graph.producers[v] for v in self.graph.nodes[k].operands)
        return [m[0] for m in made if m is not None]

    def run(self) -> Graph:
        for k, kind in enumerate(self.kinds):
            if kind == "anchor":
                self._grow_epilogue(k)
        for k, kind in enumerate(self.kinds):
            if kind in ("point", "reduce") and self.group_of[k] is None:
                self._join_loops(k)
        for k in range(len(self.kinds)):
            if self._must_exist(k):
                self._new_group([k], None)
        return Emitter(self).run()

    def _new_group(self, members: list[int], anchor: int | None) -> Group:
        group = Group(members, anchor)
        self.groups.append(group)
        for k in members:
            self.group_of[k] = group
        return group

    def _grow_epilogue(self, anchor: int) -> None:
        """Take the elementwise nodes that alone read the anchor's result, and so on."""
        members = [anchor]
        if _has_any(self.graph.nodes[anchor].op, WITH_EPILOGUE):
            while following := self._following(members[-1], self.limit - len(members)):
                members += following
        self._new_group(members, anchor)

    def _following(self, at: int, most: int) -> list[int]:
        """The nodes of an epilogue from the readers of `at` to the first node that alone is read
        outside of them, which comes last; none if there is none within `most` nodes."""
        found: list[int] = []
        waiting = [] if self.is_output(at) else sorted(self.readers(at))
        while waiting and len(found) < most:
            node = heapq.heappop(waiting)  # in the graph's order, so after all that it reads
            if not self._fits_epilogue(node, at):
                return []
            found.append(node)
            if not waiting:
                return found
            if self.is_output(node):
                return []
            for reader in self.readers(node) - {*waiting}:
                heapq.heappush(waiting, reader)
        return []

    def _fits_epilogue(self, reader: int, at: int) -> bool:
        node, source = self.graph.nodes[reader], self.graph.nodes[at]
        free = self.group_of[reader] is None and self.kinds[reader] == "point"
        pointwise = ops.has_trait(node.op, "elementwise") or node.op == "relayout"
        return free and pointwise and node.types[0].shape == source.types[0].shape

    def _join_loops(self, k: int) -> None:
        """Put a node into a loop nest of its producers if the spaces agree, else a new one."""
        node = self.graph.nodes[k]
        group = self._new_group([k], None)
        if self.kinds[k] == "reduce":
            group.space = self.graph.types[node.operands[0]].shape
            group.axes = node.attrs["axes"]
        else:
            group.space = node.types[0].shape
        for p in self.producers_of(k):
            other, mine = self.group_of[p], self.group_of[k]
            if other is None or mine is None or other is mine or other.anchor is not None:
                continue
            space = self._common_space(other, mine)
            full = len(other.members) + len(mine.members) > self.limit
            if space is not None and not full and not self._would_cycle(other, mine):
                self._merge(other, mine, *space)

    def _common_space(self, a: Group, b: Group) -> tuple[tuple[Dim, ...], tuple[int, ...]] | None:
        """Space and reduced dimensions of the union, None if they do not agree."""
        if a.space == b.space and (not a.axes or not b.axes or a.axes == b.axes):
            return a.space, a.axes or b.axes
        for whole, part in ((a, b), (b, a)):
            rows = row_space(whole.space, whole.axes)
            if whole.axes and not part.axes and part.space == rows:
                return whole.space, whole.axes
        return None

    def _would_cycle(self, a: Group, b: Group) -> bool:
        """Whether some path leaves `a` and enters `b` through a node outside both."""
        inside = {*a.members, *b.members}
        targets = set(a.members)
        stack = [p for k in b.members for p in self.producers_of(k) if p not in inside]
        seen: set[int] = set()
        while stack:
            k = stack.pop()
            if k in seen:
                continue
            seen.add(k)
            group = self.group_of[k]
            block = group.members if group is not None else [k]
            seen.update(block)
            for m in block:
                for p in self.producers_of(m):
                    if p in targets:
                        return True
                    if p not in seen and p not in inside:
                        stack.append(p)
        return False

    def _merge(self, a: Group, b: Group, space: tuple[Dim, ...], axes: tuple[int, ...]) -> None:
        a.members = sorted([*a.members, *b.members])
        a.space, a.axes = space, axes
        self.groups.remove(b)
        for k in b.members:
            self.group_of[k] = a

    def takes_inline(self, reader: int) -> bool:
        """Whether a node's kernel reads operands by index arithmetic."""
        if self.kinds[reader] in ("inline", "view"):
            return self.inlinable[reader]
        if self.kinds[reader] == "anchor":
            return self.graph.nodes[reader].op in READS_ANYWHERE
        return self.kinds[reader] in ("point", "reduce")

    def _must_exist(self, k: int) -> bool:
        """An inlinable node that some reader, or the caller, wants in memory."""
        if not self.inlinable[k] or self.kinds[k] in ("scalar", "view"):
            return False
        seen: set[int] = set()
        stack = [k]
        while stack:
            at = stack.pop()
            if self.is_output(at):
                return True
            for reader in self.readers(at) - seen:
                seen.add(reader)
                if self.kinds[reader] == "view":
                    stack.append(reader)
                elif not self.takes_inline(reader):
                    return True
        return False


class Emitter:
    """Builds the fused graph from the groups."""

    def __init__(self, fuser: Fuser) -> None:
        self.fuser = fuser
        self.graph = fuser.graph
        self.b = Builder(self.graph.name)
        self.env: dict[int, Value] = {}

    def run(self) -> Graph:
        for k, given in enumerate(self.graph.inputs):
            self.env[k] = self.b.input(given.type, given.name)
        for unit in self._ordered_units():
            if isinstance(unit, Group):
                self._emit_kernel(unit)
            elif self._available(unit):
                self._emit_node(unit)
        return eliminate_dead(self.b.finish(self.env[v] for v in self.graph.outputs))

    def _available(self, k: int) -> bool:
        """Views of values that exist only inside kernels are not emitted."""
        return all(v in self.env for v in self.graph.nodes[k].operands)

    def _ordered_units(self) -> list[Group | int]:
        """Groups and lone nodes so that producers come first, in the order of the graph."""
        group_of = self.fuser.group_of
        units: list[Group | int] = [*self.fuser.groups]
        units += [k for k, g in enumerate(group_of) if g is None]
        index: dict[int, int] = {}
        for u, unit in enumerate(units):
            for k in unit.members if isinstance(unit, Group) else [unit]:
                index[k] = u
        waits: list[set[int]] = [set() for _ in units]
        feeds: list[set[int]] = [set() for _ in units]
        for k in range(len(self.graph.nodes)):
            for p in self.fuser.producers_of(k):
                if index[p] != index[k]:
                    waits[index[k]].add(index[p])
                    feeds[index[p]].add(index[k])
        last = [max(u.members) if isinstance(u, Group) else u for u in units]
        ready = [(last[u], u) for u in range(len(units)) if not waits[u]]
        heapq.heapify(ready)
        ordered: list[Group | int] = []
        while ready:
            _, u = heapq.heappop(ready)
            ordered.append(units[u])
            for f in feeds[u]:
                waits[f].discard(u)
                if not waits[f]:
                    heapq.heappush(ready, (last[f], f))
        assert len(ordered) == len(units), "fusion made a cycle"
        return ordered

    def _emit_node(self, k: int) -> None:
        node = self.graph.nodes[k]
        moved = node.with_operands(self.env[v].id for v in node.operands)
        self.env.update(zip(self.graph.results(k), self.b.add(moved), strict=True))

    def _emit_kernel(self, group: Group) -> None:
        body, arguments, results = Body(self.fuser, group).build()
        operands = tuple(self.env[v].id for v in arguments)
        locs = [self.graph.nodes[k].loc for k in group.members if self.graph.nodes[k].loc]
        attrs = Attrs(body=body, schedule="", pitch=())
        made = self.b.add(
            Node("kernel", operands, attrs, body.output_types, locs[0] if locs else "")
        )
        self.env.update(zip(results, made, strict=True))


class Body:
    """Builds the body of one kernel."""

    def __init__(self, fuser: Fuser, group: Group) -> None:
        self.fuser, self.graph, self.group = fuser, fuser.graph, group
        self.members = set(group.members)
        self.arguments: list[int] = []

    def build(self) -> tuple[Graph, list[int], list[int]]:
        """The body, the values of the graph it takes, and those it gives."""
        for k in self.group.members:
            self._collect(k)
        b = Builder(self._name())
        self.env = {v: b.input(self.graph.types[v]) for v in self.arguments}
        for k in self.group.members:
            self._copy(b, k)
        results = [v for k in self.group.members for v in self.graph.results(k) if self._escapes(v)]
        return b.finish(self.env[v] for v in results), self.arguments, results

    def _name(self) -> str:
        nodes = self.graph.nodes
        named = self.group.anchor if self.group.anchor is not None else self.group.members[-1]
        return nodes[named].op

    def _inlines(self, v: int) -> int | None:
        """The node to copy for value `v`, None if it is a member's or an argument."""
        made = self.graph.producers[v]
        if made is None or made[0] in self.members or not self.fuser.inlinable[made[0]]:
            return None
        return made[0]

    def _collect(self, k: int) -> None:
        takes = self.fuser.takes_inline(k)
        for v in self.graph.nodes[k].operands:
            made = self.graph.producers[v]
            if made is not None and made[0] in self.members:
                continue
            inner = self._inlines(v)
            if inner is not None and (takes or self.fuser.kinds[inner] == "scalar"):
                self._collect(inner)
            elif v not in self.arguments:
                self.arguments.append(v)

    def _copy(self, b: Builder, k: int) -> None:
        node = self.graph.nodes[k]
        for v in node.operands:
            if v not in self.env:
                inner = self._inlines(v)
                assert inner is not None, "a body reads a value that was not collected"
                self._copy(b, inner)
        moved = node.with_operands(self.env[v].id for v in node.operands)
        self.env.update(zip(self.graph.results(k), b.add(moved), strict=True))

    def _escapes(self, v: int) -> bool:
        """Whether anything outside the kernel reads a value."""
        outside = any(u not in self.members for u in self.graph.users[v])
        return outside or v in self.fuser.outputs


@register_pass
@dataclass(frozen=True)
class Fuse(Pass):
    """Form kernels.  Requires decomposed graphs after `layout`; leaves stage `fused`."""

    name = "fuse"
    leaves = "fused"
    limit: int = 64

    def apply(self, graph: Graph, context: Context) -> Graph:
        return Fuser(graph, self.limit).run()
