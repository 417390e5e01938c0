"""Timing candidates against each other in one run.

Two programs measured minutes apart are not comparable on a shared machine. Here every round times
each candidate once, in an order that rotates, so that drift and neighbours hit all of them alike;
before each sample there is a pause and then calls that are not timed, until the threads that the
last candidate left spinning are asleep; speeds are reported as medians and as ratios to a baseline
with a bootstrap interval over rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_SAMPLE_SECONDS = 2e-3  # one sample repeats a fast call until it takes at least this long
SETTLE_SECONDS = 0.1  # threads that wait for work spin for up to some 60 ms
WARM_SECONDS = 0.1  # a spinning thread takes turns of 8 ms with another on its CPU
BOOTSTRAP_DRAWS = 2000
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Comparison:
    """Seconds per call of each candidate: `samples[name]` has shape [rounds].

    Candidates with fewer rounds than others took part in the first ones.
    """

    samples: Mapping[str, NDArray[np.float64]]

    def median(self, name: str) -> float:
        """The median seconds of one call."""
        return float(np.median(self.samples[name]))

    def interval(self, name: str) -> tuple[float, float]:
        """The 95 % bootstrap interval of the median, in seconds."""
        draws = np.median(self.samples[name][_draws(len(self.samples[name]))], axis=1)
        low, high = np.percentile(draws, INTERVAL)
        return float(low), float(high)

    def speedup(self, name: str, baseline: str) -> tuple[float, float, float]:
        """How many times faster `name` is than `baseline`: median over rounds, 95 % interval.

        The ratio is taken within each round, where both ran beside each other.
        """
        common = min(len(self.samples[baseline]), len(self.samples[name]))
        ratios = self.samples[baseline][:common] / self.samples[name][:common]
        draws = np.median(ratios[_draws(common)], axis=1)
        low, high = np.percentile(draws, INTERVAL)
        return float(np.median(ratios)), float(low), float(high)


def _draws(rounds: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, rounds, (BOOTSTRAP_DRAWS, rounds))


class Sampler:
    """Times one candidate: each call of a sampler is one sample, in seconds per call.

    The candidate is first called `warmup` times, and once to see how many calls make a sample that
    is long enough for the clock.
    """

    def __init__(self, call: Callable[[], object], warmup: int = 3) -> None:
        self._call = call
        self._repeats = _repeats(call, warmup)

    def __call__(self) -> float:
        time.sleep(SETTLE_SECONDS)
        _warm(self._call)
        return _seconds(self._call, self._repeats)


def interleave(
    samplers: Mapping[str, Callable[[], float]],
    rounds: int,
    progress: Callable[[str], None] = lambda _: None,
    fewer: Mapping[str, int] | None = None,
) -> Comparison:
    """Take a sample of each candidate in every round, in an order that rotates.

    `fewer` names candidates that leave after so many rounds.
    """
    names = list(samplers)
    last = {name: min(rounds, (fewer or {}).get(name, rounds)) for name in names}
    samples = {name: np.empty(last[name]) for name in names}
    for index in range(rounds):
        progress(f"round {index + 1} of {rounds}")
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            if index < last[name]:
                samples[name][index] = samplers[name]()
    return Comparison(samples)


def compare(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    warmup: int = 3,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Time candidates of this process, interleaved."""
    samplers: dict[str, Callable[[], float]] = {}
    for name, call in candidates.items():
        progress(f"warming up {name}")
        samplers[name] = Sampler(call, warmup)
    return interleave(samplers, rounds, progress)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _warm(call: Callable[[], object]) -> None:
    """Call at least once, and for `WARM_SECONDS`."""
    end = time.perf_counter() + WARM_SECONDS
    call()
    while time.perf_counter() < end:
        call()


def _repeats(call: Callable[[], object], warmup: int) -> int:
    """How many calls make one sample long enough for the clock and the scheduler's noise."""
    for _ in range(max(warmup, 1)):
        call()
    _warm(call)
    return max(1, int(np.ceil(MIN_SAMPLE_SECONDS / max(_seconds(call, 1), 1e-9))))
