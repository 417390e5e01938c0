"""Composites replaced by their decompositions, in a graph and in the bodies of its kernels."""

from __future__ import annotations

from plait.ir import op as ops
from plait.ir.builder import Builder, Value
from plait.ir.errors import Unsupported, UnsupportedOp
from plait.ir.graph import Graph, Node


def expand(graph: Graph) -> Graph:
    """The same function, of ops with a compute definition, constants, kernels and relayouts.

    Raises `UnsupportedOp` for an op that has neither a compute definition nor a decomposition,
    `Unsupported` where a decomposition does not cover the operands.
    """
    b = Builder(graph.name)
    arguments = [b.input(i.type, i.name) for i in graph.inputs]
    b.on_emit = lambda node, operands: _replace(b, node, operands)
    return b.finish(b.inline(graph, arguments))


def _replace(b: Builder, node: Node, operands: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """Values in place of a node that must not stay as it is; None keeps it."""
    record = ops.get(node.op)
    if node.op == "kernel":
        body = expand(node.attrs["body"])
        if body == node.attrs["body"]:
            return None
        return b.add(node.with_attrs(body=body))
    if record.compute is not None or node.op == "relayout":
        return None
    if record.decompose is None:
        raise UnsupportedOp(str(node.attrs.get("target", node.op)), node.loc)
    types = tuple(v.type for v in operands)
    try:
        found = record.decompose(b, record.call(node.attrs, types), *operands)
    except NotImplementedError as error:
        raise Unsupported(f"{node.op} has no decomposition here: {error}") from error
    return found if isinstance(found, tuple) else (found,)
