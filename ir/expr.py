"""Scalar expressions: the language in which an op's compute definition is written.

An element of an op's result is an expression over index variables (`Index`), elements of the
operands (`Load`), literals, scalar functions (`Apply`) and reductions (`Reduce`).  TVM, Triton
and MLIR code is lowered from it.  Nodes compare by identity, so shared nodes form a DAG that
walkers can memoise by node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

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


def eager_children(expr: Expr) -> tuple[Expr, ...]:
    """The operands that are evaluated in any case: of a guard, only the condition."""
    lazy = isinstance(expr, Apply) and expr.fn == "guard"
    return children(expr)[:1] if lazy else children(expr)


def walk(
    expr: Expr,
    operands: Callable[[Expr], tuple[Expr, ...]] = children,
    known: Callable[[Expr], bool] = lambda _: False,
) -> Iterator[Expr]:
    """Every distinct node below `expr` through `operands`, operands before their users.

    Nodes that are `known` are left out, with what only they lead to.
    """
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
        elif id(node) not in seen and not known(node):
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((c, False) for c in reversed(operands(node)))


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
