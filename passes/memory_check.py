"""Validation of memory plans, one sentence for each way to be wrong.  Shares no planner code."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.ir import op as ops
from plait.ir.errors import PlanError
from plait.ir.graph import Graph, Node
from plait.ir.layout import strides
from plait.ir.types import LINE_BYTES, TensorType

if TYPE_CHECKING:
    from plait.passes.memory import MemoryPlan


def check_plan(graph: Graph, plan: MemoryPlan) -> None:
    """Replay the graph on symbolic memory and raise `PlanError` at the first fault.

    Every byte of the arena and of the outputs carries the number of the value that was written
    there last; each read must find its own value (or those that a view or a concat shows) in all
    its bytes, at the distances at which the kernel reads.
    """
    if len(plan.storage) != len(graph.types):
        raise PlanError(
            f"{len(plan.storage)} values have storage, the graph has {len(graph.types)}"
        )
    for number, block in enumerate(plan.blocks):
        if block.offset < 0 or block.offset + block.size > plan.size:
            raise PlanError(f"block {number} leaves the arena of {plan.size} bytes")
        if block.offset % LINE_BYTES:
            raise PlanError(
                f"block {number} at {block.offset} is not aligned to {LINE_BYTES} bytes"
            )
        if block.first > block.last:
            raise PlanError(f"block {number} ends before it begins")
    Replay(graph, plan).run()


def _pitch(node: Node, number: int) -> int:
    """How far a kernel takes the rows of an operand or a result to lie apart; 0 for side by side.

    Operands are numbered first, then results.
    """
    pitch: tuple[int, ...] = node.attrs["pitch"]
    return pitch[number] if pitch else 0


class Replay:
    """The memory of a run, in units of as many bytes as divide all places in it.

    shown: for each value the numbers that its units must carry, in the order of its memory.
    """

    def __init__(self, graph: Graph, plan: MemoryPlan) -> None:
        self.graph, self.plan = graph, plan
        self.unit = self._unit()
        self.owner: dict[tuple[str, int], Any] = {
            ("arena", 0): np.full(plan.size // self.unit + 1, -1, np.int64)
        }
        for k, ty in enumerate(graph.output_types):
            size = -(-ty.nbytes("memory check") // self.unit)
            self.owner["output", k] = np.full(size, -1, np.int64)
        self.shown: dict[int, Any] = {v: self._own(v) for v in range(len(graph.inputs))}

    def run(self) -> None:
        for k, node in enumerate(self.graph.nodes):
            if node.op == "kernel":
                for number, v in enumerate(node.operands):
                    self._read(v, f"step {k} ({node.op})", _pitch(node, number))
                self._write(k)
            elif node.op == "concat":
                self.shown[self.graph.first_result[k]] = self._joined(node)
            else:
                for v in self.graph.results(k):
                    self.shown[v] = self._view(k, v)
        for v in self.graph.outputs:
            self._read(v, "the graph's output", 0)

    def _unit(self) -> int:
        unit = math.gcd(LINE_BYTES, *(home.offset for home in self.plan.storage))
        for node in self.graph.nodes:
            touched = [self.graph.types[v] for v in node.operands] + list(node.types)
            if node.op == "concat":
                runs = (_run(ty, node.attrs["axis"]) for ty in touched)
                unit = math.gcd(unit, *runs)
            elif node.op == "kernel":
                for number, ty in enumerate(touched):
                    if pitch := _pitch(node, number):
                        unit = math.gcd(unit, pitch * ty.dtype.itemsize, _row(ty))
        return unit

    def _own(self, v: int) -> Any:
        return np.full(-(-self.graph.types[v].nbytes("memory check") // self.unit), v, np.int64)

    def _place(self, v: int, pitch: int) -> tuple[tuple[str, int], Any]:
        """The space of a value and its units there, in the order of its memory."""
        home, type = self.plan.storage[v], self.graph.types[v]
        need = type.nbytes("memory check")
        row = _row(type) if pitch else need
        rows = need // row if row else 0
        step = pitch * type.dtype.itemsize
        extent = home.offset + (max(rows - 1, 0) * step if pitch else 0) + row
        space, start = (home.space, home.index), home.offset
        if home.space == "arena":
            if not 0 <= home.index < len(self.plan.blocks):
                raise PlanError(f"value %{v} lies in block {home.index}, which does not exist")
            block = self.plan.blocks[home.index]
            if extent > block.size:
                raise PlanError(f"value %{v} of {need} bytes does not fit block {home.index}")
            space, start = ("arena", 0), block.offset + home.offset
        elif -(-extent // self.unit) > len(self.owner[space]):
            raise PlanError(f"value %{v} of {need} bytes does not fit output {home.index}")
        units = np.arange(-(-row // self.unit)) + start // self.unit
        if pitch:
            units = (np.arange(rows)[:, None] * (step // self.unit) + units).reshape(-1)
        return space, units

    def _is_memory(self, v: int) -> bool:
        """Whether a value lies where kernels write."""
        return self.plan.storage[v].space in ("arena", "output")

    def _read(self, v: int, who: str, pitch: int) -> None:
        if not self._is_memory(v):
            return
        space, units = self._place(v, pitch)
        found, want = self.owner[space][units], self.shown[v]
        if (found != want).any():
            other = int(found[found != want][0])
            raise PlanError(f"{who} reads %{v}, but its bytes hold %{other}")

    def _write(self, k: int) -> None:
        node = self.graph.nodes[k]
        written: list[tuple[tuple[str, int], Any]] = []
        for r, v in enumerate(self.graph.results(k)):
            self.shown[v] = self._own(v)
            if not self._is_memory(v):
                raise PlanError(f"step {k} writes %{v} to the {self.plan.storage[v].space}s")
            space, units = self._place(v, _pitch(node, len(node.operands) + r))
            if any(space == other and _meet(units, taken) for other, taken in written):
                raise PlanError(f"step {k} writes two results to the same bytes")
            written.append((space, units))
            self._check_in_place(k, v, space, units)
            self.owner[space][units] = v

    def _check_in_place(self, k: int, v: int, space: tuple[str, int], units: Any) -> None:
        """A result over an operand needs a kernel that reads each place before writing it."""
        node = self.graph.nodes[k]
        for number, operand in enumerate(node.operands):
            if not self._is_memory(operand):
                continue
            where, read = self._place(operand, _pitch(node, number))
            if where != space or not _meet(units, read):
                continue
            if not np.array_equal(read, units):
                raise PlanError(f"step {k} writes %{v} over a part of its operand %{operand}")
            if not _place_by_place(self.graph, k, v, operand):
                raise PlanError(
                    f"step {k} writes %{v} over %{operand}, which it reads elsewhere too"
                )

    def _joined(self, node: Node) -> Any:
        """What a concat shows: its operands' bytes, which lie in its place already."""
        axis, order = node.attrs["axis"], node.types[0].order
        parts: list[Any] = []
        for v in node.operands:
            if self.graph.types[v].order != order:
                raise PlanError(f"part %{v} of a concat lies in another order than the whole")
            run = _run(self.graph.types[v], axis) // self.unit
            parts.append(self.shown[v].reshape(-1, run))
        return np.concatenate(parts, axis=1).reshape(-1)

    def _view(self, k: int, v: int) -> Any:
        """What a node shows that is no step: a constant, or its operand under another type."""
        node = self.graph.nodes[k]
        if len(node.operands) != 1:
            return self._own(v)
        (source,) = node.operands
        home, base = self.plan.storage[v], self.plan.storage[source]
        if (home.space, home.index) != (base.space, base.index):
            raise PlanError(f"%{v} is a view of %{source}, but they have different storage")
        a, b = self.graph.types[source], self.graph.types[v]
        shape = b.static("memory check")
        sample = np.arange(math.prod(shape))[:: max(1, shape[0] if shape else 1)]
        there = np.unravel_index(sample, shape) if b.rank else ()
        size = b.dtype.itemsize
        moved = size * _addresses(there, b) + home.offset
        if not np.array_equal(size * _addresses(_source(node, there, a), a) + base.offset, moved):
            raise PlanError(f"%{v} is no view of %{source}: elements lie at other addresses")
        first = (home.offset - base.offset) // self.unit
        return self.shown[source][first : first + -(-b.nbytes("memory check") // self.unit)]


def _source(node: Node, where: Any, type: TensorType) -> Any:
    """The indices in a view's operand, of this type, of elements of the view."""
    if node.op == "slice":
        triples = zip(where, node.attrs["start"], node.attrs["step"], strict=True)
        return tuple(start + i * step for i, start, step in triples)
    if node.op == "transpose":
        return tuple(where[node.attrs["perm"].index(d)] for d in range(type.rank))
    if node.op == "reshape":
        flat = np.ravel_multi_index(where, node.types[0].static("memory check")) if where else 0
        return np.unravel_index(flat, type.static("memory check")) if type.rank else ()
    return where


def _row(type: TensorType) -> int:
    """Bytes along the innermost dimension."""
    return type.static("memory check")[type.order[-1]] * type.dtype.itemsize


def _run(type: TensorType, axis: int) -> int:
    """Bytes of a tensor from one index along the dimensions outside `axis` to the next."""
    shape = type.static("memory check")
    inside = type.order[type.order.index(axis) :]
    return math.prod(shape[d] for d in inside) * type.dtype.itemsize


def _meet(a: Any, b: Any) -> bool:
    """Whether two sets of units share one."""
    if not len(a) or not len(b) or a[0] > b[-1] or b[0] > a[-1]:
        return False
    return bool(len(np.intersect1d(a, b)))


def _addresses(where: tuple[Any, ...], type: TensorType) -> Any:
    """The offsets, in elements, of indices (one array for each dimension) into a static tensor."""
    steps: tuple[Any, ...] = strides(type)
    return np.atleast_1d(sum(i * s for i, s in zip(where, steps, strict=True)))


def _same_places(a: TensorType, b: TensorType) -> bool:
    """Whether equal indices lie at equal places; of a dimension of size 1 the step is nothing."""
    if a.shape != b.shape:
        return False
    steps = zip(a.shape, strides(a), strides(b), strict=True)
    return all(n == 1 or x == y for n, x, y in steps)


def _place_by_place(graph: Graph, k: int, v: int, operand: int) -> bool:
    """Whether the operand flows to the result through same-shaped elementwise nodes alone.

    Outputs are stored in turn, so a later one must not need what this one has overwritten.
    """
    body: Graph = graph.nodes[k].attrs["body"]
    position = graph.nodes[k].operands.index(operand)
    number = v - graph.first_result[k]
    out = body.outputs[number]
    reached = {position}
    for at, node in enumerate(body.nodes):
        touched = reached & set(node.operands)
        if not touched or node.op.startswith("reduce_"):
            continue
        plain = ops.has_trait(node.op, "elementwise")
        same = node.types[0].shape == body.types[out].shape and _same_places(
            node.types[0], body.types[position]
        )
        if not plain or not same:
            return False
        reached.update(body.results(at))
    if reached.intersection(body.outputs[number + 1 :]):
        return False
    return out not in {o for n in body.nodes for o in n.operands}
