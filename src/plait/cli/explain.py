"""`plait explain`: what of a model is captured, what is not, and why."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli import output
from plait.ir.dims import is_static
from plait.ir.errors import UnsupportedOp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from plait.frontend.export import CapturedModel
    from plait.ir.graph import Graph, Node

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


def plan(captured: CapturedModel) -> dict[str, Any]:
    """What compiling the model would make, without making it: kernels, memory, arithmetic.

    A run takes, beside inputs and outputs: `weights_bytes` as kernels read them, `arena_bytes`, the
    one block that holds all intermediates, and `scratch_bytes`, what the kernel that allocates most
    holds on so many `threads`.  `eager_peak_bytes` is what eager execution of the
    same graph holds at its peak, outputs included.
    """
    from plait.codegen.cpu import host_core
    from plait.codegen.tvm.target import cpu_target
    from plait.ir.knobs import NUM_THREADS
    from plait.passes import footprint
    from plait.passes.context import Context
    from plait.passes.pipeline import DEFAULT_PIPELINE, parse_pipeline
    from plait.runtime.opening import open_tvm
    from plait.runtime.planning import make_plan

    open_tvm()
    threads = NUM_THREADS.get()
    context = Context(cpu_target(threads, host_core()))
    lowered = parse_pipeline(DEFAULT_PIPELINE).run(captured.graph, context)
    assert context.plan is not None
    calls = dict.fromkeys(range(len(lowered.nodes)), ("", 0))
    kernels = [n for n in lowered.nodes if n.op == "kernel"]
    scratch = _scratch(kernels, threads)
    return {
        "kernels": len(kernels),
        "distinct_kernels": len(Counter(map(_identity, kernels))),
        "flops": footprint.flops(captured.graph),
        "weights_bytes": make_plan(lowered, context.plan, calls, threads)[0].weights_bytes,
        "arena_bytes": context.plan.size,
        "arena_bound_bytes": context.plan.bound,
        "scratch_bytes": max((row["bytes"] for row in scratch), default=0),
        "threads": threads,
        "output_bytes": footprint.output_bytes(captured.graph),
        "eager_peak_bytes": footprint.eager_peak(captured.graph),
        "scratch": scratch,
        "placed": _placed(lowered),
    }


def _identity(node: Node) -> tuple[object, ...]:
    """What decides a kernel's code."""
    return node.attrs["body"].digest, node.attrs["schedule"], node.attrs["pitch"]


def _scratch(kernels: Sequence[Node], threads: int) -> list[dict[str, Any]]:
    """What each distinct kernel allocates while it runs, those that need most first."""
    from plait.codegen.tvm.target import cpu_target
    from plait.codegen.tvm.workspace import workspace

    calls = Counter(map(_identity, kernels))
    rows = []
    for key, node in {_identity(node): node for node in kernels}.items():
        attrs = node.attrs
        built = cpu_target(threads).build(attrs["body"], attrs["schedule"], attrs["pitch"])
        found = workspace(built)
        row = {
            "kernel": attrs["body"].name,
            "schedule": attrs["schedule"],
            "calls": calls[key],
            "shared_bytes": found.shared,
            "thread_bytes": found.thread,
            "bytes": found.total(threads),
        }
        rows += [row] if row["bytes"] else []
    return sorted(rows, key=lambda row: -row["bytes"])


def _placed(lowered: Graph) -> list[dict[str, Any]]:
    """The concats and slices that are places in memory."""
    from plait.passes.place import placed

    return [
        {
            "op": each.node.op,
            "type": str(each.node.types[0]),
            "parts": each.parts,
            "copied": each.copied,
            "bytes": each.nbytes,
            "location": each.node.loc,
        }
        for each in placed(lowered)
    ]


def _draw_plan(where: Console, data: dict[str, Any]) -> None:
    size = output.format_bytes
    where.print(
        f"  plan     {data['kernels']} kernels, {data['distinct_kernels']} distinct; "
        f"{data['flops'] / 1e9:.3g} GFLOP in contractions"
    )
    where.print(
        f"  memory   weights {size(data['weights_bytes'])}, arena {size(data['arena_bytes'])}, "
        f"scratch {size(data['scratch_bytes'])} with {data['threads']} threads"
    )
    where.print(
        f"           no plan of these steps takes an arena of less than "
        f"{size(data['arena_bound_bytes'])}; eager's peak {size(data['eager_peak_bytes'])}"
    )
    moved = sum(row["bytes"] for row in data["placed"])
    counts = Counter(row["op"] for row in data["placed"])
    where.print(
        f"  placed   concats: {counts['concat']}, slices: {counts['slice']}; "
        f"{size(moved)} that need no copy"
    )


def _draw_details(where: Console, data: dict[str, Any]) -> None:
    """A table of the kernels with scratch, and one of what lies inside other tensors."""
    size = output.format_bytes
    if data["scratch"]:
        rows = [
            (r["kernel"], r["calls"], size(r["shared_bytes"]), size(r["thread_bytes"]),
             size(r["bytes"]), r["schedule"])
            for r in data["scratch"]
        ]  # fmt: skip
        columns = ["kernel", "calls>", "scratch>", "each thread>", "together>", "schedule"]
        output.print_table(where, columns, rows)
    if data["placed"]:
        rows = [
            (r["op"], r["type"], r["parts"], r["copied"], size(r["bytes"]), r["location"])
            for r in data["placed"]
        ]
        columns = ["placed", "type", "parts>", "copied>", "not copied>", "from"]
        output.print_table(where, columns, rows)


def _draw(where: Console, data: dict[str, Any]) -> None:
    for kind in ("inputs", "outputs"):
        for tensor in data[kind]:
            where.print(f"  {kind[:-1]:<8} {tensor['name']}: {tensor['type']}", markup=False)
    weights = output.format_bytes(data["weights_bytes"])
    where.print(f"  weights  {data['constants']} constants, {weights}")
    where.print(f"  graph    {data['nodes']} nodes, {len(data['ops'])} ops")
    if data["plan"]:
        _draw_plan(where, data["plan"])
    output.print_table(where, ["op", "nodes>"], data["ops"].items())
    if data["plan"]:
        _draw_details(where, data["plan"])
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
    with output.working("capturing") as progress:
        from plait.frontend.export import capture

        captured = capture(source)
        data = describe(captured)
        static = all(is_static(t.shape) for t in captured.graph.types)
        progress("planning")
        data["plan"] = plan(captured) if static and data["standalone"] else None
    if ir:
        data["ir"] = str(captured.graph)
        output.emit("explain", data, lambda where: print(data["ir"]), as_json)
    else:
        output.emit("explain", data, lambda where: _draw(where, data), as_json)
    if strict and captured.fallbacks:
        raise typer.Exit(UnsupportedOp.exit_code)
