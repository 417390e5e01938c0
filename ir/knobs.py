"""The knobs: every setting that the environment can change, each declared once.

A knob is read from, in this order: the innermost `with KNOB.set(value):` of this thread or task,
the environment variable, the default. It lives in the lowest folder so that any stage may read one.
A stage that generates different code for different values puts the value in its cache key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from plait.ir.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Knob(Generic[T]):
    """One setting.

    `parse` turns the variable's text into a value and raises ValueError on a bad one; `expected`
    completes the sentence "expected ..." of the error.
    """

    name: str
    parse: Callable[[str], T]
    default: Callable[[], T]
    expected: str
    help: str
    _override: ContextVar[T | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_override", ContextVar(self.name, default=None))
        if self.name in KNOBS:
            raise ValueError(f"knob {self.name} is declared twice")
        KNOBS[self.name] = self

    def get(self) -> T:
        """The value in force. Raises `UsageError` when the environment holds a bad one."""
        override = self._override.get()
        if override is not None:
            return override
        text = os.environ.get(self.name, "").strip()
        if not text:
            return self.default()
        try:
            return self.parse(text)
        except ValueError:
            raise UsageError(f"{self.name}={text!r}: expected {self.expected}") from None

    @contextmanager
    def set(self, value: T) -> Iterator[None]:
        """Override the knob for the body of a `with` statement."""
        token = self._override.set(value)
        try:
            yield
        finally:
            self._override.reset(token)

    def source(self) -> str:
        """Where the value comes from: `with`, `environment` or `default`."""
        if self._override.get() is not None:
            return "with"
        return "environment" if os.environ.get(self.name, "").strip() else "default"


_SIZE = "a size such as 500M or 2G"
KNOBS: dict[str, Knob[Any]] = {}


def _natural(low: int, high: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise ValueError(text)
        return value

    return parse


def parse_size(text: str, what: str) -> int:
    """Bytes from `500M`, `2G` or a plain number; a bad one is a `UsageError` that names `what`."""
    try:
        return _size(text)
    except ValueError:
        raise UsageError(f"{what} {text!r}: expected {_SIZE}") from None


def _size(text: str) -> int:
    """Bytes from `500M`, `2G` or a plain number."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    unit = units.get(text[-1:].upper(), 1)
    value = float(text[:-1] if unit > 1 else text)
    if value < 0:
        raise ValueError(text)
    return int(value * unit)


def _default_cache_dir() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("plait", appauthor=False)


def available_cpus() -> int:
    """The CPUs this process may use; at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


DEBUG = Knob(
    "PLAIT_DEBUG",
    _natural(0, 6),
    lambda: 0,
    "a number from 0 to 6",
    "how much to tell, each level with those before: 1 tracebacks, 2 what a compilation took, 3 "
    "kernels and their schedules, 4 code as it is generated, 5 IR after each pass, 6 every rewrite",
)
LOGS = Knob(
    "PLAIT_LOGS",
    str,
    lambda: "",
    "names of folders or modules such as `passes,runtime.cache:debug`",
    "which parts log to stderr, each with an optional level (debug, info, warning)",
)
CACHE_DIR = Knob(
    "PLAIT_CACHE_DIR",
    lambda text: Path(text).expanduser(),
    _default_cache_dir,
    "a folder",
    "where compiled kernels are kept",
)
CACHE_LIMIT = Knob(
    "PLAIT_CACHE_LIMIT",
    _size,
    lambda: 2 << 30,
    _SIZE,
    "the size that `plait cache gc` brings the cache down to; nothing else removes entries",
)
NUM_THREADS = Knob(
    "PLAIT_NUM_THREADS",
    _natural(1),
    available_cpus,
    "a number of threads, at least 1",
    "threads that compiled models use (default: the CPUs this process may use)",
)


def thread_count(given: int | None) -> int:
    """The number of threads that a caller gave, or else the knob's.

    Raises `UsageError` for what is not a number of threads.
    """
    if given is None:
        return NUM_THREADS.get()
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise UsageError(f"threads={given!r}: expected {NUM_THREADS.expected}")
    return given
