"""`plait bench`: how long a run of an artifact takes, and how two artifacts compare."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli import output
from plait.cli.inspect import ArtifactArgument
from plait.cli.run import InputsOption, ThreadsOption
from plait.ir.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import Console

    from plait.cli.arrays import Arrays
    from plait.runtime.bench import Comparison


def _candidates(
    paths: Sequence[Path], inputs: Sequence[str] | None, threads: int | None
) -> dict[str, Callable[[], object]]:
    """A call of each artifact, all on the same inputs: given ones, or those of the first.

    Raises `UsageError` for an artifact that takes inputs of other names or types.
    """
    from plait.cli.arrays import read_inputs, stand_ins
    from plait.runtime.artifact import Artifact

    artifacts = [Artifact.open(path) for path in paths]
    taken = [{spec.name: str(spec) for spec in a.plan().inputs} for a in artifacts]
    for path, types in zip(paths, taken, strict=True):
        if types != taken[0]:
            wanted = _listed(taken[0])
            raise UsageError(f"{path}: takes {_listed(types)}, but {paths[0]} takes {wanted}")
    models = [artifact.load(threads) for artifact in artifacts]
    if inputs:
        arrays: Arrays = read_inputs(inputs, models[0].inputs)
    else:
        arrays = artifacts[0].samples()[0] or stand_ins(models[0].inputs)
    return {
        str(path): partial(model, *(arrays[spec.name].copy() for spec in model.inputs))
        for path, model in zip(paths, models, strict=True)
    }


def _listed(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {type_}" for name, type_ in types.items()) or "no inputs"


def _rows(result: Comparison, baseline: str) -> list[dict[str, Any]]:
    rows = []
    for name in result.samples:
        low, high = result.interval(name)
        ratio, ratio_low, ratio_high = result.speedup(name, baseline)
        rows.append(
            {
                "name": name,
                "median_seconds": result.median(name),
                "interval_seconds": [low, high],
                "speedup": ratio,
                "speedup_interval": [ratio_low, ratio_high],
            }
        )
    return rows


def _draw(where: Console, data: dict[str, Any]) -> None:
    table = []
    for row in data["candidates"]:
        low, high = (output.format_seconds(value) for value in row["interval_seconds"])
        ratio_low, ratio_high = row["speedup_interval"]
        speedup = f"{row['speedup']:.3f} ({ratio_low:.3f} to {ratio_high:.3f})"
        median = output.format_seconds(row["median_seconds"])
        table.append((row["name"], median, f"{low} to {high}", speedup))
    columns = ["artifact", "median>", "95 % interval>", f"times as fast as {data['baseline']}>"]
    output.print_table(where, columns, table)


def bench(
    model: ArtifactArgument,
    against: Annotated[
        list[Path] | None, typer.Option(help="Another artifact, interleaved; repeatable.")
    ] = None,
    inputs: InputsOption = None,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds of samples.")] = 30,
    at_least: Annotated[
        float | None, typer.Option(help="Exit 1 below this speedup over the last --against.", min=0)
    ] = None,
    threads: ThreadsOption = None,
    as_json: output.JsonFlag = False,
) -> None:
    """Time an artifact, alone or in turns with others on the same inputs."""
    from plait.runtime.bench import compare

    others = against or []
    if at_least is not None and not others:
        raise UsageError("--at-least compares with another artifact: give --against")
    paths = [model, *others]
    if len({str(path) for path in paths}) != len(paths):
        raise UsageError("--against: expected other artifacts than MODEL, each once")
    with output.working("measuring") as progress:
        candidates = _candidates(paths, inputs, threads)
        result = compare(candidates, rounds=rounds, progress=progress)
    baseline = str(paths[-1])
    rows = _rows(result, baseline)
    data = {"rounds": rounds, "baseline": baseline, "candidates": rows}
    output.emit("bench", data, lambda where: _draw(where, data), as_json)
    if at_least is not None and rows[0]["speedup"] < at_least:
        raise typer.Exit(1)
