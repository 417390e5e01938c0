"""When two results count as the same: the one definition for checks, tests, tools and the fuzzer.

Float results agree when they differ by at most a fraction of the reference's largest magnitude,
and by at most a tenth of that on average. Huge elements that are equal are no measure of others:
they are what a mask hides something with. Integer and boolean results agree when they are equal.
NaN and infinities must stand in the same places. Where float results differ by more, a float64
result of the same computation may judge: the candidate must not be further from it than the
reference is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Dtype name: largest difference and mean difference, relative to the largest magnitude.
BARS: dict[str, tuple[float, float]] = {
    "float64": (1e-9, 1e-10),
    "float32": (1e-4, 1e-5),
    "float16": (5e-3, 5e-4),
    "bfloat16": (4e-2, 4e-3),
    "complex64": (1e-4, 1e-5),
    "complex128": (1e-9, 1e-10),
}


# From this magnitude on, equal elements are taken for a mask's constant: -1e9, the least float.
HUGE = 1e9


@dataclass(frozen=True)
class Agreement:
    """The outcome of a comparison.

    `largest` and `mean` are absolute differences over finite elements, `scale` is the magnitude
    that they are held to; `reason` says in a phrase why `agrees` is False.
    """

    agrees: bool
    largest: float
    mean: float
    scale: float
    reason: str = ""

    @property
    def relative(self) -> float:
        """The largest difference as a fraction of the scale."""
        return self.largest / self.scale if self.scale else self.largest


def compare(got: Array, want: Array, judge: Array | None = None) -> Agreement:
    """Compare a result with its reference, of the same shape and dtype; `judge` is float64."""
    if got.shape != want.shape or got.dtype != want.dtype:
        reason = f"is {got.dtype}{list(got.shape)}, expected {want.dtype}{list(want.shape)}"
        return Agreement(False, float("inf"), float("inf"), 0.0, reason)
    bars = BARS.get(want.dtype.name)
    if bars is None:
        return _compare_exactly(got, want)
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    x, y = got.astype(wide), want.astype(wide)
    finite = np.isfinite(y)
    if (
        not np.array_equal(x[~finite], y[~finite], equal_nan=True)
        or not np.isfinite(x[finite]).all()
    ):
        return Agreement(False, float("inf"), float("inf"), 0.0, "NaN or infinity in other places")
    x, y = x[finite], y[finite]
    if not y.size:
        return Agreement(True, 0.0, 0.0, 0.0)
    difference, scale = np.abs(x - y), _scale(x, y)
    largest, mean = float(difference.max()), float(difference.mean())
    # An all-zero reference gives no scale; differences are then held to the bars as they are.
    unit = scale or 1.0
    if largest <= bars[0] * unit and mean <= bars[1] * unit:
        return Agreement(True, largest, mean, scale)
    if judge is not None:
        truth = judge.astype(wide)[finite]
        if np.abs(x - truth).max() <= np.abs(y - truth).max():
            return Agreement(True, largest, mean, scale)
    reason = f"differs by {largest / unit:.2g} of its scale, by {mean / unit:.2g} on average "
    reason += f"(allowed: {bars[0]:g} and {bars[1]:g})"
    return Agreement(False, largest, mean, scale, reason)


def _scale(x: Array, y: Array) -> float:
    """The largest magnitude of the reference `y`, without huge elements that `x` shares."""
    magnitudes = np.abs(y)
    measures = magnitudes[(magnitudes < HUGE) | (x != y)]
    return float(measures.max(initial=0.0))


def _compare_exactly(got: Array, want: Array) -> Agreement:
    wrong = int(np.count_nonzero(got != want))
    if not wrong:
        return Agreement(True, 0.0, 0.0, 0.0)
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
    scale = float(np.abs(want.astype(np.float64)).max())
    reason = f"differs in {wrong} of {want.size} elements (allowed: none)"
    return Agreement(False, float(difference.max()), float(difference.mean()), scale, reason)
