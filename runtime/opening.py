"""TVM imported without what compiling for a CPU does not use: in a fifth of the time.

`import tvm` looks for things that are not there, which is an error inside its libraries, and the
first error of a process makes them read the symbols of every library that is loaded, torch's too.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from plait.ir.errors import EnvironmentProblem
from plait.runtime.garbage import collected_later
from plait.runtime.loader import native, runtime_library, without_torch

EXTRA_LIBRARY = "libtvm_runtime_extra.so"
_AUTOLOAD = "TVM_DEVICE_BACKEND_AUTOLOAD"


def open_tvm() -> None:
    """Import `tvm` without its device back ends, unless it is imported or told what to load.

    A program that wants them imports `tvm` before, or calls `tvm.backend.loader.load`.
    Raises `EnvironmentProblem` if its libraries are missing.
    """
    if "tvm" in sys.modules:
        return
    native()
    extra = runtime_library().with_name(EXTRA_LIBRARY)
    try:
        if extra.exists():  # it knows types that `import tvm` asks for before it opens it
            ctypes.CDLL(str(extra))
        with _without_back_ends(), collected_later(), without_torch():
            importlib.import_module("tvm")
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
