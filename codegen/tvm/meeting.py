"""Where the parts of a parallel kernel wait for each other between steps, without the kernel's end.

Each part has a flag, the number of steps it has done, in a cache line of its own; before a step it
waits until all flags say that the one before is done.  A thread that runs several parts in turn
does a step of all of them before the next step of any, and so never waits for itself.  x86 makes
stores visible in their order: who sees a flag sees what its part wrote before.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from plait.codegen.tiles import LINE
from plait.codegen.tvm.build import STACK_BYTES
from plait.codegen.tvm.loops import loop, put, sequence
from plait.codegen.tvm.scalars import const
from plait.ir.types import LINE_BYTES

PrimExpr = Any
Stmt = Any

LOOKS = 2_000  # at a flag, some 30 us, before the CPU is offered to other threads at each
# A buffer of so many is a workspace, which begins on a line; a smaller one would lie on the stack.
_LEAST_LINES = STACK_BYTES // LINE_BYTES


class Meeting:
    """The flags of `parts` parts; the kernel allocates the buffer `flags` and opens the meeting."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self.flags = tirx.decl_buffer((max(parts, _LEAST_LINES) * LINE,), "int32", name="flags")

    def open(self) -> Stmt:
        """No step is done yet."""
        return loop(self.parts, lambda p: put(self.flags, p * LINE, const(0, "int32")))

    def wait(self, steps: PrimExpr) -> Stmt:
        """Until all parts have done so many steps."""

        def other(part: PrimExpr) -> Stmt:
            looks = tirx.decl_buffer((1,), "int32", name="looks")
            again = tirx.IfThenElse(
                looks[0] < LOOKS,
                sequence([_instruction("llvm.x86.sse2.pause"), put(looks, 0, looks[0] + 1)]),
                tirx.Evaluate(tirx.call_extern("int32", "sched_yield")),
            )
            return sequence([
                tirx.AllocBuffer(looks), put(looks, 0, const(0, "int32")),
                tirx.While(self.flags[part * LINE] < steps, again),
            ])  # fmt: skip

        # No load of what the others wrote may move before the last look at their flags.
        seen = _instruction("llvm.x86.sse2.lfence")
        return sequence([loop(self.parts, other, None, "other"), seen])

    def arrive(self, part: PrimExpr, steps: PrimExpr) -> Stmt:
        """A part has done so many steps, and says so."""
        return sequence([_instruction("llvm.x86.sse.sfence"), put(self.flags, part * LINE, steps)])


def _instruction(name: str) -> Stmt:
    """An instruction without operands, across which the compiler moves no load and no store."""
    return tirx.Evaluate(tirx.call_llvm_intrin("void", name))
