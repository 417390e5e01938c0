"""What the forms of the attention kernel share: its operands element by element, and its mask."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from plait.codegen.tvm.access import Access, flat_reads
from plait.codegen.tvm.blocks import LOG2E, MINUS_INFINITY
from plait.codegen.tvm.generic import anchor_of
from plait.codegen.tvm.loops import Parameters, unflatten
from plait.codegen.tvm.scalars import const
from plait.ir import types as t
from plait.ir.graph import Graph

PrimExpr = Any
Stmt = Any
LOWEST, HIGHEST = (const(s * 3.4028234663852886e38, "float32") for s in (-1, 1))  # finite floats


class Operands:
    """The attention of a body: sizes, and access through whatever movement the body holds.

    Heads of all batches are numbered 0..heads-1; `rows` queries, `keys` keys, `depth` elements of
    each, `width` elements of a value.
    """

    def __init__(self, body: Graph) -> None:
        self.body = body
        self.node = body.nodes[anchor_of(body)]
        q, _, v = (body.types[o].static("TVM code generation") for o in self.node.operands[:3])
        self.outer = q[:-2]
        self.heads, self.rows, self.depth = math.prod(self.outer), q[-2], q[-1]
        self.keys, self.width = v[-2], v[-1]
        self.group = q[-3] // v[-3]
        self.causal: bool = self.node.attrs["causal"]
        self.scale: float = self.node.attrs["scale"]
        self.parameters = Parameters(body)
        self.access = Access(body, flat_reads(self.parameters.inputs))

    def function(self, stmt: Stmt) -> Any:
        """The PrimFunc of a kernel's code."""
        return self.parameters.function([stmt])

    def query(self, head: PrimExpr, m: PrimExpr, d: PrimExpr) -> PrimExpr:
        return self.access.element(self.node.operands[0], [*unflatten(head, self.outer), m, d])

    def key(self, head: PrimExpr, n: PrimExpr, d: PrimExpr) -> PrimExpr:
        return self.access.element(self.node.operands[1], [*self._shared(head), n, d])

    def value(self, head: PrimExpr, n: PrimExpr, e: PrimExpr) -> PrimExpr:
        return self.access.element(self.node.operands[2], [*self._shared(head), n, e])

    def _shared(self, head: PrimExpr) -> list[PrimExpr]:
        *batch, h = unflatten(head, self.outer)
        return [*batch, tirx.floordiv(h, self.group) if self.group > 1 else h]

    def masked(self, score: PrimExpr, head: PrimExpr, m: PrimExpr, n: PrimExpr) -> PrimExpr:
        """A score in base 2 with the mask and causality: minus infinity for keys not seen."""
        if len(self.node.operands) == 4:
            value = self.node.operands[3]
            shape = self.body.types[value].shape
            full = [*unflatten(head, self.outer), m, n]
            tail = full[len(full) - len(shape) :]
            zero = const(0, "int32")
            index = [zero if n == 1 else i for i, n in zip(tail, shape, strict=True)]
            mask = self.access.element(value, index)
            if self.body.types[value].dtype == t.bool_:
                score = tirx.Select(mask, score, MINUS_INFINITY)
            else:
                # A finite mask stays finite: a row of the lowest floats weighs all keys alike (and
                # so do all masks beyond 2.36e38, which base 2 cannot tell apart).
                scaled = mask * const(LOG2E, "float32")
                bias = tirx.min(tirx.max(scaled, LOWEST), HIGHEST)
                finite = tirx.all(mask > MINUS_INFINITY, mask < -MINUS_INFINITY)
                score = score + tirx.Select(finite, bias, mask)
        return tirx.Select(n <= m, score, MINUS_INFINITY) if self.causal else score

    def store(self, head: PrimExpr, m: PrimExpr, e: PrimExpr, value: PrimExpr) -> Stmt:
        return self.parameters.outputs[0].store([*unflatten(head, self.outer), m, e], value)
