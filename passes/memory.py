"""Memory: one arena for all intermediates, views and in-place results sharing storage.

A plan is plain data.  `plait.passes.memory_check` validates it without sharing code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from plait.ir import op as ops
from plait.ir.dims import Dim
from plait.ir.graph import Graph
from plait.ir.layout import (
    is_view,
    memory_root,
    part_offsets,
    same_memory,
    slice_offset,
    strides,
)
from plait.ir.types import LINE_BYTES, TensorType
from plait.passes.context import Context
from plait.passes.pipeline import Pass, register_pass


@dataclass(frozen=True)
class Storage:
    """Where a value lives: `space` is input, output, constant or arena.

    `index` is the number of the input or output, the node of the constant, or the arena block;
    `offset` the byte of it with which the value begins.
    """

    space: str
    index: int
    offset: int = 0

    def after(self, nbytes: int) -> Storage:
        """The storage that begins some bytes later."""
        return replace(self, offset=self.offset + nbytes)

    def shares(self, other: Storage) -> bool:
        """Whether both lie in the same input, output, constant or block."""
        return (self.space, self.index) == (other.space, other.index)


@dataclass(frozen=True)
class Block:
    """A part of the arena: bytes [offset, offset + size) from step `first` through `last`."""

    size: int
    first: int
    last: int
    offset: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Storage of every value, the arena's blocks and its size in bytes.

    `bound` is the largest number of bytes live in any step: no plan can be smaller.
    """

    storage: tuple[Storage, ...]
    blocks: tuple[Block, ...]
    size: int
    bound: int


