"""How constant weights are packed for kernels, and the movement that recovers them.

A form packs an array at compile time; `unpack` emits the IR that gives back the original, which
stands at the head of the kernel's body.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.ir.builder import Builder, Value
from plait.ir.graph import Node
from plait.ir.ops.contraction import free_dims
from plait.ir.types import TensorType
from plait.ir.winograd import TAPS, filtering


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
    """Recurrent weights [G * H, H] of G gates as panels [chunks, G * units / nr, H, nr].

    A chunk has the gates of `units` hidden units, gate by gate; a vector of `lanes` never holds
    two gates.
    """

    gates: int
    block: int
    lanes: int

    @staticmethod
    def of(type: TensorType, block: int, lanes: int) -> GatePanels:
        rows, units = type.static("packing")
        return GatePanels(rows // units, block, lanes)

    @property
    def units(self) -> int:
        """Hidden units of a chunk: the fewest whose gates are whole panels."""
        return math.lcm(self.block, self.gates * self.lanes) // self.gates

    def pack(self, w: Any) -> Any:
        units, k = w.shape[0] // self.gates, w.shape[1]
        chunks = _ceil(units, self.units)
        wide = np.zeros((self.gates, chunks * self.units, k), w.dtype)
        wide[:, :units] = w.reshape(self.gates, units, k)
        split = wide.reshape(self.gates, chunks, self.units, k).swapaxes(0, 1)
        panels = split.reshape(chunks, -1, self.block, k)
        return np.ascontiguousarray(panels.swapaxes(2, 3))

    def unpack(self, b: Builder, packed: Value, type: TensorType) -> Value:
        rows, k = type.static("packing")
        units, chunks = rows // self.gates, packed.type.static("packing")[0]
        split = b.reshape(b.transpose(packed, (0, 1, 3, 2)), (chunks, self.gates, self.units, k))
        wide = b.transpose(split, (1, 0, 2, 3))
        wide = b.reshape(wide, (self.gates, chunks * self.units, k))
        if chunks * self.units != units:
            size = (self.gates, units, k)
            wide = b.emit("slice", wide, start=(0, 0, 0), step=(1, 1, 1), size=size)
        return b.reshape(wide, type.shape)


@dataclass(frozen=True)
class Transformed:
    """Weights [O, I, 3, 3] of F(m x m, 3 x 3) as [ceil(O / nr), (m + 2)**2, I, nr].

    What is unpacked equals the weights up to rounding: the transform is not exact.
    """

    m: int
    block: int

    def pack(self, w: Any) -> Any:
        outputs, inputs = w.shape[:2]
        made = filtering(self.m).transformed(w)
        blocks, terms = _ceil(outputs, self.block), made.shape[2]
        wide = np.zeros((blocks * self.block, inputs, terms), w.dtype)
        wide[:outputs] = made
        split = wide.reshape(blocks, self.block, inputs, terms)
        return np.ascontiguousarray(np.transpose(split, (0, 3, 2, 1)))

    def unpack(self, b: Builder, packed: Value, type: TensorType) -> Value:
        blocks, _, inputs, nr = packed.type.static("packing")
        outputs, size = type.static("packing")[0], self.m + TAPS - 1
        back = filtering(self.m).back.astype(packed.dtype.numpy)
        rows = back.reshape(1, TAPS, size, 1, 1, 1)
        columns = back.reshape(1, 1, TAPS, size, 1, 1)
        w = b.reshape(packed, (blocks, 1, size, size, inputs, nr)) * b.constant(rows)
        w = b.emit("reduce_sum", w, axes=(2,), keepdims=False)
        w = b.reshape(w, (blocks, TAPS, 1, size, inputs, nr)) * b.constant(columns)
        w = b.emit("reduce_sum", w, axes=(3,), keepdims=False)
        w = b.reshape(b.transpose(w, (0, 4, 3, 1, 2)), (blocks * nr, inputs, TAPS, TAPS))
        if blocks * nr != outputs:
            w = b.emit("slice", w, start=(0,) * 4, step=(1,) * 4, size=type.shape)
        return w


FORMS: dict[str, Callable[[Node, TensorType, int], Any]] = {
    "panels": Panels.of,
    "conv": ConvPanels.of,
    "depthwise": Depthwise.of,
    "gates8": lambda _, type, block: GatePanels.of(type, block, 8),
    "gates16": lambda _, type, block: GatePanels.of(type, block, 16),
    "narrow": Lanes.of,
    "winograd2": lambda _, __, block: Transformed(2, block),
    "winograd4": lambda _, __, block: Transformed(4, block),
}
