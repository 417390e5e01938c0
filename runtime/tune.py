"""Measuring the candidates of a model's kernels, and keeping the best for later compilations.

Each kernel of a graph is tuned alone: its best candidates by the target's estimates are compiled
into one module and run in turns on random data, from a cache that a sweep has emptied of weights.
A record replaces the first candidate only where it was faster by more than `MARGIN`, so that tuning
never slows a kernel down.  Records are kept as kernels are finished, so that an interrupted run
loses nothing, and are plain data that can be carried to another cache.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from plait.codegen.cpu import host_cpu_model
from plait.codegen.plan import Call, ModulePlan, PointerArg, TensorSpec
from plait.codegen.target import Candidate, Target
from plait.ir.agreement import compare
from plait.ir.builder import Builder
from plait.ir.graph import Attrs, Blob, Graph, Node
from plait.ir.types import TensorType
from plait.passes.context import Context
from plait.passes.pipeline import DEFAULT_PIPELINE, parse_pipeline
from plait.passes.select import Select, Selection
from plait.runtime.cache import KernelCache
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library

TUNED = "tuned"  # kind of cache entry
FORMAT = 1
KEPT = 12  # candidates of a kernel that are measured
HOPELESS = 2.5  # candidates estimated to take so many times the best are not
MARGIN = 1.02
ROUNDS = 9
SWEPT_BYTES = 40 << 20  # more than the last-level cache
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Record:
    """What tuning found for a kernel: seconds of the first candidate and of the chosen one."""

    key: str
    kernel: str
    schedule: str
    pack: dict[int, tuple[str, int]]
    seconds: float
    default: str
    default_seconds: float
    candidates: int

    @property
    def selection(self) -> Selection:
        return Selection(self.schedule, self.pack)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Record | None:
        """The record, or None if another version wrote it."""
        if data.get("format") != FORMAT:
            return None
        fields = {k: v for k, v in data.items() if k != "format"}
        pack = {int(k): (str(form), int(block)) for k, (form, block) in fields["pack"].items()}
        return Record(**{**fields, "pack": pack})


def record_key(body: Graph, constant: tuple[bool, ...], threads: int) -> str:
    """What a record is kept under: the kernel, and the machine that it was measured on."""
    parts = (body.digest, str(constant), str(threads), host_cpu_model())
    return sha256("\0".join(parts).encode()).hexdigest()


def find(
    cache: KernelCache, body: Graph, constant: tuple[bool, ...], threads: int
) -> Record | None:
    """The record of a kernel, if it was tuned on such a machine."""
    data = cache.get(record_key(body, constant, threads), TUNED)
    return None if data is None else Record.from_json(json.loads(data))


def keep(cache: KernelCache, record: Record) -> None:
    cache.put(record.key, json.dumps(record.to_json()).encode(), TUNED)


@dataclass(frozen=True)
class Task:
    """A distinct kernel of a graph, before it has a schedule; `calls` counts its uses."""

    body: Graph
    constant: tuple[bool, ...]
    calls: int
    candidates: tuple[Candidate, ...]

    @property
    def cycles(self) -> float:
        """Estimated cycles of all calls."""
        return self.calls * self.candidates[0].cycles


def tasks(graph: Graph, target: Target) -> list[Task]:
    """The kernels of an imported graph that have a choice, those that take longest first."""
    before = DEFAULT_PIPELINE.partition(",select")[0]
    lowered = parse_pipeline(before).run(graph, Context(target))
    counts: dict[tuple[str, tuple[bool, ...]], int] = {}
    bodies: dict[tuple[str, tuple[bool, ...]], Graph] = {}
    for node in lowered.nodes:
        if node.op == "kernel":
            made = [lowered.producer(v) for v in node.operands]
            constant = tuple(m is not None and m.op == "constant" for m in made)
            key = node.attrs["body"].digest, constant
            counts[key] = counts.get(key, 0) + 1
            bodies[key] = node.attrs["body"]
    found = []
    for key, calls in counts.items():
        space = target.candidates(bodies[key], key[1])
        limit = space[0].cycles * HOPELESS
        kept = tuple(c for c in space if c.cycles <= limit)[:KEPT]
        if len(kept) > 1:
            found.append(Task(bodies[key], key[1], calls, kept))
    return sorted(found, key=lambda t: -t.cycles)


def tune(
    todo: Sequence[Task],
    target: Target,
    cache: KernelCache,
    budget: float,
    again: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Iterator[Record]:
    """Measure kernels one by one for `budget` seconds; gives each record.

    Kernels with a record are passed over unless `again`.  The budget is looked at before each
    kernel, and the last one is finished.
    """
    end = time.monotonic() + budget
    for done, task in enumerate(todo):
        progress(task.body.name, done, len(todo))
        if time.monotonic() >= end:
            return
        if not again and find(cache, task.body, task.constant, target.threads) is not None:
            continue
        record = measure(task, target)
        keep(cache, record)
        yield record
    progress("done", len(todo), len(todo))


def measure(task: Task, target: Target, rounds: int = ROUNDS) -> Record:
    """Run a kernel's candidates in turns and choose one.

    A candidate whose result does not agree with the first one's is left out.
    """
    race = Race(task, target)
    samples = race.run(rounds)
    best = fastest(samples)
    chosen, first = task.candidates[best].selection, task.candidates[0].selection
    return Record(
        key=record_key(task.body, task.constant, target.threads),
        kernel=task.body.name,
        schedule=chosen.schedule,
        pack=dict(chosen.pack),
        seconds=_typical(samples[best]),
        default=first.schedule,
        default_seconds=_typical(samples[0]),
        candidates=len(samples),
    )


def _typical(samples: Any) -> float:
    """The lower quartile: what disturbs a run only ever makes it slower."""
    return float(np.quantile(samples, 0.25))


def fastest(samples: Mapping[int, Any]) -> int:
    """The number of the candidate to choose; the first unless another is faster beyond doubt.

    It must win both by typical times and round by round.
    """
    best = min(samples, key=lambda k: _typical(samples[k]))
    by_time = _typical(samples[0]) / _typical(samples[best])
    by_round = float(np.median(samples[0] / samples[best]))
    return best if min(by_time, by_round) > MARGIN else 0


class _Fixed:
    """A target that selects one thing."""

    def __init__(self, target: Target, selection: Selection) -> None:
        self.name, self.selection = target.name, selection
        self.approximates, self.channels_last = target.approximates, target.channels_last

    def takes(self, op: str, types: tuple[TensorType, ...]) -> bool:
        return False

    def select(self, body: Graph, constant: tuple[bool, ...]) -> Selection:
        return self.selection


class Race:
    """The candidates of a kernel as the steps of one module, each with its own packed weights."""

    def __init__(self, task: Task, target: Target) -> None:
        from plait.codegen.tvm.build import KernelJob, compile_many, host_target
        from plait.codegen.tvm.main_func import compile_main
        from plait.codegen.tvm.pointers import over_pointers

        self.arrays: list[Any] = []
        self.place: dict[str, int] = {}
        rng = np.random.default_rng(0)
        data = [_random(ty, rng) for ty in task.body.input_types]
        steps, jobs = [], []
        outputs = [PointerArg("output", k) for k in range(len(task.body.outputs))]
        for number, candidate in enumerate(task.candidates):
            kernel, operands = _packed(task, target, candidate.selection, data)
            symbol = f"k_{number}"
            jobs.append(KernelJob(symbol, _maker(target, kernel, over_pointers)))
            inputs = [PointerArg("input", self._number(a)) for a in operands]
            steps.append(Call(symbol, (*inputs, *outputs)))
        specs = [TensorSpec(f"x{k}", str(a.dtype), a.shape) for k, a in enumerate(self.arrays)]
        results = [_flat_spec(f"y{k}", ty) for k, ty in enumerate(task.body.output_types)]
        plan = ModulePlan("race", tuple(specs), tuple(results), tuple(steps))
        machine = host_target()
        built = compile_many(jobs, machine, 2, lambda job, data: None)
        objects = [*(built[j.symbol] for j in jobs), compile_main(plan, machine)]
        self.model = CompiledModel(plan, Library(objects), threads=target.threads)
        self.swept = np.zeros(SWEPT_BYTES // 4, np.float32)
        self.warm = [a for a, c in zip(data, task.constant, strict=True) if not c]

    def _number(self, array: Any) -> int:
        """The input that an array is; equal ones share it."""
        digest = Blob(array).digest
        if digest not in self.place:
            self.place[digest] = len(self.arrays)
            self.arrays.append(np.array(array).reshape(-1))
        return self.place[digest]

    def run(self, rounds: int) -> dict[int, Any]:
        """Seconds of each candidate whose results agree, by its number: [rounds]."""
        samples = {k: np.empty(rounds) for k in range(len(self.model.plan.steps))}
        wanted: list[Any] = []
        for index in range(-1, rounds):

            def around(step: int, go: Callable[[], object], index: int = index) -> None:
                if step not in samples:
                    return
                self.swept += 1
                for array in self.warm:
                    array.sum()
                begin = time.perf_counter()
                go()
                if index >= 0:
                    samples[step][index] = time.perf_counter() - begin

            if index < 0:
                self._check(samples, wanted)
            else:
                self.model.run_steps(self.arrays, around)
        return samples

    def _check(self, samples: dict[int, Any], wanted: list[Any]) -> None:
        """Leave out the candidates whose results differ from the first one's."""
        for number in list(samples):

            def only(step: int, go: Callable[[], object], number: int = number) -> None:
                if step == number:
                    go()

            got = self.model.run_steps(self.arrays, only)
            wanted = wanted or list(got)
            pairs = zip(got, wanted, strict=True)
            if not all(compare(np.asarray(a), np.asarray(b)).agrees for a, b in pairs):
                del samples[number]


