"""Kernels in parts: the thread loop of a kernel cut out of it, for its caller to run.

Starting threads costs a microsecond, going on together a third of that.  Of a kernel that is little
more than one parallel loop, each part can be a call: a module's function then starts threads once
for many such kernels, its phases; of large ones, threads take parts as they go.  The parts are the
same iterations as before.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx

Stmt = Any
# The attribute of a PrimFunc that says in how many parts it is called: the last parameter is the
# number of a part if they are several, and there is none if it is one.
PARTS = "plait.parts"


def in_parts(func: Any, most: int) -> Any:
    """The kernel in up to `most` parts, if it is a loop of threads, or one part if it uses none.

    Others, in which threads start more than once or beside other work, are returned as they are.
    """
    loops: list[Any] = []
    tvm_ffi.structural_walk(func.body, (tirx.For, loops.append))
    loops = [found for found in loops if found.kind == tirx.ForKind.PARALLEL]
    if not loops:
        return func.with_attr(PARTS, 1)
    found = _whole(func.body)
    if found is None or len(loops) > 1 or not isinstance(found.extent, tirx.IntImm):
        return func
    parts = min(most, int(found.extent))
    if parts < 2:
        return func
    part = tirx.Var("part", "int32")
    body = tvm_ffi.structural_map(func.body, (tirx.For, lambda f: _share(f, part, parts)))
    attrs = func.attrs
    made = tirx.PrimFunc([*func.params, part], body, ret_type=func.ret_type, attrs=attrs)
    return made.with_attr(PARTS, parts)


def parts_of(func: Any) -> int:
    """The calls that make a kernel whole; 0 if it starts threads by itself."""
    return int(func.attrs[PARTS]) if PARTS in func.attrs else 0


def _whole(stmt: Stmt) -> Any:
    """The parallel loop that a statement is, around which there is no other work."""
    if isinstance(stmt, tirx.For):
        return stmt if stmt.kind == tirx.ForKind.PARALLEL else None
    return _whole(stmt.body) if isinstance(stmt, tirx.AttrStmt) else None


def neighbours(count: int, parts: int, part: Any) -> tuple[Any, Any]:
    """The first of the items of a part, and how many they are."""
    each, more = divmod(count, parts)  # the product of part and count might not fit an int32
    if not more:
        return part * each, tirx.const(each, "int32")
    return part * each + tirx.min(part, more), each + tirx.Cast("int32", part < more)


def _share(loop: Any, part: Any, parts: int) -> Any:
    """The iterations of the parallel loop that belong to a part; other loops as they are."""
    if loop.kind != tirx.ForKind.PARALLEL:
        return loop
    first, count = neighbours(int(loop.extent), parts, part)
    var = tirx.Var(loop.loop_var.name, "int32")

    def moved(v: Any) -> Any:
        return first + var if v.same_as(loop.loop_var) else v

    body = tvm_ffi.structural_map(loop.body, (tirx.Var, moved))
    return tirx.For(var, loop.min, count, tirx.ForKind.SERIAL, body)
