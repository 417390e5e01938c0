"""Whether a NaN shows in all results that follow from a reduction, whatever that makes of it.

The largest element of a softmax may then be that of the numbers alone: a NaN of its row makes the
sum of powers NaN, and with it each result.  A maximum that need not keep NaN is one instruction
for three.
"""

from __future__ import annotations

from plait.ir.graph import Graph, Node

# NaN if any operand is.
SPREADING = frozenset({"add", "sub", "mul", "div", "neg", "abs", "exp", "log", "sqrt", "rsqrt",
                       "tanh", "fma"})  # fmt: skip


def shows_anyway(body: Graph, reduction: int) -> bool:
    """Whether all outputs that depend on a reduction are NaN in each row that has one.

    All reductions of `body` are over the same dimensions, which make a row.
    """
    made = body.producer(reduction)
    assert made is not None
    spoilt = {made.operands[0]}  # at least where the reduction's operand is NaN
    rows: set[int] = set()  # in all the row then
    touched = {reduction}
    for k, node in enumerate(body.nodes):
        results = set(body.results(k))
        if touched.intersection(node.operands):
            touched |= results
        if reduction in results:
            continue
        if _whole(node, spoilt, rows):
            rows |= results
        elif node.op in SPREADING and spoilt.intersection(node.operands):
            spoilt |= results
    return all(v in rows for v in body.outputs if v in touched)


def _whole(node: Node, spoilt: set[int], rows: set[int]) -> bool:
    if node.op == "reduce_sum":
        return node.operands[0] in spoilt | rows
    return node.op in SPREADING and not rows.isdisjoint(node.operands)
