"""Device functions that generated Triton kernels call where Triton's language has none.

Triton would look an annotation up in its own language, so there are none.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

# Triton's interpreter has no library, but a remainder of numpy's.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


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
def divisor(b):
    """b, or 1 where a division of integers by b is undefined: by 0, or the lowest number by -1."""
    return tl.where((b == 0) | (b == -1), tl.full([], 1, b.dtype), b)


@triton.jit
def quotient(a, b, found):
    """`found`, a quotient by `divisor(b)`, as the one by b: 0 by 0, and -a by -1."""
    return tl.where((b == 0) | (b == -1), (0 - a) * (b != 0).to(b.dtype), found)


@triton.jit
def signed(rest, b):
    """A remainder with the sign of the dividend as the one with the divisor's."""
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


@triton.jit
def modulo(a, b):
    """The remainder of integers with the divisor's sign."""
    return signed(a % b, b)


@triton.jit
def floor_divide(a, b):
    """floor(a / b) of integers."""
    rest = a % b
    return a // b - ((rest != 0) & ((rest < 0) != (b < 0))).to(rest.dtype)


@triton.jit
def shift_left(a, b, bits: tl.constexpr):
    """a << b; 0 if b is negative or not below the width of `bits`."""
    outside = (b < 0) | (b >= bits)
    zero = tl.full([], 0, b.dtype)
    return tl.where(outside, zero, a << tl.where(outside, zero, b))


@triton.jit
def shift_right(a, b, bits: tl.constexpr):
    """a >> b; what is left of the sign if b is negative or not below the width of `bits`."""
    outside = (b < 0) | (b >= bits)
    last = tl.full([], bits - 1, b.dtype)
    half = a >> tl.where(outside, last, b)
    # Unsigned numbers may have a last bit left.
    return tl.where(outside & (a >= 0), tl.full([], 0, b.dtype), half)


@triton.jit
def fmod(a, b):
    """The exact remainder of floats with the dividend's sign; `%` on a GPU is not exact."""
    if INTERPRETED:
        return a % b
    else:
        return libdevice.fmod(a, b)


@triton.jit
def modulo_float(a, b):
    """The remainder of floats with the divisor's sign."""
    return signed(fmod(a, b), b)


@triton.jit
def floor_divide_float(a, b, ratio):
    """The quotient that goes with `modulo_float`: of 1 by 0.1 it is 9, though `ratio` is 10."""
    rest = fmod(a, b)
    exact = (a - rest) / b
    exact = tl.where((rest != 0) & ((rest < 0) != (b < 0)), exact - 1, exact)
    low = tl.floor(exact)
    return tl.where(b == 0, ratio, tl.where(exact - low > 0.5, low + 1, low))


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
