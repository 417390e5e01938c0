"""What templates share: reading body values as TIR, epilogues, packed operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plait.codegen.compose import Composer
from plait.codegen.tvm.loops import Flat, as_stored
from plait.codegen.tvm.lower import lower
from plait.ir import expr as e
from plait.ir.graph import Graph

PrimExpr = Any


class Access:
    """Elements of a body's values as TIR expressions of TIR indices.

    `read[k]` gives an element of the body's input k at a logical index.
    """

    def __init__(
        self, body: Graph, read: Mapping[int, Callable[[Sequence[PrimExpr]], PrimExpr]]
    ) -> None:
        self.body = body
        self.read = read

    def element(self, value: int, index: Sequence[PrimExpr]) -> PrimExpr:
        """The element of a value that no template computes, through movement and elementwise."""
        return self._lower(value, index, {}, {})

    def epilogue(
        self, anchor: int, result: PrimExpr, output: int, index: Sequence[PrimExpr]
    ) -> PrimExpr:
        """The output's element at an index, given the anchor's element at the same index."""
        stop = e.Load(-1, (), self.body.types[anchor].dtype)
        value = self._lower(output, index, {anchor: lambda _: stop}, {-1: lambda _: result})
        return as_stored(value, self.body.types[output].dtype)

    def _lower(self, value: int, index: Sequence[PrimExpr], stops: Any, extra: Any) -> PrimExpr:
        space = e.axes(*self.body.types[value].shape)
        expr = Composer(self.body, stops).element(value, tuple(e.index(a) for a in space))
        reads = {**self.read, **extra}
        return lower(expr, lambda k, where: reads[k](where), dict(zip(space, index, strict=True)))


def source_input(body: Graph, value: int) -> int:
    """The body's input from which movement alone leads to `value` (a packed operand)."""
    node = body.producer(value)
    while node is not None:
        value = node.operands[0]
        node = body.producer(value)
    return value


def flat_reads(inputs: Sequence[Flat]) -> dict[int, Callable[[Sequence[PrimExpr]], PrimExpr]]:
    return {k: f.load for k, f in enumerate(inputs)}
