"""Building graphs: values with operators, type rules applied as nodes are emitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.dims import Dim
from plait.ir.errors import Unsupported
from plait.ir.graph import Attrs, Blob, Graph, Input, Node
from plait.ir.types import DType, TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Value:
    """A value of a graph under construction."""

    builder: Builder = field(repr=False, compare=False)
    id: int
    type: TensorType

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def rank(self) -> int:
        return self.type.rank

    def _with(self, op: str, other: Value | float | int, swap: bool = False) -> Value:
        right = other if isinstance(other, Value) else self.builder.scalar(other, self.dtype)
        return self.builder.emit(op, right, self) if swap else self.builder.emit(op, self, right)

    def __add__(self, other: Value | float | int) -> Value:
        return self._with("add", other)

    def __radd__(self, other: float | int) -> Value:
        return self._with("add", other, swap=True)

    def __sub__(self, other: Value | float | int) -> Value:
        return self._with("sub", other)

    def __rsub__(self, other: float | int) -> Value:
        return self._with("sub", other, swap=True)

    def __mul__(self, other: Value | float | int) -> Value:
        return self._with("mul", other)

    def __rmul__(self, other: float | int) -> Value:
        return self._with("mul", other, swap=True)

    def __truediv__(self, other: Value | float | int) -> Value:
        return self._with("div", other)

    def __rtruediv__(self, other: float | int) -> Value:
        return self._with("div", other, swap=True)

    def __neg__(self) -> Value:
        return self.builder.emit("neg", self)


class Builder:
    """Collects inputs and nodes; `finish` gives the frozen graph.

    `on_emit`, when set, sees every node before it is added and may give values to use in its
    place: this is how local rewrites and common-subexpression elimination hook in.
    """

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.loc = ""
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self.types: list[TensorType] = []
        self.made_by: list[int | None] = []
        self.on_emit: Callable[[Node, tuple[Value, ...]], tuple[Value, ...] | None] | None = None

    def input(self, type: TensorType, name: str = "") -> Value:
        if self.nodes:
            raise ValueError("inputs must be declared before nodes")
        self.inputs.append(Input(type, name))
        self.made_by.append(None)
        return self._new(type)

    def _new(self, type: TensorType) -> Value:
        self.types.append(type)
        return Value(self, len(self.types) - 1, type)

    def value(self, number: int) -> Value:
        return Value(self, number, self.types[number])

    def emit_all(
        self, op: str, operands: Sequence[Value], attrs: dict[str, Any] | Attrs
    ) -> tuple[Value, ...]:
        """Add a node and return its results; its type rule checks the operands."""
        record = ops.get(op)
        full = record.complete(dict(attrs))
        types = record.result_types(full, tuple(v.type for v in operands))
        return self.add(Node(op, tuple(v.id for v in operands), full, types, self.loc))

    def emit(self, op: str, *operands: Value, **attrs: Any) -> Value:
        """Add a node with one result."""
        results = self.emit_all(op, operands, attrs)
        if len(results) != 1:
            raise ValueError(f"{op} has {len(results)} results")
        return results[0]

    def add(self, node: Node) -> tuple[Value, ...]:
        """Add a finished node whose operands are numbers of this builder."""
        if self.on_emit is not None:
            replaced = self.on_emit(node, tuple(self.value(v) for v in node.operands))
            if replaced is not None:
                return replaced
        self.nodes.append(node)
        self.made_by.extend([len(self.nodes) - 1] * len(node.types))
        return tuple(self._new(ty) for ty in node.types)

    def producer(self, value: Value) -> Node | None:
        """The node that made a value, None for an input."""
        at = self.made_by[value.id]
        return None if at is None else self.nodes[at]

    def constant(self, array: Any, name: str = "") -> Value:
        """A constant tensor from a numpy array (kept, not copied) or a `Blob`."""
        blob = array if isinstance(array, Blob) else Blob(array, name)
        return self.emit("constant", value=blob)

    def scalar(self, value: float | int | bool | complex, dtype: DType) -> Value:
        """A rank-0 constant.  Raises `Unsupported` for bfloat16, which numpy lacks."""
        if dtype == t.bf16:
            raise Unsupported("a constant of dtype bfloat16 cannot be stored")
        return self.constant(np.asarray(value).astype(dtype.numpy))

    def full(self, shape: Sequence[Dim], value: float | int | bool, dtype: DType) -> Value:
        return self.emit("broadcast_to", self.scalar(value, dtype), shape=tuple(shape))

    def cast(self, value: Value, dtype: DType) -> Value:
        return value if value.dtype == dtype else self.emit("cast", value, dtype=dtype)

    def reshape(self, value: Value, shape: Sequence[Dim]) -> Value:
        same = tuple(shape) == value.shape
        return value if same else self.emit("reshape", value, shape=tuple(shape))

    def transpose(self, value: Value, perm: Sequence[int]) -> Value:
        same = list(perm) == list(range(value.rank))
        return value if same else self.emit("transpose", value, perm=tuple(perm))

    def inline(self, graph: Graph, arguments: Sequence[Value]) -> tuple[Value, ...]:
        """Add a copy of a graph's nodes, applied to `arguments`; gives its outputs."""
        env: dict[int, Value] = dict(enumerate(arguments))
        for k, node in enumerate(graph.nodes):
            copy = node.with_operands(env[v].id for v in node.operands)
            for number, value in zip(graph.results(k), self.add(copy), strict=True):
                env[number] = value
        return tuple(env[v] for v in graph.outputs)

    @contextmanager
    def at(self, loc: str) -> Iterator[None]:
        """Source location of the nodes emitted inside."""
        outer, self.loc = self.loc, loc or self.loc
        try:
            yield
        finally:
            self.loc = outer

    def finish(self, outputs: Iterable[Value]) -> Graph:
        return Graph(tuple(self.inputs), tuple(self.nodes), tuple(v.id for v in outputs), self.name)


