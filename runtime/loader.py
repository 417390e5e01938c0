"""The native side: open TVM's runtime library, link object code in memory, keep its threads.

Needs the packages apache-tvm-ffi and apache-tvm-ffi-orcjit, and `libtvm_runtime.so` out of the
apache-tvm wheel; imports neither `tvm` nor torch, and runs no compiler and no linker.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from plait.codegen import pool
from plait.ir.errors import ArtifactError, EnvironmentProblem

RUNTIME_LIBRARY = "libtvm_runtime.so"
_LAUNCH = b"__TVMBackendParallelLaunch"  # the pointer that parallel loops in object code call by
_NO_COMPILER = "plait-runs-no-compiler"
# Held while the native libraries open, link or look up, and by a thread that forks: in the new
# process nobody would ever give back what another thread held.
_linking = threading.RLock()
os.register_at_fork(
    before=_linking.acquire, after_in_parent=_linking.release, after_in_child=_linking.release
)


class Native:
    """The native libraries of this process; get it from `native()`."""

    def __init__(self) -> None:
        path = runtime_library()
        with without_torch():
            _import("tvm_ffi")
            self.library = _open(path)
            orcjit = _import("tvm_ffi_orcjit")
        self.session: Any = orcjit.default_session()
        tvm_launch = _exported(self.library, "TVMBackendParallelLaunch")
        self._tvm_launch = ctypes.cast(tvm_launch, ctypes.c_void_p).value
        self._set_launch = _exported(self.library, "TVMFFIEnvModRegisterContextSymbol")
        self._set_launch.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        self._pool: Pool | None = None

    def pool(self, code: bytes) -> Pool:
        """The threads of this process, made from the first object of them that is given."""
        with _linking:
            if self._pool is None:
                self._pool = Pool(_Linked(self, [code]))
            return self._pool

    @contextmanager
    def launching_by(self, pool: Pool) -> Iterator[None]:
        """Parallel loops of objects that are linked inside share their tasks with the pool."""
        with _linking:
            self._set_launch(_LAUNCH, pool.launch)
            try:
                yield
            finally:  # objects of others are for TVM's own pool
                self._set_launch(_LAUNCH, self._tvm_launch)


class _Linked:
    """Object code in this process; its functions live as long as it does."""

    def __init__(self, lib: Native, objects: Sequence[bytes]) -> None:
        """Raises `ArtifactError` if a symbol has no definition."""
        # Naming no compiler keeps the linker from asking one where its C++ runtime is.
        try:
            with _linking:
                self._module = lib.session.load_module(list(objects), cxx=_NO_COMPILER)
        except (RuntimeError, ValueError) as error:
            raise _not_linked("object code", error) from error

    def function(self, symbol: str, keep_lock: bool = False) -> Callable[..., Any]:
        """The function exported as `symbol`; raises `ArtifactError` if it cannot be linked.

        Pointers are passed as `ctypes.c_void_p`, tensors as anything that speaks DLPack.  Calls let
        go of Python's global lock unless `keep_lock`.
        """
        try:
            with _linking:
                function: Any = self._module.get_function(symbol)
            function.release_gil = not keep_lock
        except (AttributeError, RuntimeError, ValueError) as error:
            raise _not_linked(symbol, error) from error
        checked: Callable[..., Any] = function
        return checked


class Library(_Linked):
    """Linked object code; its functions live as long as it does."""

    def __init__(self, objects: Sequence[bytes], pool: bytes) -> None:
        """Link the objects' content, and that of the threads' if this process has none yet.

        Raises `ArtifactError` if a symbol has no definition.
        """
        lib = native()
        self.pool = lib.pool(pool)
        with lib.launching_by(self.pool):
            super().__init__(lib, objects)


class Pool:
    """The threads that help with parallel loops: `plait.codegen.tvm.pool`, linked.  One a process.

    Each thread that launches such loops says of how many tasks they are.
    """

    def __init__(self, code: _Linked) -> None:
        self._code = code  # workers are in it until they end
        self.launch = int(code.function(pool.MADE)())
        if not self.launch:
            message = "cannot be made: the process has no more keys of threads (PTHREAD_KEYS_MAX)"
            raise EnvironmentProblem(what="the pool of threads", message=message)
        self._ask, self._end = code.function(pool.ASKED), code.function(pool.ENDED)
        self._left = code.function(pool.LEFT)
        self._asked = _Asked()
        atexit.register(self._end)
        os.register_at_fork(after_in_child=self._forked)

    def use(self, count: int) -> None:
        """Share parallel loops that the calling thread launches among `count` threads (1: none)."""
        while count != self._asked.count:  # a handler of signals may use it in between
            self._asked.count = count
            self._ask(count)

    def _forked(self) -> None:
        """The workers are in the process that this one came from: it starts its own."""
        self._left()
        self._asked.count = 0


class _Asked(threading.local):
    """What the thread at hand has asked for; 0: nothing yet."""

    count = 0


_native: list[Native] = []


def native() -> Native:
    """The native libraries, opened at first use.

    Raises `EnvironmentProblem` (exit code 6) if a package is missing or cannot be opened.
    """
    if not _native:
        with _linking:
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


def _exported(library: ctypes.PyDLL, name: str) -> Any:
    try:
        return library[name]
    except AttributeError as error:
        message = f"is another version: it has no {name}"
        raise EnvironmentProblem(what=RUNTIME_LIBRARY, message=message) from error


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
