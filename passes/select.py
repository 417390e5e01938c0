"""Selection: each kernel gets a schedule from the target, and its constant weights are packed.

Packing is written in the IR: the constant is stored packed, and the kernel's body begins with
the movement that recovers it.  So a packed kernel still says what it means, and the interpreter
checks the packing; a template reads the packed operand directly.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
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


@dataclass(frozen=True)
class Packing:
    """A constant in the form that kernels read it in."""

    blob: Blob
    form: Any
    name: str

    def make(self) -> Blob:
        return Blob(self.form.pack(self.blob.array), f"{self.blob.name}#{self.name}")


def _packings(graph: Graph, node: Node, chosen: Selection) -> dict[int, Packing]:
    """How a kernel's operands are to be packed, by their numbers."""
    body: Graph = node.attrs["body"]
    packings: dict[int, Packing] = {}
    for k, (name, block) in chosen.pack.items():
        reader = next(n for n in body.nodes if k in n.operands)
        constant = graph.producer(node.operands[k])
        assert constant is not None
        form = FORMS[name](reader, body.types[k], block)
        packings[k] = Packing(constant.attrs["value"], form, f"{name}{block}")
    return packings


def _make_all(packings: Iterable[Packing]) -> dict[Packing, Blob]:
    wanted = list(dict.fromkeys(packings))
    # Packing copies, which lets go of the interpreter's lock.
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="pack") as pool:
        return dict(zip(wanted, pool.map(Packing.make, wanted), strict=True))


def _repack(
    b: Builder, node: Node, operands: tuple[Value, ...], schedule: str,
    packed: dict[int, tuple[Packing, Blob]],
) -> Value | tuple[Value, ...]:  # fmt: skip
    """The kernel with packed operands and a body that unpacks them."""
    body: Graph = node.attrs["body"]
    arguments = list(operands)
    for k, (_, blob) in packed.items():
        arguments[k] = b.constant(blob.array, blob.name)
    inner = Builder(body.name)
    values = [inner.input(v.type) for v in arguments]
    for k, (packing, _) in packed.items():
        values[k] = packing.form.unpack(inner, values[k], body.types[k])
    whole = inner.finish(inner.inline(body, values))
    attrs = Attrs(body=whole, schedule=schedule, pitch=())
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
        schedules: dict[int, str] = {}  # by the kernel's identity
        packings: dict[int, dict[int, Packing]] = {}
        for node in graph.nodes:
            if node.op == "kernel":
                constant = tuple(
                    (made := graph.producer(v)) is not None and made.op == "constant"
                    for v in node.operands
                )
                chosen = target.select(node.attrs["body"], constant)
                schedules[id(node)] = chosen.schedule
                packings[id(node)] = _packings(graph, node, chosen)
        blobs = _make_all(p for of_node in packings.values() for p in of_node.values())

        def visit(b: Builder, node: Node, operands: tuple[Value, ...]) -> Any:
            if node.op != "kernel":
                return None
            packed = {k: (p, blobs[p]) for k, p in packings[id(node)].items()}
            return _repack(b, node, operands, schedules[id(node)], packed)

        return transform(graph, visit)
