"""The `main` of a module: one PrimFunc that checks its tensors and calls the kernels in order.

    main(input 0, ..., output 0, ..., arena: handle, weights: handle, begin: int32, end: int32)

Inputs and outputs are DLTensors, checked for rank, shape, dtype and dense row-major strides before
any kernel runs.  Every kernel argument is `base + byte offset`.  Of the plan's steps, those from
`begin` up to (not including) `end` run: profiling and debugging run a module step by step through
the very code that runs it whole.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx

from plait.codegen.cpu import CpuTarget
from plait.codegen.plan import Call, Copy, ModulePlan, PointerArg, TensorSpec
from plait.codegen.tvm.build import MAIN_OPT_LEVEL, compile_object


def build_main(plan: ModulePlan) -> Any:
    """The PrimFunc of a plan."""
    inputs = [_buffer(t, f"in{i}") for i, t in enumerate(plan.inputs)]
    outputs = [_buffer(t, f"out{i}") for i, t in enumerate(plan.outputs)]
    arena, weights = tirx.Var("arena", "handle"), tirx.Var("weights", "handle")
    begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")

    def pointer(p: PointerArg) -> Any:
        match p.space:
            case "input":
                base = inputs[p.index].data
            case "output":
                base = outputs[p.index].data
            case "arena":
                base = arena
            case "weights":
                base = weights
        if p.byte_offset == 0:
            return base
        return tirx.handle_add_byte_offset(base, tirx.IntImm("int64", p.byte_offset))

    def step(s: Call | Copy) -> Any:
        if isinstance(s, Copy):
            size = tirx.IntImm("int64", s.nbytes)
            copy = tirx.call_extern("handle", "memcpy", pointer(s.dst), pointer(s.src), size)
            return tirx.Evaluate(copy)
        call: Any = tirx.call_extern("int32", s.symbol, *(pointer(a) for a in s.args))
        return tirx.IfThenElse(call != 0, tirx.Return(tirx.IntImm("int32", -1)), None)

    body = [
        tirx.IfThenElse(tirx.all(begin <= i, i < end), step(s), None)
        for i, s in enumerate(plan.steps)
    ]
    done = tirx.Return(tirx.IntImm("int32", 0))
    func = tirx.PrimFunc(
        [*inputs, *outputs, arena, weights, begin, end],
        tirx.SeqStmt([*body, done]) if body else done,
        ret_type=tvm.ir.PrimType("int32"),
    )
    return func.with_attr("s_tir", True)


def compile_main(plan: ModulePlan, target: CpuTarget) -> bytes:
    """The object of a plan's `main`, exported as `plan.main_symbol`."""
    plan.check()
    return compile_object(build_main(plan), plan.main_symbol, target, MAIN_OPT_LEVEL)


def _buffer(spec: TensorSpec, name: str) -> Any:
    # Only the element's own alignment is asked for: numpy promises no more than 16 bytes.
    itemsize = spec.numpy.itemsize
    dtype = "bool" if spec.dtype == "bool" else spec.numpy.name
    strides = None
    if spec.nbytes == 0:  # numpy and torch give empty tensors strides of their own: take any
        strides = [tirx.Var(f"{name}_stride{d}", "int32") for d in range(len(spec.shape))]
    return tirx.decl_buffer(spec.shape, dtype, name=name, strides=strides, data_alignment=itemsize)
