"""Scalar expressions: the language in which an op's compute definition is written.

An element of an op's result is an expression over index variables (`Index`), elements of the
operands (`Load`), literals, scalar functions (`Apply`) and reductions (`Reduce`).  TVM, Triton
and MLIR code is lowered from it.  Nodes compare by identity, so shared nodes form a DAG that
walkers can memoise by node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from plait.ir import types as t
from plait.ir.dims import Dim

Scalar: TypeAlias = "Expr | int | float | bool"


class Expr:
    """Base of scalar expressions; `dtype` is the element type of the value."""

    dtype: t.DType

    def __add__(self, other: Scalar) -> Expr:
        return binary("add", self, other)

    def __radd__(self, other: Scalar) -> Expr:
        return binary("add", other, self)

    def __sub__(self, other: Scalar) -> Expr:
        return binary("sub", self, other)

    def __rsub__(self, other: Scalar) -> Expr:
        return binary("sub", other, self)

    def __mul__(self, other: Scalar) -> Expr:
        return binary("mul", self, other)

    def __rmul__(self, other: Scalar) -> Expr:
        return binary("mul", other, self)

    def __truediv__(self, other: Scalar) -> Expr:
        return binary("div", self, other)

    def __rtruediv__(self, other: Scalar) -> Expr:
        return binary("div", other, self)

    def __floordiv__(self, other: Scalar) -> Expr:
        return binary("floordiv", self, other)

    def __mod__(self, other: Scalar) -> Expr:
        return binary("mod", self, other)

    def __neg__(self) -> Expr:
        return Apply("neg", (self,), self.dtype)

    def __lt__(self, other: Scalar) -> Expr:
        return compare("lt", self, other)

    def __le__(self, other: Scalar) -> Expr:
        return compare("le", self, other)

    def __gt__(self, other: Scalar) -> Expr:
        return compare("gt", self, other)

    def __ge__(self, other: Scalar) -> Expr:
        return compare("ge", self, other)

    def __and__(self, other: Scalar) -> Expr:
        return binary("and", self, other)

    def __or__(self, other: Scalar) -> Expr:
        return binary("or", self, other)

    def __xor__(self, other: Scalar) -> Expr:
        return binary("xor", self, other)

    def __lshift__(self, other: Scalar) -> Expr:
        return binary("shl", self, other)

    def __rshift__(self, other: Scalar) -> Expr:
        """Arithmetic shift for signed integers."""
        return binary("shr", self, other)

    def eq(self, other: Scalar) -> Expr:
        return compare("eq", self, other)

    def ne(self, other: Scalar) -> Expr:
        return compare("ne", self, other)

    def cast(self, dtype: t.DType) -> Expr:
        return self if dtype == self.dtype else Apply("cast", (self,), dtype)

    def bitcast(self, dtype: t.DType) -> Expr:
        return self if dtype == self.dtype else Apply("bitcast", (self,), dtype)


@dataclass(frozen=True, eq=False)
class Axis:
    """A loop variable of a compute definition: extent and a name for printing."""

    name: str
    extent: Dim


@dataclass(frozen=True, eq=False)
class Index(Expr):
    """The value of a loop variable."""

    axis: Axis
    dtype: t.DType = t.i64


@dataclass(frozen=True, eq=False)
class Lit(Expr):
    value: int | float | bool | complex
    dtype: t.DType


@dataclass(frozen=True, eq=False)
class Size(Expr):
    """A dimension used as a value."""

    dim: Dim
    dtype: t.DType = t.i64


@dataclass(frozen=True, eq=False)
class Load(Expr):
    """Element `index` (logical indices) of operand number `operand`."""

    operand: int
    index: tuple[Expr, ...]
    dtype: t.DType


@dataclass(frozen=True, eq=False)
class Apply(Expr):
    """A scalar function of the table `FUNCTIONS` (or cast, bitcast, select, guard).

    `guard(c, a, b)` is select that evaluates only the chosen branch: loads in `a` may be out
    of bounds where `c` is false.
    """

    fn: str
    args: tuple[Expr, ...]
    dtype: t.DType


@dataclass(frozen=True, eq=False)
class Reduce(Expr):
    """Reduction of `body` over `axes`; `kind` is sum, prod, max or min.

    An empty reduction gives the identity of the kind.
    """

    kind: str
    axes: tuple[Axis, ...]
    body: Expr
    dtype: t.DType


@dataclass(frozen=True, eq=False)
class Compute:
    """The meaning of one result: `body` gives the element at the index `axes`."""

    axes: tuple[Axis, ...]
    body: Expr


def axes(*extents: Dim, prefix: str = "i") -> tuple[Axis, ...]:
    return tuple(Axis(f"{prefix}{n}", e) for n, e in enumerate(extents))


def index(axis: Axis) -> Expr:
    return Index(axis)


def lit(value: int | float | bool | complex, dtype: t.DType) -> Expr:
    return Lit(value, dtype)


def size(dim: Dim) -> Expr:
    """A dimension as an index value."""
    return Lit(dim, t.i64) if isinstance(dim, int) else Size(dim)


def _alike(fn: str, *values: Scalar) -> tuple[Expr, ...]:
    """Values of one dtype; Python numbers take that of the others."""
    dtypes = list(dict.fromkeys(v.dtype for v in values if isinstance(v, Expr)))
    if not dtypes:
        raise TypeError(f"{fn} of Python numbers alone: give one of them a dtype with `lit`")
    if len(dtypes) > 1:
        raise TypeError(f"{fn} of {' and '.join(map(str, dtypes))}: cast one of them")
    return tuple(v if isinstance(v, Expr) else Lit(v, dtypes[0]) for v in values)


def binary(fn: str, a: Scalar, b: Scalar) -> Expr:
    """A two-operand function on one dtype; Python numbers take the other operand's dtype."""
    args = _alike(fn, a, b)
    return Apply(fn, args, args[0].dtype)


