"""Selection: each kernel gets a schedule from the target, and its constant weights are packed.

Packing is written in the IR: the constant is stored packed, and the kernel's body begins with
the movement that recovers it.  So a packed kernel still says what it means, and the interpreter
checks the packing; a template reads the packed operand directly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from plait.ir.builder import Builder, Value
from plait.ir.graph import Attrs, Blob, Graph, Node
from plait.passes.context import Context
from plait.passes.packing import FORMS
from plait.passes.pipeline import Pass, register_pass
from plait.passes.rewrite import transform


@dataclass(frozen=True)
class Selection:
    """A schedule text, and how to pack operands: number -> (form, block)."""

    schedule: str
    pack: dict[int, tuple[str, int]] = field(default_factory=dict)


def _repack(
    b: Builder, node: Node, operands: tuple[Value, ...], chosen: Selection
) -> Value | tuple[Value, ...]:
    """The kernel with packed operands and a body that unpacks them."""
    body: Graph = node.attrs["body"]
    arguments = list(operands)
    forms: dict[int, Any] = {}
    for k, (form, block) in chosen.pack.items():
        reader = next(n for n in body.nodes if k in n.operands)
        forms[k] = FORMS[form](reader, body.types[k], block)
        made = b.producer(operands[k])
        assert made is not None
        blob: Blob = made.attrs["value"]
        arguments[k] = b.constant(forms[k].pack(blob.array), f"{blob.name}#{form}{block}")
    inner = Builder(body.name)
    given = [inner.input(v.type) for v in arguments]
    unpacked = [
        forms[k].unpack(inner, v, body.types[k]) if k in forms else v for k, v in enumerate(given)
    ]
    packed = inner.finish(inner.inline(body, unpacked))
    attrs = Attrs(body=packed, schedule=chosen.schedule, pitch=())
    moved = Node("kernel", tuple(v.id for v in arguments), attrs, node.types, node.loc)
    return b.add(moved)


@register_pass
@dataclass(frozen=True)
class Select(Pass):
    """Give every kernel its schedule.  Requires stage `fused`; leaves stage `selected`."""

    name = "select"
    leaves = "selected"

    def apply(self, graph: Graph, context: Context) -> Graph:
        target = context.require_target(self.name)

        def visit(b: Builder, node: Node, operands: tuple[Value, ...]) -> Any:
            if node.op != "kernel":
                return None
            constant = tuple(
                (made := b.producer(v)) is not None and made.op == "constant" for v in operands
            )
            return _repack(b, node, operands, target.select(node.attrs["body"], constant))

        return transform(graph, visit)
