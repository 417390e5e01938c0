"""From a graph to a module: passes, kernels through the cache, the plan, `main`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.codegen.cpu import CpuTarget, host_cpu_model, host_features
from plait.codegen.plan import Code, ModulePlan, gather_weights
from plait.codegen.target import Target
from plait.ir import op as ops
from plait.ir.errors import PlanError, TargetMismatch, Unsupported, UnsupportedOp
from plait.ir.graph import Attrs, Graph
from plait.ir.knobs import available_cpus, thread_count
from plait.ir.logs import logger
from plait.ir.types import TensorType, bf16
from plait.passes.context import Context
from plait.passes.hooks import Timing
from plait.passes.memory import MemoryPlan
from plait.passes.pipeline import DEFAULT_PIPELINE, Hook, parse_pipeline
from plait.passes.select import Selection
from plait.passes.stripe import Block, Link
from plait.runtime import tensorfile, tune
from plait.runtime.artifact import Contents, TargetCode, write_artifact
from plait.runtime.cache import KernelCache
from plait.runtime.executor import CompiledModel
from plait.runtime.garbage import collected_later
from plait.runtime.loader import Library
from plait.runtime.opening import open_tvm
from plait.runtime.planning import make_plan

_log = logger(__name__)
SELECTIONS, MACHINES = "selections", "machines"  # kinds of cache entries
_MOVES = frozenset({"movement", "gather", "layout"})  # traits of ops that compute nothing
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Kernel:
    """A kernel of a module: its symbol, its meaning, and how often the module calls it."""

    symbol: str
    body: Graph
    schedule: str
    calls: int
    loc: str


@dataclass
class Module:
    """A compiled graph: what an artifact stores and what a process runs.

    `stages` holds the graph after the import and after the last pass; `seconds` the time of each
    stage of the compilation; `built` how many kernels were not in the cache.  The constants of
    `graph` lie in `weights_memory` (uint8), where kernels read them.  The code is `objects`, which
    are linked together, and that of the threads in `pool`, linked once in a process.
    """

    graph: Graph
    plan: ModulePlan
    memory: MemoryPlan
    objects: tuple[bytes, ...]
    pool: bytes
    weights_memory: NDArray[np.uint8]
    kernels: tuple[Kernel, ...]
    target: CpuTarget
    stages: dict[str, str] = field(default_factory=dict[str, str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    built: int = 0

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        """The weights by name, as the kernels read them."""
        return {w.name: tensorfile.view(w, self.weights_memory) for w in self.plan.weights}

    @collected_later()
    def load(self, threads: int | None = None) -> CompiledModel:
        """Link the module into this process.

        Raises `TargetMismatch` if it is built for what this CPU lacks.
        """
        if lacking := self.target.missing():
            missing = ", ".join(lacking)
            raise TargetMismatch(path=self.plan.name, target=self.target.name, missing=missing)
        return CompiledModel(
            self.plan, Library(self.objects, self.pool), self.weights_memory, threads
        )

    def save(
        self,
        path: Path,
        samples_in: dict[str, NDArray[Any]] | None = None,
        samples_out: dict[str, NDArray[Any]] | None = None,
    ) -> None:
        """Write the module as an artifact."""
        code = TargetCode(self.target, self.plan, self.objects, self.pool)
        write_artifact(
            path,
            Contents(self.plan.name, (code,), self.weights, samples_in or {}, samples_out or {},
                     self.stages),
        )  # fmt: skip


def compile_graph(
    graph: Graph,
    *,
    pipeline: str = DEFAULT_PIPELINE,
    cpu: str = "native",
    threads: int | None = None,
    hooks: Sequence[Hook] = (),
    cache: KernelCache | None = None,
    progress: Progress | None = None,
    keep_stages: bool = False,
    output_names: Sequence[str] = (),
) -> Module:
    """Compile a static graph without ATen fallbacks for a CPU.

    `cpu` is an LLVM CPU name or `native`; kernels are made for so many `threads`, by default the
    knob's; `progress(stage, done, total)` is told of each kernel; `output_names` are those of the
    outputs in order (default: `output0` and so on).
    Raises the errors of the passes, `UnsupportedSymbol` for symbolic sizes, `Unsupported` for
    arithmetic in bfloat16, `UsageError` for no number of threads, `CompileFailure`.
    """
    from plait.codegen.tvm.target import cpu_target

    threads = thread_count(threads)
    _check_has_code(graph)
    stopwatch = _Stopwatch()
    timing = Timing()
    cache = cache or KernelCache()
    machine = _machine(cpu, cache)
    context = Context(Remembering(cpu_target(threads, machine.core), cache))
    with collected_later():
        given = _with_constants_of_its_own(graph)
        lowered = parse_pipeline(pipeline).run(given, context, [timing, *hooks])
    if context.plan is None:
        raise PlanError(f"the pipeline {pipeline!r} makes no memory plan: it lacks `allocate`")
    stopwatch.ends("passes")
    builder = _Kernels(lowered, machine, threads, cache, progress)
    kernels, objects = builder.run()
    stopwatch.ends("kernels")
    calls = {k: (s, builder.parts[s]) for k, s in builder.symbols.items()}
    with collected_later():
        plan, constants = make_plan(lowered, context.plan, calls, threads, output_names)
        weights = gather_weights(plan.weights, constants)
    stopwatch.ends("weights")
    main = builder.through_cache(f"main-{plan.main_symbol}", lambda: _compile_main(plan, machine))
    pool = builder.through_cache("pool", lambda: _compile_pool(machine))
    stopwatch.ends("main")
    stages = {"imported": str(graph), "lowered": str(lowered)} if keep_stages else {}
    seconds = {**stopwatch.seconds, "total": sum(stopwatch.seconds.values())}
    seconds |= {f"pass.{name}": spent for name, spent in timing.seconds}
    module = Module(
        lowered,
        plan,
        context.plan,
        (*objects, main),
        pool,
        weights,
        kernels,
        machine,
        stages,
        seconds,
        builder.built,
    )
    _tell(module)
    return module


def _tell(module: Module) -> None:
    """What a compilation made, for whoever listens."""
    plan, count = module.plan, len(module.kernels)
    spent = ", ".join(f"{stage} {seconds:.3f} s" for stage, seconds in module.seconds.items())
    _log.info("%s: %d kernels, %d of them built: %s", plan.name, count, module.built, spent)
    _log.info("arena %d bytes, weights %d bytes", plan.arena_bytes, plan.weights_bytes)
    for kernel in module.kernels:
        what = kernel.symbol, kernel.schedule, kernel.loc or "no source", kernel.calls
        _log.debug("%s %s (%s), called %d times", *what)


class _Stopwatch:
    """The seconds of stages that follow each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def ends(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._began = now - self._began, now


def _with_constants_of_its_own(graph: Graph) -> Graph:
    """The graph with constants that may move to where kernels read them: the caller's stay."""
    nodes = tuple(
        node.with_attrs(value=node.attrs["value"].twin()) if node.op == "constant" else node
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes)


def _check_has_code(graph: Graph) -> None:
    """Raise `Unsupported` for the first node that the CPU has no code for.

    TVM rounds bfloat16 elsewhere than torch and loses its NaNs, so it is only moved and cast.
    """
    for k, node in enumerate(graph.nodes):
        if node.op == "aten":
            raise UnsupportedOp(node.attrs["target"], node.loc)
        moves = node.op in ("cast", "constant") or ops.get(node.op).traits & _MOVES
        touched = (*node.operands, *graph.results(k))
        if not moves and any(graph.types[v].dtype == bf16 for v in touched):
            where = f" (from {node.loc})" if node.loc else ""
            raise Unsupported(f"operator {node.op!r} computes in bfloat16, for which the CPU has "
                              f"no code: cast its operands to float32{where}")  # fmt: skip


class _Kernels:
    """Compiles the distinct kernels of a lowered graph, each at most once ever."""

    def __init__(
        self, graph: Graph, machine: CpuTarget, threads: int, cache: KernelCache,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.graph, self.machine, self.cache = graph, machine, cache
        self.threads = threads
        self.progress = progress or (lambda stage, done, total: None)
        self.built = 0
        self.symbols: dict[int, str] = {}
        self.parts: dict[str, int] = {}  # by symbol, as in `Call`

    def run(self) -> tuple[tuple[Kernel, ...], list[bytes]]:
        calls: dict[str, int] = {}
        nodes: dict[str, int] = {}
        for k, node in enumerate(self.graph.nodes):
            if node.op == "kernel":
                symbol = self._symbol(node.attrs)
                self.symbols[k] = symbol
                calls[symbol] = calls.get(symbol, 0) + 1
                nodes.setdefault(symbol, k)
        stored = {s: data for s in nodes if (data := self.cache.get(s[2:])) is not None}
        found = {s: Code.from_bytes(data) for s, data in stored.items()}
        missing = [s for s in nodes if s not in found]
        done = len(found)
        one_by_one = Lock()  # compiling threads report here

        def finished(job: Any, code: Code) -> None:
            nonlocal done
            self.cache.put(job.symbol[2:], code.to_bytes())
            with one_by_one:
                done += 1
                self.progress("kernels", done, len(nodes))

        if missing:
            open_tvm()
            from plait.codegen.tvm.build import KernelJob, compile_many

            jobs = [KernelJob(s, partial(self._make, nodes[s])) for s in missing]
            found |= compile_many(jobs, self.machine, available_cpus(), finished)
        self.built = len(missing)
        self.parts = {s: code.parts for s, code in found.items()}
        kernels = tuple(self._kernel(s, nodes[s], calls[s]) for s in nodes)
        return kernels, [found[s].data for s in nodes]

    def _symbol(self, attrs: Attrs) -> str:
        made = (attrs["body"].digest, attrs["schedule"], *map(str, attrs["pitch"]))
        key = "\0".join((*made, str(self.threads), str(self.machine), code_fingerprint()))
        return f"k_{sha256(key.encode()).hexdigest()[:32]}"

    def _make(self, k: int) -> Any:
        """The PrimFunc of the kernel at node `k`."""
        from plait.codegen.tvm.kernel import prim_func

        attrs = self.graph.nodes[k].attrs
        return prim_func(attrs["body"], attrs["schedule"], attrs["pitch"], self.threads)

    def _kernel(self, symbol: str, k: int, calls: int) -> Kernel:
        node = self.graph.nodes[k]
        return Kernel(symbol, node.attrs["body"], node.attrs["schedule"], calls, node.loc)

    def through_cache(self, key: str, make: Callable[[], bytes]) -> bytes:
        full = sha256("\0".join((key, str(self.machine), code_fingerprint())).encode()).hexdigest()
        data = self.cache.get(full)
        if data is None:
            data = make()
            self.cache.put(full, data)
        return data


class Remembering:
    """A target that takes what tuning found, and else its best estimate.

    Selections are kept in the cache, so that a known kernel needs no compiler, and here for the
    length of a compilation: a model calls few kernels many times.
    """

    def __init__(self, target: Target, cache: KernelCache) -> None:
        self.target, self.cache = target, cache
        self._selected: dict[str, Selection] = {}
        self.name = target.name
        self.channels_last = target.channels_last
        self.approximates = target.approximates

    def takes(self, op: str, types: tuple[TensorType, ...]) -> bool:
        return self.target.takes(op, types)

    def within(self, body: Graph, schedule: str, number: int) -> bool:
        return self.target.within(body, schedule, number)

    def blocks(self, chain: Sequence[Link]) -> Sequence[Block]:
        return self.target.blocks(chain)

    def select(self, body: Graph, constant: tuple[bool, ...]) -> Selection:
        parts = (body.digest, str(constant), str(self.target.threads), str(self.target.core),
                 code_fingerprint())  # fmt: skip
        key = sha256("\0".join(parts).encode()).hexdigest()
        if key not in self._selected:
            self._selected[key] = self._through_cache(key, body, constant)
        return self._selected[key]

    def _through_cache(self, key: str, body: Graph, constant: tuple[bool, ...]) -> Selection:
        record = tune.find(self.cache, body, constant, self.target.threads)
        if record is not None:
            key = sha256(f"{key}\0{record.schedule}".encode()).hexdigest()
        known = self.cache.get(key, SELECTIONS)
        if known is not None:
            data = json.loads(known)
            pack = {int(k): (str(form), int(block)) for k, (form, block) in data["pack"].items()}
            return Selection(data["schedule"], pack)
        found = self._chosen(body, constant, record)
        text = json.dumps({"schedule": found.schedule, "pack": found.pack})
        self.cache.put(key, text.encode(), SELECTIONS)
        return found

    def _chosen(
        self, body: Graph, constant: tuple[bool, ...], record: tune.Record | None
    ) -> Selection:
        """The record's choice if the templates still offer it."""
        open_tvm()  # templates import it
        space = [c.selection for c in self.target.candidates(body, constant)]
        return record.selection if record and record.selection in space else space[0]


def _machine(cpu: str, cache: KernelCache) -> CpuTarget:
    """The CPU by name; LLVM, which knows the names, is asked once for each host and fingerprint."""
    host = "\0".join((cpu, host_cpu_model(), *sorted(host_features()), code_fingerprint()))
    key = sha256(host.encode()).hexdigest()
    known = cache.get(key, MACHINES)
    if known is not None:
        return CpuTarget.from_json(json.loads(known))
    open_tvm()
    from plait.codegen.tvm.build import named_target

    found = named_target(cpu)
    cache.put(key, json.dumps(found.to_json()).encode(), MACHINES)
    return found


def _compile_main(plan: ModulePlan, machine: CpuTarget) -> bytes:
    open_tvm()
    from plait.codegen.tvm.main_func import compile_main

    return compile_main(plan, machine)


def _compile_pool(machine: CpuTarget) -> bytes:
    open_tvm()
    from plait.codegen.tvm.pool import pool_object

    return pool_object(machine)


@cache
def _toolchain() -> str:
    """The versions of what makes object code; each TVM wheel holds one LLVM."""
    return f"apache-tvm {version('apache-tvm')}"


@cache
def code_fingerprint() -> str:
    """A digest of what decides a kernel's code beside its body: this compiler and its toolchain.

    The passes are part of it: templates go by what `fuse` and `select` define.
    """
    import plait.codegen
    import plait.ir
    import plait.passes

    digest = sha256(_toolchain().encode())
    for package in (plait.codegen, plait.ir, plait.passes):
        for pattern in ("*.py", "*.ll"):
            for path in sorted(Path(package.__path__[0]).rglob(pattern)):
                digest.update(path.read_bytes())
    return digest.hexdigest()
