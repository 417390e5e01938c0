"""Measuring the candidates of a model's kernels, and keeping the best for later compilations.

Each kernel of a graph is tuned alone: its best candidates by the target's estimates are compiled
into one module and run in turns on random data, with so many copies of the weights that those come
from memory, as they do in a model.
A record replaces the first candidate only where it was faster by more than `MARGIN`, so that tuning
never slows a kernel down.  Records are kept as kernels are finished, so that an interrupted run
loses nothing, and are plain data that can be carried to another cache.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np

from plait.codegen.cpu import host_cpu_model
from plait.codegen.plan import (
    Call,
    ModulePlan,
    PointerArg,
    TensorSpec,
    gather_weights,
    place_weights,
)
from plait.codegen.target import Candidate, Target
from plait.codegen.tiles import ceil_div
from plait.ir.agreement import compare
from plait.ir.builder import Builder
from plait.ir.graph import Attrs, Blob, Graph, Node
from plait.ir.knobs import available_cpus
from plait.ir.types import TensorType
from plait.passes.context import Context
from plait.passes.pipeline import DEFAULT_PIPELINE, parse_pipeline
from plait.passes.select import Select, Selection
from plait.passes.stripe import Block, Link
from plait.runtime.cache import KernelCache
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library
from plait.runtime.opening import open_tvm

TUNED = "tuned"  # kind of cache entry
FORMAT = 6  # before: kernels that are faster now, and candidates that were not there
KEPT = 8  # candidates of a kernel that are measured
HOPELESS = 2.5  # candidates estimated to take so many times the best are not
MARGIN = 1.02
# Of equals that run for microseconds one is lucky in few rounds: such run for so many seconds.
ROUNDS, MOST_ROUNDS, SECONDS = 9, 100, 0.03
COLD_BYTES = 48 << 20  # so many bytes of weights in turns leave none in the last-level cache
MOST_COPIES = 16
MOST_BYTES = 1 << 30  # of weights of all candidates of a kernel
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
        """The record, or None if it is of another format: it does not hold any more."""
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


def tasks(graph: Graph, target: Target, kept: int = KEPT, hopeless: float = HOPELESS) -> list[Task]:
    """The kernels of an imported graph that have a choice, those that take longest first.

    Each with its `kept` best candidates that are not estimated at `hopeless` times the best.
    """
    open_tvm()  # templates import it
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
        limit = space[0].cycles * hopeless
        most = min(kept, max(2, MOST_BYTES // max(1, _weight_bytes(bodies[key], key[1]))))
        chosen = tuple(c for c in space if c.cycles <= limit)[:most]
        if len(chosen) > 1:
            found.append(Task(bodies[key], key[1], calls, chosen))
    return sorted(found, key=lambda t: -t.cycles)


def _weight_bytes(body: Graph, constant: tuple[bool, ...]) -> int:
    """Bytes of a kernel's constant operands."""
    types = [ty for ty, is_weight in zip(body.input_types, constant, strict=True) if is_weight]
    return sum(ty.nbytes("tuning") for ty in types)


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


def measure(task: Task, target: Target) -> Record:
    """Run a kernel's candidates in turns and choose one.

    A candidate whose result does not agree with the first one's is left out.
    """
    race = Race(task, target)
    samples = race.run(ROUNDS)
    rounds = int(SECONDS / sum(float(np.median(s)) for s in samples.values()))
    if rounds > ROUNDS:
        samples = race.run(min(rounds, MOST_ROUNDS))
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

    def within(self, body: Graph, schedule: str, number: int) -> bool:
        return False

    def blocks(self, chain: Sequence[Link]) -> Sequence[Block]:
        return ()


