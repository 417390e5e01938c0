"""The speed suite without its measurements: its lists, its table, its bars."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers, suite
from benchmarks.report import report
from benchmarks.zoo import ZOO


def results(**speeds: float | None) -> dict[str, Any]:
    """Results with eager at 1 s and the same for Inductor; Plait by how many times as fast."""
    rows: list[dict[str, Any]] = []
    for name, speed in speeds.items():
        seconds = {"eager": 1.0, "inductor": 1.0}
        row: dict[str, Any] = {"model": name, "seconds": seconds, "absent": {}}
        if speed is not None:
            seconds["plait"] = 1 / speed
            row["speedup"] = {"median": speed, "low": speed, "high": speed}
            row["speedup_eager"] = speed
        rows.append(row)
    return {
        "batch": 1,
        "rounds": 3,
        "threads": 5,
        "host": {"model": "Some CPU", "cores": 7},
        "rows": rows,
    }


def test_the_lists_are_those_of_the_zoo_and_the_peers() -> None:
    assert set(suite.MODELS) == set(ZOO) - {"minilm_batch"}
    assert len(set(suite.MODELS)) == len(suite.MODELS)
    assert tuple(peers.PEERS) == suite.PEERS


def test_a_batch_repeats_every_sample() -> None:
    token, cache = ZOO["gpt2_decode"]().batched(3)
    assert (token.shape, cache.shape[:4]) == ((3, 1), (12, 2, 3, 12))


def test_models_with_more_than_one_sample_are_named() -> None:
    for name in ("crepe_tiny", "mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet"):
        several = ZOO[name]().example_args[0].shape[0] > 1
        assert (name in suite.SEVERAL or f"{name.partition('_')[0]}_*" in suite.SEVERAL) is several


@pytest.mark.parametrize(
    ("speeds", "holds"),
    [
        ({"mlp": 1.2, "lstm": 2.5}, True),
        ({"mlp": 0.99, "lstm": 4.0}, False),  # behind on one model
        ({"mlp": 1.2, "lstm": 1.3}, False),  # the mean over eager
        ({"mlp": 1.2, "lstm": None, "gpt2": 4.0}, False),  # not measured with Plait
        ({}, False),
    ],
)
def test_bars(speeds: dict[str, float | None], holds: bool, capsys: Any) -> None:
    assert suite.bars(results(**speeds)) is holds
    assert ("MISSED" not in capsys.readouterr().out) is holds


def test_no_bar_holds_without_a_number() -> None:
    assert not report("a time", math.nan, 1, "s")
    assert not report("a speed", math.nan, 1, "x", "at least")


def test_the_table_marks_what_is_fastest_and_what_is_absent() -> None:
    text = suite.table(results(mlp=2.0, lstm=None))
    assert "| mlp | 1e+03 | 1e+03 | – | – | **500** | 2.00× (2.00–2.00) |" in text
    assert "5 threads, Some CPU with 7 cores" in text


def test_the_readme_shows_the_recorded_results(repo_root: Path) -> None:
    for file in sorted((repo_root / "benchmarks" / "results").glob("batch*.json")):
        recorded = json.loads(file.read_text())
        assert suite.table(recorded) in (repo_root / "README.md").read_text(), file.name
