"""The native side: open TVM's runtime library, link object code in memory, control its threads.

Needs the packages apache-tvm-ffi and apache-tvm-ffi-orcjit, and `libtvm_runtime.so` out of the
apache-tvm wheel; imports neither `tvm` nor torch, and runs no compiler and no linker.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from plait.ir.errors import ArtifactError, EnvironmentProblem
from plait.ir.logs import logger

_log = logger(__name__)

RUNTIME_LIBRARY = "libtvm_runtime.so"
# An idle worker looks for work this often before it sleeps, some 5 ms; TVM's own 300000 burn a
# core for a tenth of a second after each run.
SPIN_COUNT = "20000"

_MOVE_EVERY_S = 0.01
_ONE_CORE_PER_THREAD = -2  # an affinity mode of TVM's pool
_SET_MAX_CONCURRENCY = "_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"
_NO_COMPILER = "plait-runs-no-compiler"


class Native:
    """The native libraries of this process; get it from `native()`."""

    def __init__(self) -> None:
        os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", SPIN_COUNT)
        path = runtime_library()
        with without_torch():
            ffi = _import("tvm_ffi")
            # Its pool sets the pointer that parallel loops in object code call through.
            self.library = _open(path)
            orcjit = _import("tvm_ffi_orcjit")
        self.current_cpu: Callable[[], int] = ctypes.PyDLL(None)["sched_getcpu"]
        self.session: Any = orcjit.default_session()
        self.set_max_concurrency: Callable[[int], None] = _set_max_concurrency(self.library)
        self.pool_size: Callable[[], int] = ffi.get_global_func("runtime.NumThreads")
        self.configure_pool: Callable[[int, int, list[str]], None] = ffi.get_global_func(
            "runtime.config_threadpool"
        )


class Library:
    """Linked object code; its functions live as long as it does."""

    def __init__(self, objects: Sequence[bytes]) -> None:
        """Link the objects' content; raises `ArtifactError` if a symbol has no definition."""
        # Naming no compiler keeps the linker from asking one where its C++ runtime is.
        try:
            self._module = native().session.load_module(list(objects), cxx=_NO_COMPILER)
        except (RuntimeError, ValueError) as error:
            raise _not_linked("object code", error) from error

    def function(self, symbol: str, keep_lock: bool = False) -> Callable[..., Any]:
        """The function exported as `symbol`; raises `ArtifactError` if it cannot be linked.

        Pointers are passed as `ctypes.c_void_p`, tensors as anything that speaks DLPack.  Calls let
        go of Python's global lock unless `keep_lock`.
        """
        try:
            function: Any = self._module.get_function(symbol)
            function.release_gil = not keep_lock
        except (AttributeError, RuntimeError, ValueError) as error:
            raise _not_linked(symbol, error) from error
        checked: Callable[..., Any] = function
        return checked


