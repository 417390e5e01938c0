"""PrimFunc to object code: LLVM through TVM, one object file per kernel.

A kernel is a PrimFunc whose parameters are raw data pointers (`T.handle`); it must return int32,
0 for success (a function with a parallel loop and no result fails LLVM's verification).  Its
object exports `symbol` as a plain C function `int symbol(void *, ...)`, without TVM's packed
wrapper, which takes 12 ms more to compile and which a module can call from one place only.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.target import codegen as llvm

from plait.codegen.cpu import CpuTarget, checked_features, host_features
from plait.codegen.plan import Code
from plait.codegen.tvm.parts import parts_of
from plait.codegen.tvm.past import lower_marked
from plait.codegen.tvm.scalars import bindings
from plait.ir.errors import CompileFailure, PlaitError, UnknownName
from plait.ir.logs import logger

_log = logger(__name__)

MACHINE = "x86_64"
STACK_BYTES = 4096  # smaller buffers lie on the stack, or in registers: 32 hold half as much
MOST_NAMES = 12  # of parts of a value; above, compiling may take seconds
MAIN_OPT_LEVEL = 0  # a main is straight-line calls: at level 3 LLVM takes five times as long
_PIPELINE, _UNSHARED = "plait", "plait-unshared"  # the second shares no subexpressions
_FINAL_CONVENTION = 1  # tvm.ir.CallingConv.C_PACKED_FUNC


@dataclass(frozen=True)
class KernelJob:
    """A kernel to compile: `make` builds its PrimFunc, in the worker thread."""

    symbol: str
    make: Callable[[], Any]


@cache
def host_target() -> CpuTarget:
    """The CPU at hand, as LLVM names it."""
    return named_target(str(llvm.llvm_get_system_cpu()))


@cache
def named_target(mcpu: str) -> CpuTarget:
    """The target of an LLVM CPU name: `native`, `x86-64-v3`, `znver3`, ...

    Its features are all that the name implies, less what the CPU at hand lacks if it is `native`
    (a virtual machine may hide some).  Raises `UnknownName` for a name that LLVM does not know.
    """
    if mcpu == "native":
        return host_target()
    known = [str(name) for name in llvm.llvm_get_cpu_archlist(_target(mcpu, 3))]
    if mcpu not in known:
        raise UnknownName("CPU", mcpu, known)
    features = {str(name) for name in llvm.llvm_get_cpu_features(_target(mcpu, 3))}
    if mcpu == str(llvm.llvm_get_system_cpu()):
        features &= host_features()
    return CpuTarget(MACHINE, mcpu, checked_features(features))


@cache
def tvm_target(target: CpuTarget, opt_level: int = 3) -> Any:
    """The `tvm.target.Target` of a CPU; what the CPU's name implies but it lacks is turned off."""
    implied = {str(name) for name in llvm.llvm_get_cpu_features(_target(target.mcpu, opt_level))}
    lacking = sorted(set(checked_features(implied)) - set(target.features))
    return _target(target.mcpu, opt_level, [f"-{name}" for name in lacking])


def compile_kernel(func: Any, symbol: str, target: CpuTarget) -> bytes:
    """The ELF object of a kernel, exported as the C function `symbol`."""
    return compile_object({symbol: as_c_function(func)}, target)


def as_c_function(func: Any) -> Any:
    """Mark a PrimFunc as having its final calling convention, so that TVM adds no wrapper."""
    return func.with_attr("calling_conv", _FINAL_CONVENTION)


def compile_object(functions: Mapping[str, Any], target: CpuTarget, opt_level: int = 3) -> bytes:
    """The ELF object of PrimFuncs by the symbols to export (packed unless marked otherwise).

    Raises `CompileFailure`, with the TVMScript in its notes, when TVM or LLVM refuse a function.
    """
    named = {s: func.with_attr("global_symbol", s) for s, func in functions.items()}
    try:
        return _object(named, target, opt_level, _PIPELINE)
    except Exception as error:  # TVM raises every kind, also for its own faults
        # Of those one is to share what a branch computes with places that do not go through it.
        _log.debug("built without sharing, since with it: %s", _first_line(error))
        with suppress(Exception):
            return _object(named, target, opt_level, _UNSHARED)
        failure = CompileFailure(kernel=next(iter(functions)), message=_first_line(error))
        for func in named.values():
            failure.add_note(func.script())
        raise failure from error


def _object(functions: Mapping[str, Any], target: CpuTarget, opt_level: int, how: str) -> bytes:
    module = _build(functions, target, opt_level, how)
    with tempfile.TemporaryDirectory(prefix="plait-") as folder:
        path = Path(folder) / "kernel.o"
        module.write_to_file(str(path))
        return path.read_bytes()


