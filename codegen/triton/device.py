"""Device functions that generated Triton kernels call where Triton's language has none.

Triton would look an annotation up in its own language, so there are none.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def largest(a, b):
    """The larger of two numbers, NaN if either is one: a reduction's step."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smallest(a, b):
    """The smaller of two numbers, NaN if either is one: a reduction's step."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def product(a, b):
    """A reduction's step."""
    return a * b


@triton.jit
def modulo(a, b):
    """The remainder with the divisor's sign."""
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


@triton.jit
def floor_divide(a, b):
    """floor(a / b) of integers."""
    quotient = a // b
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), quotient - 1, quotient)


@triton.jit
def floor_divide_float(a, b):
    """floor(a / b) of float32 or float64."""
    return tl.floor(a / b)


@triton.jit
def trunc(x):
    """x without its fraction; keeps the sign of zero."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def round_even(x):
    """The nearest integer, ties to even: down, up, or whichever half of a tie is even."""
    low = tl.floor(x)
    rest = x - low
    odd = low * 0.5 != tl.floor(low * 0.5)
    up = (rest > 0.5) | ((rest == 0.5) & odd)
    return tl.where(up, tl.ceil(x), low)
