"""The scalar functions of compute definitions as TIR, where the plain operator is not enough.

NaN, integers that machines do not divide or shift, and booleans behave as in numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from tvm import tirx
from tvm_ffi import structural_equal

from plait.ir import types as t

PrimExpr: TypeAlias = Any  # TVM ships no stubs


def tir_dtype(dtype: t.DType) -> str:
    """TVM's name of an element type; bfloat16, which is only moved and cast, by its bits."""
    return "uint16" if dtype == t.bf16 else dtype.name


def const(value: int | float | bool, dtype: str) -> PrimExpr:
    return tirx.const(value, dtype)


def dtype_of(value: PrimExpr) -> str:
    """TVM's name for the scalar type of an expression."""
    return str(value.ty.dtype)


def bindings(value: PrimExpr) -> tuple[list[tuple[Any, PrimExpr]], PrimExpr]:
    """The names that a value binds, each with what it stands for, and the value inside of them."""
    found: list[tuple[Any, PrimExpr]] = []
    while isinstance(value, tirx.Let):
        found.append((value.var, value.value))
        value = value.body
    return found, value


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
    """The larger or smaller of two, NaN if either is one; of zeros with two signs either.

    Against a number one comparison is enough: the other side is kept unless the number is
    strictly better.  Else a NaN in `b` stays because no comparison with it holds, and one in `a`
    shows by not reaching minus infinity: three instructions, where `llvm.maximum`, which also
    tells zeros apart, is five.
    """
    name = dtype_of(a)

    def better(x: PrimExpr, y: PrimExpr) -> PrimExpr:
        return x > y if fn == "maximum" else x < y

    if not name.startswith("float"):
        return tirx.max(a, b) if fn == "maximum" else tirx.min(a, b)
    if _is_number(b):
        return tirx.Select(better(b, a), b, a)
    if _is_number(a):
        return tirx.Select(better(a, b), a, b)
    number = a >= const(-math.inf, name)
    return tirx.Select(number, tirx.Select(better(a, b), a, b), a)


def _is_number(x: PrimExpr) -> bool:
    """Whether an operand is a literal, and not NaN."""
    return isinstance(x, tirx.FloatImm) and not math.isnan(float(x.value))


