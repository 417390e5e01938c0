"""`plait cache`: look at and tidy the folder of compiled kernels."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli import output
from plait.ir import knobs

if TYPE_CHECKING:
    from rich.console import Console

    from plait.runtime.cache import Entry

app = typer.Typer(no_args_is_help=True, help="Look at and tidy the folder of compiled kernels.")

LimitOption = Annotated[
    str, typer.Option("--limit", help="Size to keep, such as 500M (default: PLAIT_CACHE_LIMIT).")
]


def _record(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "key": entry.key,
        "bytes": entry.nbytes,
        "unused_seconds": round(max(0.0, time.time() - entry.used), 3),
    }


def _summary(entries: list[Entry]) -> dict[str, Any]:
    return {
        "folder": str(knobs.CACHE_DIR.get()),
        "count": len(entries),
        "bytes": sum(entry.nbytes for entry in entries),
        "entries": [_record(entry) for entry in entries],
    }


def _sentence(verb: str, data: dict[str, Any]) -> str:
    return f"{verb} {data['count']} entries, {output.format_bytes(data['bytes'])}"


@app.command("list")
def list_entries(as_json: output.JsonFlag = False) -> None:
    """List the entries, the longest unused first."""
    from plait.runtime.cache import KernelCache

    data = _summary(KernelCache().entries())
    rows = [
        (entry["kind"], entry["key"][:16], output.format_bytes(entry["bytes"]), _age(entry))
        for entry in data["entries"]
    ]

    def draw(where: Console) -> None:
        if rows:
            output.print_table(where, ["kind", "key", "size>", "unused for>"], rows)
        where.print(_sentence("holds", data) + f" in {data['folder']}", markup=False)

    output.emit("cache.list", data, draw, as_json)


def _age(entry: dict[str, Any]) -> str:
    seconds = entry["unused_seconds"]
    for scale, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= scale:
            return f"{seconds / scale:.0f} {unit}"
    return f"{seconds:.0f} s"


@app.command("gc")
def collect(limit: LimitOption = "", as_json: output.JsonFlag = False) -> None:
    """Remove the longest unused entries until the size limit holds."""
    from plait.runtime.cache import KernelCache

    bound = knobs.parse_size(limit, "--limit") if limit else None
    data = _summary(KernelCache().gc(bound))
    output.emit("cache.gc", data, lambda where: where.print(_sentence("removed", data)), as_json)


@app.command("clear")
def clear(as_json: output.JsonFlag = False) -> None:
    """Remove every entry."""
    from plait.runtime.cache import KernelCache

    data = _summary(KernelCache().clear())
    output.emit("cache.clear", data, lambda where: where.print(_sentence("removed", data)), as_json)


@app.command("verify")
def verify(as_json: output.JsonFlag = False) -> None:
    """Check every entry against its digest and remove the damaged; exit 1 if there were any."""
    from plait.runtime.cache import KernelCache

    cache = KernelCache()
    checked = len(cache.entries())
    data = {"checked": checked, **_summary(cache.remove_damaged())}
    text = f"checked {checked} entries, " + _sentence("removed", data)
    output.emit("cache.verify", data, lambda where: where.print(text), as_json)
    if data["count"]:
        raise typer.Exit(1)
