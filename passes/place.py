"""Parts inside wholes: concats and slices that are places in memory, not copies.

A kernel that joins tensors copies them.  Where their producers can write straight into the joined
tensor the copy goes: the graph then holds a `concat` outside of kernels, which is no step, and the
memory planner gives its operands places inside its result.  A slice that is a run of its operand's
memory is a view of it in the same way.

A part that lies there in one piece needs nothing of its kernels.  One whose rows lie apart, as
channels of a wider image do, asks them to read and write at that distance: their attribute `pitch`
says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from plait.ir.builder import Builder, Value
from plait.ir.dims import Dim, is_static
from plait.ir.graph import Attrs, Graph, Node
from plait.ir.layout import memory_root, part_offsets, pitched, slice_offset, strides
from plait.ir.types import LINE_BYTES, TensorType
from plait.passes.context import Context, Target
from plait.passes.fuse import anchors
from plait.passes.memory import block_bytes
from plait.passes.pipeline import Pass, register_pass
from plait.passes.rewrite import eliminate_dead

VECTOR = 32  # bytes: rows that lie apart begin on vectors
COPY = 64 * 1024  # bytes that others must save for each kernel that copies; its cost is a guess


@dataclass(frozen=True)
class Whole:
    """A concat that a kernel stores: node `at` of the body of node `kernel`, all of inputs.

    value: its result in the graph.  others: the inputs of the body that its other nodes read.
    """

    kernel: int
    at: int
    value: int
    operands: tuple[int, ...]
    body: Graph
    others: tuple[int, ...]

    @cached_property
    def rest(self) -> Graph | None:
        """What else the kernel computes, from `others` and the concat's result; None if nothing."""
        return _without(self.body, self.at, self.others)


def wholes(graph: Graph) -> list[Whole]:
    """The concats that kernels without anchors store, those of most bytes first."""
    found = [w for k in range(len(graph.nodes)) if (w := _whole_of(graph, k)) is not None]
    return sorted(found, key=lambda w: (-block_bytes(graph.types[w.value]), -w.kernel))


def _whole_of(graph: Graph, k: int) -> Whole | None:
    node = graph.nodes[k]
    if node.op != "kernel" or anchors(body := node.attrs["body"]):
        return None
    for at, inner in enumerate(body.nodes):
        made = body.first_result[at]
        if inner.op != "concat" or body.outputs.count(made) != 1:
            continue
        types = [body.types[v] for v in (*inner.operands, made)]
        sound = all(is_static(ty.shape) and 0 not in ty.shape for ty in types)
        if sound and all(v < len(body.inputs) for v in inner.operands):
            value = graph.first_result[k] + body.outputs.index(made)
            inputs = range(len(body.inputs))
            others = [v for v in inputs if set(body.users[v]) - {at} or v in body.outputs]
            operands = tuple(node.operands[v] for v in inner.operands)
            return Whole(k, at, value, operands, body, tuple(others))
    return None


def _without(body: Graph, at: int, others: Sequence[int]) -> Graph | None:
    """The body with the inputs `others`, then the result of node `at` as an input, no output."""
    made = body.first_result[at]
    b = Builder(body.name)
    env = {v: b.input(body.inputs[v].type, body.inputs[v].name) for v in others}
    env[made] = b.input(body.types[made])
    for k, node in enumerate(body.nodes):
        if k != at:
            results = b.add(node.with_operands(env[v].id for v in node.operands))
            env.update(zip(body.results(k), results, strict=True))
    kept = [env[v] for v in body.outputs if v != made]
    return b.finish(kept) if kept else None


