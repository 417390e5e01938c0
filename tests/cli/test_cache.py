"""`plait cache`: the four verbs on a folder of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plait.cli import main as cli
from plait.runtime.cache import KernelCache

Capture = pytest.CaptureFixture[str]
KEYS = ["0" * 16, "1" * 16, "2" * 16]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelCache:
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(tmp_path / "cache"))
    filled = KernelCache()
    for key in KEYS:
        assert filled.put(key, b"x" * 1000)
    return filled


def run(capsys: Capture, *arguments: str, code: int = 0) -> dict[str, Any]:
    assert cli.main(["cache", *arguments, "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["schema"] == f"plait.cache.{arguments[0]}/1"
    return document


def test_list(cache: KernelCache, capsys: Capture) -> None:
    document = run(capsys, "list")
    assert sorted(entry["key"] for entry in document["entries"]) == KEYS
    assert document["bytes"] == cache.nbytes()
    assert cli.main(["cache", "list"]) == 0
    assert "holds 3 entries" in capsys.readouterr().out


def test_gc_keeps_the_limit(cache: KernelCache, capsys: Capture) -> None:
    assert run(capsys, "gc", "--limit", "1500")["count"] == 2
    assert len(cache.entries()) == 1


def test_gc_refuses_a_bad_limit(cache: KernelCache, capsys: Capture) -> None:
    assert cli.main(["cache", "gc", "--limit", "much"]) == 2
    assert "--limit 'much': expected a size" in capsys.readouterr().err


def test_clear(cache: KernelCache, capsys: Capture) -> None:
    assert run(capsys, "clear")["count"] == 3
    assert cache.entries() == []


def test_verify_removes_the_damaged(cache: KernelCache, capsys: Capture) -> None:
    assert run(capsys, "verify")["count"] == 0
    damaged = cache.path(KEYS[1])
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"y")
    document = run(capsys, "verify", code=1)
    assert document["checked"] == 3
    assert [entry["key"] for entry in document["entries"]] == [KEYS[1]]
    assert len(cache.entries()) == 2
