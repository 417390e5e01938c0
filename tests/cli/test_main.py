"""Exit codes, one-sentence errors and JSON documents of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from plait import __version__
from plait.cli import doctor, output
from plait.cli import main as cli
from plait.ir import errors, knobs

Capture = pytest.CaptureFixture[str]


def run_failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, *flags: str) -> int:
    """Run `plait doctor` with a self-test that raises."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "_run_sections", fail)
    return cli.main(["doctor", *flags])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.PassMismatch(name="fuse", output=0, reason="differs"), 1),
        (errors.UnknownName("option", "fuze", ["fuse"]), 2),
        (errors.UnsupportedOp("aten.nonzero.default"), 3),
        (errors.CompileFailure(kernel="k_1", message="no registers"), 4),
        (errors.TargetMismatch(path="m.plait", target="avx512f", missing="avx512f"), 5),
        (errors.EnvironmentProblem(what="torch", message="it is missing"), 6),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 6),
        (FileNotFoundError(2, "No such file or directory", "model.pt2"), 2),
        (RuntimeError("surprise"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: BaseException, code: int
) -> None:
    monkeypatch.delenv("PLAIT_DEBUG", raising=False)
    assert run_failing(monkeypatch, error) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("plait: ")
    assert printed.err.count("\n") == 1, "one sentence, no traceback"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("PLAIT_DEBUG", "1")
    assert run_failing(monkeypatch, RuntimeError("surprise")) == 4
    assert "Traceback" in capsys.readouterr().err


def test_errors_are_json_on_request(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert run_failing(monkeypatch, errors.UnsupportedOp("aten.foo"), "--json") == 3
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "plait.error/1"
    assert document["error"]["kind"] == "UnsupportedOp"
    assert "aten.foo" in document["error"]["message"]


@pytest.mark.parametrize("arguments", [["nonsense"], ["doctor", "--no-such-flag"]])
def test_usage_errors(arguments: list[str], capsys: Capture) -> None:
    assert cli.main(arguments) == 2
    assert "--help" in capsys.readouterr().err


def test_version(capsys: Capture) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"plait {__version__}\n"


def test_doctor_json(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(doctor, "SECTIONS", doctor.SECTIONS[:2])
    assert cli.main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "plait.doctor/1"
    assert document["healthy"] is True
    assert {"name", "value", "source", "help"} == set(document["knobs"][0])


def test_doctor_fails_with_six(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    broken: Callable[[], object] = lambda: iter([doctor.Check("disk", doctor.FAIL, "full")])  # noqa: E731
    monkeypatch.setattr(doctor, "SECTIONS", [("Machine", [broken])])
    assert cli.main(["doctor"]) == 6
    assert "full" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.0, "2 s"), (0.0123, "12.3 ms"), (4.5e-6, "4.5 µs")]
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert output.format_seconds(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(12, "12 B"), (3.5 * 2**20, "3.5 MiB")])
def test_format_bytes(size: float, text: str) -> None:
    assert output.format_bytes(size) == text


VERBS = [[name] for _, name in cli.COMMANDS] + [
    ["cache", verb] for verb in ("list", "gc", "clear", "verify")
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_and_json(verb: list[str], capsys: Capture) -> None:
    assert cli.main([*verb, "--help"]) == 0
    assert "--json" in capsys.readouterr().out
    assert ".".join(verb) in output.SCHEMAS


def test_readme_lists_every_knob(repo_root: Path) -> None:
    readme = (repo_root / "README.md").read_text()
    assert [name for name in knobs.KNOBS if f"`{name}`" not in readme] == []
