"""The verifier: invariants of every graph, and a contract for each stage of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from plait.ir import op as ops
from plait.ir.errors import PlaitError, VerifyError
from plait.ir.graph import Graph, Node
from plait.ir.layout import is_view, memory_root
from plait.ir.op import Op
from plait.ir.text import show_around, show_type
from plait.ir.types import TensorType


@dataclass(frozen=True)
class Stage:
    """What a graph promises at one point of the pipeline.

    `allows(graph, k)` gives the reason that node `k` does not belong, or an empty string.
    """

    name: str
    allows: Callable[[Graph, int], str]


def _any(graph: Graph, k: int) -> str:
    return ""


def _no_kernels(graph: Graph, k: int) -> str:
    return "kernels appear only after fusion" if graph.nodes[k].op == "kernel" else ""


def _is_storage(node: Node) -> bool:
    """Nodes that cost nothing or run on the host, and so stand outside kernels."""
    return node.op in ("constant", "aten", "reshape", "transpose", "relayout")


def _fused(graph: Graph, k: int) -> str:
    node = graph.nodes[k]
    inside = node.op == "kernel" or _is_storage(node)
    return "" if inside else "after fusion every computation stands in a kernel"


def _placed(graph: Graph, k: int) -> str:
    """Parts and wholes that share memory stand outside kernels too."""
    node = graph.nodes[k]
    if node.op == "slice":
        (source,) = node.operands
        return "" if is_view(node, graph.types[source]) else "the slice is no run of its operand"
    return _joins(graph, node) if node.op == "concat" else _selected(graph, k)


def _joins(graph: Graph, node: Node) -> str:
    """Why the operands of a concat that is no step cannot all lie inside its result."""
    roots = [memory_root(graph, v) for v in node.operands]
    makers = [graph.producer(root) for root in roots]
    if any(made is None or made.op not in ("kernel", "concat") for made in makers):
        return "a part of the concat is not made by a kernel"
    if len(set(roots)) < len(roots):
        return "a value is two parts of the concat"
    orders = {ty.order for ty in (*(graph.types[v] for v in node.operands), *node.types)}
    return "" if len(orders) == 1 else "a part of the concat lies in another order"


def _selected(graph: Graph, k: int) -> str:
    node = graph.nodes[k]
    if node.op == "kernel" and not node.attrs["schedule"]:
        return "the kernel has no schedule"
    return _fused(graph, k)


STAGES: dict[str, Stage] = {
    s.name: s
    for s in (
        Stage("any", _any),
        Stage("imported", _no_kernels),
        Stage("fused", _fused),
        Stage("selected", _selected),
        Stage("placed", _placed),
    )
}


def fail(graph: Graph, index: int, message: str) -> VerifyError:
    """An error at a node, with the printed IR around it as a note."""
    node = graph.nodes[index]
    where = f"node {index} ({node.op})" + (f" from {node.loc}" if node.loc else "")
    error = VerifyError(message, where=where)
    error.add_note(show_around(graph, index))
    return error


def verify(graph: Graph, stage: str = "any") -> None:
    """Raise `VerifyError` at the first node that breaks an invariant or the stage's contract.

    Invariants: operands come before their users; attributes are those of the op record; result
    types follow from the type rule (layouts may differ, except where the op states them); a
    layout permutes its dimensions; a kernel's body holds these too.
    """
    contract = STAGES[stage]
    for number, given in enumerate(graph.inputs):
        if not _is_layout(given.type):
            where = f"input %{number} of graph {graph.name}"
            raise VerifyError(_bad_layout(given.type), where=where)
    for k in range(len(graph.nodes)):
        _verify_node(graph, k)
        reason = contract.allows(graph, k)
        if reason:
            raise fail(graph, k, f"does not belong to stage {stage!r}: {reason}")
    for v in graph.outputs:
        if not 0 <= v < len(graph.types):
            raise VerifyError(f"output %{v} does not exist", where=f"graph {graph.name}")


def _verify_node(graph: Graph, k: int) -> None:
    node = graph.nodes[k]
    for v in node.operands:
        if not 0 <= v < graph.first_result[k]:
            raise fail(graph, k, f"operand %{v} is not defined before its use")
    try:
        record = ops.get(node.op)
        if record.complete(dict(node.attrs)) != node.attrs:
            raise fail(graph, k, "attributes are missing")
        expected = record.result_types(node.attrs, tuple(graph.types[v] for v in node.operands))
    except VerifyError:
        raise
    except PlaitError as error:
        raise fail(graph, k, str(error)) from error
    for ty in node.types:
        if not _is_layout(ty):
            raise fail(graph, k, _bad_layout(ty))
    if not _agree(record, expected, node.types):
        want = ", ".join(map(show_type, expected))
        got = ", ".join(map(show_type, node.types))
        raise fail(graph, k, f"has type {got}, its type rule gives {want}")
    if node.op == "kernel":
        try:
            verify(node.attrs["body"])
        except VerifyError as error:
            inner = f"in the kernel's body: {error}"
            raise _with_notes(fail(graph, k, inner), error) from error


def _with_notes(error: VerifyError, inner: VerifyError) -> VerifyError:
    for note in getattr(inner, "__notes__", ()):
        error.add_note(note)
    return error


def _agree(record: Op, want: tuple[TensorType, ...], got: tuple[TensorType, ...]) -> bool:
    """Whether result types are as the type rule gives them; few ops choose the layout."""
    if record.traits & {"kernel", "layout"}:
        return want == got
    return [ty.with_layout(None) for ty in want] == [ty.with_layout(None) for ty in got]


def _is_layout(ty: TensorType) -> bool:
    return sorted(ty.order) == list(range(ty.rank))


def _bad_layout(ty: TensorType) -> str:
    return f"layout {ty.layout} does not permute {ty.rank} dimensions"
