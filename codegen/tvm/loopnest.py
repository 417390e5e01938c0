"""Loop nests: elementwise kernels and reductions with what surrounds them, as one pass each.

A nest runs over one space.  Without reductions its innermost loop is vectorised and the rest is
shared among threads.  With reductions over the innermost dimension every row is finished by one
thread (`rows`); with the innermost dimension kept, vectors of columns are reduced together
(`columns`).  An element's value never depends on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from plait.codegen.core import simd
from plait.codegen.tvm.columns import columns
from plait.codegen.tvm.loops import (
    PARALLEL_WORK,
    Memory,
    along,
    apart,
    arranged,
    loop,
    sequence,
    unflatten,
)
from plait.codegen.tvm.nest import Nest, Span
from plait.codegen.tvm.rows import rows
from plait.codegen.tvm.scalars import const
from plait.ir.graph import Graph

PrimExpr = Any
Stmt = Any
CHUNKS = 16  # parts of a single long loop that threads share


def build_nest(body: Graph, pitch: Sequence[int] = ()) -> Any:
    """The PrimFunc of a loop-nest kernel over flat buffers: inputs, then outputs.

    `pitch` is how far the rows of each lie apart, nothing where all are dense.
    """
    nest = Nest(body, apart(body, pitch))
    nest.parameters.send_past()
    return nest.parameters.function(_stmts(nest))


def _stmts(nest: Nest) -> list[Stmt]:
    space = nest.space
    if not space.axes:
        return [] if 0 in space.shape else _pointwise(nest)
    return rows(nest) if space.order[-1] in space.axes else columns(nest)


def build_span(body: Graph, places: Sequence[Memory], span: Span) -> Stmt:
    """Some rows of a loop-nest kernel whose inputs and outputs lie at `places`, by one thread.

    A row is what lies side by side in memory along the innermost dimension of the space.
    """
    nest = Nest(body, places)
    return sequence(rows(nest, span) if nest.space.axes else _pointwise(nest, span))


def _pointwise(nest: Nest, span: Span | None = None) -> list[Stmt]:
    """A nest without reductions.  An output that lies in the place of an operand is stored after
    the others that read it: the memory planner sees to that."""
    order = nest.space.order
    extents = [nest.space.shape[d] for d in order]
    if not order:
        return [_stores(nest, [])]
    inner, outer = extents[-1], extents[:-1]
    count = math.prod(outer)

    def stores(row: list[PrimExpr], at: PrimExpr) -> Stmt:
        return _stores(nest, arranged(order, [*row, at]))

    def row(r: PrimExpr) -> Stmt:
        return along(inner, lambda at: stores(unflatten(r, outer), at))

    if span is not None and not outer:
        first = span.first * span.width
        return [along(span.count * span.width, lambda at: stores([], first + at))]
    if span is not None:
        return [loop(span.count, lambda r: row(span.first + r), None, "row")]
    busy = count * inner * nest.cost >= PARALLEL_WORK
    if count >= 2 or not busy:
        return [loop(count, row, tirx.ForKind.PARALLEL if busy else None, "row")]
    chunk = max(4 * simd(), -(-inner // CHUNKS) // simd() * simd())
    whole, rest = divmod(inner, chunk)
    zero = unflatten(const(0, "int32"), outer)

    def part(c: PrimExpr) -> Stmt:
        return along(chunk, lambda at: stores(zero, c * chunk + at))

    tail = along(rest, lambda at: stores(zero, whole * chunk + at)) if rest else None
    return [loop(whole, part, tirx.ForKind.PARALLEL, "chunk"), tail]


def _stores(nest: Nest, index: list[PrimExpr]) -> Stmt:
    pairs = zip(nest.body.outputs, nest.parameters.outputs, strict=True)
    return sequence([nest.store(v, out, index) for v, out in pairs])
