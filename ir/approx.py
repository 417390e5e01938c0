"""Vectorisable float32 mathematics: exp, log, tanh, erf, sin and others as straight-line code.

A call of libm in a loop is scalar.  Each function here builds an expression of additions, fused
multiply-adds, selects, shifts and bit casts instead, which a compiler turns into vector code.  All
finite inputs, NaN, infinities, zeros with their sign and denormals (in and out) are right, within
the bound of `ULP`: the largest distance from the exact value over all 2**32 inputs, in units of the
last place of the float32 binade of the exact value.

Three habits keep the results the same under every compiler: sums of products are explicit `fma`, so
there is nothing left to contract; NaN passes through arithmetic and through the operand of a select
that a false comparison picks, never through `x != x`, which simplifiers fold; and rounding to an
integer is the addition of 1.5 * 2**23, whose low bits then hold the integer.

Coefficients are weighted minimax fits (Remez by linear programming on the residual; of gelu, least
squares whose weights grow with the residual), rounded to float32 one by one from the lowest degree
up, refitting the others after each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plait.ir import types as t
from plait.ir.expr import Expr, apply, fma, lit, select

_INF, _NAN = float("inf"), float("nan")
_SIGN = -(2**31)
_ROUND = 1.5 * 2.0**23  # x + _ROUND is rounded to an integer, kept in the low bits
_ROUND64 = 1.5 * 2.0**52
_LOG2E = 1.44269504
_LN2_HI, _LN2_LO = 0.693147182, -1.904654299e-9
_PI = 3.141592653589793

# (exp(r) - 1 - r) / r**2 on |r| <= ln(2)/2, relative to exp(r) and to exp(r) - 1.
_EXP = (4.999999404e-1, 1.666652113e-1, 4.166829214e-2, 8.368715644e-3, 1.381869777e-3)
_EXPM1 = (4.999999702e-1, 1.666654497e-1, 4.166744649e-2, 8.366451599e-3, 1.386968070e-3)
# 2**u on |u| <= 1/2.
_EXP2 = (1.0, 6.931470037e-1, 2.402224392e-1, 5.550710857e-2, 9.671491571e-3, 1.326987171e-3)
# (ln(1 + m) - m) / m**2 on [-1/3, 1/3] and on [-1/4, 1/2].
_LOG = (-0.5, 3.333321512e-1, -2.499980628e-1, 2.001042664e-1, -1.668019742e-1, 1.400573403e-1,
        -1.218744740e-1, 1.398459375e-1, -1.288020909e-1)  # fmt: skip
_LOG1P = (-0.5, 3.333345056e-1, -2.500011027e-1, 1.999084800e-1, -1.664687842e-1, 1.447762996e-1,
          -1.316393614e-1, 1.047255173e-1, -4.515228420e-2)  # fmt: skip
# (tanh(x) - x) / x**3 in x**2 on |x| <= 0.55.
_TANH = (-3.333294690e-1, 1.332072914e-1, -5.267200992e-2, 1.643787883e-2)
# (erf(x) - x) / x in x**2 on |x| <= 0.95; log2(1 - erf(x)) on [0.93, 3.93].
_ERF = (1.283791363e-1, -3.761240840e-1, 1.128095016e-1, -2.673622780e-2, 4.950108007e-3,
        -5.778998602e-4)  # fmt: skip
_ERFC_LOG2 = (-3.048640501e-4, -1.626799107, -9.194156528e-1, -1.498051286e-1, 3.200108185e-2,
              -4.374028184e-3, 2.810093865e-4)  # fmt: skip
# log2(1 - Phi(x)) on [0, 6], Phi the normal distribution, weighted by 1 - Phi(x).
_TAIL_LOG2 = (-9.999998808e-1, -1.151111841, -4.591452479e-1, -5.271568149e-2, 7.423759438e-3,
              -4.449024855e-4, -4.620178515e-5, 7.525076398e-6)  # fmt: skip
# (sin(r) - r) / r**3 in r**2 on |r| <= 1.642.
_SIN = (-1.666665673e-1, 8.332988247e-3, -1.980365341e-4, 2.592331157e-6)
# Below each bound on |x| (the last holds to the end): 1/pi as the sum of two doubles, less the
# even multiples of 2**(23 - e) in it, 2**e being the bound before: such a multiple adds only whole
# turns, since x is a multiple of 2**(e - 23).
_TURNS = (
    (2.0**50, float.fromhex("0x1.45f306dc9c883p-2"), float.fromhex("-0x1.6b01ec5417056p-56")),
    (2.0**77, float.fromhex("-0x1.1b1bbead603d9p-29"), float.fromhex("0x1.5f47d4d377037p-83")),
    (2.0**102, float.fromhex("0x1.4a7f09d5f47d5p-55"), float.fromhex("-0x1.6447e493ad4cep-110")),
    (_INF, float.fromhex("-0x1.505c1596447e5p-82"), float.fromhex("0x1.b14acc9e21c82p-136")),
)


def exp(x: Expr) -> Expr:
    """e**x within 0.9 ULP: x = n ln 2 + r, e**r by a polynomial of degree 6, times 2**n.

    Source: Cody and Waite, Software Manual for the Elementary Functions, 1980; the scaling in two
    steps keeps denormal results.
    """
    r, power = _split_exp(clamp(x, -104.0, 89.0))
    low, high = _power_of_two(power)
    return fma(fma(horner(r, _EXP), r, 1.0), r, 1.0) * low * high


def decay(x: Expr) -> Expr:
    """e**x for x <= 0 as 2**n times 2**u, at most 2**-126 where that would be less.

    Eight multiplications, `exp` has eleven.  The relative error is below 1.7e-7 + 1.4e-8 |x|, the
    second part being that of log2(e) as float32: less than what rounding x has cost.
    """
    held = select(x < -88.0, lit(-88.0, t.f32), x)
    bias = _ROUND + 127.0
    rounded = fma(held, _LOG2E, bias)
    fraction = fma(held, _LOG2E, bias - rounded)
    power = (rounded.bitcast(t.i32) << 23).bitcast(t.f32)
    return horner(fraction, _EXP2) * power


def expm1(x: Expr) -> Expr:
    """e**x - 1 within 1.58 ULP: 2**n (e**r - 1) + (2**n - 1), as in `exp`."""
    r, power = _split_exp(clamp(x, -18.0, 89.0))
    low, high = _power_of_two(power)
    inverse = (lit(254 << 23, t.i32) - high.bitcast(t.i32)).bitcast(t.f32)
    tail = fma(horner(r, _EXPM1) * r, r, r)
    return _signed(fma(tail, low, low - inverse) * high, x)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e**-x) within 1.82 ULP, as 2**n / (2**n + e**r) with x = n ln 2 - r.

    The small part of 1 + 2**n joins the polynomial before the large part is added, so that the
    denominator is rounded once.
    """
    r, power = _split_exp(clamp(x, -104.0, 18.0))
    r = -r
    low, high = _power_of_two(power)
    whole = fma(low, high, 1.0)
    rest = fma(low, high, lit(1.0, t.f32) - whole)
    return low / (fma(fma(horner(r, _EXP), r, 1.0), r, rest) + whole) * high


