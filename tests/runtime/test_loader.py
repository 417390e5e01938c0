"""Finding and opening the native libraries."""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path

import pytest

from plait.ir.errors import EnvironmentProblem
from plait.runtime import loader


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


def test_a_library_of_another_version() -> None:
    with pytest.raises(EnvironmentProblem, match="another version: it has no such_function"):
        loader._exported(ctypes.PyDLL(None), "such_function")


def test_torch_is_hidden_from_one_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    found: list[object] = []
    with loader.without_torch():
        finder = sys.meta_path[0]
        with pytest.raises(ModuleNotFoundError, match="torch is hidden"):
            finder.find_spec("torch", None)
        other = threading.Thread(target=lambda: found.append(finder.find_spec("torch", None)))
        other.start()
        other.join()
    assert found == [None]
    assert finder not in sys.meta_path
