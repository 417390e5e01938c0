"""Loggers of the stages, switched on by `PLAIT_LOGS` and `PLAIT_DEBUG`.

`logger(__name__)` in a module gives `plait.<folder>.<module>`, a plain standard logger: silent
until `configure` gives it a handler, and free to be routed by an application that embeds Plait.
"""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec

from plait.ir import knobs
from plait.ir.errors import UsageError

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_FORMAT = "%(levelname).1s %(name)s: %(message)s"
# What the levels of `PLAIT_DEBUG` switch on, from each level up.
_LADDER = (
    (2, "plait.runtime.compiler", logging.INFO),
    (3, "plait.runtime.compiler", logging.DEBUG),
    (4, "plait.codegen.tvm.build", logging.DEBUG),
    (5, "plait.passes.pipeline", logging.DEBUG),
    (6, "plait.passes.rewrite", logging.DEBUG),
)
_set: list[str] = []  # the loggers whose levels are `configure`'s


def logger(module: str) -> logging.Logger:
    """The logger of a module, by its `__name__`."""
    return logging.getLogger(module)


def parse_spec(spec: str) -> dict[str, int]:
    """`passes,runtime.cache:info` as `{"plait.passes": DEBUG, "plait.runtime.cache": INFO}`.

    Raises `UsageError` for a level, and for a part of Plait, that there is not.
    """
    levels: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in spec.split(","))):
        name, _, level = item.partition(":")
        if level and level not in _LEVELS:
            raise UsageError(f"PLAIT_LOGS: level {level!r} of {name!r}: expected {list(_LEVELS)}")
        full = "plait" if name in ("all", "plait") else f"plait.{name.removeprefix('plait.')}"
        if not _is_module(full):
            expected = "expected a folder or a module such as `passes` or `runtime.cache`"
            raise UsageError(f"PLAIT_LOGS: there is no {name!r} to log: {expected}")
        levels[full] = _LEVELS[level or "debug"]
    return levels


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:  # a folder of it is none
        return False


def configure() -> None:
    """Send what the knobs ask for to stderr; may be called again after they changed."""
    root = logging.getLogger("plait")
    for handler in [h for h in root.handlers if getattr(h, "plait_own", False)]:
        root.removeHandler(handler)
    while _set:
        logging.getLogger(_set.pop()).setLevel(logging.NOTSET)
    reached = [(name, level) for at, name, level in _LADDER if at <= knobs.DEBUG.get()]
    levels = {**dict(reached), **parse_spec(knobs.LOGS.get())}
    if not levels:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.plait_own = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
        _set.append(name)
