"""Knobs: order of sources, bad values, and the logging that they configure."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from plait.ir import knobs, logs
from plait.ir.errors import UsageError


def test_with_beats_environment_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLAIT_DEBUG", raising=False)
    assert (knobs.DEBUG.get(), knobs.DEBUG.source()) == (0, "default")
    monkeypatch.setenv("PLAIT_DEBUG", "2")
    assert (knobs.DEBUG.get(), knobs.DEBUG.source()) == (2, "environment")
    with knobs.DEBUG.set(0):
        assert (knobs.DEBUG.get(), knobs.DEBUG.source()) == (0, "with")
    assert knobs.DEBUG.get() == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PLAIT_DEBUG", "loud"),
        ("PLAIT_DEBUG", "-1"),
        ("PLAIT_DEBUG", "7"),
        ("PLAIT_NUM_THREADS", "0"),
        ("PLAIT_CACHE_LIMIT", "2 apples"),
    ],
)
def test_bad_value_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UsageError, match=f"{name}=.*expected"):
        knobs.KNOBS[name].get()


@pytest.mark.parametrize(("text", "size"), [("500M", 500 << 20), ("2g", 2 << 30), ("17", 17)])
def test_sizes(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("PLAIT_CACHE_LIMIT", text)
    assert knobs.CACHE_LIMIT.get() == size


def test_cache_dir_is_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_CACHE_DIR", "~/kernels")
    assert knobs.CACHE_DIR.get() == Path.home() / "kernels"


def test_a_name_is_declared_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        knobs.Knob("PLAIT_DEBUG", int, lambda: 0, "a number", "")


def test_log_spec() -> None:
    levels = logs.parse_spec("passes, runtime.cache:info")
    assert levels == {"plait.passes": logging.DEBUG, "plait.runtime.cache": logging.INFO}
    with pytest.raises(UsageError, match="level 'loud'"):
        logs.parse_spec("passes:loud")
    for wrong in ("pases", "passes.fuze", "passes.fuse.deeper"):
        with pytest.raises(UsageError, match=f"there is no '{wrong}' to log"):
            logs.parse_spec(wrong)


@pytest.mark.parametrize(
    ("level", "heard"),
    [(1, (False, False, False)), (2, (True, False, False)), (3, (True, True, False)),
     (6, (True, True, True))],
)  # fmt: skip
def test_debug_is_a_ladder(
    level: int, heard: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = logging.getLogger("plait.runtime.compiler")
    rewrite = logging.getLogger("plait.passes.rewrite")
    monkeypatch.setenv("PLAIT_DEBUG", str(level))
    logs.configure()
    found = compiler.isEnabledFor(logging.INFO), compiler.isEnabledFor(logging.DEBUG)
    assert (*found, rewrite.isEnabledFor(logging.DEBUG)) == heard
    monkeypatch.setenv("PLAIT_DEBUG", "0")
    logs.configure()
    assert not compiler.isEnabledFor(logging.INFO)


def test_configure_replaces_its_own_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger("plait")
    before = list(root.handlers)
    monkeypatch.setenv("PLAIT_LOGS", "passes")
    logs.configure()
    logs.configure()
    assert len(root.handlers) == len(before) + 1
    monkeypatch.setenv("PLAIT_LOGS", "")
    logs.configure()
    assert root.handlers == before


def test_a_number_of_threads() -> None:
    assert knobs.thread_count(3) == 3
    with knobs.NUM_THREADS.set(7):
        assert knobs.thread_count(None) == 7
    wrong: list[Any] = [0, -1, 1.5, "2", True]
    for given in wrong:
        with pytest.raises(UsageError, match=f"threads={given!r}: expected"):
            knobs.thread_count(given)


def test_by_default_as_many_threads_as_there_are_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLAIT_NUM_THREADS", raising=False)
    assert knobs.thread_count(None) == len(os.sched_getaffinity(0))