def compare(fn: str, a: Scalar, b: Scalar) -> Expr:
    result = binary(fn, a, b)
    assert isinstance(result, Apply)
    return Apply(fn, result.args, t.bool_)


def apply(fn: str, *args: Expr, dtype: t.DType | None = None) -> Expr:
    """A function of the table; its result has the first argument's dtype unless stated."""
    return Apply(fn, args, dtype or args[0].dtype)


def select(cond: Expr, a: Scalar, b: Scalar) -> Expr:
    branches = _alike("select", a, b)
    return Apply("select", (cond, *branches), branches[0].dtype)


def guard(cond: Expr, a: Expr, b: Scalar) -> Expr:
    """`a` where `cond` holds, else `b`; `a` is not evaluated where it does not."""
    return Apply("guard", (cond, *_alike("guard", a, b)), a.dtype)


def fma(a: Expr, b: Scalar, c: Scalar) -> Expr:
    """`a * b + c` rounded once."""
    return Apply("fma", _alike("fma", a, b, c), a.dtype)


def minimum(a: Expr, b: Scalar) -> Expr:
    return binary("min", a, b)


def maximum(a: Expr, b: Scalar) -> Expr:
    return binary("max", a, b)


def reduce(kind: str, over: Sequence[Axis], body: Expr) -> Expr:
    return Reduce(kind, tuple(over), body, body.dtype)


def identity(kind: str, dtype: t.DType) -> int | float | bool:
    """The neutral element of a reduction."""
    if kind == "sum":
        return 0
    if kind == "prod":
        return 1
    if dtype.is_float:
        return float("-inf") if kind == "max" else float("inf")
    if dtype.kind == "b":
        return kind == "min"
    info = np.iinfo(dtype.numpy)
    return int(info.min if kind == "max" else info.max)


def children(expr: Expr) -> tuple[Expr, ...]:
    match expr:
        case Load():
            return expr.index
        case Apply():
            return expr.args
        case Reduce():
            return (expr.body,)
        case _:
            return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """Every distinct node below `expr`, operands before their users."""
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((c, False) for c in reversed(children(node)))


def rebuild(expr: Expr, visit: Callable[[Expr], Expr | None]) -> Expr:
    """A copy in which every node for which `visit` gives a replacement is replaced.

    `visit` sees a node before its operands; shared nodes are rebuilt once.
    """
    memo: dict[int, Expr] = {}

    def go(node: Expr) -> Expr:
        if id(node) in memo:
            return memo[id(node)]
        replaced = visit(node)
        if replaced is None:
            replaced = _with_children(node, [go(c) for c in children(node)])
        memo[id(node)] = replaced
        return replaced

    return go(expr)


def _with_children(node: Expr, new: list[Expr]) -> Expr:
    old = children(node)
    if all(a is b for a, b in zip(old, new, strict=True)):
        return node
    match node:
        case Load():
            return Load(node.operand, tuple(new), node.dtype)
        case Apply():
            return Apply(node.fn, tuple(new), node.dtype)
        case Reduce():
            return Reduce(node.kind, node.axes, new[0], node.dtype)
        case _:
            return node


def substitute(expr: Expr, mapping: dict[Axis, Expr]) -> Expr:
    """Replace index variables."""
    return rebuild(expr, lambda n: mapping.get(n.axis) if isinstance(n, Index) else None)


def _fma(a: Any, b: Any, c: Any) -> Any:
    if a.dtype == np.float64:
        return _fma64(a, b, c)
    wide = np.result_type(a, np.float64)
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(a.dtype)


def _fma64(a: Any, b: Any, c: Any) -> Any:
    """`a * b + c` with the exact product (Dekker) and sum (Knuth): no wider type holds it."""

    def split(x: Any) -> tuple[Any, Any]:
        high = x * 134217729.0
        high = high - (high - x)
        return high, x - high

    product, (ah, al), (bh, bl) = a * b, split(a), split(b)
    rest = ((ah * bh - product) + ah * bl + al * bh) + al * bl
    total = product + c
    other = total - product
    rest = rest + ((product - (total - other)) + (c - other))
    return np.where(np.isfinite(rest), total + rest, total)


def _erf(x: Any) -> Any:
    import math

    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype)


def _sigmoid(x: Any) -> Any:
    wide = x.astype(np.float64) if x.dtype != np.float64 else x
    return (1 / (1 + np.exp(-wide))).astype(x.dtype)


def _trunc_div(a: Any, b: Any) -> Any:
    if a.dtype.kind == "f":
        return np.trunc(a / b)
    floor = a // b
    inexact = (b != 0) & (a - floor * b != 0)
    return floor + (inexact & ((a < 0) != (b < 0))).astype(floor.dtype)


# The scalar functions and their meaning in numpy; each takes and gives arrays of one dtype,
# except comparisons and predicates, which give bool.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "floordiv": np.floor_divide,
    "truncdiv": _trunc_div,
    "mod": np.mod,
    "fmod": np.fmod,
    "pow": np.power,
    "atan2": np.arctan2,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "tanh": np.tanh,
    "erf": _erf,
    "sigmoid": _sigmoid,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.round,
    "fma": _fma,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "isnan": np.isnan,
    "isinf": np.isinf,
}
