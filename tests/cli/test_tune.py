"""`plait tune` on a small model: records, resuming, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.cli import main as cli
from plait.cli.tune import seconds
from plait.ir.errors import UsageError

Capture = pytest.CaptureFixture[str]
SOURCE = "benchmarks.zoo:mlp"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(tmp_path / "cache"))


def run(capsys: Capture, *arguments: object) -> dict[str, Any]:
    assert cli.main(["tune", SOURCE, *map(str, arguments), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["schema"] == "plait.tune/1"
    return document


def test_what_is_measured_is_known_the_next_time(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    first = run(capsys, "--records", file)
    assert first["known"] == first["left"] == 0
    assert first["records"]
    second = run(capsys, "--records", file)
    assert (second["known"], second["records"]) == (len(first["records"]), [])
    assert len(json.loads(file.read_text())["records"]) == len(first["records"])


def test_records_travel_in_a_file(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "records.json"
    first = run(capsys, "--records", file)
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(tmp_path / "other"))
    assert run(capsys, "--records", file)["known"] == len(first["records"])


def test_an_empty_budget_leaves_all_for_later(capsys: Capture) -> None:
    document = run(capsys, "--budget", "0s")
    assert document["records"] == []
    assert document["left"] > 0


@pytest.mark.parametrize("text", ["{}", '{"records": [1]}', "[]", "no json"])
def test_a_file_of_something_else_is_refused(capsys: Capture, tmp_path: Path, text: str) -> None:
    file = tmp_path / "records.json"
    file.write_text(text)
    assert cli.main(["tune", SOURCE, "--records", str(file)]) == UsageError.exit_code
    assert "expected a file of tuning records" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "expected"), [("60s", 60), ("90", 90), ("1.5m", 90)])
def test_budgets(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1h"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="expected seconds or minutes"):
        seconds(text)
