"""A kernel as the modules for so many threads call it: in how many parts, over raw pointers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plait.codegen.core import making_for
from plait.codegen.schedule import Schedule
from plait.codegen.tvm.parts import in_parts
from plait.codegen.tvm.pointers import over_pointers
from plait.codegen.tvm.sharing import parts_for
from plait.codegen.tvm.target import cpu_target
from plait.ir.graph import Graph
from plait.passes import footprint


def prim_func(body: Graph, schedule: str, pitch: Sequence[int], threads: int) -> Any:
    """The PrimFunc of a body; `parts_of` tells the calls that make it whole."""
    func = cpu_target(threads).build(body, schedule, pitch)
    parts = threads if footprint.small(body) else parts_for(threads)
    with making_for(Schedule.parse(schedule).core):
        return over_pointers(in_parts(func, parts))