def _maker(target: Target, kernel: Node, over_pointers: Callable[[Any], Any]) -> Callable[[], Any]:
    attrs = kernel.attrs
    return lambda: over_pointers(target.build(attrs["body"], attrs["schedule"]))


def _packed(
    task: Task, target: Target, selection: Selection, data: Sequence[Any]
) -> tuple[Node, list[Any]]:
    """The kernel with a candidate's schedule, and its operands' arrays, packed."""
    b = Builder("race")
    operands = [
        b.constant(array, f"w{k}") if constant else b.input(ty)
        for k, (array, constant, ty) in enumerate(
            zip(data, task.constant, task.body.input_types, strict=True))
    ]  # fmt: skip
    attrs = Attrs(body=task.body, schedule="")
    node = Node("kernel", tuple(v.id for v in operands), attrs, task.body.output_types)
    made = b.add(node)
    fixed = Context(_Fixed(target, selection))
    graph = Select().apply(b.finish(list(made)), fixed)
    (kernel,) = (n for n in graph.nodes if n.op == "kernel")
    given = iter(a for a, constant in zip(data, task.constant, strict=True) if not constant)
    arrays: list[Any] = [next(given) for _ in graph.inputs]
    for node in graph.nodes:
        arrays += [node.attrs["value"].array if node.op == "constant" else None] * len(node.types)
    return kernel, [arrays[v] for v in kernel.operands]


def _random(type: TensorType, rng: Any) -> Any:
    """Data for a kernel's operand; small integers, since they may be indices."""
    shape = type.static("tuning")
    if type.dtype.is_float:
        return rng.standard_normal(shape).astype(type.dtype.numpy)
    return np.zeros(shape, type.dtype.numpy)


def _flat_spec(name: str, type: TensorType) -> TensorSpec:
    size = int(np.prod(type.static("tuning")))
    return TensorSpec(name, type.dtype.name, (size,))
