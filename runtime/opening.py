"""TVM imported without what compiling for a CPU does not use.

`import tvm` looks for things that are not there, which is an error inside its libraries, and the
first error of a process makes them read the symbols of every library that is loaded, torch's too.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from plait.ir.errors import EnvironmentProblem
from plait.runtime.garbage import collected_later
from plait.runtime.loader import asked_first, native, runtime_library, without_torch

EXTRA_LIBRARY = "libtvm_runtime_extra.so"
_AUTOLOAD = "TVM_DEVICE_BACKEND_AUTOLOAD"
# A third of what `import tvm` takes: graphs of models, and schedules by rule or by search.
_LATER: Final = ("tvm.relax", "tvm.s_tir.meta_schedule", "tvm.s_tir.dlight")


def open_tvm() -> None:
    """Import `tvm` without its device back ends, unless it is imported or told what to load.

    A program that wants them imports `tvm` before, or calls `tvm.backend.loader.load`; packages
    that compiling does not use are imported when somebody asks for them.
    Raises `EnvironmentProblem` if its libraries are missing.
    """
    if "tvm" in sys.modules:
        return
    native()
    extra = runtime_library().with_name(EXTRA_LIBRARY)
    try:
        if extra.exists():  # it knows types that `import tvm` asks for before it opens it
            ctypes.CDLL(str(extra))
        with _without_back_ends(), _without_packages(), collected_later(), without_torch():
            importlib.import_module("tvm.s_tir")
    except (ImportError, OSError) as error:
        message = f"cannot be imported: {error} (pip install 'plait[compile]')"
        raise EnvironmentProblem(what="the package tvm", message=message) from error


@contextmanager
def _without_back_ends() -> Iterator[None]:
    if _AUTOLOAD in os.environ:
        yield
        return
    os.environ[_AUTOLOAD] = "0"
    try:
        yield
    finally:
        os.environ.pop(_AUTOLOAD, None)  # another thread may have taken it back


class _Empty(Loader):
    """Finds and loads packages with nothing in them, in one thread."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        meant = name in _LATER and threading.get_ident() == self.thread
        return ModuleSpec(name, self, is_package=True) if meant else None

    def create_module(self, spec: ModuleSpec) -> None:
        """As Python makes modules."""

    def exec_module(self, module: ModuleType) -> None:
        """Leaves it empty."""


@contextmanager
def _without_packages() -> Iterator[None]:
    """`import tvm` finds some packages empty; afterwards they are as if not imported yet."""
    try:
        with asked_first(_Empty()):
            yield
    finally:
        for name in _LATER:
            parent, _, child = name.rpartition(".")
            if sys.modules.pop(name, None) is not None and parent in sys.modules:
                _import_when_asked(sys.modules[parent], child)


def _import_when_asked(package: ModuleType, child: str) -> None:
    """Make a package import a package of its own as soon as that is read from it (PEP 562)."""
    package.__dict__.pop(child, None)
    before = getattr(package, "__getattr__", None)

    def get(name: str) -> Any:
        if name == child:
            return importlib.import_module(f"{package.__name__}.{child}")
        if before is not None:
            return before(name)
        raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")

    setattr(package, "__getattr__", get)  # noqa: B010
