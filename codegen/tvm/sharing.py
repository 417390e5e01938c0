"""Threads that share the parts of a kernel as it goes, not by shares fixed beforehand.

A core that others use too, or that is slower by design, would keep the others waiting at the end of
every kernel.  Each thread takes the parts from its place on, and passes by those that others have
taken.  A part computes the same whoever takes it: so do the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from plait.codegen.tvm.loops import loop, put, sequence
from plait.codegen.tvm.parts import neighbours
from plait.codegen.tvm.scalars import const

PrimExpr = Any
Stmt = Any

SHARES = 16  # parts for each thread: one waits at the end for about a part
MOST_PARTS = 128  # what is left of them lies on the stack
_LOCK, _COUNT, _FREE = 0, 1, 2  # where what is: from the last on, a word for each part


def parts_for(threads: int) -> int:
    """Parts that a large kernel is cut into: as many for each thread."""
    return threads * max(1, min(SHARES, MOST_PARTS // threads)) if threads > 1 else 1


class Sharing:
    """What is left of `parts` parts; the caller allocates the buffer `left` and opens it."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        assert parts <= MOST_PARTS, f"{parts} parts do not lie on the stack"
        self.left = tirx.decl_buffer((_FREE + parts,), "int32", name="left")

    def open(self) -> Stmt:
        """No part is taken yet."""
        free = loop(self.parts, lambda p: put(self.left, _FREE + p, const(1, "int32")))
        return sequence([
            self._lock("pthread_spin_init", const(0, "int32")),
            put(self.left, _COUNT, const(self.parts, "int32")), free,
        ])  # fmt: skip

    def take(self, first: PrimExpr, work: Callable[[PrimExpr], Stmt]) -> Stmt:
        """Work on one part after another, from the part `first` on, until none is left."""
        part, more = (tirx.decl_buffer((1,), "int32", name=name) for name in ("part", "more"))
        return sequence([
            tirx.AllocBuffer(part), put(part, 0, first),
            tirx.AllocBuffer(more), put(more, 0, const(1, "int32")),
            tirx.While(more[0] > 0, sequence([
                self._next(part, more), tirx.IfThenElse(more[0] > 0, work(part[0]), None),
            ])),
        ])  # fmt: skip

    def _next(self, part: Any, more: Any) -> Stmt:
        """Take the next part that is free, if there is `more`."""
        ahead = put(part, 0, (part[0] + 1) % self.parts)
        taken = [
            tirx.While(self.left[_FREE + part[0]] < 1, ahead),
            put(self.left, _FREE + part[0], const(0, "int32")),
            put(self.left, _COUNT, self.left[_COUNT] - 1),
        ]
        return sequence([
            self._lock("pthread_spin_lock"), put(more, 0, self.left[_COUNT]),
            tirx.IfThenElse(more[0] > 0, sequence(taken), None),
            self._lock("pthread_spin_unlock"),
        ])  # fmt: skip

    def _lock(self, function: str, *more: PrimExpr) -> Stmt:
        place = tirx.call_intrin("handle", "tirx.address_of", self.left[_LOCK])
        return tirx.Evaluate(tirx.call_extern("int32", function, place, *more))


def shared(
    count: int, threads: int, item: Callable[[PrimExpr], Stmt], own: Sequence[Any] = ()
) -> Stmt:
    """`item` at 0..count-1, by threads that take neighbours as they go; each has `own` buffers."""
    buffers = [tirx.AllocBuffer(b) for b in own]
    parts = min(count, parts_for(threads), MOST_PARTS)
    if parts < 2:
        return sequence([*buffers, loop(count, item, None, "k")])
    sharing = Sharing(parts)

    def work(part: PrimExpr) -> Stmt:
        first, some = neighbours(count, parts, part)
        return loop(some, lambda k: item(first + k), None, "k")

    def thread(first: PrimExpr) -> Stmt:
        return sequence([*buffers, sharing.take(first, work)])

    parallel = loop(parts, thread, tirx.ForKind.PARALLEL, "part")
    return sequence([tirx.AllocBuffer(sharing.left), sharing.open(), parallel])