class Placer:
    """Decides which values lie inside others.

    homes: the whole of each part, by the value whose memory the part is.  pitch: of the values
    whose rows lie apart, the distance.  parts: of each whole that is left to the planner, for each
    operand None if it lies in it, else what a kernel needs that copies it there.
    """

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.homes: dict[int, int] = {}
        self.pitch: dict[int, int] = {}
        self.parts: dict[int, list[Attrs | None]] = {}
        self.outputs = {memory_root(graph, v) for v in graph.outputs}
        self.wholes = {w.kernel: w for w in wholes(graph)}
        for whole in self.wholes.values():
            self._decide(whole)
        self.slices = {k for k in range(len(graph.nodes)) if self._is_run(k)}

    def _decide(self, whole: Whole) -> None:
        """Leave a concat to the planner if enough of it needs no copy."""
        homes: dict[int, int] = {}
        pitch: dict[int, int] = {}
        type = self.graph.types[whole.value]
        axis: int = whole.body.nodes[whole.at].attrs["axis"]
        own = pitched(type, self.pitch.get(whole.value, 0))
        lies: list[bool] = []
        begins = part_offsets([self.graph.types[v] for v in whole.operands], axis, own)
        for v, begin in zip(whole.operands, begins, strict=True):
            root = memory_root(self.graph, v)
            first = begin * type.dtype.itemsize
            distance = None if root in homes else self._fits(v, root, whole, axis, own, first)
            lies.append(distance is not None)
            if distance is not None:
                homes[root] = whole.value
            if distance:
                pitch[v] = distance
        if not self._pays(whole, lies) or not self._readable(whole):
            return
        copies = [None if inside else self._copy(v, whole, axis, own, pitch.get(v, 0))
                  for v, inside in zip(whole.operands, lies, strict=True)]  # fmt: skip
        if all(inside or copy is not None for inside, copy in zip(lies, copies, strict=True)):
            self.homes |= homes
            self.pitch |= pitch
            self.parts[whole.value] = copies

    def _pays(self, whole: Whole, lies: list[bool]) -> bool:
        """Whether what need not move outweighs what is copied, and the kernels for that."""
        sizes = [block_bytes(self.graph.types[v]) for v in whole.operands]
        saved = sum(n for n, inside in zip(sizes, lies, strict=True) if inside)
        return saved >= max(sum(sizes) - saved, COPY * lies.count(False), 1)

    def _copy(
        self, v: int, whole: Whole, axis: int, own: tuple[Dim, ...], pitch: int
    ) -> Attrs | None:
        """The kernel that copies an operand to its place, None if there is none that can.

        `pitch` is the distance of the operand's rows if it is this whole that asks for it.
        """
        type = self.graph.types[whole.value]
        body = copying(self.graph.types[v], type)
        (made,) = body.output_types
        schedule = self.target.select(body, (False,)).schedule
        apart = not _same_steps(made, strides(made), own)
        distance = self.pitch.get(whole.value) or type.static("placing")[type.order[-1]]
        distances = self.pitch.get(v, pitch), distance if apart else 0
        reached = all(
            self.target.within(body, schedule, n) for n, rows in enumerate(distances) if rows
        )
        if not reached or (apart and axis != made.order[-1]):
            return None
        return Attrs(body=body, schedule=schedule, pitch=distances if any(distances) else ())

    def _readable(self, whole: Whole) -> bool:
        """Whether the rest of a kernel can read the whole where it lies."""
        if whole.rest is None or whole.value not in self.pitch:
            return True
        count = len(whole.rest.inputs)
        schedule = self.target.select(whole.rest, (False,) * count).schedule
        return self.target.within(whole.rest, schedule, count - 1)

    def _fits(
        self, v: int, root: int, whole: Whole, axis: int, own: tuple[Dim, ...], first: int
    ) -> int | None:
        """How far the rows of a part lie apart, 0 for a part in one piece; None: it is copied.

        `own` are the strides of the whole, `first` is the byte of it where the part begins.
        """
        type = self.graph.types[v]
        made = self.graph.producer(root)
        if made is None or made.op != "kernel" or root in self.homes or root in self.outputs:
            return None
        if type.order != self.graph.types[whole.value].order:
            return None
        if _same_steps(type, strides(type), own):
            return 0 if first % LINE_BYTES == 0 else None
        inner, size = type.order[-1], type.dtype.itemsize
        width = type.static("placing")[inner]
        outer = self.graph.types[whole.value].static("placing")[inner]
        distance = self.pitch.get(whole.value, outer)
        aligned = all(n % VECTOR == 0 for n in (width * size, distance * size, first))
        if root != v or axis != inner or not aligned:
            return None
        return distance if self._reachable(v, whole) else None

    def _reachable(self, v: int, whole: Whole) -> bool:
        """Whether all kernels that touch a part can do so where its rows lie apart."""
        graph = self.graph
        made = graph.producers[v]
        assert made is not None
        if not self._within(made[0], len(graph.nodes[made[0]].operands) + made[1]):
            return False
        for k in graph.users[v]:
            node = graph.nodes[k]
            if node.op != "kernel":
                return False
            for number in (n for n, o in enumerate(node.operands) if o == v):
                readers = node.attrs["body"].users[number]
                if k == whole.kernel and readers == (whole.at,):
                    continue
                if k in self.wholes or not self._within(k, number):
                    return False
        return True

    def _within(self, k: int, number: int) -> bool:
        attrs = self.graph.nodes[k].attrs
        return self.target.within(attrs["body"], attrs["schedule"], number)

    def _is_run(self, k: int) -> bool:
        """Whether a kernel copies a run of its operand's memory, and nobody insists on the copy."""
        node = self.graph.nodes[k]
        body: Graph | None = node.attrs["body"] if node.op == "kernel" else None
        if body is None or len(body.nodes) != 1 or body.nodes[0].op != "slice":
            return False
        first = slice_offset(body.nodes[0], body.types[0])
        (v,), (source,) = self.graph.results(k), node.operands
        asked = v in self.homes or v in self.outputs
        apart = memory_root(self.graph, source) in self.pitch or v in self.pitch
        size = node.types[0].dtype.itemsize
        return first is not None and first * size % LINE_BYTES == 0 and not asked and not apart


