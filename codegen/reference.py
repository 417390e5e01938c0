"""The reference target: kernels that are numpy interpretations of their bodies.

Behind the same record as the compiled targets, it makes `pipeline + target` an oracle: the
passes take the decisions of the target it stands for (what is decomposed, layouts, packing,
polynomials), and what they made is then run without any code generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from plait.codegen.schedule import Schedule
from plait.codegen.target import Target, Template, single
from plait.ir.errors import Unsupported
from plait.ir.graph import Graph, Node
from plait.ir.interp import bind_sizes, interpret, run_node
from plait.ir.layout import pitched
from plait.ir.types import TensorType
from plait.passes.memory import MemoryPlan, Storage
from plait.passes.select import Selection

# A kernel that can be called: arrays of the logical shapes in, a list of such arrays out.
Kernel: TypeAlias = "Callable[..., Sequence[Any]]"


def interpreted(body: Graph, schedule: Schedule, pitch: Sequence[int] = ()) -> Kernel:
    """The kernel of a body as a Python callable on numpy arrays, whose strides are their own."""
    return lambda *arrays: interpret(body, arrays)


def standing_for(target: Target) -> Target:
    """A target that decides as `target` does and interprets the kernels it is given."""
    templates = tuple(replace(template, build=interpreted) for template in target.templates)
    return replace(target, name=f"reference for {target.name}", load=lambda: templates)


def _choose_any(body: Graph, constant: tuple[bool, ...], threads: int) -> Selection:
    return Selection("interpret")


@cache
def reference_target() -> Target:
    """The plain reference target: any body, row-major, everything decomposed, nothing packed."""
    return Target(
        name="reference",
        channels_last=False,
        approximates=frozenset(),
        composites={},
        load=lambda: (Template("interpret", single(_choose_any), interpreted),),
        threads=1,
    )


def run_lowered(
    graph: Graph,
    inputs: Sequence[Any],
    target: Target,
    wrap: Callable[[Node, Any], Kernel] = lambda node, built: built,
) -> list[Any]:
    """Outputs of a selected graph whose kernels `target` builds; what is no kernel is interpreted.

    `wrap(node, built)` makes a callable on numpy arrays of a target's own form of a kernel.
    Raises `InputMismatch` on a wrong argument and the target's errors.
    """

    sizes = bind_sizes(graph, inputs)
    env: dict[int, Any] = {k: np.asarray(a) for k, a in enumerate(inputs)}
    for k, node in enumerate(graph.nodes):
        arrays = [env[v] for v in node.operands]
        if node.op == "kernel":
            kernel = wrap(node, target.build(node.attrs["body"], node.attrs["schedule"]))
            results = tuple(kernel(*arrays))
        else:
            results = run_node(node, [graph.types[v] for v in node.operands], arrays, sizes)
        env.update(zip(graph.results(k), results, strict=True))
    return [np.ascontiguousarray(env[v]).reshape(np.shape(env[v])) for v in graph.outputs]


def run_planned(
    graph: Graph,
    plan: MemoryPlan,
    inputs: Sequence[Any],
    target: Target,
    wrap: Callable[[Node, Any], Kernel] = lambda node, built: built,
) -> list[Any]:
    """As `run_lowered`, with every value in the memory that the plan gives it.

    Values lie in their physical layouts and views are never computed, so a wrong layout, a wrong
    view or a block reused too early shows in the result.  Unwritten memory holds NaN, or -1.
    """
    bind_sizes(graph, inputs)
    arena = np.full(plan.size, 0xFF, np.uint8)
    outputs = [np.empty(ty.nbytes("the memory plan"), np.uint8) for ty in graph.output_types]
    memory: dict[Storage, Any] = {
        Storage("input", k): _bytes(ty, np.asarray(a))
        for k, (ty, a) in enumerate(zip(graph.input_types, inputs, strict=True))
    }
    for k, node in enumerate(graph.nodes):
        if node.op == "constant":
            memory[Storage("constant", k)] = _bytes(node.types[0], node.attrs["value"].array)
    memory.update((Storage("output", k), data) for k, data in enumerate(outputs))
    memory.update((Storage("arena", k), arena[b.offset :]) for k, b in enumerate(plan.blocks))

    def value(v: int, pitch: int = 0) -> Any:
        home = plan.storage[v]
        return _tensor(memory[replace(home, offset=0)][home.offset :], graph.types[v], pitch)

    for k, node in enumerate(graph.nodes):
        if node.op == "kernel":
            attrs = node.attrs
            kernel = wrap(node, target.build(attrs["body"], attrs["schedule"], attrs["pitch"]))
            values = (*node.operands, *graph.results(k))
            pitch = attrs["pitch"] or (0,) * len(values)
            reached = list(zip(values, pitch, strict=True))
            results = kernel(*(value(v, p).copy() for v, p in reached[: len(node.operands)]))
            for (v, p), result in zip(reached[len(node.operands) :], results, strict=True):
                value(v, p)[...] = result
        elif node.op != "constant" and not all(
            plan.storage[v].shares(plan.storage[graph.first_result[k]]) for v in node.operands
        ):
            raise Unsupported(f"{node.op!r} outside a kernel is no view of its operand's memory")
    return [value(v).copy(order="C") for v in graph.outputs]


def _bytes(type: TensorType, array: Any) -> Any:
    """The memory of a tensor, in its physical layout."""
    return np.ascontiguousarray(array.transpose(type.order)).reshape(-1).view(np.uint8)


def _tensor(memory: Any, type: TensorType, pitch: int) -> Any:
    """The tensor of logical shape that begins at the start of `memory`; shares it."""
    shape = type.static("the memory plan")
    if pitch:
        size = type.dtype.itemsize
        steps = [size * s for s in pitched(type, pitch) if isinstance(s, int)]
        whole = memory[: len(memory) // size * size].view(type.dtype.numpy)
        return np.lib.stride_tricks.as_strided(whole, shape, steps)
    flat = memory[: type.nbytes("the memory plan")].view(type.dtype.numpy)
    physical = flat.reshape([shape[d] for d in type.order])
    return physical.transpose(np.argsort(type.order).tolist())
