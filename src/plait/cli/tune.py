"""`plait tune`: measure a model's kernels, so that later compilations choose the fastest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli import output
from plait.cli.explain import SourceArgument
from plait.cli.run import ThreadsOption
from plait.ir.errors import UnsupportedOp, UsageError
from plait.runtime.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from plait.runtime.cache import KernelCache
    from plait.runtime.tune import Record

UNITS = {"": 1.0, "s": 1.0, "m": 60.0}


def seconds(text: str) -> float:
    """`90`, `90s` or `1.5m` in seconds; `UsageError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|)", text.strip())
    if found is None:
        raise UsageError(f"--budget {text}: expected seconds or minutes, as in 60s or 1.5m")
    return float(found.group(1)) * UNITS[found.group(2)]


def _read(path: Path) -> list[Record]:
    """The records of a file; `UsageError` if it is none."""
    from plait.runtime.tune import Record

    try:
        rows = json.loads(path.read_text())["records"]
        found = [Record.from_json(row) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: expected a file of tuning records") from error
    return [record for record in found if record is not None]


def _write(path: Path, records: Iterable[Record]) -> None:
    rows = [record.to_json() for record in sorted(records, key=lambda r: r.key)]
    with replacing(path) as file:
        file.write((json.dumps({"records": rows}, indent=1) + "\n").encode())


def _draw(where: Console, data: dict[str, Any]) -> None:
    rows = [
        (r["kernel"], output.format_seconds(r["default_seconds"]),
         output.format_seconds(r["seconds"]), f"{r['default_seconds'] / r['seconds']:.2f}",
         r["candidates"], r["schedule"])
        for r in data["records"]
    ]  # fmt: skip
    output.print_table(where, ["kernel", "untuned>", "tuned>", "times>", "of>", "schedule"], rows)
    where.print(
        f"{len(rows)} kernels measured, {data['known']} known, {data['left']} left for a later run"
    )
    if data["records"]:
        where.print(f"untuned, these kernels reach {data['untuned_speed']:.0%} of the tuned speed")


def tune(
    source: SourceArgument,
    budget: Annotated[str, typer.Option(help="How long to measure: 60s, 1.5m.")] = "60s",
    records: Annotated[
        Path | None,
        typer.Option(help="Take the records of this file first, and write all to it."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure known kernels anew.")] = False,
    threads: ThreadsOption = None,
    as_json: output.JsonFlag = False,
) -> None:
    """Measure the schedules of a model's kernels and remember the fastest."""
    limit = seconds(budget)
    given = _read(records) if records is not None and records.exists() else []
    with output.working("capturing"):
        from plait.frontend.export import capture

        captured = capture(source)
    if captured.fallbacks:
        raise UnsupportedOp(captured.fallbacks[0].target, captured.fallbacks[0].loc)
    from plait.codegen.cpu import host_core
    from plait.codegen.tvm.target import cpu_target
    from plait.ir.knobs import thread_count
    from plait.runtime import tune as tuning
    from plait.runtime.cache import KernelCache

    cache, target = KernelCache(), cpu_target(thread_count(threads), host_core())
    for record in given:
        tuning.keep(cache, record)
    with output.progress_bar("tuning") as progress:
        todo = tuning.tasks(captured.graph, target)
        known = [] if again else [r for t in todo if (r := _known(cache, t, target.threads))]
        found = list(tuning.tune(todo, target, cache, limit, again, progress))
    if records is not None:
        _write(records, {r.key: r for r in (*given, *known, *found)}.values())
    data = {
        "threads": target.threads,
        "known": len(known),
        "left": len(todo) - len(known) - len(found),
        "untuned_speed": _untuned_speed(found),
        "records": [{k: v for k, v in r.to_json().items() if k != "format"} for r in found],
    }
    output.emit("tune", data, lambda where: _draw(where, data), as_json)


def _untuned_speed(records: list[Record]) -> float | None:
    """The speed of the estimates' choices as a fraction of that of the choices measured."""
    before, after = (sum(r.default_seconds for r in records), sum(r.seconds for r in records))
    return after / before if records else None


def _known(cache: KernelCache, task: Any, threads: int) -> Record | None:
    from plait.runtime.tune import find

    return find(cache, task.body, task.constant, threads)
