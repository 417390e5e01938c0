"""The float32 approximations against float64: error bounds, special values, shapes of code."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.math import EXACT, F32, all_floats, as_function, compiled, exact, sample, ulp_errors
from benchmarks.math import worst as worst_of
from plait.ir import approx
from plait.ir import types as t
from plait.ir.expr import Apply, Load, walk
from plait.ir.expr_eval import evaluate_scalar

NAMES = list(approx.TABLE)
INF, NAN = np.inf, np.nan
# What IEEE 754 gives at 0, -0, infinity, -infinity, NaN, 1, the least denormal and its negative.
POINTS = np.array([0.0, -0.0, INF, -INF, NAN, 1.0, 2.0**-149, -(2.0**-149)], np.float32)
ONE, E, LEAST = 1.0, 2.7182818, 2.0**-149
SPECIAL: dict[str, list[float]] = {
    "exp": [ONE, ONE, INF, 0.0, NAN, E, ONE, ONE],
    "expm1": [0.0, -0.0, INF, -ONE, NAN, E - 1, LEAST, -LEAST],
    "log": [-INF, -INF, INF, NAN, NAN, 0.0, -103.27893, NAN],
    "log1p": [0.0, -0.0, INF, NAN, NAN, 0.6931472, LEAST, -LEAST],
    "tanh": [0.0, -0.0, ONE, -ONE, NAN, 0.7615942, LEAST, -LEAST],
    "erf": [0.0, -0.0, ONE, -ONE, NAN, 0.8427008, LEAST, -LEAST],
    "sigmoid": [0.5, 0.5, ONE, 0.0, NAN, 0.7310586, 0.5, 0.5],
    "sin": [0.0, -0.0, NAN, NAN, NAN, 0.84147096, LEAST, -LEAST],
    "cos": [ONE, ONE, NAN, NAN, NAN, 0.5403023, ONE, ONE],
    "rsqrt": [INF, -INF, 0.0, NAN, NAN, ONE, 2.0**74.5, NAN],
}
# The functions that may stand where an approximation is vectorised.
VECTOR = frozenset(
    ("add", "sub", "mul", "div", "neg", "abs", "sqrt", "fma", "select", "lt", "gt", "eq", "and",
     "or", "xor", "shl", "shr", "cast", "bitcast")
)  # fmt: skip


def by_numpy(name: str, x: F32) -> F32:
    result: F32 = evaluate_scalar(approx.TABLE[name](Load(0, (), t.f32)), (x,))
    return result


@cache
def dense() -> F32:
    return sample(1 << 20)


def test_every_approximation_has_a_bound_and_a_truth() -> None:
    assert set(approx.TABLE) == set(approx.ULP) == set(EXACT) == set(SPECIAL)


@pytest.mark.parametrize("name", NAMES)
def test_error_stays_below_the_bound(name: str) -> None:
    x = dense()
    errors = ulp_errors(by_numpy(name, x), exact(name, x))
    worst = int(np.argmax(errors))
    assert errors[worst] <= approx.ULP[name], f"{name}({x[worst]!r})"


def test_decay_keeps_its_bound() -> None:
    x = -np.abs(dense())
    got = evaluate_scalar(approx.decay(Load(0, (), t.f32)), (x,))
    wide = x.astype(np.float64)
    want = np.exp(wide)
    normal = want >= 2.0**-126
    error = np.abs(got[normal] - want[normal]) / want[normal]
    assert (error <= 1.7e-7 + 1.4e-8 * np.abs(wide[normal])).all()
    assert np.isnan(got[np.isnan(x)]).all() and np.isnan(x).any()
    least = want < 2.0**-126
    assert (got[least] >= 0).all() and (got[least] <= 2.0**-126).all()
    np.testing.assert_array_equal(got[x < -88], 0)
    np.testing.assert_array_equal(got[x == 0], 1)


GELU = 1.4e-7  # the largest error, as a part of the argument


def gelu_errors(evaluate: Any) -> Any:
    """Errors as parts of the argument, for arguments that are not 0."""
    x = np.concatenate([dense(), np.linspace(-9, 9, 1 << 20, dtype=np.float32)])
    x = x[np.isfinite(x) & (x != 0)]
    wide = torch.from_numpy(x.astype(np.float64))
    want = (wide * 0.5 * torch.special.erfc(-wide * 0.5**0.5)).numpy()
    return np.abs(evaluate(x) - want) / np.maximum(np.abs(x.astype(np.float64)), 2.0**-100)


def test_gelu_keeps_its_bound() -> None:
    expr = approx.gelu(Load(0, (), t.f32))
    assert gelu_errors(lambda x: evaluate_scalar(expr, (x,))).max() <= GELU
    assert {n.fn for n in walk(expr) if isinstance(n, Apply)} <= VECTOR


@pytest.mark.parametrize("by", ["numpy", "compiled"])
def test_gelu_of_special_values(by: str) -> None:
    """As x Phi(x) gives them: 0 times infinity is NaN."""
    if by == "compiled":
        pytest.importorskip("tvm", reason="TVM comes with the compile extra")
    expr = approx.gelu(Load(0, (), t.f32))
    run = as_function(compiled(approx.gelu)) if by == "compiled" else None
    x = np.array([0.0, -0.0, INF, -INF, NAN, -7.0, -1e30, 1e30], np.float32)
    got = evaluate_scalar(expr, (x,)) if run is None else run(x)
    np.testing.assert_array_equal(got, np.array([0, 0, INF, NAN, NAN, 0, 0, 1e30], np.float32))


def test_compiled_gelu_keeps_its_bound() -> None:
    pytest.importorskip("tvm", reason="TVM comes with the compile extra")
    assert gelu_errors(as_function(compiled(approx.gelu))).max() <= GELU


@pytest.mark.parametrize("name", NAMES)
def test_special_values(name: str) -> None:
    got, want = by_numpy(name, POINTS), np.array(SPECIAL[name], np.float32)
    np.testing.assert_allclose(got, want, rtol=3e-7, atol=0)
    zeros = want == 0
    np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(want[zeros]))


@pytest.mark.parametrize("name", NAMES)
def test_only_vector_operations_are_used(name: str) -> None:
    used = {n.fn for n in walk(approx.TABLE[name](Load(0, (), t.f32))) if isinstance(n, Apply)}
    assert used <= VECTOR


def test_ulp_errors_judge_edges() -> None:
    def errors(got: list[float], want: list[float]) -> Any:
        return ulp_errors(np.array(got, np.float32), np.array(want, np.float64)).tolist()

    assert errors([1.0, 1.0], [1 + 2.0**-23, 1 - 2.0**-24]) == [1.0, 1.0]
    assert errors([INF, INF], [2.0**200, 2.0**128 - 2.0**104]) == [0.0, 1.0]
    assert errors([2.0**-149, 0.0], [2.0**-150, 2.0**-150]) == [0.5, 0.5]
    assert errors([NAN, NAN, 1.0], [NAN, 1.0, NAN]) == [0.0, INF, INF]
    assert errors([-0.0, 0.0], [0.0, 0.0]) == [INF, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_compiled_code_keeps_the_bound(name: str) -> None:
    pytest.importorskip("tvm", reason="TVM comes with the compile extra")
    x = dense()[::4]
    errors = ulp_errors(as_function(compiled(approx.TABLE[name]))(x), exact(name, x))
    worst = int(np.argmax(errors))
    assert errors[worst] <= approx.ULP[name], f"{name}({x[worst]!r})"


@pytest.mark.parametrize("name", NAMES)
def test_compiled_code_has_no_calls(name: str) -> None:
    pytest.importorskip("tvm", reason="TVM comes with the compile extra")
    text = compiled(approx.TABLE[name]).mod.inspect_source("asm")
    body = text[text.index("main_compute_:") :].split("retq", 1)[0]
    assert "call" not in body
    assert "ymm" in body or "zmm" in body or "xmm" in body


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_error_over_all_floats(name: str) -> None:
    pytest.importorskip("tvm", reason="TVM comes with the compile extra")
    function = as_function(compiled(approx.TABLE[name]))
    error, where = worst_of(name, function, all_floats(EXACT[name].mirror))
    assert error <= approx.ULP[name], f"{name}({where!r})"
