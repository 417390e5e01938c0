"""`plait inspect`: what is in an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli import output

if TYPE_CHECKING:
    from rich.console import Console

    from plait.codegen.plan import ModulePlan, TensorSpec
    from plait.runtime.artifact import Artifact

ArtifactArgument = Annotated[Path, typer.Argument(metavar="MODEL.plait", show_default=False)]


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _steps(plan: ModulePlan) -> list[dict[str, Any]]:
    from plait.codegen.plan import Copy

    return [
        {"copy": step.nbytes}
        if isinstance(step, Copy)
        else {"call": step.symbol, "label": step.label}
        for step in plan.steps
    ]


def _describe(artifact: Artifact) -> dict[str, Any]:
    """Everything but the weights and the code, as plain data."""
    targets = []
    for record, cpu in zip(artifact.manifest["targets"], artifact.targets, strict=True):
        sizes = [artifact.member(name).nbytes for name in record["objects"]]
        targets.append(
            {
                **cpu.to_json(),
                "missing_here": list(cpu.missing()),
                "objects": len(sizes),
                "code_bytes": sum(sizes),
            }
        )
    plan = artifact.plan(artifact.targets[0])
    return {
        "path": artifact.path,
        "file_bytes": artifact.path.stat().st_size,
        "name": artifact.manifest["name"],
        "format": artifact.manifest["format"],
        "producer": artifact.manifest["producer"],
        "abi": artifact.manifest["abi"],
        "targets": targets,
        "inputs": [_tensor(spec) for spec in plan.inputs],
        "outputs": [_tensor(spec) for spec in plan.outputs],
        "weights": {"count": len(plan.weights), "bytes": plan.weights_bytes},
        "arena_bytes": plan.arena_bytes,
        "kernels": len(plan.symbols),
        "steps": _steps(plan),
        "stages": list(artifact.stages),
        "samples": bool(artifact.samples()[0]),
    }


def _draw(where: Console, data: dict[str, Any], kernels: bool) -> None:
    def row(name: str, value: object) -> None:
        where.print(f"  {name:<10} {value}", markup=False)

    where.print(f"[bold]{data['name']}[/bold]")
    row("file", f"{data['path']}, {output.format_bytes(data['file_bytes'])}")
    row(
        "format",
        f"{data['format']}, by " + ", ".join(f"{k} {v}" for k, v in data["producer"].items()),
    )
    for target in data["targets"]:
        missing = ", ".join(target["missing_here"])
        fit = f"this CPU lacks {missing}" if missing else "runs here"
        size = output.format_bytes(target["code_bytes"])
        row(
            "target",
            f"{target['machine']}-{target['mcpu']}: {target['objects']} objects, {size}; {fit}",
        )
    for kind in ("inputs", "outputs"):
        for tensor in data[kind]:
            shape = ", ".join(str(dim) for dim in tensor["shape"])
            row(kind.rstrip("s"), f"{tensor['name']}: {tensor['dtype']}[{shape}]")
    weights = data["weights"]
    row("weights", f"{weights['count']} tensors, {output.format_bytes(weights['bytes'])}")
    row("arena", output.format_bytes(data["arena_bytes"]))
    row("steps", f"{len(data['steps'])}, of {data['kernels']} distinct kernels")
    row("stages", ", ".join(data["stages"]) or "none stored (the text of one: --ir STAGE)")
    row("samples", "yes" if data["samples"] else "no")
    if kernels:
        rows = [
            (
                index,
                step.get("call", "copy"),
                step.get("label") or output.format_bytes(step["copy"]),
            )
            for index, step in enumerate(data["steps"])
        ]
        output.print_table(where, ["step>", "kernel", "what"], rows)


def inspect(
    model: ArtifactArgument,
    ir: Annotated[str, typer.Option(help="Print the IR after this stage.", metavar="STAGE")] = "",
    kernels: Annotated[bool, typer.Option("--kernels", help="List the steps of a run.")] = False,
    as_json: output.JsonFlag = False,
) -> None:
    """Check an artifact's digests and show what it holds; nothing in it is executed."""
    from plait.runtime.artifact import Artifact

    artifact = Artifact.open(model)
    data = _describe(artifact)
    if ir:
        data["ir"] = {ir: artifact.ir_text(ir)}
        output.emit("inspect", data, lambda where: print(data["ir"][ir], end=""), as_json)
        return
    output.emit("inspect", data, lambda where: _draw(where, data, kernels), as_json)
