"""Finding and opening the native libraries, and the threads of parallel loops."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from plait.ir.errors import EnvironmentProblem
from plait.ir.knobs import NUM_THREADS
from plait.runtime import loader
from plait.runtime.loader import Threads, native


def test_the_runtime_library_is_found() -> None:
    assert loader.runtime_library().name == "libtvm_runtime.so"


def test_an_installation_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'plait\[runtime\]'"):
        loader.runtime_library()


def test_a_library_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "libtvm_runtime.so"
    path.write_bytes(b"not a library")
    with pytest.raises(EnvironmentProblem, match="cannot be opened"):
        loader._open(path)


def test_torch_is_hidden_from_one_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    found: list[object] = []
    with loader._without_torch():
        finder = sys.meta_path[0]
        with pytest.raises(ModuleNotFoundError, match="torch is hidden"):
            finder.find_spec("torch", None)
        other = threading.Thread(target=lambda: found.append(finder.find_spec("torch", None)))
        other.start()
        other.join()
    assert found == [None]
    assert finder not in sys.meta_path


def in_new_thread(counts: list[int]) -> list[int]:
    """How many threads TVM would use after each of `counts`, seen from a thread of its own."""
    seen: list[int] = []

    def work() -> None:
        threads = Threads()
        for count in counts:
            threads.use(count)
            seen.append(native().pool_size() if count > 1 else 1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return seen


def test_threads_can_be_fewer_and_more_again() -> None:
    most = max(2, len(os.sched_getaffinity(0)))
    assert in_new_thread([2, 1, 2]) == [2, 1, 2]
    assert in_new_thread([1, most, 2, most]) == [1, most, 2, most]


def test_the_default_is_the_knob() -> None:
    assert loader.default_threads() == len(os.sched_getaffinity(0))
    with NUM_THREADS.set(7):
        assert loader.default_threads() == 7