class Threads(threading.local):
    """How many threads parallel loops use, set for the Python thread that is about to run code.

    TVM keeps a pool for each thread that launches parallel loops.  A pool can use fewer workers
    than it was made with, never more, so it is made as large as this process may need.  Launcher
    and workers wait by yielding, so two that share a CPU only pass it to and fro, and the scheduler
    sees no reason to part them: each worker is bound to one CPU, and the launcher, which stays
    free, is moved off those CPUs when a run finds it there.

    In a forked process the one thread that is left has a pool whose workers are gone, and can get
    no other: it runs alone.  Threads started there have pools of their own.
    """

    def __init__(self) -> None:
        self.count = 0
        self._pool = 0
        self._moved = 0.0
        self._limit = 0
        self._cpus: list[int] = []
        self._workers: frozenset[int] = frozenset()
        self._alone = False

    def forked(self) -> None:
        """To be called in a new process for the thread that went on there."""
        if self._pool:
            self._alone, self.count, self._workers = True, 0, frozenset()

    def use(self, count: int, cpu: int | None = None) -> None:
        """Make parallel loops started by the calling thread use `count` threads (1: none).

        `cpu` is the one that the thread runs on, if the caller knows.
        """
        if self._alone:
            count = 1
        if count != self.count:
            self._switch(count)
        if count > 1 and (native().current_cpu() if cpu is None else cpu) in self._workers:
            self._move()

    def _move(self) -> None:
        """Take this thread off the workers' CPUs, but do not fight a busy scheduler over it."""
        now = time.monotonic()
        if now - self._moved > _MOVE_EVERY_S:
            allowed = os.sched_getaffinity(0)  # it may have been narrowed since the pool was made
            if free := allowed - self._workers:
                os.sched_setaffinity(0, free)
                os.sched_setaffinity(0, allowed)
            self._moved = now

    def _switch(self, count: int) -> None:
        lib = native()
        if self._alone:
            _log.warning("forked from a process that ran models: here they use one thread")
        if count > 1 and count != self._limit:
            self._cpus = sorted(os.sched_getaffinity(0))
            if self._pool == 0:
                self._pool = max(count, len(self._cpus))
                lib.set_max_concurrency(self._pool)
                lib.pool_size()  # makes the pool, and binds this thread to CPUs of TVM's choice
            used = min(count, self._pool)
            # Worker i goes to the CPU at i; this thread, number 0, may use all of them again.
            lib.configure_pool(_ONE_CORE_PER_THREAD, used, [str(c) for c in self._cpus])
            enough = self._pool <= len(self._cpus)
            self._workers = frozenset(self._cpus[1:used]) if enough else frozenset()
            self._limit = count
        lib.set_max_concurrency(count)
        self.count = count


_native: list[Native] = []
_lock = threading.Lock()


def native() -> Native:
    """The native libraries, opened at first use.

    Raises `EnvironmentProblem` (exit code 6) if a package is missing or cannot be opened.
    """
    if not _native:
        with _lock:
            if not _native:
                _native.append(Native())
    return _native[0]


def _not_linked(what: str, error: Exception) -> ArtifactError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ArtifactError(path=what, message=f"cannot be linked: {reason}")


def runtime_library() -> Path:
    """Where the installed apache-tvm has `libtvm_runtime.so`, found without importing `tvm`."""
    spec = importlib.util.find_spec("tvm")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "lib" / RUNTIME_LIBRARY
        if path.is_file():
            return path
    message = "is not installed (pip install 'plait[runtime]')"
    raise EnvironmentProblem(what=f"{RUNTIME_LIBRARY} of apache-tvm", message=message)


def _open(path: Path) -> ctypes.PyDLL:
    try:
        return ctypes.PyDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise EnvironmentProblem(what=str(path), message=f"cannot be opened: {error}") from error


def _set_max_concurrency(library: ctypes.PyDLL) -> Callable[[int], None]:
    """The C++ function that sets the calling thread's limit; TVM exports no C name for it."""
    try:
        function = library[_SET_MAX_CONCURRENCY]
    except AttributeError as error:
        message = "is another version: its thread control is missing"
        raise EnvironmentProblem(what=RUNTIME_LIBRARY, message=message) from error
    function.argtypes, function.restype = [ctypes.c_int], None
    return function


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        message = f"cannot be imported: {error} (pip install 'plait[runtime]')"
        raise EnvironmentProblem(what=f"the package {name}", message=message) from error


class _HideTorch:
    """A finder that makes `import torch` fail in one thread, and in no other."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == "torch" and threading.get_ident() == self.thread:
            raise ModuleNotFoundError("torch is hidden while tvm_ffi loads", name="torch")
        return None


@contextmanager
def without_torch() -> Iterator[None]:
    """TVM and `tvm_ffi` import torch where they find it, for seconds: keep them from doing so.

    Where torch is loaded already, nothing changes; torch may also be imported afterwards.
    """
    if "torch" in sys.modules:
        yield
        return
    with asked_first(_HideTorch()):
        yield


@contextmanager
def asked_first(finder: Any) -> Iterator[None]:
    """Imports inside ask this finder of modules before all others."""
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
