"""The definition of "the same result"."""

from __future__ import annotations

import numpy as np
import pytest

from plait.ir.agreement import compare

WANT = np.array([1.0, -2.0, 4.0, 0.0], np.float32)


@pytest.mark.parametrize(("error", "agrees"), [(3e-4, False), (3e-5, True)])
def test_float_bars_are_relative_to_the_largest_magnitude(error: float, agrees: bool) -> None:
    got = WANT.copy()
    got[3] += np.float32(4 * error)
    result = compare(got, WANT)
    assert result.agrees is agrees
    assert result.relative == pytest.approx(error, rel=1e-3)
    assert bool(result.reason) is not agrees


def test_mean_bar() -> None:
    assert not compare(WANT + np.float32(2e-4), WANT).agrees


def test_integers_are_exact() -> None:
    want = np.arange(5)
    assert compare(want.copy(), want).agrees
    result = compare(want + (want == 3), want)
    assert not result.agrees and "1 of 5" in result.reason


def test_not_finite_values_must_coincide() -> None:
    want = np.array([np.nan, np.inf, 1.0], np.float32)
    assert compare(want.copy(), want).agrees
    assert not compare(np.array([np.nan, 1.0, 1.0], np.float32), want).agrees
    assert not compare(np.array([np.nan, np.inf, np.nan], np.float32), want).agrees
    assert not compare(np.array([np.nan, -np.inf, 1.0], np.float32), want).agrees


def test_float64_judges() -> None:
    truth = WANT.astype(np.float64)
    eager = WANT + np.float32(1e-2)
    assert not compare(WANT, eager).agrees
    assert compare(WANT, eager, judge=truth).agrees
    assert not compare(eager, WANT, judge=truth).agrees


def test_shape_and_dtype_must_match() -> None:
    assert "expected float32[4]" in compare(WANT[:3], WANT).reason
    assert not compare(WANT.astype(np.float64), WANT).agrees


def test_empty_and_zero_references() -> None:
    empty = np.empty((0, 3), np.float32)
    assert compare(empty, empty).agrees
    zero = np.zeros(3, np.float32)
    assert compare(zero + np.float32(1e-6), zero).agrees
    assert not compare(zero + np.float32(1e-2), zero).agrees


@pytest.mark.parametrize("hidden", [-1e9, np.finfo(np.float32).min])
def test_equal_outliers_hide_nothing(hidden: float) -> None:
    """A mask's constant is no measure of the scores beside it."""
    rng = np.random.default_rng(0)
    want = rng.standard_normal((8, 100)).astype(np.float32)
    want[:, 0] = hidden
    rounded = want.copy()
    rounded[:, 1:] *= np.float32(1 + 2**-22)
    wrong = rng.standard_normal((8, 100)).astype(np.float32)
    wrong[:, 0] = hidden
    assert compare(rounded, want).agrees
    assert not compare(wrong, want).agrees
