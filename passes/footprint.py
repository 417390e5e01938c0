"""What running a graph takes: memory under eager execution, arithmetic, traffic of a kernel."""

from __future__ import annotations

import math

from plait.ir import op as ops
from plait.ir.expr import Reduce
from plait.ir.graph import Graph
from plait.ir.ops.recurrent import RECURRENT

# Under eager execution these share their operand's memory.
EAGER_VIEWS = frozenset({"reshape", "transpose", "broadcast_to", "slice"})
# Through these a reader may need less than all of the operand.
SELECTING = frozenset({"reshape", "transpose", "slice"})
SMALL_FLOPS, SMALL_BYTES = 10_000_000, 2 << 20


def _bytes(graph: Graph, v: int) -> int:
    return graph.types[v].nbytes("memory estimate")


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
    """Floating-point operations of the graph's contractions: two per multiply-add.

    Attention counts its two products, a recurrence the product with its recurrent weights.
    """
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
        elif node.op in RECURRENT:
            steps, batch, wide = graph.types[node.operands[0]].static("flop count")
            _, units = graph.types[node.operands[1]].static("flop count")
            total += 2 * steps * batch * wide * units
    return total


def _contraction(graph: Graph, op: str, attrs: object, operands: tuple[int, ...]) -> int:
    types = tuple(graph.types[v] for v in operands)
    computes = ops.get(op).computes(attrs, types)  # type: ignore[arg-type]
    assert computes is not None
    compute = computes[0]
    assert isinstance(compute.body, Reduce)
    extents = [a.extent for a in (*compute.axes, *compute.body.axes)]
    return 2 * math.prod(n for n in extents if isinstance(n, int))


def small(body: Graph) -> bool:
    """Whether a kernel takes some 100 us at most: starting threads for it is worth saving."""
    moved = sum(_bytes(body, v) for v in (*range(len(body.inputs)), *body.outputs))
    return flops(body) <= SMALL_FLOPS and moved <= SMALL_BYTES


def reads(body: Graph) -> tuple[int, ...]:
    """Bytes of each input of a kernel's body that the kernel must read at least once.

    Of an operand that is only sliced or gathered from, these are no more than what is taken.
    """
    return tuple(_taken(body, v) for v in range(len(body.inputs)))


def _taken(graph: Graph, v: int) -> int:
    """Bytes of a value that its readers need, looking through views of it."""
    whole = _bytes(graph, v)
    if v in graph.outputs:
        return whole
    total = 0
    for k in graph.users[v]:
        node = graph.nodes[k]
        picks = ops.has_trait(node.op, "gather") and v not in node.operands[1:]
        if node.op not in SELECTING and not picks:
            return whole
        total += _taken(graph, graph.results(k)[0])
    return min(whole, total)
