"""Results that go past the caches, being too large for them.

A store to a line that no cache holds fetches the line first, although all of it is overwritten: a
third of the traffic of a copy.  A store past the caches does not, where a vector is a line.  What
is stored so is read from memory later, so it must be more than the last-level cache would keep, and
must not be read again by the kernel itself.

TVM's language has no such stores: they are marked in a kernel, and after TVM's own passes, which
make vectors, each vector becomes a call of a function in text of LLVM's (`past.ll`).  It looks
whether the place is a whole line: arrays of a caller may lie anywhere.

Other threads see such stores after a fence, with which a kernel and each of its parts end, or after
a locked instruction, with which each task of a parallel loop does (AMD64 manual, volume 2, on
buffers that combine writes).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from plait.codegen.tiles import LINE
from plait.codegen.tvm.text import with_llvm
from plait.ir import types as t

Stmt = Any
PAST = "plait.past"  # the attribute of a PrimFunc with marked stores
_MARK = "plait.past_caches"


def marked(store: Stmt) -> Stmt:
    """A store that may go past the caches."""
    name = tvm.ir.StringImm(store.buffer.name)
    return tirx.AttrStmt(name, _MARK, tirx.const(1, "int32"), store)


def fenced(func: Any) -> Stmt:
    """The body of a kernel; if results go past the caches, they are in place before it ends."""
    if PAST not in func.attrs:
        return func.body
    fence = tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.x86.sse.sfence"))
    return with_llvm("past.ll", tirx.SeqStmt([func.body, fence]))


def _sent(mark: Any) -> Any:
    """What is marked, by now perhaps among other statements, with vectors as calls."""
    if str(mark.attr_key) != _MARK:
        return mark
    to_call = partial(_call, str(mark.node.value))
    return tvm_ffi.structural_map(mark.body, (tirx.BufferStore, to_call))


def _call(name: str, store: Any) -> Any:
    """A store into the buffer of this name as a call, if it is of a vector that may be a line."""
    (index,) = store.indices
    if str(store.buffer.name) != name or not _may_be_line(index, str(store.buffer.dtype)):
        return store
    place = tirx.address_of(store.buffer[index.base])
    return tirx.Evaluate(tirx.call_extern("void", f"plait_past_{LINE}", place, store.value))


def _may_be_line(index: Any, dtype: str) -> bool:
    line = isinstance(index, tirx.Ramp) and int(index.lanes) == LINE and int(index.stride) == 1
    return line and dtype == t.f32.name


@tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]
def lower_marked(func: Any, module: Any, context: Any) -> Any:
    """The pass that makes calls of marked stores, which by now are of vectors."""
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.AttrStmt, _sent)))
