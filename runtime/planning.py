"""The plan of a lowered graph: pointers, weights and steps, out of its nodes and their storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plait.codegen.plan import (
    Call,
    Copy,
    ModulePlan,
    PointerArg,
    TensorSpec,
    distinct,
    place_weights,
)
from plait.ir.errors import PlanError
from plait.ir.graph import Blob, Graph
from plait.ir.layout import row_major
from plait.passes.memory import MemoryPlan


def make_plan(
    graph: Graph,
    memory: MemoryPlan,
    calls: Mapping[int, tuple[str, int]],
    threads: int,
    output_names: Sequence[str] = (),
) -> tuple[ModulePlan, dict[str, list[Blob]]]:
    """The plan of a lowered graph, and its weights by name: the constants that are equal.

    `calls`: the symbol and the parts of each kernel by its node; `threads`: see `ModulePlan`.

    Raises `PlanError` for inputs and outputs that are not row-major, as a caller's arrays are, and
    for output names that are not distinct.
    """
    for what, types in (("input", graph.input_types), ("output", graph.output_types)):
        for k, ty in enumerate(types):
            if not row_major(ty):
                raise PlanError(f"{what} {k} is {ty}, but the arrays of callers are row-major")
    names_in = distinct([i.name or f"input{k}" for k, i in enumerate(graph.inputs)])
    inputs = tuple(
        TensorSpec(name, i.type.dtype.name, i.type.static("the plan"))
        for name, i in zip(names_in, graph.inputs, strict=True)
    )
    names_out = output_names or [f"output{k}" for k in range(len(graph.outputs))]
    outputs = tuple(
        TensorSpec(name, ty.dtype.name, ty.static("the plan"))
        for name, ty in zip(names_out, graph.output_types, strict=True)
    )
    names, weights = _name_weights(graph, memory)
    arrays = {name: blobs[0].array for name, blobs in weights.items()}
    placed = place_weights(TensorSpec(n, a.dtype.name, tuple(a.shape)) for n, a in arrays.items())
    offsets = {w.name: w.byte_offset for w in placed}

    def pointer(v: int) -> PointerArg:
        home = memory.storage[v]
        if home.space == "constant":
            return PointerArg("weights", 0, offsets[names[home.index]] + home.offset)
        if home.space == "arena":
            return PointerArg("arena", 0, memory.blocks[home.index].offset + home.offset)
        return PointerArg("input" if home.space == "input" else "output", home.index, home.offset)

    steps: list[Call | Copy] = []
    for k, node in enumerate(graph.nodes):
        if node.op == "kernel":
            args = [pointer(v) for v in (*node.operands, *graph.results(k))]
            symbol, parts = calls[k]
            steps.append(Call(symbol, tuple(args), node.attrs["body"].name, parts))
    for index, v in enumerate(graph.outputs):
        source = pointer(v)
        if source != PointerArg("output", index):
            steps.append(Copy(PointerArg("output", index), source, outputs[index].nbytes))
    plan = ModulePlan(
        graph.name, inputs, outputs, tuple(steps), memory.size, placed, threads=threads
    )
    plan.check()
    return plan, weights


def _name_weights(graph: Graph, memory: MemoryPlan) -> tuple[dict[int, str], dict[str, list[Blob]]]:
    """A name for every constant in memory; equal ones share it."""
    names: dict[int, str] = {}
    weights: dict[str, list[Blob]] = {}
    seen: dict[Blob, str] = {}
    for k, node in enumerate(graph.nodes):
        if node.op != "constant":
            continue
        blob: Blob = node.attrs["value"]
        if blob not in seen:
            name = blob.name or "constant"
            while name in weights:
                name = f"{blob.name or 'constant'}.{len(weights)}"
            seen[blob] = name
            weights[name] = []
        weights[seen[blob]].append(blob)
        names[k] = seen[blob]
    return names, weights
