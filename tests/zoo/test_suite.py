"""The speed suite without its measurements: its lists, its tables, its bars."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import measuring, peers, suite, tables
from benchmarks.candidates import Built, CandidateFailed
from benchmarks.report import report
from benchmarks.zoo import ZOO
from plait.codegen.core import AVX2, AVX512


def results(**speeds: float | None) -> dict[str, Any]:
    """Results with eager at 1 s and the same for Inductor; Plait by how many times as fast."""
    rows: list[dict[str, Any]] = []
    for name, speed in speeds.items():
        seconds = {"eager": 1.0, "inductor": 1.0}
        row: dict[str, Any] = {
            "model": name,
            "rounds": 3,
            "threads": 5,
            "host": {"model": "Some CPU", "cores": 7},
            "versions": {"torch": "2.0"},
            "seconds": seconds,
            "build_seconds": {"eager": 0.1, "inductor": 12.34},
            "peak_bytes": {"eager": 2e6},
            "absent": {},
        }
        if speed is not None:
            seconds["plait"] = 1 / speed
            row["best_peer"] = "eager"
            row["speedup"] = {"median": speed, "low": speed, "high": speed}
        rows.append(row)
    return {
        "batch": 1,
        "peers": [*suite.PEERS, "plait"],
        "rows": rows,
    }


def test_the_lists_are_those_of_the_zoo_and_the_peers() -> None:
    assert set(suite.MODELS) == set(ZOO) - {"minilm_batch"}
    assert len(set(suite.MODELS)) == len(suite.MODELS)
    assert tuple(peers.PEERS) == suite.PEERS
    assert tuple(peers.SLOW_PEERS) == suite.SLOW_PEERS


def test_a_batch_repeats_every_sample() -> None:
    token, cache = ZOO["gpt2_decode"]().batched(3)
    assert (token.shape, cache.shape[:4]) == ((3, 1), (12, 2, 3, 12))


def test_models_with_more_than_one_sample_are_named() -> None:
    for name in ("crepe_tiny", "mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet"):
        several = ZOO[name]().example_args[0].shape[0] > 1
        assert (
            name in tables.SEVERAL or f"{name.partition('_')[0]}_*" in tables.SEVERAL
        ) is several


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
    assert suite.bars(results(**speeds), list(speeds)) is holds
    assert ("MISSED" not in capsys.readouterr().out) is holds


def test_a_model_is_behind_by_its_medians_or_by_its_rounds(capsys: Any) -> None:
    for medians, rounds in ((0.99, 1.1), (1.1, 0.99)):
        found = results(mlp=medians, lstm=9.0)
        found["rows"][0]["speedup"]["median"] = rounds
        assert not suite.bars(found, ["mlp", "lstm"])
        assert "0.99" in capsys.readouterr().out
        assert f"{medians:.2f}× ({rounds:.2f}, " in tables.table(found)


def test_a_model_without_a_row_misses_its_bar(capsys: Any) -> None:
    assert not suite.bars(results(mlp=9.0), ["mlp", "gpt2"])
    assert "gpt2: speed over the best peer" in capsys.readouterr().out


def test_no_bar_holds_without_a_number() -> None:
    assert not report("a time", math.nan, 1, "s")
    assert not report("a speed", math.nan, 1, "x", "at least")


def test_the_table_marks_what_is_fastest_and_what_is_absent() -> None:
    text = tables.table(results(mlp=2.0, lstm=None))
    assert "| mlp | 1e+03 | 1e+03 | – | – | **500** | 2.00× (2.00, 2.00–2.00) |" in text
    assert "median of 3 interleaved rounds" in text
    assert "5 threads, Some CPU with 7 cores" in text


def test_the_table_says_why_a_candidate_was_not_timed() -> None:
    found = results(mlp=2.0, lstm=None)
    found["rows"][1]["absent"]["openvino"] = "RuntimeError: no such operator"
    assert "* Without openvino: lstm: RuntimeError: no such operator." in tables.table(found)


def test_the_table_claims_no_rounds_and_versions_that_rows_lack() -> None:
    found = results(mlp=2.0, lstm=1.0, gpt2=None)
    found["rows"][1].update(rounds=7, versions={"torch": "2.1"})
    found["rows"][2].update(seconds={}, rounds=99)  # nothing was timed in it
    text = tables.table(found)
    assert "median of 3 to 7 (by model" in text
    assert "torch 2.0/2.1" in text


def test_the_costs_of_building() -> None:
    assert "| mlp | 0.1 · 2 | 12.3 · – | – | – | – |" in tables.costs(results(mlp=2.0))


def test_a_candidate_that_fails_in_the_rounds_is_dropped_and_the_others_are_timed() -> None:
    calls: list[str] = []

    def good() -> float:
        calls.append("good")
        return 2.0

    def bad() -> float:
        if calls.count("good") > 2:
            raise CandidateFailed("its process ended with code -9")
        return 1.0

    timing, failed = suite.timed({"good": good, "bad": bad}, rounds=4, fewer={})
    assert failed == {"bad": "its process ended with code -9"}
    assert timing.median("good") == 2.0


def test_a_model_that_no_candidate_runs_keeps_the_reasons() -> None:
    def bad() -> float:
        raise CandidateFailed("it took too long")

    timing, failed = suite.timed({"eager": bad, "plait": bad}, rounds=4, fewer={})
    assert not timing.samples
    assert failed == dict.fromkeys(("eager", "plait"), "it took too long")


def built(run_seconds: float, *results: float) -> Built:
    return Built(1.0, run_seconds, 0, [np.array(results, np.float32)])


def test_what_disagrees_with_eager_is_not_timed() -> None:
    found = suite.wrong({"eager": built(1, 1, 2), "tvm": built(1, 1, 2), "plait": built(1, 1, 3)})
    assert list(found) == ["plait"]
    found = suite.wrong({"eager": built(1, 1, 2), "plait": Built(1, 1, 0, [])})
    assert found == {"plait": "gives 0 results, eager 1"}


def test_a_peer_far_behind_gets_few_rounds_and_plait_never() -> None:
    found = suite.far_behind({"eager": 50, "openvino": 2, "tvm": 21, "plait": 100})
    assert found == {"eager": 3, "tvm": 3}


def test_a_model_gets_at_least_seven_rounds_and_more_where_they_are_quick() -> None:
    assert suite.affordable({"eager": 9.0, "plait": 9.0}) == 7
    assert suite.affordable({"eager": 0.5, "plait": 0.5}) == 10
    assert suite.affordable({"eager": 1e-5, "plait": 1e-5}) == 30


def test_the_table_marks_peers_with_few_rounds() -> None:
    found = results(mlp=2.0)
    found["rows"][0]["fewer_rounds"] = {"eager": 3}
    text = tables.table(found)
    assert "| mlp | 1e+03 (3) | 1e+03 |" in text
    assert "A number in brackets" in text


def test_rows_keep_the_machine_they_were_recorded_on() -> None:
    found = results(mlp=2.0, lstm=1.0)
    found["rows"][1].update(threads=2, host={"model": "Other", "cores": 4})
    assert "5 threads, Some CPU with 7 cores or 2 threads, Other with 4 cores" in tables.table(
        found
    )


def test_rows_replace_those_of_the_same_model() -> None:
    old, new = results(lstm=1.0, mlp=2.0), results(mlp=3.0)
    rows = measuring.updated(old, new)["rows"]
    assert [(r["model"], r["speedup"]["median"]) for r in rows] == [("mlp", 3.0), ("lstm", 1.0)]


def test_the_readme_shows_the_recorded_results(repo_root: Path) -> None:
    for file in sorted((repo_root / "benchmarks" / "results").glob("batch*.json")):
        text = tables.section(json.loads(file.read_text()), f"docs/speed_{file.stem}.svg")
        assert text in (repo_root / "README.md").read_text(), file.name


def test_a_table_in_the_readme_is_replaced_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- bench x:begin -->\nold\n<!-- bench x:end -->\nb\n")
    monkeypatch.setattr(suite, "README", readme)
    suite.write_readme("new", "bench x")
    assert readme.read_text() == "a\n<!-- bench x:begin -->\nnew\n<!-- bench x:end -->\nb\n"
    assert suite.around("bench y") is None
    with pytest.raises(LookupError, match="bench y"):
        suite.write_readme("new", "bench y")


def test_rows_of_other_vectors_have_a_file_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for core, name in ((AVX2, "batch1"), (AVX512, "batch1-avx512")):
        monkeypatch.setattr(measuring, "host_core", lambda core=core: core)
        assert measuring.on_this_kind("batch1") == name


def test_both_batches_run_when_a_bar_is_missed(repo_root: Path, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/log\ntest "$4" = 8\n')
    python.chmod(0o755)
    for stamp in (".plait-installed", ".plait-bench-installed"):
        (tmp_path / stamp).touch()
    done = subprocess.run(["make", "bench", f"VENV={tmp_path}"], cwd=repo_root, check=False)
    runs = (tmp_path / "log").read_text().splitlines()
    assert done.returncode != 0
    assert ["--batch 8" in run for run in runs] == [False, True]
