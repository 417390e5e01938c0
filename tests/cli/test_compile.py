"""`plait explain` and `plait compile`: results, refusals, and what a failure leaves behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.cli import main as cli
from plait.frontend.standalone import Standalone
from plait.ir.agreement import compare
from plait.ir.errors import CompileFailure

Capture = pytest.CaptureFixture[str]

FACTORIES = """
import torch
from torch import nn

class Svd(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x) + 1

def good():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh()), (torch.randn(2, 16),)

class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(32, 32, 3, padding=1)
        self.linears = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

    def forward(self, x, y):
        return self.conv(x), torch.cat([linear(y) for linear in self.linears])

def joined():
    return Joined(), (torch.randn(1, 32, 24, 24), torch.randn(8, 64))

def unsupported():
    return Svd(), (torch.randn(3, 3),)

def nonsense():
    return 3
"""


@pytest.fixture(autouse=True)
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `sample_factories` that `package.module:factory` can name."""
    (tmp_path / "sample_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "sample_factories", raising=False)


def run(capsys: Capture, *arguments: object, code: int = 0) -> dict[str, Any]:
    assert cli.main([*map(str, arguments), "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def undocumented(fields: dict[str, Any], repo_root: Path) -> list[str]:
    """The fields that the page about the command line does not name."""
    page = (repo_root / "docs" / "cli.md").read_text()
    return [field for field in fields if not re.search(rf"`{field}(\[\])?`", page)]


def test_explain(capsys: Capture, repo_root: Path) -> None:
    document = run(capsys, "explain", "sample_factories:good")
    assert document["schema"] == "plait.explain/1"
    assert document["standalone"] is True
    assert document["ops"]["tanh"] == 1
    assert document["weights_bytes"] == 4 * (16 * 8 + 8)
    plan = document["plan"]
    assert plan["kernels"] >= 1 and plan["flops"] == 2 * 2 * 16 * 8
    assert not plan["placed"] and not plan["scratch"] and not plan["scratch_bytes"]
    assert undocumented(plan, repo_root) == []
    assert cli.main(["explain", "sample_factories:good", "--ir"]) == 0
    assert capsys.readouterr().out.startswith("graph ")


def test_explain_shows_the_memory_of_a_run(capsys: Capture, repo_root: Path) -> None:
    plan = run(capsys, "explain", "sample_factories:joined")["plan"]
    (whole,) = plan["placed"]
    assert (whole["op"], whole["parts"], whole["copied"]) == ("concat", 2, 0)
    assert whole["bytes"] == 4 * 2 * 8 * 64
    assert plan["weights_bytes"] >= 4 * (32 * (32 * 9 + 1) + 2 * 64 * (64 + 1))
    (scratch,) = plan["scratch"]
    assert (scratch["kernel"], scratch["calls"]) == ("conv", 1)
    each = plan["threads"] * scratch["thread_bytes"]
    assert plan["scratch_bytes"] == scratch["bytes"] == scratch["shared_bytes"] + each > 0
    assert undocumented({**whole, **scratch}, repo_root) == []
    assert cli.main(["explain", "sample_factories:joined"]) == 0
    assert "concats: 1, slices: 0; 4.0 KiB" in capsys.readouterr().out


def test_explain_names_what_is_not_lowered(capsys: Capture) -> None:
    document = run(capsys, "explain", "sample_factories:unsupported", "--strict", code=3)
    assert not document["standalone"]
    assert "svd" in document["fallbacks"][0]["target"]
    assert "sample_factories.py:7" in document["fallbacks"][0]["location"]


def test_compile_makes_an_artifact_that_runs(tmp_path: Path, capsys: Capture) -> None:
    path, dump = tmp_path / "good.plait", tmp_path / "stages"
    flags = ["--verify-passes", "--dump", dump]
    document = run(capsys, "compile", "sample_factories:good", "-o", path, *flags)
    assert document["schema"] == "plait.compile/1"
    assert document["file_bytes"] == path.stat().st_size
    assert [verdict["agrees"] for verdict in document["check"]] == [True]
    assert (dump / "00-input.txt").is_file()
    document = run(capsys, "run", path, "--check")
    assert document["outputs"][0]["shape"] == [2, 8]
    document = run(capsys, "compile", "sample_factories:good", "-o", path)
    assert document["built"] == 0, "the second time everything comes from the cache"


@pytest.mark.parametrize(
    ("source", "flags", "code", "message"),
    [
        ("sample_factories:unsupported", [], 3, "svd.*sample_factories.py:7"),
        ("sample_factories:nonsense", [], 2, "expected the factory to return"),
        ("sample_factories:none", [], 2, "has no callable 'none'"),
        ("missing.pt2", [], 2, "missing.pt2: no such file"),
        ("sample_factories:good", ["--pipeline", "fuze"], 2, "did you mean 'fuse'"),
        ("sample_factories:good", ["--pipeline", "canonicalize"], 4, "lacks `allocate`"),
        ("sample_factories:good", ["--cpu", "z80"], 2, "unknown CPU 'z80'"),
        ("sample_factories:good", ["--threads", "0"], 2, "--threads"),
    ],
)
def test_refusals(
    tmp_path: Path, capsys: Capture, source: str, flags: list[str], code: int, message: str
) -> None:
    path = tmp_path / "model.plait"
    assert cli.main(["compile", source, "-o", str(path), *flags]) == code
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not path.exists()


def test_output_folder_must_exist(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "nowhere" / "model.plait"
    assert cli.main(["compile", "sample_factories:good", "-o", str(path)]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [CompileFailure(kernel="k_1", message="no registers"), RuntimeError("surprise")]
)
def test_a_failure_leaves_a_repro(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from plait.frontend import standalone

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(standalone, "compile_graph", fail)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    path = tmp_path / "model.plait"
    assert cli.main(["compile", "sample_factories:good", "-o", str(path)]) == 4
    message = capsys.readouterr().err
    folder = Path(message.rstrip().rpartition(" ")[2])
    assert "graph " in (folder / "graph.txt").read_text()
    assert str(error) in (folder / "error.txt").read_text()
    assert json.loads((folder / "settings.json").read_text())["cpu"] == "native"


@pytest.mark.parametrize("verb", ["explain", "compile"])
def test_an_artifact_is_not_a_program(capsys: Capture, tmp_path: Path, verb: str) -> None:
    artifact = tmp_path / "good.plait"
    run(capsys, "compile", "sample_factories:good", "-o", artifact)
    more = ["-o", str(tmp_path / "other.plait")] if verb == "compile" else []
    assert cli.main([verb, str(artifact), *more]) == 2
    told = capsys.readouterr().err
    assert "good.plait: an artifact, compiled already; `plait inspect` shows it" in told
    assert "Traceback" not in told


def test_a_wrong_model_is_not_written(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "good.plait"
    path.write_bytes(b"what was there")
    wrong = compare(np.ones(2, np.float32), np.zeros(2, np.float32))
    monkeypatch.setattr(Standalone, "check", lambda _: {"output": wrong})
    document = run(capsys, "compile", "sample_factories:good", "-o", path, code=1)
    assert (document["path"], document["file_bytes"]) == (None, None)
    assert cli.main(["compile", "sample_factories:good", "-o", str(path)]) == 1
    assert "not written" in capsys.readouterr().out
    assert path.read_bytes() == b"what was there"
    document = run(capsys, "compile", "sample_factories:good", "-o", path, "--no-check")
    assert document["file_bytes"] == path.stat().st_size
