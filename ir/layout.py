"""Physical layout: strides, which ops are views of memory, and the layouts that make them so."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from plait.ir.dims import Dim, equal, is_static
from plait.ir.graph import Graph, Node
from plait.ir.ops.movement import reshape_groups
from plait.ir.types import TensorType


def strides(type: TensorType) -> tuple[Dim, ...]:
    """Elements between neighbours along each logical dimension."""
    result: list[Dim] = [1] * type.rank
    step: Dim = 1
    for d in reversed(type.order):
        result[d] = step
        step = step * type.shape[d]
    return tuple(result)


def pitched(type: TensorType, pitch: int) -> tuple[Dim, ...]:
    """The strides of a tensor whose rows lie `pitch` elements apart, side by side if it is 0.

    A row is what lies along the innermost dimension.
    """
    dense = strides(type)
    if pitch == 0:
        return dense
    inner = type.order[-1]
    width = type.static("a tensor inside another")[inner]
    return tuple(s if d == inner else s // width * pitch for d, s in enumerate(dense))


def slice_offset(node: Node, source: TensorType) -> int | None:
    """The element of its operand with which a slice begins, if it is a run of its memory."""
    (result,) = node.types
    if not is_static((*source.shape, *result.shape)) or 0 in result.shape:
        return None
    starts: tuple[int, ...] = node.attrs["start"]
    by: tuple[int, ...] = node.attrs["step"]
    steps = [s for s in strides(source) if isinstance(s, int)]
    moved = zip(result.shape, strides(result), steps, by, strict=True)
    if any(n != 1 and own != step * times for n, own, step, times in moved):
        return None
    return sum(start * step for start, step in zip(starts, steps, strict=True))


def same_memory(a: TensorType, b: TensorType) -> bool:
    """Equal shapes whose elements lie in the same order (dimensions of size 1 do not count)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return _significant(a) == _significant(b)


def _significant(type: TensorType) -> list[int]:
    return [d for d in type.order if not equal(type.shape[d], 1)]


def row_major(type: TensorType) -> bool:
    return same_memory(type, type.with_layout(None))


def transposed_layout(order: Sequence[int], perm: Sequence[int]) -> tuple[int, ...]:
    """The layout that makes transpose(x, perm) a view of x with the given order."""
    where = {p: d for d, p in enumerate(perm)}
    return tuple(where[d] for d in order)


def reshaped_layout(source: TensorType, shape: tuple[Dim, ...]) -> tuple[int, ...] | None:
    """The layout that makes reshape(x, shape) a view of x, None if there is none."""
    steps = strides(source)
    position = {d: k for k, d in enumerate(source.order)}
    keys: dict[int, tuple[int, int]] = {}
    for left, right in reshape_groups(source.shape, shape):
        real = [d for d in left if not equal(source.shape[d], 1)]
        for outer, inner in pairwise(real):
            if not equal(steps[outer], steps[inner] * source.shape[inner]):
                return None
        place = position[real[0]] if real else (position[left[0]] if left else -1)
        for k, d in enumerate(right):
            keys[d] = (place, k)
    return tuple(sorted(range(len(shape)), key=lambda d: keys[d]))


def is_view(node: Node, source: TensorType) -> bool:
    """Whether a node's result is its operand's memory under another type."""
    (result,) = node.types if len(node.types) == 1 else (None,)
    if result is None:
        return False
    if node.op == "slice":
        return slice_offset(node, source) is not None
    if node.op == "relayout":
        return same_memory(source, result)
    if node.op == "transpose":
        layout = transposed_layout(source.order, node.attrs["perm"])
        return same_memory(result.with_layout(layout), result)
    if node.op == "reshape":
        found = reshaped_layout(source, result.shape)
        return found is not None and same_memory(result.with_layout(found), result)
    return False


def memory_root(graph: Graph, v: int, slices: bool = True) -> int:
    """The value whose memory a view, of a view perhaps, is; a slice counts as one if `slices`."""
    made = graph.producer(v)
    while made is not None and (slices or made.op != "slice"):
        if len(made.operands) != 1 or not is_view(made, graph.types[made.operands[0]]):
            break
        (v,) = made.operands
        made = graph.producer(v)
    return v


def part_offsets(parts: Sequence[TensorType], axis: int, steps: Sequence[Dim]) -> list[int]:
    """The element of a whole with these strides at which each of its parts along `axis` begins."""
    found, at = list[int](), 0
    for type in parts:
        first = at * steps[axis]
        assert isinstance(first, int), "parts are placed in static tensors"
        found.append(first)
        at += type.static("a tensor inside another")[axis]
    return found
