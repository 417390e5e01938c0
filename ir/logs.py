"""Loggers of the stages, switched on by `PLAIT_LOGS` and `PLAIT_DEBUG`.

`logger(__name__)` in a module gives `plait.<folder>.<module>`, a plain standard logger: silent
until `configure` gives it a handler, and free to be routed by an application that embeds Plait.
"""

from __future__ import annotations

import logging
import sys

from plait.ir import knobs
from plait.ir.errors import UsageError

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_FORMAT = "%(levelname).1s %(name)s: %(message)s"


def logger(module: str) -> logging.Logger:
    """The logger of a module, by its `__name__`."""
    return logging.getLogger(module)


def parse_spec(spec: str) -> dict[str, int]:
    """`passes,runtime.cache:info` as `{"plait.passes": DEBUG, "plait.runtime.cache": INFO}`."""
    levels: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in spec.split(","))):
        name, _, level = item.partition(":")
        if level and level not in _LEVELS:
            raise UsageError(f"PLAIT_LOGS: level {level!r} of {name!r}: expected {list(_LEVELS)}")
        full = "plait" if name in ("all", "plait") else f"plait.{name.removeprefix('plait.')}"
        levels[full] = _LEVELS[level or "debug"]
    return levels


def configure() -> None:
    """Send what `PLAIT_LOGS` asks for to stderr; may be called again after the knob changed."""
    root = logging.getLogger("plait")
    for handler in [h for h in root.handlers if getattr(h, "plait_own", False)]:
        root.removeHandler(handler)
    levels = parse_spec(knobs.LOGS.get())
    if knobs.DEBUG.get() >= 3:
        levels.setdefault("plait", logging.DEBUG)
    if not levels:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.plait_own = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
