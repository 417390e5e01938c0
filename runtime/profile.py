"""Where the time of a run goes: each step's time beside its work, its traffic and the ceilings.

Rounds alternate a run as a whole with a run step by step, so that drift and neighbours hit both
alike.  What a step does comes from the lowered graph: its k-th kernel is the k-th call of the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plait.codegen.plan import Call, Copy, ModulePlan
from plait.ir.errors import ArtifactError, PlaitError, PlanError
from plait.ir.graph import Graph, Node
from plait.ir.knobs import thread_count
from plait.ir.text import parse_outline, show_type
from plait.ir.verify import verify
from plait.passes import footprint
from plait.runtime.artifact import Artifact
from plait.runtime.ceilings import Ceilings, measure_ceilings
from plait.runtime.executor import CompiledModel

if TYPE_CHECKING:
    from plait.runtime.compiler import Module

STAGE = "lowered"  # of an artifact: the graph that its plan was made from
ROUNDS = 30
WARMUP_ROUNDS = 2
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """What is known of a step before it runs.

    `flops` are those of contractions, two per multiply-add; `nbytes` must be moved at least once.
    `symbol` and `schedule` are empty for a copy, `location` where the model's line is not known.
    """

    name: str
    symbol: str
    flops: int
    nbytes: int
    schedule: str = ""
    operands: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    location: str = ""


@dataclass(frozen=True)
class Row:
    """One step, or all that call one kernel: medians and work are sums over `steps`."""

    name: str
    symbol: str
    steps: tuple[int, ...]
    seconds: float
    share: float
    flops: int
    nbytes: int
    roofline: float
    schedule: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    locations: tuple[str, ...]

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.seconds

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes / self.seconds


@dataclass(frozen=True)
class Profile:
    """Times in seconds: `step_seconds`[rounds, steps] and `run_seconds`[rounds].

    `step_starts` and `run_starts`, of the same shapes, count from the start of the first round.
    """

    name: str
    threads: int
    steps: tuple[Step, ...]
    ceilings: Ceilings
    run_starts: Floats
    run_seconds: Floats
    step_starts: Floats
    step_seconds: Floats

    @property
    def rounds(self) -> int:
        return len(self.run_seconds)

    @property
    def medians(self) -> Floats:
        """The median seconds of each step."""
        found: Floats = np.median(self.step_seconds, axis=0)
        return found

    def rows(self, group: bool = False) -> list[Row]:
        """The steps, slowest first; `group` makes one row of all that call the same kernel."""
        members: dict[object, list[int]] = {}
        for index, step in enumerate(self.steps):
            key = (step.symbol, step.name) if group else index
            members.setdefault(key, []).append(index)
        medians = self.medians
        rows = [self._row(indices, medians) for indices in members.values()]
        return sorted(rows, key=lambda row: -row.seconds)

    def _row(self, indices: list[int], medians: Floats) -> Row:
        first = self.steps[indices[0]]
        own = [self.steps[index] for index in indices]
        seconds = float(medians[indices].sum())
        least = sum(self.ceilings.least_seconds(step.flops, step.nbytes) for step in own)
        return Row(
            name=first.name,
            symbol=first.symbol,
            steps=tuple(indices),
            seconds=seconds,
            share=seconds / float(medians.sum()),
            flops=sum(step.flops for step in own),
            nbytes=sum(step.nbytes for step in own),
            roofline=least / seconds,
            schedule=first.schedule,
            operands=first.operands,
            results=first.results,
            locations=tuple(dict.fromkeys(step.location for step in own if step.location)),
        )


def describe_steps(graph: Graph, plan: ModulePlan) -> tuple[Step, ...]:
    """The steps of a plan that was made from this lowered graph.

    Raises `PlanError` if it was not.
    """
    nodes = iter([node for node in graph.nodes if node.op == "kernel"])
    steps = []
    for step in plan.steps:
        if isinstance(step, Copy):
            steps.append(Step("copy", "", 0, 2 * step.nbytes))
            continue
        node = next(nodes, None)
        if node is None or not _made_from(step, node):
            raise PlanError(f"the plan of {plan.name} does not call the kernels of its graph")
        steps.append(_describe(graph, node, step))
    if next(nodes, None) is not None:
        raise PlanError(f"the plan of {plan.name} does not call all kernels of its graph")
    return tuple(steps)


def artifact_steps(artifact: Artifact) -> tuple[Step, ...]:
    """The steps of an artifact's plan, by the text of the graph that it brings.

    Raises `ArtifactError` if it brings none, or one that its plan was not made from.
    """
    if STAGE not in artifact.stages:
        message = f"holds no stage {STAGE!r}, which says what its kernels compute: compile it again"
        raise ArtifactError(path=artifact.path, message=message)
    try:
        graph = parse_outline(artifact.ir_text(STAGE))
        verify(graph)
        return describe_steps(graph, artifact.plan())
    except ArtifactError:
        raise
    except PlaitError as error:
        message = f"its stage {STAGE!r} cannot be used: {error}"
        raise ArtifactError(path=artifact.path, message=message) from error


def profile_artifact(
    artifact: Artifact,
    choose_inputs: Callable[[CompiledModel], Sequence[NDArray[Any]]],
    *,
    threads: int | None = None,
    rounds: int = ROUNDS,
    progress: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Measure the ceilings and an artifact, on inputs that are chosen for the loaded model."""
    steps = artifact_steps(artifact)
    model = artifact.load(threads)
    inputs = choose_inputs(model)
    progress("measuring the machine")
    ceilings = measure_ceilings(model.threads)
    return measure(model, steps, inputs, ceilings, rounds=rounds, progress=progress)


