"""Stacks aligned to lines, so that no vector that LLVM puts there lies in two.

What does not fit the registers goes to the stack, which calls align to 16 bytes.  A vector that
crosses a line costs a second access; one that crosses a page, on Zen 4, some 400 cycles: a kernel
takes twice as long, or not, by where the stack of its process happens to lie.  Small arrays are at
multiples of 16 bytes all the same: TVM says so.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx

from plait.codegen.tvm.text import with_llvm

Stmt = Any


def aligned(body: Stmt) -> Stmt:
    """The body of a kernel, whose stack and those of its threads' functions are aligned.

    LLVM aligns the stack of a function that keeps what must be aligned: a line, stored to once.
    """
    inside = tvm_ffi.structural_map(body, (tirx.For, _in_threads))
    return with_llvm("stack.ll", tirx.SeqStmt([_align(), inside]))


def _in_threads(loop: Any) -> Any:
    """A parallel loop, whose body becomes a function of its own."""
    if loop.kind != tirx.ForKind.PARALLEL:
        return loop
    both = tirx.SeqStmt([_align(), loop.body])
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, both)


def _align() -> Stmt:
    return tirx.Evaluate(tirx.call_extern("void", "plait_align_stack"))
