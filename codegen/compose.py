"""Composition of compute definitions: one element of a kernel's result as one expression.

The elementwise and movement nodes of a kernel's body are substituted into their readers, down
to the body's inputs and to values that a template computes by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from plait.ir import expr as e
from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.errors import Unsupported
from plait.ir.expr import Compute, Expr
from plait.ir.graph import Graph

# Gives a value's element at an index, in place of its compute definition.
Stop: TypeAlias = Callable[[tuple[Expr, ...]], Expr]


class Composer:
    """Elements of one body's values.

    An input k becomes `Load(k, index)`; a value in `stops` becomes what its function gives.
    Equal requests give the same node, so that shared work stays shared.
    """

    def __init__(self, body: Graph, stops: Mapping[int, Stop] | None = None) -> None:
        self.body = body
        self.stops = dict(stops or {})
        self._memo: dict[tuple[int, tuple[int, ...]], Expr] = {}
        self._kept: list[tuple[Expr, ...]] = []  # keeps index nodes alive: the memo uses their ids

    def element(self, value: int, index: Sequence[Expr]) -> Expr:
        """The element of a value at a logical index."""
        where = tuple(index)
        key = (value, tuple(map(id, where)))
        if key not in self._memo:
            self._kept.append(where)
            self._memo[key] = self._make(value, where)
        return self._memo[key]

    def _make(self, value: int, index: tuple[Expr, ...]) -> Expr:
        if value in self.stops:
            return self.stops[value](index)
        made = self.body.producers[value]
        if made is None:
            return e.Load(value, index, self.body.types[value].dtype)
        compute = definition(self.body, *made)
        axes = dict(zip(compute.axes, index, strict=True))
        found = self._inline(compute.body, self.body.nodes[made[0]].operands, axes)
        # Index variables are narrow in code; a computed integer is data of its full width.
        wide = found.dtype == t.i64 and not ops.has_trait(self.body.nodes[made[0]].op, "movement")
        return e.Apply("cast", (found,), t.i64) if wide else found

    def _inline(self, body: Expr, operands: Sequence[int], axes: Mapping[e.Axis, Expr]) -> Expr:
        def visit(node: Expr) -> Expr | None:
            if isinstance(node, e.Index):
                return axes.get(node.axis)
            if isinstance(node, e.Load):
                return self.element(operands[node.operand], [go(i) for i in node.index])
            return None

        done: dict[int, Expr] = {}

        def go(node: Expr) -> Expr:
            if id(node) not in done:
                done[id(node)] = e.rebuild(node, visit)
            return done[id(node)]

        return go(body)


def definition(body: Graph, node: int, result: int = 0) -> Compute:
    """The compute definition of a node's result; `Unsupported` if its op has none."""
    made = body.nodes[node]
    types = tuple(body.types[v] for v in made.operands)
    found = ops.get(made.op).computes(made.attrs, types)
    if found is None:
        raise Unsupported(f"op {made.op!r} has no compute definition to make loops of")
    return found[result]
