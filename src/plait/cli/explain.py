"""`plait explain`: what of a model is captured, what is not, and why."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli import output
from plait.ir.errors import UnsupportedOp

if TYPE_CHECKING:
    from rich.console import Console

    from plait.frontend.export import CapturedModel

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A .pt2 file of torch.export, or package.module:factory.",
        show_default=False,
    ),
]


def describe(captured: CapturedModel) -> dict[str, Any]:
    """The capture as plain data."""
    graph = captured.graph
    counts = Counter(node.op for node in graph.nodes)
    constants = counts.pop("constant", 0)
    blobs = {n.attrs["value"].digest: n for n in graph.nodes if n.op == "constant"}
    sizes = [node.attrs["value"].array.nbytes for node in blobs.values()]
    outputs = zip(captured.output_names, graph.output_types, strict=True)
    return {
        "inputs": [{"name": i.name, "type": str(i.type)} for i in graph.inputs],
        "outputs": [{"name": name, "type": str(type_)} for name, type_ in outputs],
        "nodes": len(graph.nodes) - constants,
        "ops": dict(counts.most_common()),
        "constants": constants,
        "weights_bytes": sum(sizes),
        "fallbacks": [
            {"target": f.target, "location": f.loc, "reason": f.reason} for f in captured.fallbacks
        ],
        "standalone": not captured.fallbacks,
    }


def _draw(where: Console, data: dict[str, Any]) -> None:
    for kind in ("inputs", "outputs"):
        for tensor in data[kind]:
            where.print(f"  {kind[:-1]:<8} {tensor['name']}: {tensor['type']}", markup=False)
    weights = output.format_bytes(data["weights_bytes"])
    where.print(f"  weights  {data['constants']} constants, {weights}")
    where.print(f"  graph    {data['nodes']} nodes, {len(data['ops'])} ops")
    output.print_table(where, ["op", "nodes>"], data["ops"].items())
    if data["standalone"]:
        where.print("Every operator is lowered: `plait compile` makes a standalone artifact.")
        return
    where.print("These run through torch under torch.compile, and an artifact cannot hold them:")
    rows = [(f["target"], f["location"], f["reason"]) for f in data["fallbacks"]]
    output.print_table(where, ["operator", "from", "why"], rows)


def explain(
    source: SourceArgument,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 if an operator has no lowering.")
    ] = False,
    ir: Annotated[bool, typer.Option("--ir", help="Print the captured graph as text.")] = False,
    as_json: output.JsonFlag = False,
) -> None:
    """Capture a model and tell which operators are lowered and which are not."""
    with output.working("capturing"):
        from plait.frontend.export import capture

        captured = capture(source)
    data = describe(captured)
    if ir:
        data["ir"] = str(captured.graph)
        output.emit("explain", data, lambda where: print(data["ir"]), as_json)
    else:
        output.emit("explain", data, lambda where: _draw(where, data), as_json)
    if strict and captured.fallbacks:
        raise typer.Exit(UnsupportedOp.exit_code)
