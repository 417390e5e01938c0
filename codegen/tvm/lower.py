"""Scalar expressions to TIR: the one translation from compute definitions to TVM.

Index arithmetic is narrow (int32); a subexpression that is used more than once is bound by a
`Let`, so that code size follows the expression's graph and not its tree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from tvm import tirx

from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.dims import SymDim
from plait.ir.errors import Unsupported, UnsupportedSymbol
from plait.ir.expr import Expr

PrimExpr: TypeAlias = Any  # TVM ships no stubs
LoadRule: TypeAlias = Callable[[int, list[PrimExpr]], PrimExpr]


def tir_dtype(dtype: t.DType) -> str:
    """TVM's name of an element type."""
    return dtype.name


def const(value: int | float | bool, dtype: str) -> PrimExpr:
    return tirx.const(value, dtype)


def lower(
    expr: Expr,
    load: LoadRule,
    axes: Mapping[e.Axis, PrimExpr],
    extra: Callable[[Expr], PrimExpr | None] | None = None,
) -> PrimExpr:
    """The TIR expression of `expr`.

    `load(k, index)` reads operand k at a logical index of int32 expressions; `axes` gives the
    loop variables; `extra` may translate a node itself.  A remaining reduction is an error:
    templates take reductions apart before they lower.
    """
    return _Lowering(load, axes, extra).scope(expr, {})


class _Lowering:
    def __init__(
        self,
        load: LoadRule,
        axes: Mapping[e.Axis, PrimExpr],
        extra: Callable[[Expr], PrimExpr | None] | None,
    ) -> None:
        self.load, self.axes, self.extra = load, axes, extra
        self._index: dict[int, bool] = {}

    def scope(self, root: Expr, outer: dict[int, PrimExpr]) -> PrimExpr:
        """Lower one expression; what sits in the lazy branch of a guard has its own scope."""
        memo = dict(outer)
        order = _eager_order(root, memo)
        uses: dict[int, int] = {}
        for node in order:
            for child in _eager_children(node):
                uses[id(child)] = uses.get(id(child), 0) + 1
        bound: list[tuple[PrimExpr, PrimExpr]] = []
        for node in order:
            value = self.node(node, memo)
            if uses.get(id(node), 0) > 1 and self._worth_binding(node):
                var = tirx.Var(f"t{len(memo)}", dtype_of(value))
                bound.append((var, value))
                value = var
            memo[id(node)] = value
        result = memo[id(root)]
        for var, value in reversed(bound):
            result = tirx.Let(var, value, result)
        return result

    def _worth_binding(self, node: Expr) -> bool:
        """Data is bound; index arithmetic stays visible to the vectoriser.

        A bound bool fails to build once its loop is vectorised (TVM 0.27 analyses its value).
        """
        data = isinstance(node, (e.Apply, e.Load)) and not self.is_index(node)
        return data and node.dtype.kind != "b"

    def is_index(self, node: Expr) -> bool:
        """Made of loop variables and literals alone."""
        if id(node) not in self._index:
            if isinstance(node, e.Load):
                self._index[id(node)] = False
            elif isinstance(node, e.Apply):
                self._index[id(node)] = all(map(self.is_index, node.args))
            else:
                self._index[id(node)] = isinstance(node, (e.Index, e.Lit, e.Size))
        return self._index[id(node)]

    def node(self, node: Expr, memo: dict[int, PrimExpr]) -> PrimExpr:
        if self.extra is not None:
            found = self.extra(node)
            if found is not None:
                return found
        match node:
            case e.Index():
                return self.axes[node.axis]
            case e.Lit():
                return _literal(node)
            case e.Size():
                if isinstance(node.dim, SymDim):
                    raise UnsupportedSymbol(stage="TVM code generation", dim=str(node.dim))
                return const(node.dim, "int32")
            case e.Load():
                return self.load(node.operand, [_narrow(memo[id(i)]) for i in node.index])
            case e.Apply():
                return self.apply(node, memo)
        raise Unsupported(f"{type(node).__name__} inside an expression reached code generation")

    def apply(self, node: e.Apply, memo: dict[int, PrimExpr]) -> PrimExpr:
        if node.fn == "guard":
            cond = memo[id(node.args[0])]
            inside, outside = (self.scope(a, memo) for a in node.args[1:])
            inside, outside = _unify(inside, outside)
            return tirx.if_then_else(cond, inside, outside)
        args = [memo[id(a)] for a in node.args]
        if node.fn == "cast":
            return _cast(args[0], node.args[0].dtype, node.dtype)
        if node.fn == "bitcast":
            return tirx.reinterpret(tir_dtype(node.dtype), args[0])
        if node.fn == "select":
            a, b = _unify(args[1], args[2])
            return tirx.Select(args[0], a, b)
        if len(args) == 2:
            args = list(_unify(*args))
        if node.fn in ("eq", "ne") and node.args[0] is node.args[1] and node.args[0].dtype.is_float:
            unequal = is_nan(args[0])
            return unequal if node.fn == "ne" else unequal.astype("int32") < const(1, "int32")
        rule = FUNCTIONS.get(node.fn)
        if rule is None:
            raise Unsupported(f"the scalar function {node.fn!r} has no code for the CPU")
        return rule(node.args[0].dtype, *args)


