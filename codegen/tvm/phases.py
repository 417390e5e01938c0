"""Phases that threads go through together, in parts that any of them may do.

A phase begins when all parts of the one before are done.  Each thread begins with a part of its
own, so that what it has in its cache serves it again, then claims those that nobody has begun: a
thread that gets no CPU, or comes late, holds nobody up.  A thread that is early in one phase finds
the others there in the next.

Parts are claimed by words, one for each part: the number of phases up to the last in which somebody
has claimed it.  Another word counts what is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from plait.codegen.tiles import LINE
from plait.codegen.tvm.build import STACK_BYTES
from plait.codegen.tvm.loops import loop, put, sequence
from plait.codegen.tvm.scalars import const
from plait.codegen.tvm.text import with_llvm

PrimExpr = Any
Stmt = Any


class Phases:
    """Phases of up to `parts` parts."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        # Each in a line of its own while all lie on the stack.
        self._stride = max(1, min(LINE, (STACK_BYTES // 4 - 1) // (parts + 1)))
        size = (parts + 1) * self._stride
        self._words = tirx.decl_buffer((size,), "int32", name="phases")

    def around(self, threads: Stmt, skipped: PrimExpr = 0) -> Stmt:
        """A parallel loop that runs phases; the first that it does not skip is number `skipped`."""
        done = skipped * const(self.parts, "int32")
        return sequence([
            tirx.AllocBuffer(self._words),
            loop(self.parts, lambda k: put(self._words, k * self._stride, const(0, "int32"))),
            put(self._words, self.parts * self._stride, done),
            with_llvm("phases.ll", threads),
        ])  # fmt: skip

    def run(
        self, phase: PrimExpr, parts: int, own: PrimExpr, work: Callable[[PrimExpr], Stmt]
    ) -> Stmt:
        """What a thread does in a phase: parts, from its `own` on, and waiting until all are done.

        `phase` is the number of the phase; `work` is given a part, of 0..parts-1.
        """
        done, all_done = self._place(self.parts), (phase + 1) * self.parts

        def turn(k: PrimExpr) -> Stmt:
            part = tirx.Var("claimed", "int32")
            first = self._ask("claim", self._place(part), phase)
            # A phase of fewer parts counts as much as one of all.
            one, rest = const(1, "int32"), const(1 + self.parts - parts, "int32")
            arrive = self._ask("arrive", done, tirx.Select(part == 0, rest, one))
            both = sequence([work(part), tirx.Evaluate(arrive)])
            return sequence([
                tirx.Bind(part, (own + k) % parts), tirx.IfThenElse(first > 0, both, None)
            ])  # fmt: skip

        wait = tirx.Evaluate(self._ask("await", done, all_done))
        mine = sequence([loop(parts, turn, None, "turn"), wait])
        return tirx.IfThenElse(self._ask("before", done, all_done) > 0, mine, None)

    def _place(self, k: PrimExpr) -> PrimExpr:
        return tirx.call_intrin("handle", "tirx.address_of", self._words[k * self._stride])

    def _ask(self, function: str, *args: PrimExpr) -> PrimExpr:
        return tirx.call_extern("int32", f"plait_{function}", *args)
