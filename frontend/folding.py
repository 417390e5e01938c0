"""Values that are known while a graph is imported.

An operator without a lowering costs nothing when its operands are constants: it is run once, by
torch, and its results become constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.frontend.tensors import dense
from plait.ir.builder import Builder, Value
from plait.ir.dims import is_static
from plait.ir.graph import Graph, Node
from plait.ir.interp import interpret
from plait.ir.ops.aten import to_numpy
from plait.ir.types import TensorType, bf16

MOST_NODES = 256
MOST_ELEMENTS = 1 << 20


def known(b: Builder, values: Sequence[Value]) -> list[Any] | None:
    """The values as arrays if they depend on no input and are cheap to have, else None."""
    wanted: set[int] = set()
    waiting = [value.id for value in values]
    while waiting:
        at = b.made_by[waiting.pop()]
        if at is None or not _cheap(b.nodes[at]) or len(wanted) > MOST_NODES:
            return None
        if at not in wanted:
            wanted.add(at)
            waiting += b.nodes[at].operands
    return interpret(_graph(b, sorted(wanted), [v.id for v in values]), [])


def _cheap(node: Node) -> bool:
    return node.op != "aten" and all(
        is_static(ty.shape) and int(np.prod(ty.static("folding"))) <= MOST_ELEMENTS
        for ty in node.types
    )


def _graph(b: Builder, chosen: Sequence[int], outputs: Sequence[int]) -> Graph:
    """The chosen nodes of an unfinished graph as a graph without inputs."""
    number: dict[int, int] = {}
    nodes: list[Node] = []
    first = _first_results(b)
    for k in chosen:
        node = b.nodes[k]
        operands = tuple(number[v] for v in node.operands)
        nodes.append(Node(node.op, operands, node.attrs, node.types))
        for r in range(len(node.types)):
            number[first[k] + r] = len(number)
    return Graph((), tuple(nodes), tuple(number[v] for v in outputs))


def _first_results(b: Builder) -> dict[int, int]:
    """For every node, the number of its first result."""
    first: dict[int, int] = {}
    for value, node in enumerate(b.made_by):
        if node is not None:
            first.setdefault(node, value)
    return first


def constants(
    b: Builder, tensors: Sequence[Any], types: Sequence[TensorType]
) -> list[Value] | None:
    """Torch's tensors as constants; None where one cannot be stored or is large."""
    if any(t.numel() > MOST_ELEMENTS for t in tensors) or any(ty.dtype == bf16 for ty in types):
        return None
    return [b.constant(to_numpy(dense(t))) for t in tensors]
