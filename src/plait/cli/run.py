"""`plait run`: run an artifact once, on given or bundled inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli import output
from plait.cli.inspect import ArtifactArgument
from plait.ir.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from plait.codegen.plan import TensorSpec
    from plait.ir.agreement import Agreement

ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads (default: PLAIT_NUM_THREADS).")
]
InputsOption = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", help="NAME=FILE.npy or FILE.npz; repeatable.", metavar="ARRAY"),
]


def verdicts(agreements: Mapping[str, Agreement]) -> list[dict[str, Any]]:
    """How each output agrees with the expected one, as plain data."""
    return [
        {
            "output": name,
            "agrees": result.agrees,
            "largest_difference": result.largest,
            "mean_difference": result.mean,
            "scale": result.scale,
            "reason": result.reason,
        }
        for name, result in agreements.items()
    ]


def _describe(spec: TensorSpec, array: Any) -> dict[str, Any]:
    from plait.runtime.check import declared

    row: dict[str, Any] = {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
    if array.size and array.dtype.kind != "c":  # complex numbers have no order
        wide = declared(spec, array).astype("float64")
        row |= {"min": float(wide.min()), "mean": float(wide.mean()), "max": float(wide.max())}
    return row


def _draw(where: Console, data: dict[str, Any]) -> None:
    rows = [
        (
            row["name"],
            f"{row['dtype']}{row['shape']}",
            *(_number(row, k) for k in ("min", "mean", "max")),
        )
        for row in data["outputs"]
    ]
    output.print_table(where, ["output", "type", "min>", "mean>", "max>"], rows)
    load, run = (output.format_seconds(data[key]) for key in ("load_seconds", "run_seconds"))
    where.print(f"loaded in {load}, ran in {run} on {data['threads']} threads")
    draw_verdicts(where, data.get("check", []))


def draw_verdicts(where: Console, found: list[dict[str, Any]]) -> None:
    for verdict in found:
        state = "agrees" if verdict["agrees"] else verdict["reason"]
        where.print(f"output {verdict['output']}: {state}", markup=False)


def _number(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.5g}" if key in row else ""


def run(
    model: ArtifactArgument,
    inputs: InputsOption = None,
    save: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the outputs to this .npz file.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare with the bundled outputs; exit 1 if they differ."),
    ] = False,
    threads: ThreadsOption = None,
    as_json: output.JsonFlag = False,
) -> None:
    """Run an artifact once; without --input on the inputs it brings."""
    import numpy as np

    from plait.cli.arrays import read_inputs
    from plait.runtime.artifact import Artifact
    from plait.runtime.check import check_outputs

    if check and inputs:
        raise UsageError("--check compares results of the bundled inputs: leave out --input")
    if save is not None and save.suffix != ".npz":
        raise UsageError(f"--output {save}: expected a file name that ends in .npz")
    start = time.perf_counter()
    artifact = Artifact.open(model)
    compiled = artifact.load(threads)
    loaded = time.perf_counter()
    samples, expected = artifact.samples()
    if not inputs and not samples:
        raise UsageError(f"{model}: brings no sample inputs: give --input")
    arrays = read_inputs(inputs, compiled.inputs) if inputs else samples
    before = time.perf_counter()
    results = compiled.run(arrays)
    after = time.perf_counter()
    if save is not None:
        np.savez(save, **results)  # type: ignore[arg-type, unused-ignore]
    data: dict[str, Any] = {
        "path": model,
        "outputs": [_describe(spec, results[spec.name]) for spec in compiled.outputs],
        "load_seconds": loaded - start,
        "run_seconds": after - before,
        "threads": compiled.threads,
        "saved": save,
    }
    if check:
        data["check"] = verdicts(check_outputs(compiled.outputs, results, expected))
    output.emit("run", data, lambda where: _draw(where, data), as_json)
    if not all(verdict["agrees"] for verdict in data.get("check", [])):
        raise typer.Exit(1)
