"""Minimal filtering F(m x m, 3 x 3): convolutions with fewer multiplications.

A tile of m x m results needs (m + 2)**2 multiplications for each pair of channels in place of
9 m**2: y = A' [(G g G') * (B' d B)] A (Winograd 1980; Lavin and Gray 2016).  The matrices are those
of Toom and Cook: polynomials are multiplied by way of their values at m + 1 points and infinity.

The points decide how much rounding errors grow.  Those of F(4 x 4) are dyadic, so that A and B are
exact in float32; of the pairs with small denominators they are among the best: the root mean square
of the error is four times that of the direct sum, where the usual points, 1 and 2, give nine times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

TAPS = 3
POINTS: dict[int, tuple[float, ...]] = {2: (0, 1, -1), 4: (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)}
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Filtering:
    """The matrices of F(m x m, 3 x 3), float64.

    `at` [m, m + 2] makes results, `g` [m + 2, 3] transforms weights, `bt` [m + 2, m + 2] data;
    `back` [3, m + 2] recovers weights: back @ g = 1.
    """

    at: Matrix
    g: Matrix
    bt: Matrix

    @property
    def back(self) -> Matrix:
        return np.linalg.pinv(self.g).astype(np.float64)

    def transformed(self, w: NDArray[Any]) -> NDArray[Any]:
        """Weights [O, I, 3, 3] as [O, I, (m + 2)**2] of their dtype, computed in float64."""
        both = np.kron(self.g, self.g)
        flat = w.reshape(*w.shape[:2], TAPS * TAPS).astype(np.float64)
        return (flat @ both.T).astype(w.dtype)


def _polynomial(roots: Sequence[float]) -> list[float]:
    """Coefficients, lowest first, of the product of (x - root)."""
    return [float(c) for c in np.poly(roots)[::-1]]


@cache
def filtering(m: int) -> Filtering:
    """The matrices for tiles of m x m results; `m` is a key of `POINTS`."""
    points = POINTS[m]
    size = m + TAPS - 1
    others = [[q for q in points if q != p] for p in points]
    norms = [np.prod([p - q for q in rest]) for p, rest in zip(points, others, strict=True)]
    at = np.zeros((m, size))
    g = np.zeros((size, TAPS))
    bt = np.zeros((size, size))
    for k, (p, rest, norm) in enumerate(zip(points, others, norms, strict=True)):
        at[:, k] = [p**i for i in range(m)]
        g[k] = [p**j / norm for j in range(TAPS)]
        bt[k, : size - 1] = _polynomial(rest)
    at[-1, -1] = g[-1, -1] = 1
    bt[-1] = _polynomial(points)
    return Filtering(at, g, bt)
