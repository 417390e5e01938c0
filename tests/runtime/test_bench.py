"""The interleaved timer: order of calls, ratios, intervals."""

from __future__ import annotations

import time

import numpy as np
import pytest

from plait.runtime import bench


def test_candidates_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MIN_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(bench, "WARM_SECONDS", 0.0)
    calls: list[str] = []
    pair = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    result = bench.compare(pair, rounds=4, warmup=1)
    # Before each timed call there is one that is not.
    assert calls[-16:] == [name for name in "abbaabba" for _ in range(2)]
    assert result.samples["a"].shape == (4,)


def test_speedup_of_a_slower_candidate_is_below_one() -> None:
    result = bench.compare(
        {"fast": lambda: None, "slow": lambda: time.sleep(2e-3)}, rounds=5, warmup=1
    )
    ratio, low, high = result.speedup("slow", "fast")
    assert low <= ratio <= high < 0.1


def test_statistics_of_known_samples() -> None:
    result = bench.Comparison({"a": np.full(9, 2.0), "b": np.arange(1.0, 10.0)})
    assert result.median("b") == 5.0
    assert result.interval("a") == (2.0, 2.0)
    assert result.speedup("a", "b")[0] == 2.5
    low, high = result.interval("b")
    assert 1.0 <= low <= 5.0 <= high <= 9.0
