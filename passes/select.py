"""Selection: each kernel gets a schedule from the target, and its constant weights are packed.

Packing is written in the IR: the constant is stored packed, and the kernel's body begins with
the movement that recovers it.  So a packed kernel still says what it means, and the interpreter
checks the packing; a template reads the packed operand directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plait.ir.builder import Builder, Value
from plait.ir.graph import Attrs, Blob, Graph, Node
from plait.ir.ops.contraction import free_dims
from plait.ir.types import TensorType
from plait.passes.context import Context
from plait.passes.pipeline import Pass, register_pass
from plait.passes.rewrite import transform


@dataclass(frozen=True)
class Selection:
    """A schedule text, and how to pack operands: number -> (form, block)."""

    schedule: str
    pack: dict[int, tuple[str, int]] = field(default_factory=dict)


def _ceil(n: int, block: int) -> int:
    return -(-n // block)


@dataclass(frozen=True)
class Panels:
    """The constant right operand of a product as panels [ceil(N / nr), K, nr].

    N runs over its free dimensions, K over the contracted ones; missing columns are zero.
    """

    free: tuple[int, ...]
    contract: tuple[int, ...]
    block: int

    @staticmethod
    def of(node: Node, type: TensorType, block: int) -> Panels:
        contract = node.attrs["rhs_contract"]
        free = free_dims(type.rank, node.attrs["rhs_batch"], contract)
        return Panels(tuple(free), tuple(contract), block)

    def pack(self, w: Any) -> Any:
        n = math.prod(w.shape[d] for d in self.free)
        flat = np.transpose(w, (*self.free, *self.contract)).reshape(n, -1)
        blocks, k = _ceil(n, self.block), flat.shape[1]
        out = np.zeros((blocks, k, self.block), w.dtype)
        whole = n // self.block
        out[:whole] = flat[: whole * self.block].reshape(whole, self.block, k).transpose(0, 2, 1)
        if whole < blocks:
            out[whole, :, : n - whole * self.block] = flat[whole * self.block :].T
        return out

    def unpack(self, b: Builder, packed: Value, type: TensorType) -> Value:
        blocks, k, nr = packed.type.static("packing")
        shape = type.static("packing")
        n = math.prod(shape[d] for d in self.free)
        rows = b.reshape(b.transpose(packed, (0, 2, 1)), (blocks * nr, k))
        if blocks * nr != n:
            rows = b.emit("slice", rows, start=(0, 0), step=(1, 1), size=(n, k))
        order = (*self.free, *self.contract)
        wide = b.reshape(rows, tuple(shape[d] for d in order))
        return b.transpose(wide, tuple(int(i) for i in np.argsort(order)))


@dataclass(frozen=True)
class ConvPanels:
    """Convolution weights [O, I, *K] as [groups * ceil(O / groups / nr), *K, I, nr]."""

    groups: int
    block: int

    @staticmethod
    def of(node: Node, type: TensorType, block: int) -> ConvPanels:
        return ConvPanels(node.attrs["groups"], block)

    def _perm(self, rank: int) -> tuple[int, ...]:
        """From [G, blocks, nr, I, *K] to [G, blocks, *K, I, nr], for weights of this rank."""
        return (0, 1, *range(4, 2 + rank), 3, 2)

    def pack(self, w: Any) -> Any:
        o, rest = w.shape[0] // self.groups, w.shape[1:]
        blocks = _ceil(o, self.block)
        wide = np.zeros((self.groups, blocks * self.block, *rest), w.dtype)
        wide[:, :o] = w.reshape(self.groups, o, *rest)
        split = wide.reshape(self.groups, blocks, self.block, *rest)
        moved = np.ascontiguousarray(np.transpose(split, self._perm(w.ndim)))
        return moved.reshape(self.groups * blocks, *moved.shape[2:])

    def unpack(self, b: Builder, packed: Value, type: TensorType) -> Value:
        shape = type.static("packing")
        o, rest = shape[0] // self.groups, shape[1:]
        blocks = _ceil(o, self.block)
        split = b.reshape(packed, (self.groups, blocks, *packed.shape[1:]))
        perm = self._perm(len(shape))
        moved = b.transpose(split, tuple(int(i) for i in np.argsort(perm)))
        wide = b.reshape(moved, (self.groups, blocks * self.block, *rest))
        if blocks * self.block != o:
            zeros, ones = (0,) * wide.rank, (1,) * wide.rank
            wide = b.emit("slice", wide, start=zeros, step=ones, size=(self.groups, o, *rest))
        return b.reshape(wide, shape)


@dataclass(frozen=True)
class Depthwise:
    """Depthwise weights [C, 1, *K] as [*K, C]."""

    @staticmethod
    def of(node: Node, type: TensorType, block: int) -> Depthwise:
        return Depthwise()

    def pack(self, w: Any) -> Any:
        return np.ascontiguousarray(np.moveaxis(w[:, 0], 0, -1))

    def unpack(self, b: Builder, packed: Value, type: TensorType) -> Value:
        rank = packed.rank
        return b.reshape(b.transpose(packed, (rank - 1, *range(rank - 1))), type.shape)


@dataclass(frozen=True)
class Lanes:
    """Weights [O, I, *K] of a narrow convolution as [*K, I / lanes, O, lanes]."""

    lanes: int

    @staticmethod
    def of(node: Node, type: TensorType, block: int) -> Lanes:
        return Lanes(block)

    def pack(self, w: Any) -> Any:
        split = w.reshape(w.shape[0], -1, self.lanes, *w.shape[2:])
        return np.ascontiguousarray(np.transpose(split, (*range(3, split.ndim), 1, 0, 2)))

    def unpack(self, b: Builder, packed: Value, type: TensorType) -> Value:
        rank = packed.rank
        split = b.transpose(packed, (rank - 2, rank - 3, rank - 1, *range(rank - 3)))
        return b.reshape(split, type.shape)


@dataclass(frozen=True)
class GatePanels:
    """Recurrent weights [4H, H] of a cell as [ceil(H / nr), H, 4, nr]: the gates of nr units."""

    block: int

    @staticmethod
    def of(node: Node, type: TensorType, block: int) -> GatePanels:
        return GatePanels(block)

    def pack(self, w: Any) -> Any:
        units, k = w.shape[0] // 4, w.shape[1]
        blocks = _ceil(units, self.block)
        wide = np.zeros((4, blocks * self.block, k), w.dtype)
        wide[:, :units] = w.reshape(4, units, k)
        split = wide.reshape(4, blocks, self.block, k)
        return np.ascontiguousarray(np.transpose(split, (1, 3, 0, 2)))

    def unpack(self, b: Builder, packed: Value, type: TensorType) -> Value:
        blocks, k, gates, nr = packed.type.static("packing")
        units = type.static("packing")[0] // gates
        wide = b.reshape(b.transpose(packed, (2, 0, 3, 1)), (gates, blocks * nr, k))
        if blocks * nr != units:
            wide = b.emit("slice", wide, start=(0, 0, 0), step=(1, 1, 1), size=(gates, units, k))
        return b.reshape(wide, type.shape)


FORMS: dict[str, Callable[[Node, TensorType, int], Any]] = {
    "panels": Panels.of,
    "conv": ConvPanels.of,
    "depthwise": Depthwise.of,
    "gates": GatePanels.of,
    "narrow": Lanes.of,
}


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
    attrs = Attrs(body=packed, schedule=chosen.schedule)
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