def profile_module(
    module: Module,
    inputs: Sequence[NDArray[Any]],
    *,
    threads: int | None = None,
    rounds: int = ROUNDS,
    ceilings: Ceilings | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Measure a module that was just compiled, on arrays in the order of its inputs.

    The machine is measured too, unless its `ceilings` are given.
    """
    steps = describe_steps(module.graph, module.plan)
    known = ceilings or measure_ceilings(thread_count(threads))
    return measure(module.load(threads), steps, inputs, known, rounds=rounds, progress=progress)


def measure(
    model: CompiledModel,
    steps: Sequence[Step],
    inputs: Sequence[NDArray[Any]],
    ceilings: Ceilings,
    *,
    rounds: int = ROUNDS,
    progress: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Time `rounds` rounds of a whole run and of a run step by step, after some not timed."""
    arrays = [
        np.array(array, order="C") for array in inputs
    ]  # those of a mapped file are read-only
    run_starts, run_seconds = np.empty(rounds), np.empty(rounds)
    step_starts, step_seconds = (np.empty((rounds, len(steps))) for _ in range(2))
    clock = time.perf_counter
    for index in range(-WARMUP_ROUNDS, rounds):
        progress(f"round {index + 1} of {rounds}" if index >= 0 else "warming up")

        def around(step: int, go: Callable[[], object], row: int = max(index, 0)) -> None:
            step_starts[row, step] = begin = clock()
            go()
            step_seconds[row, step] = clock() - begin

        row = max(index, 0)  # the rounds that warm up are overwritten
        run_starts[row] = begin = clock()
        model(*arrays)
        run_seconds[row] = clock() - begin
        model.run_steps(arrays, around)
    zero = run_starts[0]
    return Profile(
        model.plan.name,
        model.threads,
        tuple(steps),
        ceilings,
        run_starts - zero,
        run_seconds,
        step_starts - zero,
        step_seconds,
    )


def _made_from(call: Call, node: Node) -> bool:
    arguments = len(node.operands) + len(node.types)
    return call.label == node.attrs["body"].name and len(call.args) == arguments


def _describe(graph: Graph, node: Node, call: Call) -> Step:
    """A kernel that is given the same memory twice reads it once."""
    body: Graph = node.attrs["body"]
    read: dict[object, int] = {}
    for pointer, nbytes in zip(call.args, footprint.reads(body), strict=False):
        read[pointer] = max(nbytes, read.get(pointer, 0))
    return Step(
        name=body.name,
        symbol=call.symbol,
        flops=footprint.flops(body),
        nbytes=sum(read.values()) + sum(ty.nbytes("a profile") for ty in node.types),
        schedule=node.attrs["schedule"],
        operands=tuple(show_type(graph.types[v]) for v in node.operands),
        results=tuple(map(show_type, node.types)),
        location=node.loc,
    )
