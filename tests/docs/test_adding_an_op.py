"""The code of docs/adding_an_op.md runs as it stands there, and prints what the page shows."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from plait.ir import op as ops
from plait.passes import pipeline

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget what the page registers."""
    ops.load_all()
    pipeline.load_all()
    tables: tuple[dict[str, object], ...] = (ops.OPS, ops.CAPTURES, pipeline.PASSES)  # type: ignore[assignment]
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module for the page's code to live in, as dataclasses and rules expect."""
    page = ModuleType("adding_an_op")
    monkeypatch.setitem(sys.modules, "adding_an_op", page)
    return page


def test_the_page_runs(
    repo_root: Path, registries: None, module: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    path = repo_root / "docs" / "adding_an_op.md"
    text = path.read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) > 5
    for found in blocks:
        language, code = found.groups()
        if language == "python":
            line = text.count("\n", 0, found.start(2))
            exec(compile("\n" * line + code, str(path), "exec"), vars(module))
        else:
            assert capsys.readouterr().out.strip() == code.strip()


def test_the_page_names_files_that_exist(repo_root: Path) -> None:
    text = (repo_root / "docs" / "adding_an_op.md").read_text()
    named = re.findall(r"`((?:ir|fuzz|tests|codegen)/[\w/.]*)`", text)
    assert named and all((repo_root / name).exists() for name in named)
