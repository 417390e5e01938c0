"""What a verb prints: results on stdout, as text or as one JSON document; talk on stderr.

Each JSON document carries `schema`, `plait.<verb>/<version>`. Within a version fields are only
added; a field that changes its meaning or goes raises the version in `SCHEMAS`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

SCHEMAS: dict[str, int] = {
    "error": 1,
    "doctor": 1,
    "explain": 1,
    "compile": 1,
    "run": 1,
    "bench": 1,
    "tune": 1,
    "profile": 1,
    "inspect": 1,
    "cache.list": 1,
    "cache.gc": 1,
    "cache.clear": 1,
    "cache.verify": 1,
}

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

_json_mode: ContextVar[bool] = ContextVar("plait_json_mode", default=False)


def set_json_mode(on: bool) -> None:
    """Set by `main` before the arguments are parsed, so that usage errors are JSON too."""
    _json_mode.set(on)


def _plain(value: object) -> Any:
    """JSON for the few other types that results hold."""
    if isinstance(value, Path):
        return str(value)
    tolist = getattr(value, "tolist", None)
    if tolist is not None:
        return tolist()
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinities, which JSON cannot write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def document(verb: str, data: Mapping[str, Any]) -> str:
    """The JSON text of a verb's result. Raises KeyError for a verb without a schema version."""
    head = {"schema": f"plait.{verb}/{SCHEMAS[verb]}"}
    return json.dumps(_finite({**head, **data}), indent=2, default=_plain, allow_nan=False)


def emit(
    verb: str, data: Mapping[str, Any], text: Callable[[Console], None], as_json: bool
) -> None:
    """Print a result: the JSON document, or what `text` draws on the console."""
    if as_json:
        print(document(verb, data))
    else:
        text(console())


def fail(message: str, *, kind: str, exit_code: int) -> None:
    """Print an error's sentence on stderr, and in JSON mode its document on stdout."""
    print(f"plait: {message}", file=sys.stderr)
    if _json_mode.get():
        body = {"kind": kind, "message": message, "exit_code": exit_code}
        print(document("error", {"error": body}))


def console() -> Console:
    """The console for results. It does not wrap lines that go to a file or a pipe."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    return Console(width=width, highlight=False, soft_wrap=True)


def print_table(where: Console, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; columns whose name ends in `>` are right-aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    where.print(table)


def format_bytes(size: float) -> str:
    """`3.4 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def format_seconds(seconds: float) -> str:
    """`12.3 ms`, with the unit that keeps the number readable."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


@contextmanager
def working(label: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr for work that may take seconds; yields a function that changes its label.

    Silent where stderr is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status(label) as status:
        yield status.update


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr; yields a function that takes (stage, done, total).

    Silent where stderr is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None)

        def update(stage: str, done: int, total: int) -> None:
            progress.update(task, description=f"{label}: {stage}", completed=done, total=total)

        yield update
