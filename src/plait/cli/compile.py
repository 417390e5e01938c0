"""`plait compile`: a model to a standalone artifact."""

from __future__ import annotations

import json
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait import __version__
from plait.cli import output
from plait.cli.explain import SourceArgument
from plait.cli.run import ThreadsOption, draw_verdicts, verdicts
from plait.ir.errors import CompileFailure, PlaitError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from plait.frontend.export import CapturedModel
    from plait.frontend.standalone import Standalone
    from plait.passes.pipeline import Hook


def _hooks(captured: CapturedModel, verify: bool, dump: Path | None) -> list[Hook]:
    """The subscribers that the flags ask for."""
    from plait.ir.arrays import random_inputs
    from plait.passes.hooks import Dump, ReferenceCheck, verify_each

    found: list[Hook] = []
    if verify:
        samples = list(captured.samples.values()) or random_inputs(captured.graph)
        found += [verify_each, ReferenceCheck(samples)]
    if dump is not None:
        found.append(Dump(dump))
    return found


def _write_repro(captured: CapturedModel, error: Exception, settings: dict[str, Any]) -> Path:
    """A folder that holds what a bug report needs: the graph, the settings, the traceback."""
    folder = Path(tempfile.mkdtemp(prefix="plait-repro-"))
    (folder / "graph.txt").write_text(str(captured.graph))
    (folder / "error.txt").write_text("".join(traceback.format_exception(error)))
    (folder / "settings.json").write_text(
        json.dumps({"plait": __version__, **settings}, indent=2, default=str) + "\n"
    )
    return folder


def _compile(captured: CapturedModel, hooks: list[Hook], settings: dict[str, Any]) -> Standalone:
    """Compile with progress; a failure of the compiler leaves a repro folder and names it."""
    from plait.frontend.standalone import compile_captured

    try:
        with output.progress_bar("compiling") as progress:
            return compile_captured(captured, hooks=hooks, progress=progress, **settings)
    except ModuleNotFoundError:
        raise  # a package that is not installed is no failure of the compiler
    except Exception as error:
        if isinstance(error, PlaitError) and error.exit_code != CompileFailure.exit_code:
            raise
        folder = _write_repro(captured, error, settings)
        reason = str(error) if isinstance(error, PlaitError) else repr(error)
        raise PlaitError(f"{reason}; what a report needs is in {folder}") from error


def _describe(built: Standalone, path: Path | None) -> dict[str, Any]:
    """What was compiled; `path`: where it was written, None if it was not."""
    module = built.module
    labels = Counter(kernel.schedule.partition("{")[0] for kernel in module.kernels)
    return {
        "path": path,
        "file_bytes": path.stat().st_size if path is not None else None,
        "kernels": len(module.kernels),
        "kernel_calls": sum(kernel.calls for kernel in module.kernels),
        "templates": dict(labels.most_common()),
        "built": module.built,
        "cached": len(module.kernels) - module.built,
        "arena_bytes": module.plan.arena_bytes,
        "weights_bytes": module.plan.weights_bytes,
        "target": module.target.name,
        "seconds": dict(module.seconds),
    }


def _draw(where: Console, data: dict[str, Any]) -> None:
    weights, arena = (output.format_bytes(data[key]) for key in ("weights_bytes", "arena_bytes"))
    if data["path"] is None:
        where.print(f"not written: its results are not eager's; for {data['target']}", markup=False)
    else:
        size = output.format_bytes(data["file_bytes"])
        where.print(f"{data['path']}: {size} for {data['target']}", markup=False)
    templates = ", ".join(f"{count} {name}" for name, count in data["templates"].items())
    where.print(
        f"{data['kernel_calls']} kernel calls of {data['kernels']} kernels ({templates}), "
        f"{data['cached']} from the cache"
    )
    where.print(f"weights {weights}, arena {arena}")
    parts = ("passes", "kernels", "weights", "main")
    times = [f"{part} {output.format_seconds(data['seconds'][part])}" for part in parts]
    total = output.format_seconds(data["seconds"]["total"])
    where.print(f"compiled in {total} ({', '.join(times)})")
    draw_verdicts(where, data["check"])


def compile(
    source: SourceArgument,
    path: Annotated[
        Path, typer.Option("--output", "-o", help="The artifact to write.", show_default=False)
    ],
    pipeline: Annotated[str, typer.Option(help="Passes as text (default: the full set).")] = "",
    cpu: Annotated[str, typer.Option(help="An LLVM CPU name, such as x86-64-v3.")] = "native",
    name: Annotated[str, typer.Option(help="Name of the model (default: that of the file).")] = "",
    verify_passes: Annotated[
        bool, typer.Option("--verify-passes", help="Interpret before and after each pass; compare.")
    ] = False,
    dump: Annotated[
        Path | None, typer.Option(help="Write the IR after each pass into this folder.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option(help="Compare with eager first; write nothing and exit 1 if it differs."),
    ] = True,
    threads: ThreadsOption = None,
    as_json: output.JsonFlag = False,
) -> None:
    """Compile a model into an artifact that runs without torch."""
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: there is no folder {path.parent}")
    with output.working("capturing"):
        from plait.frontend.export import capture
        from plait.passes.pipeline import DEFAULT_PIPELINE, parse_pipeline

        text = str(parse_pipeline(pipeline or DEFAULT_PIPELINE))
        captured = capture(source, name=name or path.stem)
    settings = {"pipeline": text, "cpu": cpu, "threads": threads}
    built = _compile(captured, _hooks(captured, verify_passes, dump), settings)
    runs_here = not built.module.target.missing()
    found = verdicts(built.check()) if check and runs_here else []
    right = all(verdict["agrees"] for verdict in found)
    if right:  # what lies at the path already is better than a wrong model
        built.save(path)
    data = {**_describe(built, path if right else None), "check": found}
    output.emit("compile", data, lambda where: _draw(where, data), as_json)
    if not right:
        raise typer.Exit(1)
