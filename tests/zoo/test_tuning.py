"""The bars of tuning, without the measurements, and what scripts that measure share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measuring, tuning


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"seconds": 61.0}, False),
        ({"untuned": 1.2}, False),
        ({"left": 1}, False),  # not all kernels were measured
        ({"kernels": 0, "untuned": 0.0, "tuned": 0.0}, True),  # nothing to choose from
    ],
)
def test_bars(change: dict[str, Any], holds: bool) -> None:
    row = {"model": "mlp", "kernels": 3, "left": 0, "seconds": 9.0, "untuned": 1.1, "tuned": 1.0}
    assert tuning.bars({**row, **change}) is holds


def test_a_measurement_apart_fails_with_what_it_said() -> None:
    with pytest.raises(measuring.MeasurementFailed, match=r"nothing of nope failed:\n.*No module"):
        measuring.apart("benchmarks.nothing", ["nope"])


def test_results_are_kept_beside_those_of_other_models(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    for model, seconds in (("lstm", 1), ("mlp", 2), ("lstm", 3)):
        measuring.keep(file, {"rows": [{"model": model, "seconds": seconds}]})
    rows = json.loads(file.read_text())["rows"]
    assert [(row["model"], row["seconds"]) for row in rows] == [("mlp", 2), ("lstm", 3)]


def test_the_best_average() -> None:
    calls: list[int] = []
    assert 0 <= measuring.best(lambda: calls.append(0), calls=3, rounds=5) < 1
    assert len(calls) == 15
