"""`plait profile` on a small artifact: its document, its table, its trace, its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.cli import main as cli
from plait.runtime.ceilings import Ceilings
from tests.profiled import LOOP_BYTES, PRODUCT_BYTES, PRODUCT_FLOPS, profiled_inputs

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ceilings that need no measuring; gives the numbers of threads that were asked for."""
    asked: list[int] = []

    def measure(threads: int) -> Ceilings:
        asked.append(threads)
        return Ceilings(100e9, 10e9, threads)

    monkeypatch.setattr("plait.runtime.profile.measure_ceilings", measure)
    return asked


def run(capsys: Capture, *arguments: object) -> dict[str, Any]:
    assert cli.main(["profile", *map(str, arguments), "--rounds", "3", "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["schema"] == "plait.profile/1"
    return document


def refused(capsys: Capture, *arguments: object, code: int) -> str:
    assert cli.main(["profile", *map(str, arguments)]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_document(
    profiled_artifact: Path, repo_root: Path, capsys: Capture, known_machine: list[int]
) -> None:
    document = run(capsys, profiled_artifact, "--threads", 1)
    page = (repo_root / "docs" / "cli.md").read_text()
    fields = {*document, *document["ceilings"], *document["kernels"][0], *document["left_out"]}
    assert [f for f in fields if f"`{f}`" not in page and f"`{f}[]`" not in page] == []
    assert known_machine == [1] and document["ceilings"]["threads"] == 1
    kernels = document["kernels"]
    assert document["steps"] == len(kernels) == 3 and document["rounds"] == 3
    times = [kernel["median_seconds"] for kernel in kernels]
    assert times == sorted(times, reverse=True)
    assert document["steps_seconds"] == pytest.approx(sum(times))
    assert document["run_seconds"] > 0
    (loop,) = (kernel for kernel in kernels if kernel["name"] == "add")
    assert loop["flops"] == 0 and loop["flops_per_second"] is None
    assert loop["bytes"] == LOOP_BYTES and loop["locations"] == ["model.py:9"]
    assert loop["roofline"] == pytest.approx(LOOP_BYTES / 10e9 / loop["median_seconds"])


def test_groups_and_the_slowest(profiled_artifact: Path, capsys: Capture) -> None:
    document = run(capsys, profiled_artifact, "--group", "--threads", 1)
    (products,) = (kernel for kernel in document["kernels"] if kernel["calls"] == 2)
    assert len(document["kernels"]) == 2
    assert products["flops"] == 2 * PRODUCT_FLOPS and products["bytes"] == 2 * PRODUCT_BYTES
    assert products["locations"] == ["model.py:1", "model.py:2"]
    one = run(capsys, profiled_artifact, "--top", 1)
    assert len(one["kernels"]) == 1 and one["left_out"]["kernels"] == 2
    assert one["left_out"]["share"] == pytest.approx(1 - one["kernels"][0]["share"])


def test_table(profiled_artifact: Path, capsys: Capture) -> None:
    arguments = ["profile", str(profiled_artifact), "--rounds", "3", "--threads", "1", "--group"]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "profiled: 3 rounds, 1 thread"
    assert "100.0 GFLOP/s (multiply-adds), 10.0 GB/s (copy), measured with 1 thread" in lines[3]
    (loop,) = (line.split() for line in lines if line.startswith(" add "))
    assert loop[5] == "-" and loop[-1] == "model.py:9"
    assert any("model.py:1 and 1 more" in line for line in lines)


def test_given_and_random_inputs(
    profiled_artifact: Path, profiled_module: Any, tmp_path: Path, capsys: Capture
) -> None:
    np.savez(tmp_path / "all.npz", **profiled_inputs())
    run(capsys, profiled_artifact, "-i", tmp_path / "all.npz")
    profiled_module.save(tmp_path / "bare.plait")
    run(capsys, tmp_path / "bare.plait")
    np.save(tmp_path / "x.npy", np.ones(3, np.float32))
    error = refused(capsys, profiled_artifact, "-i", f"x={tmp_path / 'x.npy'}", code=2)
    assert "no array for input 'y'" in error


def test_trace_is_written_whole(profiled_artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "trace.json"
    path.write_text("old")
    assert run(capsys, profiled_artifact, "--trace", path)["trace"] == str(path)
    events = json.loads(path.read_text())["traceEvents"]
    kernels = [event for event in events if event.get("cat") == "kernel"]
    assert len(kernels) == 3 * 3
    assert all(event["ph"] in "XM" and event["pid"] == 1 for event in events)
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"], "nothing is left beside it"


def test_a_path_that_cannot_be_written_is_refused_first(
    profiled_artifact: Path, tmp_path: Path, capsys: Capture, known_machine: list[int]
) -> None:
    for path, reason in [
        (tmp_path / "nowhere" / "t.json", "cannot be written (no such file or directory)"),
        (tmp_path, "expected the name of a file"),
        (tmp_path / ("n" * 300), "file name too long"),
    ]:
        assert reason in refused(capsys, profiled_artifact, "--trace", path, code=2)
    assert known_machine == []


def test_an_old_trace_survives_a_failure(
    small_artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "trace.json"
    path.write_text("old")
    error = refused(capsys, small_artifact, "--trace", path, code=5)
    assert "holds no stage 'lowered'" in error and "compile it again" in error
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_options_out_of_range(profiled_artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    for option in ("--rounds", "--top", "--threads"):
        assert option in refused(capsys, profiled_artifact, option, 0, code=2)
    assert "no such file" in refused(capsys, tmp_path / "none.plait", code=5)