@dataclass
class Capture:
    """What an importer of a torch target works with.

    `b` is the graph's builder; `result` the types that torch gives the node's results.
    """

    b: Builder
    result: tuple[TensorType, ...]

    def emit(self, op: str, *operands: Value, **attrs: Any) -> Value:
        return self.b.emit(op, *operands, **attrs)

    @property
    def dtype(self) -> DType:
        """The dtype of the first result."""
        return self.result[0].dtype

    def tensor(self, value: Any, dtype: DType) -> Value:
        """A value or a Python number as a value of `dtype`."""
        if isinstance(value, Value):
            return self.b.cast(value, dtype)
        return self.b.scalar(value, dtype)


def _number_dtype(dtype: DType) -> DType:
    """The tensor dtype that a Python number of another category gives."""
    return t.f32 if dtype.is_float else dtype


def rank_order(types: Iterable[TensorType | int | float | bool]) -> DType:
    """Torch's result dtype of mixed operands: category first, tensors before 0-d and numbers."""
    best: dict[int, DType] = {}
    for item in types:
        dtype, level = _priority(item)
        best[level] = promote(best[level], dtype) if level in best else dtype
    result = best[max(best)]
    for level in sorted(best, reverse=True):
        if _category(best[level]) > _category(result):
            result = best[level] if level else _number_dtype(best[level])
    return result


def _priority(item: TensorType | int | float | bool) -> tuple[DType, int]:
    if isinstance(item, TensorType):
        return item.dtype, 2 if item.rank else 1
    if isinstance(item, bool):
        return t.bool_, 0
    return (t.i64, 0) if isinstance(item, int) else (t.f32, 0)


def _category(dtype: DType) -> int:
    return {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}[dtype.kind]


def promote(a: DType, b: DType) -> DType:
    """Torch's promotion of two tensor dtypes."""
    if a == b:
        return a
    if _category(a) != _category(b):
        return a if _category(a) > _category(b) else b
    if {a, b} == {t.bf16, t.f16}:
        return t.f32
    if a.kind == b.kind:
        return a if a.bits >= b.bits else b
    signed, unsigned = (a, b) if a.kind == "i" else (b, a)
    wider = {8: t.i16, 16: t.i32, 32: t.i64}
    return signed if signed.bits > unsigned.bits else wider.get(unsigned.bits, t.f32)
