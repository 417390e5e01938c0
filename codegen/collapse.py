"""Collapsing a loop nest's body: physical order, adjacent dimensions merged.

`[1, 197, 384]` added to `[1, 197, 384]` becomes `[75648]` plus `[75648]`; a norm over the last
dimension stays `[197, 384]`.  Memory does not change, so callers pass the same pointers; loops
get long and simple, and more kernels become equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.ir import op as ops
from plait.ir.builder import Builder, Value
from plait.ir.errors import Unsupported
from plait.ir.graph import Graph, Node
from plait.ir.types import TensorType


@dataclass(frozen=True)
class Space:
    """The iteration space of a loop nest: logical shape, reduced dims, order of the loops."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    order: tuple[int, ...]


def loop_space(body: Graph) -> Space:
    """The space of a body made by fusion: that of its reductions, else of its first output.

    Raises `Unsupported` where reductions are over different dimensions, or do not keep them.
    """
    full = None
    axes: tuple[int, ...] = ()
    for node in body.nodes:
        if node.op.startswith("reduce_"):
            if not node.attrs["keepdims"]:
                raise Unsupported("a reduction in a loop nest keeps its dimensions")
            if full is not None and tuple(node.attrs["axes"]) != axes:
                raise Unsupported(f"one loop nest reduces over {axes} and {node.attrs['axes']}")
            if full is None:
                full, axes = body.types[node.operands[0]], tuple(node.attrs["axes"])
    outputs = [ty for ty in body.output_types if full is None or ty.shape == full.shape]
    leader = outputs[0] if outputs else full
    assert leader is not None
    return Space(leader.static("loop nest"), axes, leader.order)


def _padded(shape: tuple[int, ...], space: Space) -> tuple[int, ...] | None:
    """A value's extents along the space's dimensions, 1 where it does not vary."""
    wide = (1,) * (len(space.shape) - len(shape)) + shape
    fits = len(shape) <= len(space.shape) and all(
        n in (1, full) for n, full in zip(wide, space.shape, strict=True)
    )
    return wide if fits else None


def _physical(type: TensorType, space: Space) -> list[int]:
    """The value's dimensions of the space that are not 1, in memory order."""
    lead = len(space.shape) - type.rank
    return [lead + d for d in type.order if type.shape[d] != 1]


def collapse(body: Graph, rows: bool = False) -> Graph:
    """The collapsed body, or the body itself if some node is neither elementwise nor reduction.

    `rows`: the innermost dimension is kept apart from the others.
    """
    space = loop_space(body)
    values = range(len(body.types))
    if not all(_simple(n) for n in body.nodes) or len(space.shape) == 0:
        return body
    spread = [_padded(body.types[v].static("loop nest"), space) for v in values]
    orders = [_physical(body.types[v], space) for v in values]
    edges = {*range(len(body.inputs)), *body.outputs}
    for v in values:
        wanted = [d for d in space.order if spread[v] is not None and spread[v][d] != 1]  # type: ignore[index]
        if spread[v] is None or (v in edges and orders[v] != wanted):
            return body
    groups = _merge([s for s in spread if s is not None], space, rows)
    return _rebuild(body, [s for s in spread if s is not None], groups, space)


def _simple(node: Node) -> bool:
    if node.op == "constant":
        return node.types[0].rank == 0
    return ops.has_trait(node.op, "elementwise") or node.op.startswith("reduce_")


def _merge(spread: list[tuple[int, ...]], space: Space, rows: bool) -> list[list[int]]:
    """Runs of dimensions, in memory order, along which every value varies alike."""
    groups: list[list[int]] = []
    for d in space.order:
        if space.shape[d] == 1 and d not in space.axes:
            continue
        last = groups[-1][-1] if groups else None
        alike = last is not None and all(
            (
                (s[d] == space.shape[d] or space.shape[d] == 1)
                and (s[last] == space.shape[last] or space.shape[last] == 1)
            )
            or s[d] == s[last] == 1
            for s in spread
        )
        split = rows and d == space.order[-1]
        if alike and not split and (d in space.axes) == (last in space.axes):
            groups[-1].append(d)
        else:
            groups.append([d])
    return groups


def _rebuild(
    body: Graph, spread: list[tuple[int, ...]], groups: list[list[int]], space: Space
) -> Graph:
    def shape(v: int) -> tuple[int, ...]:
        found = []
        for group in groups:
            n = 1
            for d in group:
                n *= spread[v][d]
            found.append(n)
        return tuple(found)

    axes = tuple(k for k, g in enumerate(groups) if g[0] in space.axes)
    b = Builder(body.name)
    env: dict[int, Value] = {}
    for v, given in enumerate(body.inputs):
        scalar = given.type.rank == 0
        env[v] = b.input(TensorType(given.type.dtype, () if scalar else shape(v)))
    for k, node in enumerate(body.nodes):
        (v,) = body.results(k)
        operands = [env[o] for o in node.operands]
        attrs = dict(node.attrs)
        if node.op.startswith("reduce_"):
            attrs.update(axes=axes, keepdims=True)
        env[v] = b.emit(node.op, *operands, **attrs)
    return b.finish(env[v] for v in body.outputs)
