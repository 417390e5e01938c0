"""`plait profile`: the time of each kernel of an artifact, beside what the machine allows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from plait.cli import output
from plait.cli.inspect import ArtifactArgument
from plait.cli.run import InputsOption, ThreadsOption
from plait.ir.errors import UsageError
from plait.runtime.files import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from rich.console import Console

    from plait.runtime.artifact import Artifact
    from plait.runtime.executor import CompiledModel
    from plait.runtime.profile import Profile, Row


@contextmanager
def _trace_file(path: Path | None) -> Iterator[BinaryIO | None]:
    """A file that takes the place of `path` once all went well; none for no path.

    A path that cannot be written is refused before anything is done.
    """
    if path is None:
        yield None
        return
    if path.exists() and not path.is_file():
        raise UsageError(f"--trace {path}: expected the name of a file")
    with ExitStack() as open_files:
        try:
            file = open_files.enter_context(replacing(path))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"--trace {path}: cannot be written ({reason})") from None
        yield file


def _inputs(
    artifact: Artifact, given: Sequence[str] | None
) -> Callable[[CompiledModel], list[NDArray[Any]]]:
    """What chooses a model's inputs: given ones, those that the artifact brings, or random ones."""
    from plait.cli.arrays import Arrays, read_inputs, stand_ins

    def choose(model: CompiledModel) -> list[NDArray[Any]]:
        arrays: Arrays
        if given:
            arrays = read_inputs(given, model.inputs)
        else:
            arrays = artifact.samples()[0] or stand_ins(model.inputs)
        return [arrays[spec.name] for spec in model.inputs]

    return choose


def _record(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "symbol": row.symbol,
        "steps": list(row.steps),
        "calls": len(row.steps),
        "median_seconds": row.seconds,
        "share": row.share,
        "flops": row.flops,
        "bytes": row.nbytes,
        "flops_per_second": row.flops_per_second if row.flops else None,
        "bytes_per_second": row.bytes_per_second,
        "roofline": row.roofline,
        "schedule": row.schedule,
        "operands": list(row.operands),
        "results": list(row.results),
        "locations": list(row.locations),
    }


def _describe(result: Profile, group: bool, top: int | None) -> dict[str, Any]:
    import numpy as np

    rows = result.rows(group)
    shown = rows[:top]
    return {
        "name": result.name,
        "rounds": result.rounds,
        "threads": result.threads,
        "grouped": group,
        "steps": len(result.steps),
        "run_seconds": float(np.median(result.run_seconds)),
        "steps_seconds": float(result.medians.sum()),
        "ceilings": {
            "flops_per_second": result.ceilings.flops_per_second,
            "bytes_per_second": result.ceilings.bytes_per_second,
            "threads": result.ceilings.threads,
        },
        "kernels": [_record(row) for row in shown],
        "left_out": {
            "kernels": len(rows) - len(shown),
            "share": sum(row.share for row in rows[top:]) if top else 0.0,
        },
    }


def _draw(where: Console, data: dict[str, Any]) -> None:
    from rich.markup import escape

    run, steps = (output.format_seconds(data[k]) for k in ("run_seconds", "steps_seconds"))
    threads = f"{data['threads']} thread{'s' if data['threads'] > 1 else ''}"
    peak, bandwidth = (data["ceilings"][k] / 1e9 for k in ("flops_per_second", "bytes_per_second"))
    where.print(f"[bold]{escape(data['name'])}[/bold]: {data['rounds']} rounds, {threads}")
    for label, text in [
        ("a run", run),
        (f"its {data['steps']} steps", f"{steps}, called one by one"),
        (
            "ceilings",
            f"{peak:.1f} GFLOP/s (multiply-adds), {bandwidth:.1f} GB/s (copy), "
            f"measured with {threads}",
        ),
    ]:
        where.print(f"  {label:<14} {text}")
    where.print()
    grouped = data["grouped"]
    columns = ["kernel", *(["calls>"] if grouped else []), "time>", "share>", "GFLOP/s>", "GB/s>"]
    columns += ["of roofline>", "schedule", "from"]
    output.print_table(where, columns, (_cells(row, grouped) for row in data["kernels"]))
    if left := data["left_out"]["kernels"]:
        where.print(f"and {left} more, {data['left_out']['share']:.1%} of the time")
    if data["trace"]:
        where.print(f"trace: {data['trace']}", markup=False)


def _cells(row: dict[str, Any], grouped: bool) -> list[str]:
    from rich.markup import escape

    rate = row["flops_per_second"]
    first, more = row["locations"][:1], len(row["locations"]) - 1
    return [
        escape(row["name"]),
        *([str(row["calls"])] if grouped else []),
        output.format_seconds(row["median_seconds"]),
        f"{row['share']:.1%}",
        f"{rate / 1e9:.1f}" if rate else "-",
        f"{row['bytes_per_second'] / 1e9:.1f}",
        f"{row['roofline']:.0%}",
        escape(row["schedule"]),
        escape("".join(first)) + (f" and {more} more" if more > 0 else ""),
    ]


def profile(
    model: ArtifactArgument,
    inputs: InputsOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs that are timed.")] = 30,
    top: Annotated[
        int | None, typer.Option(min=1, help="Show this many of the slowest (default: all).")
    ] = None,
    group: Annotated[
        bool, typer.Option("--group", help="One row for all calls of the same kernel.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write a trace for Perfetto or Chrome.", metavar="FILE.json"),
    ] = None,
    threads: ThreadsOption = None,
    as_json: output.JsonFlag = False,
) -> None:
    """Time an artifact kernel by kernel; without --input on the inputs it brings."""
    from plait.runtime.artifact import Artifact
    from plait.runtime.profile import profile_artifact
    from plait.runtime.trace import trace as make_trace

    with _trace_file(trace) as file:
        artifact = Artifact.open(model)
        choose = _inputs(artifact, inputs)
        with output.working("loading") as progress:
            result = profile_artifact(
                artifact, choose, threads=threads, rounds=rounds, progress=progress
            )
        if file is not None:
            file.write(json.dumps(make_trace(result)).encode())
    data = {"path": model, **_describe(result, group, top), "trace": trace}
    output.emit("profile", data, lambda where: _draw(where, data), as_json)
