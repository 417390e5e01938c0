"""Scalar functions in the `arith` and `math` dialects, with the meaning numpy gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_mlir.dialects import arith, math

from plait.ir import types as t
from plait.ir.errors import Unsupported
from plait.ir.expr import Apply, Expr, Lit
from plait.ir.mlir.constants import element_type, literal
from plait.ir.types import DType

Rule = Callable[..., Any]

_MATH = ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos",
         "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "tanh", "erf",
         "floor", "ceil", "trunc", "atan2", "fma")  # fmt: skip
_FLOAT: dict[str, Rule] = {
    "add": arith.addf, "sub": arith.subf, "mul": arith.mulf, "div": arith.divf, "neg": arith.negf,
    "max": arith.maximumf, "min": arith.minimumf, "fmod": arith.remf, "pow": math.powf,
    "abs": math.absf, "round": math.roundeven, **{name: getattr(math, name) for name in _MATH},
}  # fmt: skip
_BITS: dict[str, Rule] = {"and": arith.andi, "or": arith.ori, "xor": arith.xori}
_INTEGER: dict[str, Rule] = {
    "add": arith.addi, "sub": arith.subi, "mul": arith.muli, **_BITS,
}  # fmt: skip
_SIGNED: dict[str, Rule] = {**_INTEGER, "max": arith.maxsi, "min": arith.minsi, "abs": math.absi}
_UNSIGNED: dict[str, Rule] = {**_INTEGER, "max": arith.maxui, "min": arith.minui,
                              "abs": lambda x: x}  # fmt: skip
# Sums and products of truth values, as numpy's `add` and `multiply` define them.
_BOOL: dict[str, Rule] = {**_BITS, "add": arith.ori, "mul": arith.andi, "max": arith.ori,
                          "min": arith.andi}  # fmt: skip
_TABLES = {"f": _FLOAT, "i": _SIGNED, "u": _UNSIGNED, "b": _BOOL}

_ORDERED = {"eq": "OEQ", "ne": "UNE", "lt": "OLT", "le": "OLE", "gt": "OGT", "ge": "OGE"}
_REDUCERS = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}


def combine(kind: str, dtype: DType, a: Any, b: Any) -> Any:
    """One step of a reduction."""
    return _TABLES[dtype.kind][_REDUCERS[kind]](a, b)


def lower_apply(node: Apply, args: list[Any]) -> Any:
    """The value of a function (all but `guard`) of lowered arguments; `Unsupported` if unknown."""
    fn, dtype = node.fn, node.args[0].dtype
    if fn == "select":
        return arith.select(*args)
    if fn == "cast":
        return convert(args[0], dtype, node.dtype)
    if fn == "bitcast":
        return arith.bitcast(element_type(node.dtype), args[0])
    if fn in _ORDERED:
        return comparison(fn, dtype, *args)
    if fn in _TABLES[dtype.kind]:
        return _TABLES[dtype.kind][fn](*args)
    if fn in _COMPOSED:
        return _COMPOSED[fn](dtype, *args)
    if fn in _DIVISIONS and dtype.is_int:
        return _integer_division(fn, dtype, args, node.args[1])
    if fn in _FLOAT_DIVISIONS and dtype.is_float:
        return _FLOAT_DIVISIONS[fn](dtype, *args)
    raise Unsupported(f"MLIR export has no lowering of the function {fn!r} on {dtype}")


def comparison(fn: str, dtype: DType, a: Any, b: Any) -> Any:
    """Comparisons with NaN are false, except `ne`; bools order as 0 and 1."""
    if dtype.is_float:
        return arith.cmpf(getattr(arith.CmpFPredicate, _ORDERED[fn]), a, b)
    sign = "" if fn in ("eq", "ne") else "s" if dtype.kind == "i" else "u"
    return arith.cmpi(getattr(arith.CmpIPredicate, f"{sign}{fn}"), a, b)


def convert(x: Any, source: DType, target: DType) -> Any:
    """A cast: to bool by `x != 0`, to integers by truncation toward zero."""
    kind = element_type(target)
    if target.kind == "b":
        return comparison("ne", source, x, literal(0, source))
    if source.is_float and target.is_float:
        if source.bits == target.bits:
            wide = arith.extf(element_type(t.f32), x)
            return arith.truncf(kind, wide)
        return (arith.extf if source.bits < target.bits else arith.truncf)(kind, x)
    if source.is_float:
        return (arith.fptosi if target.kind == "i" else arith.fptoui)(kind, x)
    if target.is_float:
        return (arith.sitofp if source.kind == "i" else arith.uitofp)(kind, x)
    if source.kind == "b":
        return arith.extui(kind, x)
    if source.bits == target.bits:
        return x
    if source.bits > target.bits:
        return arith.trunci(kind, x)
    return (arith.extsi if source.kind == "i" else arith.extui)(kind, x)


def _negate(dtype: DType, x: Any) -> Any:
    return arith.subi(literal(0, dtype), x)


def _complement(dtype: DType, x: Any) -> Any:
    return arith.xori(x, literal(True if dtype.kind == "b" else -1, dtype))


def _shift_left(dtype: DType, x: Any, by: Any) -> Any:
    """Shifts by a negative number or by all bits and more give 0, as in numpy."""
    inside = arith.cmpi(arith.CmpIPredicate.ult, by, literal(dtype.bits, dtype))
    return arith.select(inside, arith.shli(x, by), literal(0, dtype))


def _shift_right(dtype: DType, x: Any, by: Any) -> Any:
    """Shifts by a negative number or by all bits and more leave the sign alone."""
    if dtype.kind == "i":
        return arith.shrsi(x, arith.minui(by, literal(dtype.bits - 1, dtype)))
    inside = arith.cmpi(arith.CmpIPredicate.ult, by, literal(dtype.bits, dtype))
    return arith.select(inside, arith.shrui(x, by), literal(0, dtype))


def _sigmoid(dtype: DType, x: Any) -> Any:
    one = literal(1, dtype)
    return arith.divf(one, arith.addf(one, math.exp(arith.negf(x))))


def _is_nan(_: DType, x: Any) -> Any:
    return arith.cmpf(arith.CmpFPredicate.UNO, x, x)


def _is_inf(dtype: DType, x: Any) -> Any:
    return comparison("eq", dtype, math.absf(x), literal(float("inf"), dtype))


_COMPOSED: dict[str, Rule] = {
    "neg": _negate, "not": _complement, "sigmoid": _sigmoid, "isnan": _is_nan, "isinf": _is_inf,
    "shl": _shift_left, "shr": _shift_right,
}  # fmt: skip


def _integer_division(fn: str, dtype: DType, args: list[Any], divisor: Expr) -> Any:
    """Division that never traps: by zero it gives 0, and the least integer by -1 wraps."""
    a, b = args
    if isinstance(divisor, Lit) and divisor.value.real > 0:
        return _divide(fn, dtype, a, b)
    zero = literal(0, dtype)
    by_zero = comparison("eq", dtype, b, zero)
    traps = by_zero
    if dtype.kind == "i":
        by_minus = comparison("eq", dtype, b, literal(-1, dtype))
        traps = arith.ori(by_zero, by_minus)
    result = _divide(fn, dtype, a, arith.select(traps, literal(1, dtype), b))
    if dtype.kind == "i":
        at_minus = _negate(dtype, a) if fn.endswith("div") else zero
        result = arith.select(by_minus, at_minus, result)
    return arith.select(by_zero, zero, result)


def _divide(fn: str, dtype: DType, a: Any, b: Any) -> Any:
    if dtype.kind == "u":
        return (arith.divui if fn.endswith("div") else arith.remui)(a, b)
    if fn == "mod":
        rest = arith.remsi(a, b)
        return arith.select(_off_side(dtype, rest, b), arith.addi(rest, b), rest)
    return _DIVISIONS[fn](a, b)


_DIVISIONS: dict[str, Callable[[Any, Any], Any]] = {
    "floordiv": arith.floordivsi, "truncdiv": arith.divsi, "mod": arith.remsi, "fmod": arith.remsi,
}  # fmt: skip


def _off_side(dtype: DType, rest: Any, b: Any) -> Any:
    """Whether a truncated remainder is not zero and has the other sign than the divisor."""
    zero = literal(0, dtype)
    sides = arith.xori(comparison("lt", dtype, rest, zero), comparison("lt", dtype, b, zero))
    return arith.andi(comparison("ne", dtype, rest, zero), sides)


def _float_mod(dtype: DType, a: Any, b: Any) -> Any:
    rest = arith.remf(a, b)
    moved = arith.select(_off_side(dtype, rest, b), arith.addf(rest, b), rest)
    is_zero = comparison("eq", dtype, rest, literal(0, dtype))
    return arith.select(is_zero, math.copysign(literal(0, dtype), b), moved)


def _float_floordiv(dtype: DType, a: Any, b: Any) -> Any:
    """The quotient is found from the exact remainder, as numpy and torch do: 1 // 0.1 is 9."""
    rest = arith.remf(a, b)
    quotient = arith.divf(arith.subf(a, rest), b)
    lower = arith.subf(quotient, literal(1, dtype))
    quotient = arith.select(_off_side(dtype, rest, b), lower, quotient)
    whole = math.floor(quotient)
    above = comparison("gt", dtype, arith.subf(quotient, whole), literal(0.5, dtype))
    whole = arith.select(above, arith.addf(whole, literal(1, dtype)), whole)
    zero, plain = literal(0, dtype), arith.divf(a, b)
    signed_zero = math.copysign(zero, plain)
    whole = arith.select(comparison("eq", dtype, quotient, zero), signed_zero, whole)
    return arith.select(comparison("eq", dtype, b, zero), plain, whole)


def _float_truncdiv(_: DType, a: Any, b: Any) -> Any:
    return math.trunc(arith.divf(a, b))


_FLOAT_DIVISIONS: dict[str, Rule] = {"mod": _float_mod, "floordiv": _float_floordiv,
                                     "truncdiv": _float_truncdiv}  # fmt: skip
