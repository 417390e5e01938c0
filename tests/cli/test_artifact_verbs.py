"""`plait inspect`, `run` and `bench` on a small artifact, and their refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.cli import main as cli
from plait.cli import run as run_verb
from plait.codegen.plan import TensorSpec
from plait.runtime import bench
from plait.runtime.artifact import Contents, write_artifact

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: object, code: int = 0) -> dict[str, Any]:
    assert cli.main([*map(str, arguments), "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["schema"] == f"plait.{arguments[0]}/1"
    return document


def refused(capsys: Capture, *arguments: object, code: int) -> str:
    assert cli.main([*map(str, arguments)]) == code, capsys.readouterr().err
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.fixture
def wrong_artifact(small_contents: Contents, tmp_path: Path) -> Path:
    """An artifact whose bundled outputs are not those it computes."""
    outputs = {name: array + 1 for name, array in small_contents.samples_out.items()}
    path = tmp_path / "wrong.plait"
    write_artifact(path, replace(small_contents, samples_out=outputs))
    return path


def test_inspect(small_artifact: Path, capsys: Capture) -> None:
    document = run(capsys, "inspect", small_artifact)
    assert document["inputs"] == [{"name": "x", "dtype": "float32", "shape": [4, 256]}]
    assert document["stages"] == ["import", "fuse"]
    assert document["targets"][0]["missing_here"] == []
    assert cli.main(["inspect", str(small_artifact), "--kernels"]) == 0
    assert "add one" in capsys.readouterr().out


def test_inspect_prints_a_stage(small_artifact: Path, capsys: Capture) -> None:
    assert cli.main(["inspect", str(small_artifact), "--ir", "import"]) == 0
    assert capsys.readouterr().out == "graph small() {}\n"
    assert "no stage 'fuze'" in refused(capsys, "inspect", small_artifact, "--ir", "fuze", code=5)


def test_run_checks_and_saves(small_artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    saved = tmp_path / "out.npz"
    document = run(capsys, "run", small_artifact, "--check", "-o", saved)
    assert all(verdict["agrees"] for verdict in document["check"])
    assert sorted(np.load(saved)) == ["out", "same"]


def test_run_exits_one_on_a_wrong_result(wrong_artifact: Path, capsys: Capture) -> None:
    document = run(capsys, "run", wrong_artifact, "--check", code=1)
    assert "allowed" in document["check"][0]["reason"]


def test_run_on_given_inputs(small_artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    x = np.ones((4, 256), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "all.npz", x=x)
    one = run(capsys, "run", small_artifact, "-i", f"x={tmp_path / 'x.npy'}")
    two = run(capsys, "run", small_artifact, "-i", tmp_path / "all.npz", "--threads", 1)
    assert one["outputs"] == two["outputs"]
    assert two["threads"] == 1


@pytest.mark.parametrize(
    ("argument", "code", "message"),
    [
        ("x", 2, "expected NAME=FILE.npy"),
        ("x=missing.npy", 2, "missing.npy: no such file"),
        ("x=pyproject.toml", 2, "expected a .npy file"),
        ("y={good}", 2, "no array for input 'x'"),
        ("x={bad}", 2, "input 'x': expected float32[4, 256]"),
    ],
)
def test_run_refuses_bad_inputs(
    small_artifact: Path, tmp_path: Path, capsys: Capture, argument: str, code: int, message: str
) -> None:
    good, bad = tmp_path / "good.npy", tmp_path / "bad.npy"
    np.save(good, np.ones((4, 256), np.float32))
    np.save(bad, np.ones((4, 255), np.float32))
    argument = argument.format(good=good, bad=bad)
    assert message in refused(capsys, "run", small_artifact, "-i", argument, code=code)


def test_bench_compares(small_artifact: Path, wrong_artifact: Path, capsys: Capture) -> None:
    flags = ["--against", wrong_artifact, "--rounds", 3]
    document = run(capsys, "bench", small_artifact, *flags, "--at-least", 0.01)
    assert [row["name"] for row in document["candidates"]] == [
        str(small_artifact),
        str(wrong_artifact),
    ]
    run(capsys, "bench", small_artifact, *flags, "--at-least", 100, code=1)


def test_bench_gives_all_the_same_inputs(
    small_artifact: Path,
    small_contents: Contents,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other.plait"
    x = small_contents.samples_in["x"] * 5
    write_artifact(other, replace(small_contents, samples_in={"x": x}))
    results: list[Any] = []

    def call_once(candidates: Any, **options: Any) -> bench.Comparison:
        results.extend(call() for call in candidates.values())
        return compare(candidates, **options)

    compare = bench.compare
    monkeypatch.setattr(bench, "compare", call_once)
    run(capsys, "bench", small_artifact, "--against", other, "--rounds", 3)
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_bench_refuses_artifacts_with_other_inputs(
    small_artifact: Path, small_contents: Contents, tmp_path: Path, capsys: Capture
) -> None:
    (code,) = small_contents.code
    plan = replace(code.plan, inputs=(TensorSpec("y", "float32", (4, 256)),))
    other = tmp_path / "other.plait"
    contents = replace(small_contents, code=(replace(code, plan=plan),), samples_in={})
    write_artifact(other, replace(contents, samples_out={}))
    error = refused(capsys, "bench", small_artifact, "--against", other, code=2)
    assert "takes y: float32[4, 256]" in error and "takes x: float32[4, 256]" in error


def test_numbers_that_json_cannot_write_are_null(
    small_artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    np.save(tmp_path / "x.npy", np.full((4, 256), np.nan, np.float32))
    document = run(capsys, "run", small_artifact, "-i", f"x={tmp_path / 'x.npy'}")
    assert document["outputs"][0]["mean"] is None


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_outputs_have_no_extremes(dtype: str) -> None:
    row = run_verb._describe(TensorSpec("y", dtype, (2,)), np.ones(2, dtype))
    assert set(row) == {"name", "dtype", "shape"}


def test_damaged_and_absent_files(small_artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    broken = tmp_path / "broken.plait"
    data = bytearray(small_artifact.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    for verb in ("inspect", "run", "bench"):
        assert "broken.plait" in refused(capsys, verb, broken, code=5)
        assert "no such file" in refused(capsys, verb, tmp_path / "none.plait", code=5)
