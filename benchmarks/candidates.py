"""A candidate in a process of its own: built with empty caches, weighed, and timed on demand.

The process is forked from one that holds the model, so that all candidates start alike and none
gains from what another has imported, cached or freed. It then waits, asleep, until it is asked for
a sample; who asks the candidates in turns compares them as if they were in one process.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeAlias

from numpy.typing import NDArray

from plait.runtime.bench import Sampler

Call: TypeAlias = Callable[[], list[NDArray[Any]]]
# Where those keep what they compiled that keep it on disk.
CACHES: Final = ("PLAIT_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
REASON_CHARACTERS: Final = 200
SAMPLE_LIMIT: Final = 300.0  # seconds
_MADV_POPULATE_READ: Final = 22  # of Linux 5.14 and later


class CandidateFailed(Exception):
    """A candidate could not be built or run; the message says why in a line."""


@dataclass(frozen=True)
class Built:
    """What building a candidate and running it twice took.

    `build_seconds` reach from the loaded model to its first results, the imports of the compiler
    included; `run_seconds` are those of the second run. `peak_bytes` is how far the resident memory
    of the process rose meanwhile; compilers that it started as other processes are not in it.
    """

    build_seconds: float
    run_seconds: float
    peak_bytes: int
    results: list[NDArray[Any]]


class Candidate:
    """A running process with a built candidate; leaving its `with` statement ends the process.

    `sample()` is one sample of `plait.runtime.bench.Sampler`, in seconds per call.
    """

    def __init__(self, build: Callable[[], Call], limit: float) -> None:
        """Build; raises `CandidateFailed` if that fails or takes more than `limit` seconds."""
        self._folder = tempfile.TemporaryDirectory()
        self._connection, far = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        arguments = (build, far, self._connection, self._folder.name)
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        self._group = self._process.pid
        far.close()
        try:
            self.built = self._first(limit)
        except BaseException:
            self._end()
            raise

    def _first(self, limit: float) -> Built:
        if not self._connection.poll(limit):
            raise CandidateFailed(f"building it and two runs took more than {limit:g} s")
        answer = self._answer()
        if isinstance(answer, Built):
            return answer
        raise CandidateFailed(answer)

    def _answer(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            self._kill()
            code = self._process.exitcode
            raise CandidateFailed(f"its process ended with code {code}") from None

    def sample(self) -> float:
        """Seconds per call. Raises `CandidateFailed` if the process ended or takes too long."""
        with suppress(OSError):  # of a process that has ended: there is no answer either
            self._connection.send("sample")
        if not self._connection.poll(SAMPLE_LIMIT):
            raise CandidateFailed(f"a sample took more than {SAMPLE_LIMIT:g} s")
        seconds: float = self._answer()
        return seconds

    def _kill(self) -> None:
        """End the process and the compilers that it started; once: its number may be used again."""
        if self._group is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGKILL)
            self._group = None
            self._process.kill()
            self._process.join()

    def _end(self) -> None:
        self._kill()
        self._connection.close()
        self._folder.cleanup()

    def __enter__(self) -> Candidate:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()


def _serve(build: Callable[[], Call], asked: Connection, parent: Connection, folder: str) -> None:
    """The process of a candidate, until its parent closes the connection."""
    os.setsid()
    parent.close()  # or this process would keep its own connection open
    os.environ.update({name: str(Path(folder) / name) for name in CACHES})
    # What the parent has freed, or frees while building, would hide what that takes.
    gc.collect()
    _trim_heap()
    _map_libraries()
    _forget_peak()
    before = resident("VmRSS")
    start = time.perf_counter()
    try:
        call = build()
        results = call()
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        call()
        again = time.perf_counter() - start
    except Exception as error:  # a peer may fail in any way; the table must say so
        asked.send(reason(error))
        return
    asked.send(Built(seconds, again, resident("VmHWM") - before, results))
    sampler = None
    while True:
        try:
            asked.recv()
        except EOFError:
            return
        sampler = sampler or Sampler(call, warmup=1)  # it has run twice
        asked.send(sampler())


def reason(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:REASON_CHARACTERS]}"


def resident(field: str) -> int:
    """Bytes of resident memory of this process: `VmRSS`, now, or `VmHWM`, the most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) << 10
    raise LookupError(field)


def _trim_heap() -> None:
    """Give back the memory that the allocator keeps, if it is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _forget_peak() -> None:
    """Let `VmHWM` start again from what is resident now; where that is refused, it counts more."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _map_libraries() -> None:
    """Make what the parent had loaded of files resident here too.

    A fork starts without it and gets it back page by page, which is no growth of memory. Where the
    kernel cannot do this, some tens of megabytes too many are counted for every candidate.
    """
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, _, _, _, *path = line.split(maxsplit=5)
        if path and path[0].startswith("/") and access.startswith("r"):
            start, end = (int(text, 16) for text in addresses.split("-"))
            address, size = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
            libc.madvise(address, size, _MADV_POPULATE_READ)
