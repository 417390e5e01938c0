"""The template of convolutions to a few channels: lanes run over input channels, summed at the end.

Weights are packed as [kh, kw, inputs / 8, outputs, 8].
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from plait.codegen.conv_tiles import ConvShape, is_narrow
from plait.codegen.core import simd
from plait.codegen.schedule import Schedule
from plait.codegen.target import Template, single
from plait.codegen.tiles import PARALLEL_CYCLES, ceil_div
from plait.codegen.tvm.access import source_input
from plait.codegen.tvm.conv import conv_shape
from plait.codegen.tvm.image import Image, Ports, Windowed, place
from plait.codegen.tvm.loops import loop, sequence
from plait.codegen.tvm.register_tile import UNROLLED, vectorized
from plait.codegen.tvm.scalars import const
from plait.ir.graph import Graph
from plait.passes.select import Selection

PrimExpr = Any
Stmt = Any
ACCUMULATORS = 8  # enough to hide the latency of a multiply-add


class NarrowNest:
    """Builds the PrimFunc of one narrow convolution."""

    def __init__(self, windowed: Windowed, rows: int, parallel: bool) -> None:
        self.ports, self.rows, self.parallel = Ports(windowed), rows, parallel
        self.shape: ConvShape = conv_shape(windowed)
        self.window, self.index = self.shape.window, windowed.index
        self.image = Image(self.ports)
        self.blocks = self.window.c // simd()
        weight = source_input(windowed.body, windowed.node.operands[1])
        self.weight = self.ports.inputs[weight].buffer

    def build(self) -> Any:
        kind = tirx.ForKind.PARALLEL if self.parallel else None
        main = loop(ceil_div(self.window.positions, self.rows), self._tile, kind, "tile")
        return self.ports.function([*self.image.copy(self.parallel), main])

    def _tile(self, item: PrimExpr) -> Stmt:
        first, cells = item * self.rows, self.rows * self.shape.oc
        acc = tirx.decl_buffer((cells * simd(),), "float32", name="acc")
        totals = tirx.decl_buffer((cells,), "float32", name="totals")
        zero = const(0.0, "float32")
        return sequence([
            tirx.AllocBuffer(acc),
            tirx.AllocBuffer(totals),
            loop(cells, lambda k: vectorized(simd(), lambda q: tirx.BufferStore(
                acc, zero, [k * simd() + q])), UNROLLED, "cell"),
            self._sum(acc, first),
            loop(cells, lambda k: tirx.BufferStore(totals, _total(acc, k * simd()), [k]),
                 UNROLLED, "cell"),
            self._finish(totals, first),
        ])  # fmt: skip

    def _sum(self, acc: Any, first: PrimExpr) -> Stmt:
        """Add all taps; rows beyond the last position repeat it, so that nothing is tested."""
        window, oc = self.window, self.shape.oc

        def step(r: PrimExpr, s: PrimExpr, block: PrimExpr) -> Stmt:
            tap = self.image.tap(r, s, block * simd())
            at = ((r * window.kw + s) * self.blocks + block) * oc

            def row(m: PrimExpr) -> Stmt:
                start = self.image.at(tirx.min(first + m, window.positions - 1)) + tap
                return loop(oc, lambda o: vectorized(simd(), lambda q: add(m, o, start, q)),
                            UNROLLED, "o")  # fmt: skip

            def add(m: PrimExpr, o: PrimExpr, start: PrimExpr, q: PrimExpr) -> Stmt:
                cell = (m * oc + o) * simd() + q
                term = self.image.buffer[start + q] * self.weight[(at + o) * simd() + q]
                return tirx.BufferStore(acc, acc[cell] + term, [cell])

            return loop(self.rows, row, UNROLLED, "m")

        return loop(window.kh, lambda r: loop(window.kw, lambda s: loop(
            self.blocks, lambda c: step(r, s, c), None, "ic"), None, "kw"), None, "kh")  # fmt: skip

    def _finish(self, totals: Any, first: PrimExpr) -> Stmt:
        window, oc = self.window, self.shape.oc
        kind = None if self.ports.heavy else UNROLLED

        def row(m: PrimExpr) -> Stmt:
            image, i, j = place(window, first + m)
            stmt = loop(oc, lambda o: self.ports.store(
                totals[m * oc + o], self.index(image, o, i, j)), kind, "o")  # fmt: skip
            if window.positions % self.rows == 0:
                return stmt
            return tirx.IfThenElse(first + m < window.positions, stmt, None)

        return loop(self.rows, row, kind, "m")


def _total(acc: Any, start: PrimExpr) -> PrimExpr:
    """The sum of a vector's lanes, pairwise."""
    lanes = [acc[start + k] for k in range(simd())]
    while len(lanes) > 1:
        lanes = [a + b for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
    return lanes[0]


def choose(body: Graph, constant: tuple[bool, ...], threads: int) -> Selection | None:
    """Convolutions to at most four channels from channels that fill vectors, stored innermost."""
    windowed = Windowed.find(body, "conv")
    weight = windowed.weight(constant) if windowed is not None else None
    if windowed is None or weight is None:
        return None
    shape = conv_shape(windowed)
    if not is_narrow(shape) or windowed.steps[1] != 1:
        return None
    rows = max(2, ACCUMULATORS // shape.oc)
    cycles = shape.window.positions * shape.oc * shape.taps / simd()
    parallel = threads > 1 and cycles > PARALLEL_CYCLES
    schedule = Schedule.make("narrow", rows=rows, parallel=int(parallel))
    return Selection(str(schedule), {weight: ("narrow", simd())})


def build(body: Graph, schedule: Schedule) -> Any:
    """The PrimFunc of a narrow convolution over flat buffers: inputs, then the output."""
    rows, parallel = schedule.number("rows"), bool(schedule.number("parallel"))
    return NarrowNest(Windowed.of(body, "conv"), rows, parallel).build()


NARROW = Template("narrow", single(choose), build)
