"""Any contraction or window, from its compute definition: right for every dtype and rank.

Eight neighbours of the innermost dimension are reduced together, in order.  Kernels with a
template of their own are faster; this one has no conditions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from plait.codegen.compose import definition
from plait.codegen.core import simd
from plait.codegen.tvm.access import Access, flat_reads
from plait.codegen.tvm.loops import (
    PARALLEL_WORK,
    Parameters,
    arranged,
    combine,
    fill,
    loop,
    put,
    sequence,
    unflatten,
    vector,
)
from plait.codegen.tvm.lower import lower
from plait.codegen.tvm.scalars import const, tir_dtype
from plait.ir import expr as e
from plait.ir.errors import Unsupported
from plait.ir.graph import Graph
from plait.ir.verify import fail
from plait.passes.fuse import anchors

PrimExpr = Any


def anchor_of(body: Graph) -> int:
    """The node of a body that is its contraction, window, attention or recurrence."""
    found = anchors(body)
    if len(found) != 1:
        raise Unsupported(f"a kernel needs one anchor, this body has {len(found)}")
    return found[0]


class Generic:
    """Builds the PrimFunc of one anchored kernel whose anchor is a single reduction."""

    def __init__(self, body: Graph) -> None:
        self.body = body
        self.anchor = anchor_of(body)
        (self.value,) = body.results(self.anchor)
        self.parameters = Parameters(body)
        self.access = Access(body, flat_reads(self.parameters.inputs))
        self.compute = definition(body, self.anchor)
        if not isinstance(self.compute.body, e.Reduce):
            raise fail(body, self.anchor, "is not one reduction")
        self.reduce = self.compute.body

    def build(self) -> Any:
        """A PrimFunc over flat buffers: inputs, then outputs."""
        (made, *_) = self.body.output_types
        shape, order = made.static("TVM code generation"), made.order
        extents = [shape[d] for d in order]
        inner = extents[-1] if extents else 1
        rows = math.prod(extents[:-1])
        work = math.prod(extents) * math.prod(self._reduced())
        kind = tirx.ForKind.PARALLEL if rows >= 2 and work >= PARALLEL_WORK else None

        def row(r: PrimExpr) -> Any:
            outer = unflatten(r, extents[:-1])
            whole, rest = divmod(inner, simd())

            def tile(base: PrimExpr, width: int) -> Any:
                return self._tile(order, outer, base, width)

            return sequence([
                loop(whole, lambda j: tile(j * simd(), simd()), None, "j") if whole else None,
                loop(rest, lambda j: tile(whole * simd() + j, 1), None, "tail") if rest else None,
            ])  # fmt: skip

        stmts = [loop(rows, row, kind, "row")] if math.prod(extents) else []
        return self.parameters.function(stmts)

    def _reduced(self) -> list[int]:
        found = []
        for a in self.reduce.axes:
            if not isinstance(a.extent, int):
                raise fail(self.body, self.anchor, f"has the symbolic extent {a.extent}")
            found.append(a.extent)
        return found

    def _tile(
        self, order: Sequence[int], outer: Sequence[PrimExpr], base: PrimExpr, width: int
    ) -> Any:
        """`width` neighbouring results: initialise, reduce, finish with the epilogue."""
        dtype = self.reduce.dtype
        acc = tirx.decl_buffer((width,), tir_dtype(dtype), name="acc")
        start = const(e.identity(self.reduce.kind, dtype), tir_dtype(dtype))

        def index(lane: PrimExpr) -> list[PrimExpr]:
            return arranged(order, [*outer, base + lane][: len(order)])

        def update(reduced: list[PrimExpr], lane: PrimExpr) -> Any:
            term = self._term(index(lane), reduced)
            return put(acc, lane, combine(self.reduce.kind, dtype, acc[lane], term))

        def lanes(stmt: Any) -> Any:
            return vector(stmt) if width == simd() else stmt(const(0, "int32"))

        extents = self._reduced()
        return sequence([
            tirx.AllocBuffer(acc),
            lanes(fill(acc, start)),
            loop(math.prod(extents),
                 lambda p: lanes(lambda v: update(unflatten(p, extents), v)), None, "k")
            if math.prod(extents) else None,
            lanes(lambda v: self._finish(acc[v], index(v))),
        ])  # fmt: skip

    def _term(self, index: list[PrimExpr], reduced: list[PrimExpr]) -> PrimExpr:
        """One term of the reduction."""
        operands = self.body.nodes[self.anchor].operands
        axes = dict(zip(self.compute.axes, index, strict=True))
        axes.update(zip(self.reduce.axes, reduced, strict=True))
        return lower(
            self.reduce.body, lambda k, where: self.access.element(operands[k], where), axes
        )

    def _finish(self, total: PrimExpr, index: list[PrimExpr]) -> Any:
        """Store the epilogue's value of each output at one index."""
        return sequence([
            out.store(index, self.access.epilogue(self.value, total, v, index))
            for v, out in zip(self.body.outputs, self.parameters.outputs, strict=True)
        ])  # fmt: skip


def build_generic(body: Graph) -> Any:
    """The PrimFunc of an anchored kernel without a template, over flat buffers."""
    return Generic(body).build()
