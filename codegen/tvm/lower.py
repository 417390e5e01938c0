"""Scalar expressions to TIR: the one translation from compute definitions to TVM.

Index arithmetic is narrow (int32); a subexpression that is used more than once is bound by a
`Let`, so that code size follows the expression's graph and not its tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from tvm import tirx

from plait.codegen.tvm.scalars import FUNCTIONS, const, dtype_of, is_nan, tir_dtype
from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.dims import SymDim
from plait.ir.errors import Unsupported, UnsupportedSymbol
from plait.ir.expr import Expr

PrimExpr: TypeAlias = Any  # TVM ships no stubs
LoadRule: TypeAlias = Callable[[int, list[PrimExpr]], PrimExpr]


def lower(
    expr: Expr,
    load: LoadRule,
    axes: Mapping[e.Axis, PrimExpr],
) -> PrimExpr:
    """The TIR expression of `expr`.

    `load(k, index)` reads operand k at a logical index of int32 expressions; `axes` gives the
    loop variables.  A remaining reduction is an error: templates take reductions apart before they
    lower.
    """
    return _Lowering(load, axes).scope(expr, {})


class _Lowering:
    def __init__(
        self,
        load: LoadRule,
        axes: Mapping[e.Axis, PrimExpr],
    ) -> None:
        self.load, self.axes = load, axes
        self._index: dict[int, bool] = {}

    def scope(self, root: Expr, outer: dict[int, PrimExpr]) -> PrimExpr:
        """Lower one expression; what sits in the lazy branch of a guard has its own scope."""
        memo = dict(outer)
        order = list(e.walk(root, e.eager_children, lambda n: id(n) in outer))
        uses: dict[int, int] = {}
        for node in order:
            for child in e.eager_children(node):
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
    if source == target == t.bf16:
        return value
    if source == t.bf16:
        value = tirx.reinterpret("float32", value.astype("uint32") << const(16, "uint32"))
    if target == t.bf16:
        return _bf16_bits(value.astype("float32"))
    have = dtype_of(value)
    if target.kind == "b":
        return value if have == "bool" else FUNCTIONS["ne"](source, value, const(0, have))
    if have == tir_dtype(target):
        return value
    return value.astype(tir_dtype(target))


def _bf16_bits(value: PrimExpr) -> PrimExpr:
    """A float32 rounded to bfloat16, ties to even.

    TVM's own cast is undone by a cast back, and the rounding with it.
    """

    def word(n: int) -> PrimExpr:
        return const(n, "uint32")

    bits = tirx.Var("bits", "uint32")
    last = tirx.bitwise_and(bits >> word(16), word(1))
    rounded = (bits + word(0x7FFF) + last) >> word(16)
    nan = tirx.bitwise_and(bits, word(0x7FFFFFFF)) > word(0x7F800000)
    half = tirx.Select(nan, word(0x7FC0), rounded).astype("uint16")
    return tirx.Let(bits, tirx.reinterpret("uint32", value), half)
