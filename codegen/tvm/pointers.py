"""A PrimFunc over buffers made one over raw data pointers, which is how kernels are called."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx

from plait.codegen.core import core
from plait.codegen.tvm.past import fenced
from plait.codegen.tvm.stack import aligned

_CPU = 1  # DLPack's kDLCPU


def over_pointers(func: Any) -> Any:
    """The PrimFunc with each buffer parameter a `handle` to dense data; it returns int32 0.

    Parameters that are numbers stay as they are.

    Pointers need the alignment of an element only, and may be equal (an output written in place of
    an operand), as long as each element is read before it is written.
    """
    params, views = list[Any](), list[Any]()
    for i, given in enumerate(func.params):
        if isinstance(given.ty, tvm.ir.PrimType):
            params.append(given)
        else:
            params.append(tirx.Var(f"p{i}", "handle"))
            views.append(tirx.DeclBuffer(given, data=params[-1]))
    done = tirx.Return(tirx.IntImm("int32", 0))
    # Scratch beyond 4 KiB is a workspace of a device: buffers would name it.  It is freed where
    # the statement around it ends, which must be before the return.
    work = aligned(fenced(func)) if core().aligns_stacks else fenced(func)
    for key, value in (("device_id", 0), ("device_type", _CPU)):
        work = tirx.AttrStmt(tvm.ir.StringImm("default"), key, tirx.IntImm("int32", value), work)
    body = tirx.SeqStmt([*views, work, done])
    result = tirx.PrimFunc(params, body, ret_type=tvm.ir.PrimType("int32"), attrs=func.attrs)
    return result.without_attr("tirx.noalias")