class Race:
    """The candidates of a kernel as the steps of one module, run with one copy of the weights
    after the other.

    Before the first candidate the last one runs, with weights of its own and untimed: whoever
    comes first in a run finds new memory for its results and sleeping threads.
    """

    def __init__(self, task: Task, target: Target) -> None:
        open_tvm()
        from plait.codegen.tvm.build import KernelJob, compile_many, host_target
        from plait.codegen.tvm.kernel import prim_func
        from plait.codegen.tvm.main_func import compile_main
        from plait.codegen.tvm.pool import pool_object

        machine, threads = host_target(), target.threads
        rng = np.random.default_rng(0)
        data = [_random(ty, rng) for ty in task.body.input_types]
        given = [a for a, constant in zip(data, task.constant, strict=True) if not constant]
        self.arrays = [a.reshape(-1) for a in given]
        made = [_packed(task, target, c.selection, data) for c in task.candidates]
        turns = [len(made) - 1, *range(len(made))]
        weights = {f"w{turn}.{k}": np.asarray(a) for turn, number in enumerate(turns)
                   for k, a in enumerate(made[number][1]) if not _is_one_of(a, given)}  # fmt: skip
        placed = place_weights(TensorSpec(n, str(a.dtype), a.shape) for n, a in weights.items())
        offsets = {w.name: w.byte_offset for w in placed}

        def pointer(turn: int, k: int, array: Any) -> PointerArg:
            name = f"w{turn}.{k}"
            if name in offsets:
                return PointerArg("weights", 0, offsets[name])
            return PointerArg("input", next(i for i, a in enumerate(given) if a is array))

        jobs = []
        for number, (node, _) in enumerate(made):
            what = node.attrs["body"], node.attrs["schedule"], node.attrs["pitch"]
            jobs.append(KernelJob(f"k_{number}", partial(prim_func, *what, threads)))
        code = compile_many(jobs, machine, available_cpus())
        results = [PointerArg("output", k) for k in range(len(task.body.outputs))]
        calls = []
        for turn, number in enumerate(turns):
            args = (*(pointer(turn, k, a) for k, a in enumerate(made[number][1])), *results)
            calls.append(Call(f"k_{number}", args, "", code[f"k_{number}"].parts))
        specs = [TensorSpec(f"x{k}", str(a.dtype), a.shape) for k, a in enumerate(self.arrays)]
        outputs = [_flat_spec(f"y{k}", ty) for k, ty in enumerate(task.body.output_types)]
        plan = ModulePlan(
            "race", tuple(specs), tuple(outputs), tuple(calls), 0, placed, threads=threads
        )
        objects = [code[job.symbol].data for job in jobs]
        library = Library([*objects, compile_main(plan, machine)], pool_object(machine))
        copies = max(1, min(MOST_COPIES, ceil_div(COLD_BYTES, max(1, plan.weights_bytes))))
        constants = {name: [Blob(array)] for name, array in weights.items()}
        self.models = [CompiledModel(plan, library, gather_weights(placed, constants), threads)
                       for _ in range(copies)]  # fmt: skip

    def run(self, rounds: int) -> dict[int, Any]:
        """Seconds of each candidate whose results agree, by its number: [rounds]."""
        samples = {number: np.empty(rounds) for number in self._agreeing()}
        for index in range(rounds):

            def around(step: int, go: Callable[[], object], index: int = index) -> None:
                begin = time.perf_counter()
                go()
                if step - 1 in samples:
                    samples[step - 1][index] = time.perf_counter() - begin

            self.models[index % len(self.models)].run_steps(self.arrays, around)
        return samples

    def _agreeing(self) -> list[int]:
        """The candidates whose results are those of the first one."""
        found, wanted = list[int](), list[Any]()
        model = self.models[0]
        for number in range(len(model.plan.steps) - 1):

            def only(step: int, go: Callable[[], object], number: int = number) -> None:
                if step - 1 == number:
                    go()

            got = model.run_steps(self.arrays, only)
            wanted = wanted or list(got)
            pairs = zip(got, wanted, strict=True)
            if all(compare(np.asarray(a), np.asarray(b)).agrees for a, b in pairs):
                found.append(number)
        return found


def _is_one_of(array: Any, arrays: Sequence[Any]) -> bool:
    return any(array is a for a in arrays)


def _packed(
    task: Task, target: Target, selection: Selection, data: Sequence[Any]
) -> tuple[Node, list[Any]]:
    """The kernel with a candidate's schedule, and its operands' arrays, packed."""
    b = Builder("race")
    types = task.body.input_types
    inputs = {k: b.input(types[k]) for k, constant in enumerate(task.constant) if not constant}
    operands = [inputs[k] if k in inputs else b.constant(a, f"w{k}") for k, a in enumerate(data)]
    attrs = Attrs(body=task.body, schedule="", pitch=())
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
        return rng.standard_normal(shape, np.float32).astype(type.dtype.numpy, copy=False)
    return np.zeros(shape, type.dtype.numpy)


def _flat_spec(name: str, type: TensorType) -> TensorSpec:
    size = int(np.prod(type.static("tuning")))
    return TensorSpec(name, type.dtype.name, (size,))