def tanh(x: Expr) -> Expr:
    """tanh x within 1.35 ULP: an odd polynomial below 0.55, else 1 - 2 / (e**2|x| + 1)."""
    square = x * x
    small = fma(horner(square, _TANH) * square, x, x)
    size = apply("abs", x)
    bias = _ROUND + 126.0  # half of e**2|x| is wanted
    capped = _at_most(size, 9.5)
    rounded = fma(capped, 2 * _LOG2E, bias)
    n = rounded - bias
    r = fma(n, -_LN2_LO / 2, fma(n, -_LN2_HI / 2, capped))
    doubled = tuple(c * 2.0 ** (k + 2) for k, c in enumerate(_EXP))
    power = (rounded.bitcast(t.i32) << 23).bitcast(t.f32)
    half = fma(fma(horner(r, doubled), r, 2.0), power * r, power + 0.5)
    return _signed(select(size < 0.55, small, 1.0 - 1.0 / half), x)


def erf(x: Expr) -> Expr:
    """erf x within 1.44 ULP: an odd polynomial below 0.95, else 1 - 2**g(|x|).

    g approximates log2 of the complement; beyond 3.93 the result is 1.
    """
    small = fma(horner(x * x, _ERF), x, x)
    size = apply("abs", x)
    fraction, power = exp2_factors(horner(_at_most(size, 3.93), _ERFC_LOG2))
    return select(size > 0.95, _signed(fma(-fraction, power, 1.0), x), small)


