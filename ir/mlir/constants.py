"""MLIR types, literals, constant tensors and sizes."""

# The bindings' compiled half has no stubs that a checker could follow.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, linalg, tensor

from plait.ir.dims import Dim, FloorDiv, Monomial, SymDim, product
from plait.ir.errors import Unsupported, UnsupportedSymbol
from plait.ir.graph import Blob, Graph
from plait.ir.text import blobs
from plait.ir.types import DType, TensorType

# Larger constants are arguments of the function instead of text in it.
INLINE_ELEMENTS = 64

_FLOATS = {"float64": ir.F64Type, "float32": ir.F32Type, "float16": ir.F16Type,
           "bfloat16": ir.BF16Type}  # fmt: skip


def element_type(dtype: DType) -> Any:
    """Integers are signless, bool is i1; `Unsupported` for complex numbers."""
    if dtype.is_float:
        return _FLOATS[dtype.name].get()
    if dtype.kind == "c":
        raise Unsupported(f"MLIR export of {dtype} is not supported")
    return ir.IntegerType.get_signless(1 if dtype.kind == "b" else dtype.bits)


def shape_of(dims: Sequence[Dim]) -> list[int]:
    """Sizes with MLIR's marker for a dynamic one."""
    dynamic = ir.ShapedType.get_dynamic_size()
    return [d if isinstance(d, int) else dynamic for d in dims]


def tensor_type(type: TensorType) -> Any:
    """The logical shape; the layout is dropped."""
    return ir.RankedTensorType.get(shape_of(type.shape), element_type(type.dtype))


def attribute(value: float | int | bool | complex, dtype: DType) -> Any:
    """A number as an attribute; integers wrap to their bits."""
    kind = element_type(dtype)
    if dtype.is_float:
        assert not isinstance(value, complex)
        return ir.FloatAttr.get(kind, float(value))
    if dtype.kind == "b":
        return ir.IntegerAttr.get(kind, int(bool(value)))
    assert isinstance(value, int)
    half = 1 << (dtype.bits - 1)
    return ir.IntegerAttr.get(kind, (value + half) % (2 * half) - half)


def literal(value: float | int | bool | complex, dtype: DType) -> Any:
    return arith.constant(element_type(dtype), attribute(value, dtype))


def index_constant(value: int) -> Any:
    return arith.constant(ir.IndexType.get(), value)


def dense(blob: Blob) -> Any:
    """A constant tensor written in place."""
    array, kind = np.ascontiguousarray(blob.array), tensor_type(blob.type)
    if array.size == 0:
        return tensor.EmptyOp(list(array.shape), kind.element_type).result
    items = [attribute(v, blob.type.dtype) for v in array.reshape(-1).tolist()]
    return arith.constant(kind, ir.DenseElementsAttr.get(items, kind))


def is_large(blob: Blob) -> bool:
    return bool(blob.array.size > INLINE_ELEMENTS)


def large_constants(graph: Graph) -> tuple[Blob, ...]:
    """The constants that become arguments behind the graph's inputs, in order of appearance.

    Bodies of kernels included; equal constants once.
    """
    return tuple(dict.fromkeys(b for b in blobs(graph) if is_large(b)))


class Sizes:
    """Values of dimensions inside one function, from the sizes of its tensor arguments."""

    def __init__(self, types: Sequence[TensorType], arguments: Sequence[Any]) -> None:
        self._symbols: dict[str, Any] = {}
        for type, argument in zip(types, arguments, strict=True):
            for d, size in enumerate(type.shape):
                name = _plain_symbol(size)
                if name and name not in self._symbols:
                    self._symbols[name] = tensor.dim(argument, index_constant(d))

    def value(self, dim: Dim) -> Any:
        """A dimension as an `index`; `UnsupportedSymbol` when no argument tells its size."""
        if isinstance(dim, int):
            return index_constant(dim)
        total: Any = None
        for monomial, coefficient in dim.terms:
            term = self._monomial(monomial, coefficient, dim)
            total = term if total is None else arith.addi(total, term)
        return total

    def _monomial(self, monomial: Monomial, coefficient: int, dim: SymDim) -> Any:
        result = index_constant(coefficient)
        for atom in monomial:
            if isinstance(atom, FloorDiv):
                by = index_constant(atom.denominator)
                factor = arith.floordivsi(self.value(atom.numerator), by)
            elif atom.name in self._symbols:
                factor = self._symbols[atom.name]
            else:
                raise UnsupportedSymbol(stage="MLIR export", dim=str(dim))
            result = arith.muli(result, factor)
        return result

    def dynamic(self, dims: Sequence[Dim]) -> list[Any]:
        """Ints for static sizes, values for others: what `tensor.empty` takes."""
        return [d if isinstance(d, int) else self.value(d) for d in dims]

    def empty(self, dims: Sequence[Dim], dtype: DType) -> Any:
        """A tensor without defined elements."""
        return tensor.EmptyOp(self.dynamic(dims), element_type(dtype)).result

    def filled(self, dims: Sequence[Dim], value: float | int | bool, dtype: DType) -> Any:
        return linalg.fill(literal(value, dtype), outs=[self.empty(dims, dtype)])


def _plain_symbol(dim: Dim) -> str:
    """The symbol's name when a dimension is one symbol and nothing else."""
    if isinstance(dim, SymDim) and len(dim.terms) == 1 and dim.terms[0][1] == 1:
        atoms = dim.terms[0][0]
        if len(atoms) == 1 and not isinstance(atoms[0], FloorDiv):
            return atoms[0].name
    return ""


def is_empty(dims: Sequence[Dim]) -> bool:
    return product(dims) == 0
