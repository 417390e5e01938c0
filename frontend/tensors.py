"""Torch's types and tensors as those of the IR, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import SymBool, SymFloat, SymInt, Tensor, nn
from torch.utils._sympy.functions import CleanDiv, FloorDiv

from plait.ir import dims, types
from plait.ir.dims import Dim
from plait.ir.errors import Unsupported
from plait.ir.graph import Blob
from plait.ir.ops.aten import to_numpy
from plait.ir.types import DType, TensorType

TO_TORCH: dict[DType, torch.dtype] = {d: getattr(torch, d.name) for d in types.DTYPES.values()}
FROM_TORCH: dict[torch.dtype, DType] = {t: d for d, t in TO_TORCH.items()}

# What symbolic sizes are to be replaced by, under their names in torch.
Sizes = Mapping[str, Dim]


def dtype_of(dtype: torch.dtype) -> DType:
    """The IR's element type; `Unsupported` for the ones it lacks (quantised, float8)."""
    found = FROM_TORCH.get(dtype)
    if found is None:
        raise Unsupported(f"dtype {dtype} has no counterpart in the IR")
    return found


def type_of(value: Tensor, sizes: Sizes | None = None) -> TensorType:
    """The type of a real or fake strided CPU tensor.

    `sizes` gives symbolic sizes a value by name; without it they stay symbols.
    """
    _require_strided(value)
    return TensorType(dtype_of(value.dtype), tuple(dim_of(n, sizes) for n in value.shape))


def _require_strided(value: Tensor) -> None:
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise Unsupported(f"a tensor of layout {value.layout} on {value.device} is not supported")


def dim_of(size: int | SymInt, sizes: Sizes | None = None) -> Dim:
    """A size as an int or a symbolic dimension."""
    if not isinstance(size, SymInt):
        return int(size)
    symbolic: Any = size
    return _Symbols(symbolic.node.shape_env, sizes).dim(symbolic.node.expr)


def number_of(value: Any, sizes: Sizes | None = None) -> Any:
    """A number, maybe symbolic: integers become dimensions, others must have a value."""
    if isinstance(value, SymInt):
        return dim_of(value, sizes)
    if isinstance(value, SymFloat):
        return float(_Symbols(value.node.shape_env, sizes).constant(value.node.expr))
    if isinstance(value, SymBool):
        return bool(_Symbols(value.node.shape_env, sizes).constant(value.node.expr))
    return value


class _Symbols:
    """Translates sympy expressions over the sizes of one shape environment."""

    def __init__(self, env: Any, sizes: Sizes | None) -> None:
        self.env = env
        self.sizes = sizes

    def dim(self, expr: Any) -> Dim:
        if expr.is_Integer:
            return int(expr)
        if isinstance(expr, sympy.Symbol):
            return self.symbol(expr)
        if isinstance(expr, sympy.Add):
            total: Dim = 0
            for term in expr.args:
                total = total + self.dim(term)
            return total
        if isinstance(expr, sympy.Mul):
            return dims.product(self.dim(factor) for factor in expr.args)
        if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0:
            return dims.product([self.dim(expr.base)] * int(expr.exp))
        if isinstance(expr, FloorDiv | CleanDiv):
            return dims.floordiv(self.dim(expr.args[0]), self.dim(expr.args[1]))
        return self.value(expr)

    def symbol(self, expr: sympy.Symbol) -> Dim:
        if self.sizes is not None and expr.name in self.sizes:
            return self.sizes[expr.name]
        known = self.env.replacements.get(expr)
        if known is not None and known != expr:
            return self.dim(known)
        if expr.name.startswith(("u", "zuf")):
            raise Unsupported(f"size {expr} depends on the data")
        bounds = self.env.var_to_range.get(expr)
        low = max(int(bounds.lower), 0) if bounds is not None else 1
        high = dims.INFINITY
        if bounds is not None and bounds.upper < dims.INFINITY:
            high = int(bounds.upper)
        return dims.symbol(expr.name, low, high)

    def value(self, expr: sympy.Expr) -> Dim:
        """An expression outside the polynomials: only its value can be had."""
        return int(self.constant(expr))

    def constant(self, expr: sympy.Expr) -> Any:
        """The expression with every size replaced by its value."""
        bound = {s: self.symbol(s) for s in expr.free_symbols if isinstance(s, sympy.Symbol)}
        if not all(isinstance(v, int) for v in bound.values()):
            raise Unsupported(f"{expr} has no value while sizes are symbolic")
        return expr.xreplace({s: sympy.Integer(v) for s, v in bound.items()})


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides that torch gives a contiguous tensor."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def stride_order(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...] | None:
    """Logical dimensions from outermost to innermost if the tensor is a permuted dense one.

    None when elements overlap or leave gaps. Dimensions of size 1 keep their place as far as that
    is possible, so that a row-major tensor gives (0, 1, 2, ...).
    """
    if math.prod(shape) == 0:
        return tuple(range(len(shape)))
    large = [d for d, n in enumerate(shape) if n != 1]
    ordered = sorted(large, key=lambda d: -strides[d])
    expected = 1
    for d in reversed(ordered):
        if strides[d] != expected:
            return None
        expected *= shape[d]
    places = iter(ordered)
    return tuple(d if shape[d] == 1 else next(places) for d in range(len(shape)))


_PLAIN = (Tensor, nn.Parameter)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie in the tensor's memory as they are, at its strides.

    Those of zero tensors and of conjugate and negative views are made when they are read; sparse
    tensors, subclasses and tensors on other devices keep theirs in ways of their own.
    """
    return (
        type(tensor) in _PLAIN
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not (tensor.is_conj() or tensor.is_neg() or tensor._is_zerotensor())
    )


def dense(tensor: Tensor) -> Tensor:
    """The tensor row-major in memory of its own kind: no gradient, nothing lazy.

    Raises `Unsupported` for a tensor that is sparse or not on the CPU.
    """
    plain = tensor.detach() if tensor.requires_grad else tensor
    if is_dense(plain):
        return plain.contiguous()
    _require_strided(plain)
    if plain._is_zerotensor():
        return torch.zeros(plain.shape, dtype=plain.dtype)
    return plain.resolve_conj().resolve_neg().as_subclass(Tensor).contiguous()


def blob_of(tensor: Tensor, name: str = "") -> Blob:
    """A constant that shares the tensor's memory where it is row-major.

    bfloat16, which numpy lacks, cannot be a constant yet: `Unsupported`.
    """
    if tensor.dtype == torch.bfloat16:
        raise Unsupported(f"constant {name!r} has dtype bfloat16, which cannot be stored")
    return Blob(to_numpy(dense(tensor)), name)
