"""Layouts: channels innermost around convolutions, and movement as views where it can be.

Meaning is defined on logical shapes, so this pass only annotates types and adds `relayout`
where a reader insists on an order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from plait.ir import op as ops
from plait.ir.builder import Builder, Value
from plait.ir.dims import Dim, bounds
from plait.ir.graph import Attrs, Graph, Node
from plait.ir.layout import reshaped_layout, same_memory, transposed_layout
from plait.ir.ops.recurrent import RECURRENT
from plait.ir.types import TensorType
from plait.passes.context import Context
from plait.passes.pipeline import Pass, register_pass
from plait.passes.rewrite import transform

# A convolution of an image with so few channels reads any layout: it copies into padding anyway.
FEW_CHANNELS = 4


def channels_last(rank: int) -> tuple[int, ...]:
    """[N, C, *D] stored as [N, *D, C]."""
    return (0, *range(2, rank), 1)


def relayout(b: Builder, x: Value, layout: tuple[int, ...] | None) -> Value:
    """x in another order; nothing is added when its memory has that order already."""
    if same_memory(x.type, x.type.with_layout(layout)):
        return x
    return b.emit("relayout", x, layout=layout)


def _adopted(shape: tuple[object, ...], operands: tuple[Value, ...]) -> tuple[int, ...] | None:
    """The layout most operands of the result's own shape have; on a tie the first's."""
    votes: dict[tuple[int, ...] | None, int] = {}
    for v in operands:
        if v.shape == shape:
            constant = (made := v.builder.producer(v)) is not None and made.op == "constant"
            votes[v.type.layout] = votes.get(v.type.layout, 0) + (0 if constant else 1)
    return max(votes, key=lambda k: votes[k]) if votes else None


def _broadcasted(node: Node, x: Value) -> tuple[int, ...] | None:
    lead = node.types[0].rank - x.rank
    return (*range(lead), *(d + lead for d in x.type.order))


@register_pass
@dataclass(frozen=True)
class Layout(Pass):
    """Assign a physical order to every value.

    Leaves: reductions that keep their dimensions, with a view of the result where they did not;
    convolutions, pools and what follows them channels-last if the target wants it;
    transposes and reshapes are views wherever one exists; ATen fallbacks, recurrent ops and the
    graph's outputs are row-major.
    """

    name = "layout"

    def apply(self, graph: Graph, context: Context) -> Graph:
        last = context.require_target(self.name).channels_last

        def visit(b: Builder, node: Node, operands: tuple[Value, ...]) -> tuple[Value, ...]:
            return place(b, node, operands, last)

        done = transform(graph, visit)
        b = Builder(graph.name)
        arguments = [b.input(i.type, i.name) for i in done.inputs]
        outputs = [relayout(b, v, None) for v in b.inline(done, arguments)]
        return b.finish(outputs)


def place(b: Builder, node: Node, operands: tuple[Value, ...], last: bool) -> tuple[Value, ...]:
    """Emit `node` with the layout chosen for its result."""
    layout: tuple[int, ...] | None = None
    x = operands[0] if operands else None
    if node.op == "conv" or ops.has_trait(node.op, "window"):
        assert x is not None
        if last:
            wanted = channels_last(x.rank)
            few = node.op == "conv" and bounds(x.shape[1])[1] <= FEW_CHANNELS
            operands = (x if few else relayout(b, x, wanted), *operands[1:])
            layout = wanted
    elif ops.has_trait(node.op, "elementwise"):
        layout = _adopted(node.types[0].shape, operands)
    elif node.op.startswith("reduce_"):
        assert x is not None
        if not node.attrs["keepdims"]:
            return _place_reduction(b, node, operands, last)
        layout = x.type.layout
    elif node.op == "broadcast_to":
        assert x is not None
        layout = _broadcasted(node, x)
    elif node.op in ("slice", "pad", "reverse", "concat", "attention"):
        assert x is not None
        layout = x.type.layout
    elif node.op == "transpose":
        assert x is not None
        layout = transposed_layout(x.type.order, node.attrs["perm"])
    elif node.op == "reshape":
        assert x is not None
        layout = reshaped_layout(x.type, node.types[0].shape)
        if layout is None:
            operands = (relayout(b, x, None),)
    elif node.op in ("aten", *RECURRENT):
        operands = tuple(relayout(b, v, None) for v in operands)
    elif node.op == "relayout":
        layout = node.attrs["layout"]
    types = tuple(ty.with_layout(layout) if k == 0 or len(node.types) == 1 else ty
                  for k, ty in enumerate(node.types))  # fmt: skip
    return b.add(replace(node, operands=tuple(v.id for v in operands), types=types))


def _place_reduction(
    b: Builder, node: Node, operands: tuple[Value, ...], last: bool
) -> tuple[Value, ...]:
    """A reduction that keeps its dimensions, and the view of it without them.

    In a loop nest every value then lies along the dimensions of the space: a shape alone does not
    tell which of them a result without the reduced ones has.
    """
    (x,), (result,) = operands, node.types
    shape = row_space(x.shape, node.attrs["axes"])
    kept = replace(node.with_attrs(keepdims=True), types=(TensorType(result.dtype, shape),))
    view = Node("reshape", (), Attrs(shape=result.shape), (result,), node.loc)
    return place(b, view, place(b, kept, operands, last), last)


def row_space(space: tuple[Dim, ...], axes: tuple[int, ...]) -> tuple[Dim, ...]:
    """The shape of a reduction over `axes` that keeps its dimensions."""
    return tuple(1 if d in axes else n for d, n in enumerate(space))