def _eager_children(node: Expr) -> tuple[Expr, ...]:
    if isinstance(node, e.Apply) and node.fn == "guard":
        return node.args[:1]
    return e.children(node)


def _eager_order(root: Expr, known: dict[int, PrimExpr]) -> list[Expr]:
    """Nodes of the scope, operands first; those known from outside are left out."""
    seen: set[int] = set(known)
    order: list[Expr] = []
    stack: list[tuple[Expr, bool]] = [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((c, False) for c in reversed(_eager_children(node)))
    return order


def dtype_of(value: PrimExpr) -> str:
    """TVM's name for the scalar type of an expression."""
    return str(value.ty.dtype)


def _literal(node: e.Lit) -> PrimExpr:
    if node.dtype == t.i64:
        value = int(node.value)  # type: ignore[arg-type]
        return const(value, "int32" if -(2**31) <= value < 2**31 else "int64")
    if node.dtype.kind == "b":
        return const(bool(node.value), "bool")
    return const(node.value, tir_dtype(node.dtype))  # type: ignore[arg-type]


def _narrow(index: PrimExpr) -> PrimExpr:
    return index if dtype_of(index) == "int32" else index.astype("int32")


def _unify(a: PrimExpr, b: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
    """Bring an index expression (int32) and an int64 value to int64."""
    left, right = dtype_of(a), dtype_of(b)
    if left == right:
        return a, b
    if {left, right} == {"int32", "int64"}:
        return a.astype("int64"), b.astype("int64")
    raise Unsupported(f"operands of types {left} and {right} reached code generation")


def _cast(value: PrimExpr, source: t.DType, target: t.DType) -> PrimExpr:
    have = dtype_of(value)
    if target.kind == "b":
        return value if have == "bool" else tirx.NE(value, const(0, have))
    if have == tir_dtype(target):
        return value
    return value.astype(tir_dtype(target))


def _nan_max(_: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    return _pick("maximum", a, b)


def _nan_min(_: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    return _pick("minimum", a, b)


def is_nan(x: PrimExpr) -> PrimExpr:
    """By the bits: TVM takes `x != x` to be false."""
    bits, top, infinity = {
        "float32": ("int32", 0x7FFFFFFF, 0x7F800000),
        "float64": ("int64", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
        "float16": ("int16", 0x7FFF, 0x7C00),
    }[dtype_of(x)]
    return tirx.bitwise_and(tirx.reinterpret(bits, x), const(top, bits)) > const(infinity, bits)


def _pick(fn: str, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """The larger or smaller of two, NaN if either is one.

    Against a number one comparison is enough: the other side is kept unless the number is
    strictly better.
    """
    name = dtype_of(a)

    def better(x: PrimExpr, y: PrimExpr) -> PrimExpr:
        return x > y if fn == "maximum" else x < y

    if not name.startswith("float"):
        return tirx.max(a, b) if fn == "maximum" else tirx.min(a, b)
    if isinstance(b, tirx.FloatImm):
        return tirx.Select(better(b, a), b, a)
    if isinstance(a, tirx.FloatImm):
        return tirx.Select(better(a, b), a, b)
    return tirx.call_llvm_pure_intrin(name, f"llvm.{fn}", a, b)


def _equal(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """LLVM code of TVM has no comparison of booleans."""
    return tirx.EQ(a.astype("int32"), b.astype("int32")) if d.kind == "b" else tirx.EQ(a, b)


def _unequal(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """TVM's inequality is ordered, false on NaN; so the equality is negated as a number."""
    if d.is_float:
        return _equal(d, a, b).astype("int32") < const(1, "int32")
    return tirx.Not(_equal(d, a, b))


def _ordered(compare: Callable[[PrimExpr, PrimExpr], PrimExpr]) -> Any:
    def rule(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
        return compare(a.astype("int32"), b.astype("int32")) if d.kind == "b" else compare(a, b)

    return rule


def _bool_or(rule: Callable[..., PrimExpr], on_bool: Callable[..., PrimExpr]) -> Any:
    return lambda d, *xs: on_bool(*xs) if d.kind == "b" else rule(d, *xs)


def _floordiv(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    return tirx.floor(tirx.div(a, b)) if d.is_float else tirx.floordiv(a, b)


def _mod(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """Remainder with the divisor's sign; exact for floats through fmod."""
    if not d.is_float:
        return tirx.floormod(a, b)
    rest = _FMOD(d, a, b)
    zero = const(0, dtype_of(a))
    signs = (rest < zero).astype("int32"), (b < zero).astype("int32")
    wrong = tirx.all(tirx.NE(rest, zero), tirx.NE(*signs))
    return tirx.Select(wrong, rest + b, rest)


def _fma(d: t.DType, a: PrimExpr, b: PrimExpr, c: PrimExpr) -> PrimExpr:
    return tirx.call_llvm_pure_intrin(tir_dtype(d), "llvm.fma", a, b, c)


def _libm(name: str) -> Any:
    return lambda d, *xs: getattr(tirx, name)(*xs)


def _extern(name: str) -> Any:
    """A function of the C library, which is loaded in every process."""

    def call(d: t.DType, *xs: PrimExpr) -> PrimExpr:
        suffix = "f" if d == t.f32 else ""
        return tirx.call_pure_extern(tir_dtype(d), name + suffix, *xs)

    return call


_FMOD = _extern("fmod")

FUNCTIONS: dict[str, Callable[..., PrimExpr]] = {
    "add": _bool_or(lambda d, a, b: a + b, lambda a, b: tirx.any(a, b)),
    "sub": lambda d, a, b: a - b,
    "mul": _bool_or(lambda d, a, b: a * b, lambda a, b: tirx.all(a, b)),
    "div": lambda d, a, b: tirx.div(a, b),
    "floordiv": _floordiv,
    "truncdiv": lambda d, a, b: tirx.trunc(tirx.div(a, b)) if d.is_float else tirx.truncdiv(a, b),
    "mod": _mod,
    "fmod": lambda d, a, b: _FMOD(d, a, b) if d.is_float else tirx.truncmod(a, b),
    "pow": _extern("pow"),
    "atan2": _extern("atan2"),
    "max": _bool_or(_nan_max, lambda a, b: tirx.any(a, b)),
    "min": _bool_or(_nan_min, lambda a, b: tirx.all(a, b)),
    "neg": lambda d, x: const(-0.0, dtype_of(x)) - x if d.is_float else const(0, dtype_of(x)) - x,
    "abs": lambda d, x: x if d.kind == "u" else tirx.abs(x),
    "rsqrt": lambda d, x: tirx.div(const(1, dtype_of(x)), tirx.sqrt(x)),
    "sigmoid": lambda d, x: tirx.div(
        const(1, dtype_of(x)), const(1, dtype_of(x)) + tirx.exp(const(0, dtype_of(x)) - x)
    ),
    "round": lambda d, x: tirx.nearbyint(x),
    "fma": _fma,
    "and": _bool_or(lambda d, a, b: tirx.bitwise_and(a, b), lambda a, b: tirx.all(a, b)),
    "or": _bool_or(lambda d, a, b: tirx.bitwise_or(a, b), lambda a, b: tirx.any(a, b)),
    "xor": _bool_or(
        lambda d, a, b: tirx.bitwise_xor(a, b),
        lambda a, b: tirx.NE(a.astype("int32"), b.astype("int32")),
    ),
    "not": _bool_or(lambda d, x: tirx.bitwise_not(x), lambda x: tirx.Not(x)),
    "shl": lambda d, a, b: tirx.shift_left(a, b),
    "shr": lambda d, a, b: tirx.shift_right(a, b),
    "eq": _equal,
    "ne": _unequal,
    "lt": _ordered(lambda a, b: a < b),
    "le": _ordered(lambda a, b: a <= b),
    "gt": _ordered(lambda a, b: a > b),
    "ge": _ordered(lambda a, b: a >= b),
    "isnan": lambda d, x: is_nan(x),
    "isinf": lambda d, x: tirx.EQ(tirx.abs(x), const(math.inf, dtype_of(x))),
}  # fmt: skip
for _name in ("exp", "log", "sqrt", "sin", "cos", "tanh", "erf", "floor", "ceil", "trunc"):
    FUNCTIONS[_name] = _libm(_name)
for _name in ("exp2", "expm1", "log2", "log10", "log1p", "tan", "asin", "acos", "atan", "sinh",
              "cosh", "asinh", "acosh", "atanh"):  # fmt: skip
    FUNCTIONS[_name] = _extern(_name)