def gelu(x: Expr) -> Expr:
    """x Phi(x) within 1.4e-7 |x|: x or 0 less |x| (1 - Phi(|x|)), and that as |x| 2**g(|x|).

    Beyond 6, where that is below 6e-9, it is 0; -infinity gives NaN, as 0 times infinity does.
    """
    size = apply("abs", x)
    fraction, power = exp2_factors(horner(size, _TAIL_LOG2))
    tail = select(size > 6.0, lit(0.0, t.f32), fraction * power * size)
    return select(x > 0.0, x, x * 0.0) - tail


def log(x: Expr) -> Expr:
    """ln x within 0.94 ULP: x = 2**n (1 + m) with 1 + m in [2/3, 4/3], n ln 2 + ln(1 + m)."""
    denormal = x < 2.0**-126
    scaled = select(denormal, x * 2.0**23, x)
    bits = scaled.bitcast(t.i32)
    exponent = (bits - 0x3F2AAAAB) & -(2**23)
    m = (bits - exponent).bitcast(t.f32) - 1.0
    n = fma(exponent.cast(t.f32), 2.0**-23, select(denormal, lit(-23.0, t.f32), 0.0))
    value = fma(n, _LN2_HI, fma(horner(m, _LOG), m * m, m))
    value = select(x < _INF, value, x)
    return select(x > 0.0, value, select(x.eq(0.0), lit(-_INF, t.f32), _NAN))


def log1p(x: Expr) -> Expr:
    """ln(1 + x) within 1.27 ULP: as `log`, with 1 + x = 2**n (1 + m) and 1 + m in [3/4, 3/2].

    m = x 2**-n + (2**-n - 1) is exact enough: the rounding of 1 + x decides only n.
    """
    exponent = ((x + 1.0).bitcast(t.i32) - 0x3F400000) & -(2**23)
    scale4 = (lit(0x40800000, t.i32) - exponent).bitcast(t.f32)
    m = (x.bitcast(t.i32) - exponent).bitcast(t.f32) + fma(scale4, 0.25, -1.0)
    n_ln2 = 2.0**-23 * _LN2_HI
    value = fma(exponent.cast(t.f32), n_ln2, fma(horner(m, _LOG1P), m * m, m))
    value = select(x < _INF, select(x.eq(0.0), x, value), x)
    return select(x > -1.0, value, select(x.eq(-1.0), lit(-_INF, t.f32), _NAN))


def sin(x: Expr) -> Expr:
    """sin x within 1.92 ULP, for every float32: (-1)**q sin(x - q pi), a polynomial of degree 9."""
    turn, odd = _half_turns(x)
    return select(x.eq(0.0), x, _sin_half_turns(turn, odd))  # keeps the sign of zero


def cos(x: Expr) -> Expr:
    """cos x within 1.9 ULP, for every float32: (-1)**q sin(pi/2 - |x - q pi|)."""
    turn, odd = _half_turns(x)
    return _sin_half_turns(0.5 - apply("abs", turn), odd)


def rsqrt(x: Expr) -> Expr:
    """1 / sqrt x within 1.5 ULP: two rounded operations."""
    return 1.0 / apply("sqrt", x)


def horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    """The polynomial with these coefficients, lowest degree first."""
    value = fma(x, coefficients[-1], coefficients[-2])
    for c in reversed(coefficients[:-2]):
        value = fma(value, x, c)
    return value


def _at_most(x: Expr, bound: float) -> Expr:
    return select(x > bound, lit(bound, t.f32), x)


def clamp(x: Expr, low: float, high: float) -> Expr:
    """`x` held in [low, high]; NaN stays."""
    capped = _at_most(x, high)
    return select(capped < low, lit(low, t.f32), capped)


def _split_exp(x: Expr) -> tuple[Expr, Expr]:
    """r and n + 254 (int, unused bits above) of x = n ln 2 + r, |r| <= ln(2)/2."""
    bias = _ROUND + 254.0
    rounded = fma(x, _LOG2E, bias)
    return _rest(x, rounded - bias), rounded.bitcast(t.i32)


def exp2_factors(x: Expr) -> tuple[Expr, Expr]:
    """Two factors of 2**x, -126 <= x <= 127: of its fraction, within [-1/2, 1/2], and the rest."""
    bias = _ROUND + 127.0
    rounded = x + bias
    power = (rounded.bitcast(t.i32) << 23).bitcast(t.f32)
    return horner(x - (rounded - bias), _EXP2), power


def _rest(x: Expr, n: Expr) -> Expr:
    """x - n ln 2."""
    return fma(n, -_LN2_LO, fma(n, -_LN2_HI, x))


def _power_of_two(biased: Expr) -> tuple[Expr, Expr]:
    """Two powers of two whose product is 2**n, for `biased` = n + 254, -254 <= n <= 254."""
    half = biased >> 1
    return (half << 23).bitcast(t.f32), ((biased - half) << 23).bitcast(t.f32)


def _signed(size: Expr, x: Expr) -> Expr:
    """`size` with the sign bit of `x` added."""
    return (size.bitcast(t.i32) | (x.bitcast(t.i32) & _SIGN)).bitcast(t.f32)


def _half_turns(x: Expr) -> tuple[Expr, Expr]:
    """x/pi less the nearest integer q (float64, within 0.523), and q's parity in an int64's sign.

    The reduction needs no table and no branch: 1/pi in two doubles, chosen by the size of x, of
    which the first leaves an exact remainder after one fma.  Source of the idea: Payne and Hanek,
    Radian reduction for trigonometric functions, SIGNUM Newsletter 18, 1983.
    """
    wide = x.cast(t.f64)
    size = apply("abs", wide)
    high, low = (lit(part, t.f64) for part in _TURNS[-1][1:])
    for bound, first, second in reversed(_TURNS[:-1]):
        high = select(size < bound, lit(first, t.f64), high)
        low = select(size < bound, lit(second, t.f64), low)
    rounded = fma(wide, high, _ROUND64)
    turn = fma(wide, low, fma(wide, high, -(rounded - _ROUND64)))
    return turn, rounded.bitcast(t.i64) << 63


def _sin_half_turns(turn: Expr, flip: Expr) -> Expr:
    """sin(pi turn), |turn| <= 0.523, negated where the sign bit of `flip` is set."""
    signed = (turn.bitcast(t.i64) ^ flip).bitcast(t.f64)
    r = (signed * _PI).cast(t.f32)
    square = r * r
    return fma(horner(square, _SIN) * square, r, r)


TABLE: dict[str, Callable[[Expr], Expr]] = {
    "exp": exp, "expm1": expm1, "log": log, "log1p": log1p, "tanh": tanh, "erf": erf,
    "sigmoid": sigmoid, "sin": sin, "cos": cos, "rsqrt": rsqrt,
}  # fmt: skip

# Largest error over all float32 inputs, in ULP, as measured with compiled code (rounded up).
ULP: dict[str, float] = {
    "exp": 0.9, "expm1": 1.58, "log": 0.94, "log1p": 1.27, "tanh": 1.35, "erf": 1.44,
    "sigmoid": 1.82, "sin": 1.92, "cos": 1.9, "rsqrt": 1.5,
}  # fmt: skip