def compile_many(
    jobs: Sequence[KernelJob],
    target: CpuTarget,
    threads: int = 2,
    done: Callable[[KernelJob, Code], None] | None = None,
) -> dict[str, Code]:
    """Compile each job, on several threads (TVM lets go of the GIL: 1.9x on two).

    `done` is called from the worker thread after each.  The first failure is raised, as
    `CompileFailure` whatever it was, and what has not started by then is dropped.
    """

    def work(job: KernelJob) -> Code:
        try:
            func = job.make()
        except PlaitError:
            raise
        except Exception as error:
            raise CompileFailure(kernel=job.symbol, message=_first_line(error)) from error
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s:\n%s", job.symbol, func.script())
        code = Code(compile_kernel(func, job.symbol, target), parts_of(func))
        if done is not None:
            done(job, code)
        return code

    with ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="compile") as pool:
        futures = {job.symbol: pool.submit(work, job) for job in jobs}
        try:
            return {symbol: future.result() for symbol, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def assembly(func: Any, symbol: str, target: CpuTarget) -> str:
    """The assembly of a kernel, for people."""
    named = as_c_function(func).with_attr("global_symbol", symbol)
    return str(_build({symbol: named}, target).inspect_source("asm"))


def _build(
    functions: Mapping[str, Any], target: CpuTarget, opt_level: int = 3, how: str = _PIPELINE
) -> Any:
    module = tvm.IRModule(dict(functions))
    return tirx.build(module, target=tvm_target(target, opt_level), pipeline=how)


def buffer_bytes(buffer: Any) -> int:
    """Bytes of a buffer of constant size."""
    size: int = tvm.DataType(str(buffer.dtype)).itemsize
    return size * math.prod(int(extent) for extent in buffer.shape)


def _on_stack(alloc: Any) -> Any:
    """TVM itself keeps buffers below 1 KiB on the stack; an annotation keeps others there."""
    if buffer_bytes(alloc.buffer) >= STACK_BYTES:
        return alloc
    kept = {"disable_lower_builtin": tirx.const(1, "bool")}
    return tirx.AllocBuffer(alloc.buffer, {**alloc.annotations, **kept})


@tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]
def _keep_small_on_stack(func: Any, module: Any, context: Any) -> Any:
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, _on_stack)))


def _in_memory(store: Any) -> Any:
    """A store of a value with many names: each name becomes a place on the stack.

    Some passes put what a name stands for in place of it, and so take time exponential in names
    that stand for each other.  LLVM takes the places back into registers.
    """
    bound, body = bindings(store.value)
    if len(bound) <= MOST_NAMES:
        return store
    places: dict[Any, Any] = {}
    stmts: list[Any] = []

    def read(value: Any) -> Any:
        return tvm_ffi.structural_map(value, (tirx.Var, lambda var: places.get(var, var)))

    for var, value in bound:
        lanes = tvm.DataType(str(var.ty.dtype)).lanes
        element = str(var.ty.dtype).removesuffix(f"x{lanes}")
        place = tirx.decl_buffer((lanes,), element, name=var.name)
        zero = tirx.const(0, "int32")
        index = [tirx.Ramp(zero, 1, lanes) if lanes > 1 else zero]
        stmts += [tirx.AllocBuffer(place), tirx.BufferStore(place, read(value), index)]
        places[var] = tirx.BufferLoad(place, index)
    return tirx.SeqStmt([*stmts, tirx.BufferStore(store.buffer, read(body), store.indices)])


@tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]
def _keep_names_in_memory(func: Any, module: Any, context: Any) -> Any:
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.BufferStore, _in_memory)))


def _pipeline(share: bool = True) -> tuple[Any, ...]:
    """What is left to do for loops over flat buffers, which hold no blocks.

    TVM's own pipeline has passes for blocks, devices and groups of threads too, an eighth of what
    kernels take to compile and more than half of a main's, which change nothing here; and one that
    would hoist scratch out of loops, to where its device has no name.  Indices are simplified
    before lanes become constants, before what is left is repeated for each round of a loop, and
    once the rounds' numbers stand in them.
    """
    _, host, device = tirx.get_tir_pipeline("default")
    schedule, lower = s_tir.transform, tirx.transform
    passes = [
        schedule.CanonicalizeLoop(),
        schedule.StmtSimplify(),
        schedule.LowerOpaqueBlock(),
        lower.VectorizeLoop(),
        _keep_names_in_memory,
        lower.StmtSimplify(),
        lower.UnrollLoop(),
        schedule.RenormalizeSplitPattern(),
        lower.StmtSimplify(),
        schedule.RewriteUnsafeSelect(),
        *([lower.CommonSubexprElim()] if share else []),
        lower.AnnotateEntryFunc(),
        lower.MakePackedAPI(),
    ]

    def finish() -> Any:
        return tvm.transform.Sequential([_keep_small_on_stack, lower_marked, host()])

    return tvm.transform.Sequential(passes), finish, device


tirx.register_tir_pipeline(_PIPELINE, _pipeline)
tirx.register_tir_pipeline(_UNSHARED, partial(_pipeline, share=False))


def _target(mcpu: str, opt_level: int, mattr: Sequence[str] = ()) -> Any:
    config: dict[str, Any] = {"kind": "llvm", "mcpu": mcpu, "opt-level": opt_level}
    if mattr:
        config["mattr"] = list(mattr)
    return tvm.target.Target(config)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
