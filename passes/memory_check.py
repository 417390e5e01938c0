"""Validation of memory plans, one sentence for each way to be wrong.  Shares no planner code."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.ir.errors import PlanError
from plait.ir.graph import Graph
from plait.ir.layout import strides
from plait.ir.types import TensorType

if TYPE_CHECKING:
    from plait.passes.memory import MemoryPlan

# Ops whose result at a place may need their operand at other places.
READS_ELSEWHERE = frozenset({
    "slice", "take", "gather", "pad", "concat", "reverse", "transpose", "reshape", "broadcast_to",
    "dot_general", "conv", "attention", "lstm", "gru", "rnn_tanh", "rnn_relu", "max_pool",
    "sum_pool", "cumsum", "kernel",
})  # fmt: skip


def check_plan(graph: Graph, plan: MemoryPlan) -> None:
    """Replay the graph on symbolic memory and raise `PlanError` at the first fault.

    Every arena byte carries the number of the value that was written there last; each read must
    find its own value (or the value it is a view of) in all its bytes.
    """
    if len(plan.storage) != len(graph.types):
        raise PlanError(
            f"{len(plan.storage)} values have storage, the graph has {len(graph.types)}"
        )
    for number, block in enumerate(plan.blocks):
        if block.offset < 0 or block.offset + block.size > plan.size:
            raise PlanError(f"block {number} leaves the arena of {plan.size} bytes")
        if block.offset % 64:
            raise PlanError(f"block {number} at {block.offset} is not aligned to 64 bytes")
        if block.first > block.last:
            raise PlanError(f"block {number} ends before it begins")
    owner = np.full(plan.size // 64 + 1, -1, np.int64)
    roots: dict[int, int] = {}
    for k, node in enumerate(graph.nodes):
        _check_reads(graph, plan, k, owner, roots)
        written: list[tuple[int, int]] = []
        for v in graph.results(k):
            source = _alias_of(graph, plan, k, v)
            if source is not None:
                roots[v] = roots.get(source, source)
                continue
            roots[v] = v
            home = plan.storage[v]
            if node.op == "constant" or home.space != "arena":
                continue
            span = _span(graph, plan, v)
            for begin, end in written:
                if span[0] < end and begin < span[1]:
                    raise PlanError(f"step {k} writes two results to the same bytes")
            written.append(span)
            _check_in_place(graph, plan, k, v, span, roots)
            owner[span[0] : span[1]] = v
    for v in graph.outputs:
        _check_value(graph, plan, v, owner, roots, "the graph's output")


def _span(graph: Graph, plan: MemoryPlan, v: int) -> tuple[int, int]:
    """Lines of 64 bytes that a value occupies."""
    home = plan.storage[v]
    if not 0 <= home.index < len(plan.blocks):
        raise PlanError(f"value %{v} lies in block {home.index}, which does not exist")
    block = plan.blocks[home.index]
    need = int(np.prod(graph.types[v].static("memory check"), dtype=np.int64))
    need *= graph.types[v].dtype.itemsize
    if need > block.size:
        raise PlanError(f"value %{v} of {need} bytes does not fit block {home.index}")
    return block.offset // 64, block.offset // 64 + -(-need // 64)


def _alias_of(graph: Graph, plan: MemoryPlan, k: int, v: int) -> int | None:
    """The operand that a movement node's result shares memory with, checked by its addresses."""
    node = graph.nodes[k]
    if node.op not in ("reshape", "transpose", "relayout") or len(node.operands) != 1:
        return None
    source = node.operands[0]
    if plan.storage[v] != plan.storage[source]:
        raise PlanError(f"%{v} is a view of %{source}, but they have different storage")
    a, b = graph.types[source], graph.types[v]
    shape = a.static("memory check")
    sample = np.arange(math.prod(shape))[:: max(1, shape[0] if shape else 1)]
    where = np.unravel_index(sample, shape) if a.rank else ()
    address = _addresses(where, a)
    moved = where
    if node.op == "transpose":
        moved = tuple(where[p] for p in node.attrs["perm"])
    elif node.op == "reshape":
        moved = np.unravel_index(sample, b.static("memory check")) if b.rank else ()
    if not np.array_equal(address, _addresses(moved, b)):
        raise PlanError(f"%{v} is no view of %{source}: elements lie at other addresses")
    return source


def _addresses(where: tuple[Any, ...], type: TensorType) -> Any:
    """The offsets, in elements, of indices (one array for each dimension) into a static tensor."""
    steps: tuple[Any, ...] = strides(type)
    return np.atleast_1d(sum(i * s for i, s in zip(where, steps, strict=True)))


def _check_reads(
    graph: Graph, plan: MemoryPlan, k: int, owner: object, roots: dict[int, int]
) -> None:
    for v in graph.nodes[k].operands:
        _check_value(graph, plan, v, owner, roots, f"step {k} ({graph.nodes[k].op})")


def _check_value(
    graph: Graph, plan: MemoryPlan, v: int, owner: object, roots: dict[int, int], who: str
) -> None:
    if plan.storage[v].space != "arena":
        return
    begin, end = _span(graph, plan, v)
    found = np.asarray(owner)[begin:end]
    if (found != roots.get(v, v)).any():
        other = int(found[found != roots.get(v, v)][0])
        raise PlanError(f"{who} reads %{v}, but its bytes hold %{other}")


def _check_in_place(
    graph: Graph, plan: MemoryPlan, k: int, v: int, span: tuple[int, int], roots: dict[int, int]
) -> None:
    """A result over an operand's bytes needs a kernel that reads each place before writing it."""
    for operand in graph.nodes[k].operands:
        if plan.storage[operand].space != "arena":
            continue
        begin, end = _span(graph, plan, operand)
        if not (span[0] < end and begin < span[1]):
            continue
        if (begin, end) != span:
            raise PlanError(f"step {k} writes %{v} over a part of its operand %{operand}")
        if not _place_by_place(graph, k, v, operand):
            raise PlanError(f"step {k} writes %{v} over %{operand}, which it reads elsewhere too")


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
        plain = node.op not in READS_ELSEWHERE
        same = node.types[0].shape == body.types[out].shape and strides(node.types[0]) == strides(
            body.types[position]
        )
        if not plain or not same:
            return False
        reached.update(body.results(at))
    if reached.intersection(body.outputs[number + 1 :]):
        return False
    return out not in {o for n in body.nodes for o in n.operands}
