"""Runs a captured graph on torch tensors: compiled segments, and torch's operators between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from plait.frontend.segments import HostCall, Segment, last_uses, split
from plait.frontend.tensors import TO_TORCH, dense
from plait.ir.errors import PlaitError
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.ops.aten import bind, to_numpy, to_torch

# Takes dense row-major tensors without autograd state; gives new dense row-major tensors.
Run: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Compile: TypeAlias = Callable[[Graph], Run]


@dataclass(frozen=True)
class _Step:
    run: Run
    operands: tuple[int, ...]
    results: tuple[int, ...]
    dead: tuple[int, ...]


class Program:
    """A graph ready to run. Calls are independent of each other and may overlap."""

    def __init__(self, graph: Graph, compile_segment: Compile) -> None:
        self.graph = graph
        steps = split(graph)
        self.segments = sum(isinstance(step, Segment) for step in steps)
        self.host_calls = len(steps) - self.segments
        self._constants = _host_constants(graph, steps)
        dead = last_uses(steps, graph.outputs)
        read = {v for step in steps if isinstance(step, Segment) for v in step.operands}
        self._steps = [
            _Step(
                compile_segment(step.graph) if isinstance(step, Segment) else host_call(step, read),
                step.operands,
                step.results,
                tuple(values),
            )
            for step, values in zip(steps, dead, strict=True)
        ]
        self._repeated = len(set(graph.outputs)) < len(graph.outputs)

    @property
    def only_segment(self) -> tuple[Run, tuple[int, ...]] | None:
        """For a program that is one segment: it, and the inputs of the program that it takes.

        Its results are the program's outputs, in order.
        """
        if len(self._steps) != 1 or self.host_calls or self._repeated:
            return None
        (step,) = self._steps
        same = step.results == tuple(self.graph.outputs)
        return (step.run, step.operands) if same else None

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs for tensors of the graph's input types; an output never shares an input's memory
        unless it is that input."""
        env: dict[int, Tensor] = {k: dense(x) for k, x in enumerate(inputs)}
        env.update(self._constants)
        for step in self._steps:
            results = step.run([env[v] for v in step.operands])
            env.update(zip(step.results, results, strict=True))
            for value in step.dead:
                env.pop(value, None)
        return [self._output(env, inputs, value) for value in self.graph.outputs]

    def _output(self, env: dict[int, Tensor], inputs: Sequence[Tensor], value: int) -> Tensor:
        if value < len(inputs):
            return inputs[value]
        return env[value].clone() if value in self._constants else env[value]


def _host_constants(graph: Graph, steps: Sequence[HostCall | Segment]) -> dict[int, Tensor]:
    """The constants that host calls read or that are outputs, as tensors."""
    needed = {v for step in steps if isinstance(step, HostCall) for v in step.operands}
    needed.update(graph.outputs)
    found: dict[int, Tensor] = {}
    for value in needed:
        node = graph.producer(value)
        if node is not None and node.op == "constant":
            found[value] = to_torch(node.attrs["value"].array, node.types[0])
    return found


def host_call(step: HostCall, read: Set[int]) -> Run:
    """Torch's operator as a step; `read` are the values that compiled code reads.

    Those must have the types that torch's shape rules gave at capture. Others need not: the rule
    for the workspace of a recurrent layer is known to be wrong.
    """
    target = step.node.attrs["target"]
    call = bind(target, step.node.attrs["arguments"])
    expected = {
        k: (TO_TORCH[ty.dtype], ty.static(target))
        for k, (ty, value) in enumerate(zip(step.node.types, step.results, strict=True))
        if value in read
    }

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        results = [dense(t) for t in call(tensors)]
        for k, want in expected.items():
            found = results[k].dtype, tuple(results[k].shape)
            if found != want:
                raise PlaitError(f"{target}: result {k} is {found}, torch's shape rule says {want}")
        return results

    return run


def interpreted(graph: Graph) -> Run:
    """A segment run by the reference interpreter."""

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        arrays = interpret(graph, [to_numpy(t) for t in tensors])
        return [to_torch(a, ty) for a, ty in zip(arrays, graph.output_types, strict=True)]

    return run
