"""What tests of kernels share: one op in a graph, compiled, and compared with its meaning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plait.codegen.core import AVX2, AVX512, Core, core
from plait.codegen.plan import Call, ModulePlan, PointerArg, TensorSpec
from plait.codegen.schedule import Schedule
from plait.codegen.tvm.build import compile_kernel, host_target
from plait.codegen.tvm.main_func import compile_main
from plait.codegen.tvm.pointers import over_pointers
from plait.codegen.tvm.pool import pool_object
from plait.codegen.tvm.target import cpu_target
from plait.ir.graph import Graph, Node
from plait.ir.interp import interpret
from plait.passes.context import Context
from plait.passes.pipeline import DEFAULT_PIPELINE, parse_pipeline
from plait.runtime.compiler import Module, compile_graph
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library

Array = NDArray[Any]
both_cores = pytest.mark.parametrize("core", [AVX2, AVX512], indirect=True, ids=["8", "16 lanes"])
SELECTED = DEFAULT_PIPELINE.partition(",stripe")[0]


def normal(seed: int, *shape: int) -> Array:
    """Normally distributed float32 numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def templates(module: Module) -> list[str]:
    """The templates of a module's kernels."""
    return [k.schedule.partition("{")[0] for k in module.kernels]


def only_kernel(graph: Graph, core: Core) -> tuple[Graph, Node]:
    """A graph once its kernels are chosen, and the only one."""
    lowered = parse_pipeline(SELECTED).run(graph, Context(cpu_target(1, core)))
    (kernel,) = (n for n in lowered.nodes if n.op == "kernel")
    return lowered, kernel


def check(graph: Graph, inputs: list[Array], template: str, exact: bool = False) -> Module:
    """Compile, find the template in use, and compare with the interpreter of the given graph."""
    module = compile_graph(graph)
    assert template in templates(module)
    wanted = interpret(graph, inputs)
    for packed in (interpret(module.graph, inputs), module.load(threads=2)(*inputs)):
        for got, want in zip(packed, wanted, strict=True):
            if exact:
                np.testing.assert_array_equal(got, want)
            else:
                np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    return module


def call(body: Graph, schedule: str, inputs: list[Array], over: int | None = None) -> Array:
    """The result of one kernel with a schedule of the test's own; inputs and result are flat.

    over: the input whose memory the result is written to.
    """
    parsed = Schedule.parse(schedule)
    named = Schedule.make(parsed.template, **{**parsed.parameters, "core": core().name})
    given = [np.array(x.reshape(-1)) for x in inputs]
    (found,) = loaded(cpu_target().build(body, str(named)), body, over)(*given)
    return found if over is None else given[over]


def loaded(func: Any, body: Graph, over: int | None = None) -> CompiledModel:
    """The PrimFunc of a body as a model of one kernel, whose inputs and result are flat."""
    specs = [TensorSpec(f"x{k}", i.type.dtype.name, (math.prod(i.type.static("test")),))
             for k, i in enumerate(body.inputs)]  # fmt: skip
    (out,) = body.output_types
    result = TensorSpec("y", out.dtype.name, (math.prod(out.static("test")),))
    to = PointerArg("output") if over is None else PointerArg("input", over)
    args = (*(PointerArg("input", k) for k in range(len(specs))), to)
    plan = ModulePlan("one", tuple(specs), (result,), (Call("k_one", args),))
    kernel = compile_kernel(over_pointers(func), "k_one", host_target())
    main = compile_main(plan, host_target())
    return CompiledModel(plan, Library([kernel, main], pool_object(host_target())))
