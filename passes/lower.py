"""Lowering to what the target takes: decomposition of composites, polynomial functions."""

from __future__ import annotations

from dataclasses import dataclass

from plait.ir import op as ops
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph, Node
from plait.passes.context import Context
from plait.passes.pipeline import Pass, register_pass
from plait.passes.rewrite import Replacement, transform


@register_pass
@dataclass(frozen=True)
class Decompose(Pass):
    """Replace composites that the target does not take whole, until none is left."""

    name = "decompose"

    def apply(self, graph: Graph, context: Context) -> Graph:
        takes = context.require_target(self.name).takes
        changed = True

        def visit(b: Builder, node: Node, operands: tuple[Value, ...]) -> Replacement:
            nonlocal changed
            record = ops.get(node.op)
            types = tuple(v.type for v in operands)
            if record.decompose is None or takes(node.op, types):
                return None
            changed = True
            context.fired[f"decompose-{node.op}"] += 1
            return record.decompose(b, record.call(node.attrs, types), *operands)

        while changed:
            changed = False
            graph = transform(graph, visit)
        return graph


def _below_maximum(graph: Graph, node: Node) -> bool:
    """Whether a node's operand is x less its maximum along some dimensions: never above 0."""
    less = graph.producer(node.operands[0])
    if less is None or less.op != "sub":
        return False
    x, highest = less.operands
    made = graph.producer(highest)
    if made is None or made.op != "reduce_max":
        return False
    return made.operands[0] == x and bool(made.attrs["keepdims"])


@register_pass
@dataclass(frozen=True)
class LegalizeMath(Pass):
    """Choose the vectorisable polynomial of the functions that the target has no fast code for."""

    name = "legalize-math"

    def apply(self, graph: Graph, context: Context) -> Graph:
        approximates = context.require_target(self.name).approximates

        def visit(b: Builder, node: Node, operands: tuple[Value, ...]) -> Replacement:
            if node.op not in approximates or node.attrs.get("approx") != "":
                return None
            form = "decay" if node.op == "exp" and _below_maximum(graph, node) else "poly"
            chosen = node.with_operands(v.id for v in operands).with_attrs(approx=form)
            return b.add(chosen)

        return transform(graph, visit)