def block_bytes(type: TensorType) -> int:
    """What a static tensor takes in the arena: whole lines, at least one."""
    return max(1, -(-type.nbytes("memory planning") // LINE_BYTES)) * LINE_BYTES


def in_place_operand(graph: Graph, k: int, result: int) -> list[int]:
    """Operands of kernel `k` whose memory its result number `result` may overwrite.

    Safe when every element of the operand is read only for the element of the result at the same
    place, and the result is written after it: the operand is read by elementwise nodes of the
    result's own shape and order alone, nothing in the body reads the result, and no later output
    needs the operand (kernels store an element of each output in turn).
    """
    node = graph.nodes[k]
    if node.op != "kernel":
        return []
    body: Graph = node.attrs["body"]
    out = body.outputs[result]
    if body.users[out] or len(set(body.outputs)) != len(body.outputs):
        return []
    found = []
    for position, v in enumerate(node.operands):
        alike = same_memory(body.types[position], body.types[out])
        if alike and node.operands.count(v) == 1 and elementwise_only(body, position, result):
            found.append(v)
    return found


def elementwise_only(body: Graph, v: int, number: int) -> bool:
    """Whether all readers of a value, up to reductions and the outputs through the one of this
    number, keep its place."""
    out = body.outputs[number]
    for reader in body.users[v]:
        node = body.nodes[reader]
        if node.op.startswith("reduce_"):
            continue
        (result,) = body.results(reader) if len(node.types) == 1 else (None,)
        if result is None or not ops.has_trait(node.op, "elementwise"):
            return False
        if not same_memory(body.types[result].with_dtype(body.types[out].dtype), body.types[out]):
            return False
        if result in body.outputs[number + 1 :] or not elementwise_only(body, result, number):
            return False
    return True


class Planner:
    """Assigns storage along the graph's order, then offsets."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.last = self._last_uses()
        self.storage: list[Storage] = [Storage("input", k) for k in range(len(graph.inputs))]
        self.spans: list[list[int]] = []  # of each block: size, first, last
        self.targets = self._output_targets()
        self.parts = self._parts()
        self.wholes: dict[int, Storage] = {}

    def _last_uses(self) -> list[int]:
        """Last step that reads each value, views included."""
        last = [-1] * len(self.graph.types)
        for v in self.graph.outputs:
            last[v] = len(self.graph.nodes)
        for k in range(len(self.graph.nodes) - 1, -1, -1):
            node = self.graph.nodes[k]
            for v in self.graph.results(k):
                last[v] = max(last[v], k)
            ends = max(last[v] for v in self.graph.results(k)) if self.is_alias(k) else k
            for v in node.operands:
                last[v] = max(last[v], ends)
        return last

    def is_alias(self, k: int) -> bool:
        node = self.graph.nodes[k]
        return len(node.operands) == 1 and is_view(node, self.graph.types[node.operands[0]])

    def run(self) -> MemoryPlan:
        for k, node in enumerate(self.graph.nodes):
            if node.op == "constant":
                self.storage.append(Storage("constant", k))
            elif self.is_alias(k):
                self.storage.append(self.storage[node.operands[0]].after(self._skipped(k)))
            elif node.op == "concat":
                self.storage.append(self._whole(self.graph.first_result[k], k))
            else:
                taken: set[int] = set()
                for r, v in enumerate(self.graph.results(k)):
                    fixed = v in self.targets or v in self.parts
                    self.storage.append(self._whole(v, k) if fixed else self._place(k, r, v, taken))
        blocks = [Block(*span) for span in self.spans]
        offsets, size = pack(blocks)
        placed = tuple(
            Block(b.size, b.first, b.last, o) for b, o in zip(blocks, offsets, strict=True)
        )
        return MemoryPlan(tuple(self.storage), placed, size, live_bound(blocks))

    def _output_targets(self) -> dict[int, int]:
        """Values computed straight into an output: it, or the value it is a view of."""
        targets: dict[int, int] = {}
        for index, v in enumerate(self.graph.outputs):
            v = memory_root(self.graph, v, slices=False)
            made = self.graph.producers[v]
            if made is not None and self.graph.nodes[made[0]].op != "constant":
                targets.setdefault(v, index)
        return targets

    def _is_slice(self, k: int) -> bool:
        return self.graph.nodes[k].op == "slice"

    def _skipped(self, k: int) -> int:
        """Bytes of a view's operand before the view."""
        if not self._is_slice(k):
            return 0
        node = self.graph.nodes[k]
        first = slice_offset(node, self.graph.types[node.operands[0]])
        assert first is not None, "an alias is a view"
        return first * node.types[0].dtype.itemsize

    def _parts(self) -> dict[int, tuple[int, int]]:
        """The values that lie inside a concat's result: it, and the byte where they begin."""
        parts: dict[int, tuple[int, int]] = {}
        steps: dict[int, tuple[Dim, ...]] = {}
        for k in range(len(self.graph.nodes) - 1, -1, -1):
            node = self.graph.nodes[k]
            if node.op != "concat":
                continue
            whole, axis = self.graph.first_result[k], node.attrs["axis"]
            own = steps.get(whole, strides(node.types[0]))
            types = [self.graph.types[v] for v in node.operands]
            for v, first in zip(node.operands, part_offsets(types, axis, own), strict=True):
                root = memory_root(self.graph, v)
                parts[root] = whole, first * node.types[0].dtype.itemsize
                if root == v:
                    steps[v] = own
        return parts

    def _whole(self, v: int, k: int) -> Storage:
        """The storage of a value with parts, of a part or of an output, first written now."""
        if v in self.targets:
            return Storage("output", self.targets[v])
        if v in self.parts:
            whole, first = self.parts[v]
            home = self._whole(whole, k).after(first)
            if home.space == "arena":
                self.spans[home.index][2] = max(self.spans[home.index][2], self.last[v])
            return home
        if v not in self.wholes:
            self.spans.append([block_bytes(self.graph.types[v]), k, self.last[v]])
            self.wholes[v] = Storage("arena", len(self.spans) - 1)
        return self.wholes[v]

    def _place(self, k: int, result: int, v: int, taken: set[int]) -> Storage:
        """A block that an operand leaves now, if the kernel may write there, or a new one."""
        size = block_bytes(self.graph.types[v])
        for operand in in_place_operand(self.graph, k, result):
            home = self.storage[operand]
            if home.space != "arena" or home.index in taken:
                continue
            span = self.spans[home.index]
            if span[2] == k and span[0] == size and self._sole_reader(k, home, operand):
                taken.add(home.index)
                span[2] = self.last[v]
                return home
        self.spans.append([size, k, self.last[v]])
        return Storage("arena", len(self.spans) - 1)

    def _sole_reader(self, k: int, home: Storage, operand: int) -> bool:
        """Whether no other operand of the step lies in the same block."""
        others = (v for v in self.graph.nodes[k].operands if v != operand)
        return not any(self.storage[v].shares(home) for v in others)


def live_bound(blocks: Sequence[Block]) -> int:
    """The most bytes live at one step."""
    events: dict[int, int] = {}
    for b in blocks:
        events[b.first] = events.get(b.first, 0) + b.size
        events[b.last + 1] = events.get(b.last + 1, 0) - b.size
    live = most = 0
    for step in sorted(events):
        live += events[step]
        most = max(most, live)
    return most


Order = Callable[[Block], tuple[int, ...]]
# Orders in which blocks are placed; the best result of all is taken.
ORDERS: tuple[Order, ...] = (
    lambda b: (-b.size, b.first),
    lambda b: (-b.size * (b.last - b.first + 1), -b.size),
    lambda b: (-(b.last - b.first), -b.size),
    lambda b: (b.first, -b.size),
    lambda b: (-b.last, -b.size),
)


def pack(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """Offsets of blocks, and the size they need: the best of several greedy orders.

    Each block goes to the lowest offset at which it fits among those already placed whose
    lifetimes meet its own.
    """
    best: list[int] = [0] * len(blocks)
    size = -1
    bound = live_bound(blocks)
    for order in ORDERS:
        offsets, needed = _pack_in_order(
            blocks, sorted(range(len(blocks)), key=lambda i: order(blocks[i]))
        )
        if size < 0 or needed < size:
            best, size = offsets, needed
        if size == bound:
            break
    return best, max(size, 0)


def _pack_in_order(blocks: Sequence[Block], sequence: Sequence[int]) -> tuple[list[int], int]:
    offsets = [0] * len(blocks)
    placed: list[int] = []
    for i in sequence:
        b = blocks[i]
        others = sorted(
            (offsets[j], offsets[j] + blocks[j].size)
            for j in placed
            if blocks[j].first <= b.last and b.first <= blocks[j].last
        )
        at = 0
        for begin, end in others:
            if at + b.size <= begin:
                break
            at = max(at, end)
        offsets[i] = at
        placed.append(i)
    return offsets, max((offsets[i] + blocks[i].size for i in placed), default=0)


@register_pass
@dataclass(frozen=True)
class Allocate(Pass):
    """Plan the arena; the plan is left in the context, the graph is unchanged."""

    name = "allocate"
    leaves = "placed"

    def apply(self, graph: Graph, context: Context) -> Graph:
        context.plan = Planner(graph).run()
        return graph
