"""The matrices of minimal filtering: they compute convolutions, and rounding stays small."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plait.ir.winograd import POINTS, TAPS, filtering

SIZES = sorted(POINTS)


def direct(d: Any, g: Any, m: int) -> Any:
    """The correlation of [..., m + 2, m + 2] data with [..., 3, 3] weights."""
    taps = [(i, j) for i in range(TAPS) for j in range(TAPS)]
    return sum(d[..., i : i + m, j : j + m] * g[..., i, j, None, None] for i, j in taps)


@pytest.mark.parametrize("m", SIZES)
def test_a_tile_is_a_convolution(m: int) -> None:
    rng = np.random.default_rng(0)
    d, g = rng.standard_normal((m + 2, m + 2)), rng.standard_normal((TAPS, TAPS))
    f = filtering(m)
    y = f.at @ ((f.g @ g @ f.g.T) * (f.bt @ d @ f.bt.T)) @ f.at.T
    np.testing.assert_allclose(y, direct(d, g, m), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("m", SIZES)
def test_transforms_of_data_and_results_are_exact_in_float32(m: int) -> None:
    f = filtering(m)
    for matrix in (f.at, f.bt):
        np.testing.assert_array_equal(matrix, matrix.astype(np.float32))


@pytest.mark.parametrize("m", SIZES)
def test_weights_come_back(m: int) -> None:
    f = filtering(m)
    np.testing.assert_allclose(f.back @ f.g, np.eye(TAPS), atol=1e-14)
    w = np.random.default_rng(1).standard_normal((4, 5, TAPS, TAPS))
    made = f.transformed(w).reshape(4, 5, m + 2, m + 2)
    np.testing.assert_allclose(made, f.g @ w @ f.g.T, atol=1e-14)
    np.testing.assert_allclose(f.back @ made @ f.back.T, w, atol=1e-13)


# The root mean square of the error, in units of that of the direct sum in the same precision.
GROWTH = {2: 2.0, 4: 5.0}


@pytest.mark.parametrize("m", SIZES)
def test_rounding_grows_little(m: int) -> None:
    """In float32, on what follows a relu, summed over 128 channels one after the other."""
    rng = np.random.default_rng(2)
    d = np.maximum(rng.standard_normal((16, 1, 128, m + 2, m + 2)), 0).astype(np.float32)
    g = rng.standard_normal((1, 16, 128, TAPS, TAPS)).astype(np.float32)
    f = filtering(m)
    at, bt = f.at.astype(np.float32), f.bt.astype(np.float32)
    u = f.transformed(g[0]).reshape(1, 16, 128, m + 2, m + 2)
    v = bt @ d @ bt.T
    products, plain = np.float32(0), np.float32(0)
    for c in range(128):
        products = products + u[:, :, c] * v[:, :, c]
        plain = plain + direct(d[:, :, c], g[:, :, c], m)
    truth = direct(d.astype(np.float64), g.astype(np.float64), m).sum(2)
    filtered = np.square(at @ products @ at.T - truth).mean()
    summed = np.square(plain - truth).mean()
    assert np.sqrt(filtered / summed) <= GROWTH[m]