def _equal(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """LLVM code of TVM has no comparison of booleans."""
    return tirx.EQ(a.astype("int32"), b.astype("int32")) if d.kind == "b" else tirx.EQ(a, b)


def _unequal(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """TVM's inequality is ordered, false on NaN; so the equality is negated as a number."""
    return _not(_equal(d, a, b)) if d.is_float else tirx.Not(_equal(d, a, b))


def _ordered(compare: Callable[[PrimExpr, PrimExpr], PrimExpr]) -> Any:
    def rule(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
        return compare(a.astype("int32"), b.astype("int32")) if d.kind == "b" else compare(a, b)

    return rule


def _bool_or(rule: Callable[..., PrimExpr], on_bool: Callable[..., PrimExpr]) -> Any:
    return lambda d, *xs: on_bool(*xs) if d.kind == "b" else rule(d, *xs)


def _traps(b: PrimExpr) -> PrimExpr | None:
    """Whether dividing integers by b may stop the process: by 0, or the lowest number by -1."""
    if isinstance(b, tirx.IntImm) and int(b.value) not in (0, -1):
        return None
    return tirx.any(tirx.EQ(b, const(0, dtype_of(b))), tirx.EQ(b, const(-1, dtype_of(b))))


def _quotient(divide: Callable[[PrimExpr, PrimExpr], PrimExpr]) -> Callable[..., PrimExpr]:
    """Integer division as numpy's: a / 0 is 0, and the lowest number / -1 is itself."""

    def rule(a: PrimExpr, b: PrimExpr) -> PrimExpr:
        traps = _traps(b)
        if traps is None:
            return divide(a, b)
        zero, one = const(0, dtype_of(b)), const(1, dtype_of(b))
        special = tirx.Select(tirx.EQ(b, zero), zero, zero - a)
        return tirx.Select(traps, special, divide(a, tirx.Select(traps, one, b)))

    return rule


def _remainder(divide: Callable[[PrimExpr, PrimExpr], PrimExpr]) -> Callable[..., PrimExpr]:
    """The remainder of integers; of a division by 0 or -1 it is 0."""

    def rule(a: PrimExpr, b: PrimExpr) -> PrimExpr:
        traps = _traps(b)
        return divide(a, b if traps is None else tirx.Select(traps, const(1, dtype_of(b)), b))

    return rule


def _shl(_: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """Shifts by a negative number of bits, or by all of them, leave none."""
    outside = _shifts_out(b)
    if outside is None:
        return tirx.shift_left(a, b)
    zero = const(0, dtype_of(b))
    return tirx.Select(outside, zero, tirx.shift_left(a, tirx.Select(outside, zero, b)))


def _shr(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """As `_shl`; of signed integers the sign is left."""
    outside = _shifts_out(b)
    if outside is None:
        return tirx.shift_right(a, b)
    name = dtype_of(b)
    if d.kind == "i":
        return tirx.shift_right(a, tirx.Select(outside, const(_bits(name) - 1, name), b))
    zero = const(0, name)
    return tirx.Select(outside, zero, tirx.shift_right(a, tirx.Select(outside, zero, b)))


def _shifts_out(b: PrimExpr) -> PrimExpr | None:
    """Whether a shift by b bits, which machines do not define, is asked for."""
    name = dtype_of(b)
    if isinstance(b, tirx.IntImm) and 0 <= int(b.value) < _bits(name):
        return None
    return tirx.any(b < const(0, name), b >= const(_bits(name), name))


def _bits(name: str) -> int:
    return int(name.lstrip("uint"))


_FLOORDIV, _TRUNCDIV = _quotient(tirx.floordiv), _quotient(tirx.truncdiv)
_FLOORMOD, _TRUNCMOD = _remainder(tirx.floormod), _remainder(tirx.truncmod)


def _floordiv(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """Of floats the quotient that goes with `mod`: 1 // 0.1 is 9, though 1 / 0.1 rounds to 10."""
    if not d.is_float:
        return _FLOORDIV(a, b)
    zero, one = const(0, dtype_of(a)), const(1, dtype_of(a))
    rest = _FMOD(d, a, b)
    exact = tirx.div(_sub(d, a, rest), b)
    exact = tirx.Select(_signs_differ(rest, b), exact - one, exact)
    low = tirx.floor(exact)
    nearest = tirx.Select(_sub(d, exact, low) > const(0.5, dtype_of(a)), low + one, low)
    return tirx.Select(tirx.EQ(b, zero), _div(d, a, b), nearest)


def _sub(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """TVM takes x - x for 0 and (x + y) - y for x, also of floats, NaN or rounded: add -b there."""
    alike = any(structural_equal(x, b) for x in _terms(a))
    alike = alike or any(structural_equal(x, a) for x in _terms(b))
    return a + (const(-0.0, dtype_of(b)) - b) if d.is_float and alike else a - b


def _terms(x: PrimExpr) -> tuple[PrimExpr, ...]:
    """An expression, and what it is the sum of."""
    return (x, x.a, x.b) if isinstance(x, tirx.Add) else (x,)


def _mul(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    return _hidden_zero(a) * _hidden_zero(b) if d.is_float else a * b


def _div(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    return tirx.div(_hidden_zero(a) if d.is_float else a, b)


def _hidden_zero(x: PrimExpr) -> PrimExpr:
    """A literal zero as a call: TVM takes 0 * x and 0 / x for 0, also where x is NaN."""
    if not isinstance(x, tirx.FloatImm) or float(x.value) != 0:
        return x
    name = dtype_of(x)
    sign = const(math.copysign(1, float(x.value)), name)
    return tirx.call_llvm_pure_intrin(name, "llvm.copysign", const(0, name), sign)


def _not(x: PrimExpr) -> PrimExpr:
    """TVM takes not (a < b) for b <= a, also of NaN: negated as a number."""
    return x.astype("int32") < const(1, "int32")


def _mod(d: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """Remainder with the divisor's sign; exact for floats through fmod."""
    if not d.is_float:
        return _FLOORMOD(a, b)
    rest = _FMOD(d, a, b)
    return tirx.Select(_signs_differ(rest, b), rest + b, rest)


def _signs_differ(rest: PrimExpr, b: PrimExpr) -> PrimExpr:
    """Whether a remainder that is not 0 has another sign than the divisor."""
    zero = const(0, dtype_of(b))
    signs = (rest < zero).astype("int32"), (b < zero).astype("int32")
    return tirx.all(tirx.NE(rest, zero), tirx.NE(*signs))


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
    "sub": _sub,
    "mul": _bool_or(_mul, lambda a, b: tirx.all(a, b)),
    "div": _div,
    "floordiv": _floordiv,
    "truncdiv": lambda d, a, b: tirx.trunc(tirx.div(a, b)) if d.is_float else _TRUNCDIV(a, b),
    "mod": _mod,
    "fmod": lambda d, a, b: _FMOD(d, a, b) if d.is_float else _TRUNCMOD(a, b),
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
    "not": _bool_or(lambda d, x: tirx.bitwise_not(x), _not),
    "shl": _shl,
    "shr": _shr,
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
