"""The scalar functions of expressions and their meaning in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


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
