"""The threads that help with parallel loops: one pool for a process, without waiting for help.

TVM's own pool makes the launcher of a loop wait for every worker, also for one that gets no CPU.
Beside a library whose threads still spin after their work, as torch's do for some 4 ms, each call
took as long as they did.  Here a loop is so many tasks: the launcher puts it up and takes the tasks
one after another, as do the workers that are there in time; at the end it takes the loop down and
waits for those alone that are at work on it.

One launcher at a time has the workers; others do their loops alone.  An idle worker looks for work
a while, offering its CPU to others as it does, then sleeps.  One that finds itself on the
launcher's CPU, where it would only take time from it, goes to another first or stays out.

TVM's language has no atomic operations and no call of a function by its address, so the pool is
text of LLVM's (`pool.ll`).  Its object is the same for all models, and a process loads it once:
`plait.runtime.loader`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm import tirx

from plait.codegen.cpu import CpuTarget
from plait.codegen.pool import ASKED, FUNCTIONS, PREFIX
from plait.codegen.tvm.build import as_c_function, compile_object
from plait.codegen.tvm.loops import sequence
from plait.codegen.tvm.scalars import const
from plait.codegen.tvm.text import with_llvm

Stmt = Any


@cache
def pool_object(target: CpuTarget) -> bytes:
    """The object that exports the functions of `plait.codegen.pool`."""
    # Called by their addresses: what TVM's parallel loops launch by, and what a thread starts with.
    launched = [tirx.Var("function", "handle"), tirx.Var("data", "handle"), _number("wish")]
    functions = {
        "plait_pool_launch": as_c_function(_function("launch", "int32", launched)),
        "plait_pool_worker": as_c_function(_function("work", "int32", [])),
    }
    for name in FUNCTIONS:
        given = [_number("count")] if name == ASKED else []
        functions[name] = _function(name.removeprefix(PREFIX), "int64", given)
    return compile_object(functions, target)


def _function(name: str, result: str, params: list[Any]) -> Any:
    """A function of TVM's that is one of the text."""
    call: Any = tirx.call_extern(result, name, *params)
    done: Stmt = tirx.Return(call)
    if result == "int32":  # C's: it returns 0, or -1 where it asserts what is not so
        kind, why = tvm.ir.StringImm("RuntimeError"), tvm.ir.StringImm("a task failed")
        done = sequence([tirx.AssertStmt(call == 0, kind, [why]), tirx.Return(const(0, result))])
    body = with_llvm("pool.ll", with_llvm("phases.ll", done))
    func = tirx.PrimFunc(params, body, ret_type=tvm.ir.PrimType(result))
    return func.with_attr("s_tir", True)


def _number(name: str) -> Any:
    return tirx.Var(name, "int32")
