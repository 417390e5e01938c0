"""The IR: frozen nodes in a functional SSA graph.

Values are numbers: the graph's inputs first, then the results of its nodes in order.  A graph
is changed by building a new one (`plait.ir.builder`).  Equality is structural; names and source
locations take no part in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from plait.ir.dims import SymDim, symbols_of
from plait.ir.types import DType, TensorType, from_numpy

SAMPLED = 256  # elements that decide a constant's hash


class Blob:
    """A constant array: equal by content; the digest is computed when first asked for."""

    __slots__ = ("_digest", "_sample", "array", "name")

    def __init__(self, array: Any, name: str = "") -> None:
        self.array: Any = np.asarray(array)
        self.name = name
        self._digest = ""
        self._sample: int | None = None

    @staticmethod
    def stand_in(type: TensorType, name: str, digest: str) -> Blob:
        """A constant of which only this is known: zeros that take no memory, and its digest."""
        zero = np.zeros((), type.dtype.numpy)
        blob = Blob(np.broadcast_to(zero, type.static("constant")), name)
        blob._digest = digest
        return blob

    def twin(self) -> Blob:
        """The same constant as an object of its own, which may move."""
        other = Blob(self.array, self.name)
        other._digest, other._sample = self._digest, self._sample
        return other

    def move(self, memory: Any) -> None:
        """Lie in `memory` (uint8), which holds the elements in row-major order and stays so."""
        self.array = memory.view(self.array.dtype).reshape(self.array.shape)
        self.array.flags.writeable = False

    @property
    def type(self) -> TensorType:
        return TensorType(from_numpy(self.array.dtype), tuple(self.array.shape))

    @property
    def digest(self) -> str:
        """SHA-256 of dtype, shape and the bytes in row-major order."""
        if not self._digest:
            h = hashlib.sha256(f"{self.array.dtype}{self.array.shape}".encode())
            h.update(np.ascontiguousarray(self.array).data)
            self._digest = h.hexdigest()
        return self._digest

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Blob):
            return NotImplemented
        if self.array is other.array:
            return True
        return hash(self) == hash(other) and self.digest == other.digest

    def __hash__(self) -> int:
        """Of dtype, shape and some elements: unequal arrays rarely share it."""
        if self._sample is None:
            step = max(1, self.array.size // SAMPLED)
            some = self.array.flat[::step].tobytes() if self.array.size else b""
            self._sample = hash((self.array.dtype.str, self.array.shape, some))
        return self._sample

    def __repr__(self) -> str:
        return f"Blob({self.name!r}, {self.type})"


Attr: TypeAlias = (
    "int | float | bool | str | DType | SymDim | Blob | Graph | tuple[Attr, ...] | None"
)


class Attrs(Mapping[str, Any]):
    """A frozen, hashable mapping of attribute names to values, sorted by name."""

    __slots__ = ("_hash", "_items")

    def __init__(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        merged = {**(values or {}), **more}
        self._items = {k: freeze(merged[k]) for k in sorted(merged)}
        self._hash: int | None = None

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(tuple((k, _hashable(v)) for k, v in self._items.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Attrs):
            return NotImplemented
        return list(self._items) == list(other._items) and all(
            same_attr(v, other._items[k]) for k, v in self._items.items()
        )

    def __repr__(self) -> str:
        return repr(self._items)

    def set(self, **changes: Any) -> Attrs:
        return Attrs({**self._items, **changes})


def freeze(value: Any) -> Any:
    """Lists become tuples, numpy scalars become Python numbers."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(v) for v in value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def _hashable(value: Any) -> Any:
    """A stand-in that is equal for equal attributes: NaN has no hash of its own."""
    if isinstance(value, tuple):
        return tuple(map(_hashable, value))
    return repr(value) if isinstance(value, float) else value


def same_attr(a: Any, b: Any) -> bool:
    """Equality that tells 1 from 1.0 and True, and holds NaN equal to itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same_attr(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return bool(a == b)


@dataclass(frozen=True)
class Node:
    """An application of the op called `op`; `types` are those of its results."""

    op: str
    operands: tuple[int, ...]
    attrs: Attrs
    types: tuple[TensorType, ...]
    loc: str = field(default="", compare=False)

    def with_attrs(self, **changes: Any) -> Node:
        return replace(self, attrs=self.attrs.set(**changes))

    def with_operands(self, operands: Iterable[int]) -> Node:
        """The same application on values of another graph, or of this one renumbered."""
        return Node(self.op, tuple(operands), self.attrs, self.types, self.loc)


@dataclass(frozen=True)
class Input:
    """A parameter of a graph."""

    type: TensorType
    name: str = field(default="", compare=False)


@dataclass(frozen=True)
class Graph:
    """A function from tensors to tensors."""

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    name: str = field(default="main", compare=False)

    @cached_property
    def types(self) -> tuple[TensorType, ...]:
        """The type of every value, by number."""
        return tuple(i.type for i in self.inputs) + tuple(t for n in self.nodes for t in n.types)

    @cached_property
    def producers(self) -> tuple[tuple[int, int] | None, ...]:
        """For every value: (index of its node, index of the result), or None for an input."""
        made = [(k, r) for k, n in enumerate(self.nodes) for r in range(len(n.types))]
        return (None,) * len(self.inputs) + tuple(made)

    @cached_property
    def first_result(self) -> tuple[int, ...]:
        """For every node: the number of its first result."""
        starts, at = [], len(self.inputs)
        for node in self.nodes:
            starts.append(at)
            at += len(node.types)
        return tuple(starts)

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """For every value: the nodes that read it, in order, once each."""
        found: list[list[int]] = [[] for _ in self.types]
        for k, node in enumerate(self.nodes):
            for v in dict.fromkeys(node.operands):
                found[v].append(k)
        return tuple(tuple(u) for u in found)

    def results(self, node: int) -> range:
        """The numbers of a node's results."""
        start = self.first_result[node]
        return range(start, start + len(self.nodes[node].types))

    def producer(self, value: int) -> Node | None:
        made = self.producers[value]
        return self.nodes[made[0]] if made else None

    @cached_property
    def input_types(self) -> tuple[TensorType, ...]:
        return tuple(i.type for i in self.inputs)

    @cached_property
    def output_types(self) -> tuple[TensorType, ...]:
        return tuple(self.types[v] for v in self.outputs)

    @cached_property
    def digest(self) -> str:
        """Content hash: names dropped, operands of commutative ops sorted, dead nodes ignored."""
        return _digest(self)

    def __str__(self) -> str:
        from plait.ir.text import print_graph

        return print_graph(self)


def _digest(graph: Graph) -> str:
    from plait.ir.op import is_commutative
    from plait.ir.text import show_attrs

    hashes = [_sha("input", str(k), str(i.type)) for k, i in enumerate(graph.inputs)]
    for node in graph.nodes:
        operands = [hashes[v] for v in node.operands]
        if is_commutative(node.op):
            operands.sort()
        head = _sha(node.op, show_attrs(node.attrs, stable=True), *operands)
        hashes += [_sha(head, str(r), str(ty)) for r, ty in enumerate(node.types)]
    types = [str(i.type) for i in graph.inputs]
    ranges = sorted(map(repr, symbols_of(d for i in graph.inputs for d in i.type.shape).values()))
    return _sha("graph", *ranges, *types, "->", *(hashes[v] for v in graph.outputs))


def _sha(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