def copying(type: TensorType, whole: TensorType) -> Graph:
    """The body of a kernel that copies a tensor into the order of a whole."""
    b = Builder("copy")
    return b.finish([b.emit("relayout", b.input(type), layout=whole.layout)])


def _same_steps(type: TensorType, a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
    return all(n == 1 or x == y for n, x, y in zip(type.shape, a, b, strict=True))


class Rebuilder:
    """Builds the graph that a `Placer` has decided on."""

    def __init__(self, placer: Placer) -> None:
        self.placer, self.graph, self.target = placer, placer.graph, placer.target
        self.b = Builder(self.graph.name)
        self.env: dict[int, Value] = {}

    def run(self) -> Graph:
        for k, given in enumerate(self.graph.inputs):
            self.env[k] = self.b.input(given.type, given.name)
        for k, node in enumerate(self.graph.nodes):
            with self.b.at(node.loc):
                self._visit(k, node)
        return eliminate_dead(self.b.finish(self.env[v] for v in self.graph.outputs))

    def _visit(self, k: int, node: Node) -> None:
        whole = self.placer.wholes.get(k)
        if whole is not None and whole.value in self.placer.parts:
            self._join(whole)
            return
        operands = tuple(self.env[v].id for v in node.operands)
        if k in self.placer.slices:
            (inner,) = node.attrs["body"].nodes
            made = self.b.add(inner.with_operands(operands))
        elif node.op == "kernel":
            values = (*node.operands, *self.graph.results(k))
            pitch = self._pitches(values)
            made = self.b.add(node.with_attrs(pitch=pitch).with_operands(operands))
        else:
            made = self.b.add(node.with_operands(operands))
        self.env.update(zip(self.graph.results(k), made, strict=True))

    def _pitches(self, values: tuple[int, ...]) -> tuple[int, ...]:
        found = tuple(self.placer.pitch.get(v, 0) for v in values)
        return found if any(found) else ()

    def _join(self, whole: Whole) -> None:
        """The concat, copies of what does not lie in it, and what else its kernel computes."""
        inner = whole.body.nodes[whole.at]
        parts = [
            self.env[v].id if copy is None else self._kernel(copy, [self.env[v]])[0].id
            for v, copy in zip(whole.operands, self.placer.parts[whole.value], strict=True)
        ]
        (self.env[whole.value],) = self.b.add(inner.with_operands(parts))
        if whole.rest is None:
            return
        operands = self.graph.nodes[whole.kernel].operands
        values = (*(operands[v] for v in whole.others), whole.value)
        results = [v for v in self.graph.results(whole.kernel) if v != whole.value]
        chosen = self.target.select(whole.rest, (False,) * len(values))
        attrs = Attrs(body=whole.rest, schedule=chosen.schedule,
                      pitch=self._pitches((*values, *results)))  # fmt: skip
        made = self._kernel(attrs, [self.env[v] for v in values])
        self.env.update(zip(results, made, strict=True))

    def _kernel(self, attrs: Attrs, operands: list[Value]) -> tuple[Value, ...]:
        types = attrs["body"].output_types
        return self.b.add(Node("kernel", tuple(v.id for v in operands), attrs, types))


@dataclass(frozen=True)
class Placed:
    """A concat or a slice that is no step.

    parts: how many tensors lie inside its result, or it inside another if it is a slice.  copied:
    how many others a kernel copies there.  nbytes: what need not move, which a kernel would copy.
    """

    node: Node
    parts: int
    copied: int
    nbytes: int


def placed(graph: Graph) -> list[Placed]:
    """What the pass has left to the memory planner, in order."""
    found = []
    for k, node in enumerate(graph.nodes):
        if node.op in ("concat", "slice"):
            values = node.operands if node.op == "concat" else graph.results(k)
            inside = [v for v in values if not _is_copy(graph.producer(v))]
            moved = sum(graph.types[v].nbytes("placing") for v in inside)
            found.append(Placed(node, len(inside), len(values) - len(inside), moved))
    return found


def _is_copy(made: Node | None) -> bool:
    if made is None or made.op != "kernel":
        return False
    return [inner.op for inner in made.attrs["body"].nodes] == ["relayout"]


@register_pass
@dataclass(frozen=True)
class Place(Pass):
    """Leave concats and slices to the memory planner where no copy is needed.

    Requires stage `selected`; leaves stage `placed`.
    """

    name = "place"
    leaves = "placed"

    def apply(self, graph: Graph, context: Context) -> Graph:
        placer = Placer(graph, context.require_target(self.name))
        if not placer.parts and not placer.slices:
            return graph
        return Rebuilder(placer).run()
