"""What running a graph takes: memory under eager execution, arithmetic, traffic of a plan."""

from __future__ import annotations

import math

from plait.ir import op as ops
from plait.ir.expr import Reduce
from plait.ir.graph import Graph

# Under eager execution these share their operand's memory.
EAGER_VIEWS = frozenset({"reshape", "transpose", "broadcast_to", "slice"})


def _bytes(graph: Graph, v: int) -> int:
    return math.prod(graph.types[v].static("memory estimate")) * graph.types[v].dtype.itemsize


def eager_peak(graph: Graph) -> int:
    """Largest number of bytes of results that eager execution of the graph holds at once.

    Every node's results are allocated when it runs and freed after their last reader; views are
    free.  Inputs and weights are not counted, outputs are.  Scratch inside torch's operators is
    not counted either, so the true peak is no smaller.
    """
    root = list(range(len(graph.types)))
    for k, node in enumerate(graph.nodes):
        if node.op in EAGER_VIEWS:
            for v in graph.results(k):
                root[v] = root[node.operands[0]]
    last = [-1] * len(graph.types)
    for k, node in enumerate(graph.nodes):
        for v in (*node.operands, *graph.results(k)):
            last[root[v]] = k
    for v in graph.outputs:
        last[root[v]] = len(graph.nodes)
    live = peak = 0
    ending: dict[int, int] = {}
    for k, node in enumerate(graph.nodes):
        if node.op not in EAGER_VIEWS and node.op != "constant":
            for v in graph.results(k):
                size = _bytes(graph, v)
                live += size
                ending[last[v]] = ending.get(last[v], 0) + size
        peak = max(peak, live)
        live -= ending.pop(k, 0)
    return peak


def output_bytes(graph: Graph) -> int:
    """Bytes of the graph's outputs, each distinct value once."""
    return sum(_bytes(graph, v) for v in set(graph.outputs))


def flops(graph: Graph) -> int:
    """Floating-point operations of the graph's contractions: two per multiply-add."""
    total = 0
    for node in graph.nodes:
        if node.op == "kernel":
            total += flops(node.attrs["body"])
        elif ops.has_trait(node.op, "contraction"):
            total += _contraction(graph, node.op, node.attrs, node.operands)
        elif node.op == "attention":
            *lead, rows, width = graph.types[node.operands[0]].static("flop count")
            length, depth = graph.types[node.operands[2]].static("flop count")[-2:]
            total += 2 * math.prod(lead) * rows * length * (width + depth)
    return total


def _contraction(graph: Graph, op: str, attrs: object, operands: tuple[int, ...]) -> int:
    types = tuple(graph.types[v] for v in operands)
    computes = ops.get(op).computes(attrs, types)  # type: ignore[arg-type]
    assert computes is not None
    compute = computes[0]
    assert isinstance(compute.body, Reduce)
    extents = [a.extent for a in (*compute.axes, *compute.body.axes)]
    return 2 * math.prod(n for n in extents if isinstance(n, int))
