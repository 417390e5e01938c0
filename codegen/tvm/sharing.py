"""Threads that share the parts of a kernel as it goes, not by shares fixed beforehand.

A core that others use too, or that is slower by design, would keep the others waiting at the end of
every kernel.  Each thread takes the parts from its place on, and passes by those that others have
taken.  A part computes the same whoever takes it: so do the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from plait.codegen.tvm.loops import loop, sequence
from plait.codegen.tvm.parts import neighbours
from plait.codegen.tvm.phases import Phases
from plait.codegen.tvm.scalars import const

PrimExpr = Any
Stmt = Any

SHARES = 16  # parts for each thread: one waits at the end for about a part
MOST_PARTS = 128  # who has taken them is looked up one by one


def parts_for(threads: int) -> int:
    """Parts that a large kernel is cut into: as many for each thread."""
    return threads * max(1, min(SHARES, MOST_PARTS // threads)) if threads > 1 else 1


def taken(parts: int, work: Callable[[PrimExpr], Stmt], own: Sequence[Any] = ()) -> Stmt:
    """`work` on 0..parts-1 by threads that take one after another; each has `own` buffers."""
    phases = Phases(parts)

    # A thread comes by at several places, the first time with all there is to take.
    def thread(first: PrimExpr) -> Stmt:
        take = phases.run(const(0, "int32"), parts, first, work)
        return sequence([*map(tirx.AllocBuffer, own), take])

    threads = loop(parts, thread, tirx.ForKind.PARALLEL, "part")
    return phases.around(threads)


def shared(
    count: int, threads: int, item: Callable[[PrimExpr], Stmt], own: Sequence[Any] = ()
) -> Stmt:
    """`item` at 0..count-1, by threads that take neighbours as they go; each has `own` buffers."""
    parts = min(count, parts_for(threads), MOST_PARTS)
    if parts < 2:
        return sequence([*map(tirx.AllocBuffer, own), loop(count, item, None, "k")])

    def work(part: PrimExpr) -> Stmt:
        first, some = neighbours(count, parts, part)
        return loop(some, lambda k: item(first + k), None, "k")

    return taken(parts, work, own)
