"""The template of joined kernels: a block of stages computed stripe by stripe.

Every stage keeps the coordinates of its whole tensors; what one stage passes to the next lies in
scratch whose first element stands for the first of the stripe.  A result is the same sum in the
same order wherever it is computed, so neither stripes, bands nor threads change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from plait.codegen.schedule import Schedule
from plait.codegen.stages import Stage
from plait.codegen.stripes import Chain, Cut, chain_of
from plait.codegen.target import Candidate, Template
from plait.codegen.tvm.blocks import scratch
from plait.codegen.tvm.conv import ConvNest, conv_shape
from plait.codegen.tvm.image import Windowed
from plait.codegen.tvm.loopnest import build_span
from plait.codegen.tvm.loops import Memory, Parameters, along, loop, put, sequence, unflatten
from plait.codegen.tvm.nest import Span
from plait.codegen.tvm.product import Product
from plait.codegen.tvm.scalars import const
from plait.codegen.tvm.window import WindowNest
from plait.ir.graph import Graph

PrimExpr = Any
Stmt = Any


@dataclass(frozen=True)
class RowsOf(Windowed):
    """A product of rows by a matrix, seen as windows of one position over a column."""

    stage: Stage

    @property
    def shape(self) -> Any:
        return self.stage.shape.window

    @property
    def steps(self) -> tuple[int, int, int, int]:
        wide = self.stage.inputs
        return self.stage.positions * wide, 1, wide, wide

    def index(self, b: PrimExpr, ch: PrimExpr, i: PrimExpr, j: PrimExpr) -> list[PrimExpr]:
        return [*[i] * (self.node.types[0].rank - 1), ch]

    def at(self, position: PrimExpr, ch: PrimExpr) -> list[PrimExpr]:
        return [*unflatten(position, Product.of(self.body).rows), ch]


class Stripes:
    """Builds the kernel of one joined body."""

    def __init__(self, body: Graph, cut: Cut, parallel: bool) -> None:
        self.body, self.cut, self.parallel = body, cut, parallel
        self.chain: Chain = chain_of(body)
        self.window = self.chain.window
        self.parameters = Parameters(body)
        self.kernels = [node for node in body.nodes if node.op == "kernel"]
        sizes = self.chain.scratch(cut)
        self.buffers = [scratch(size, f"stage{k}") for k, size in enumerate(sizes)]

    def build(self) -> Any:
        """The PrimFunc over flat buffers: inputs, then the output."""
        items = self.window.n * self.cut.bands
        kind = tirx.ForKind.PARALLEL if self.parallel else None
        return self.parameters.function([loop(items, self._band, kind, "band")])

    def _band(self, item: PrimExpr) -> Stmt:
        """The stripes of one band, one after the other."""
        stripes, each = self.chain.shares(self.cut)
        image, band = unflatten(item, [self.window.n, self.cut.bands])
        if self.window.n == 1:
            image, band = const(0, "int32"), item
        first = band * each
        whole = stripes % self.cut.bands == 0
        count = each if whole else tirx.min(each, stripes - first)
        allocated = [tirx.AllocBuffer(b) for b in self.buffers]
        steps = loop(count, lambda t: self._stripe(image, first + t, t), None, "stripe")
        return sequence([*allocated, steps])

    def _stripe(self, image: PrimExpr, number: PrimExpr, t: PrimExpr) -> Stmt:
        """All stages of one stripe."""
        chain, window, rows = self.chain, self.window, self.cut.rows
        i = number * rows
        position = (image * window.oh + i) * window.ow
        stmts: list[Stmt] = []
        if chain.before:
            stmts.append(self._new_rows(image, i, t))
        if chain.at is not None:
            nest = WindowNest(Windowed.of(self._inner(chain.at), "conv"),
                              chain.stages[chain.at].columns,
                              self._places(chain.at, image, i))  # fmt: skip
            row = loop(rows, lambda r: nest.row(image, i + r, const(0, "int32")), None, "row")
            stmts.append(row)
        for k in range(len(chain.stages) - len(chain.after), len(chain.stages)):
            stmts.append(self._positions(k, self._places(k, image, i), position, rows * window.ow))
        if chain.before:
            stmts.append(self._keep())
        return sequence(stmts)

    def _inner(self, k: int) -> Graph:
        body: Graph = self.kernels[k].attrs["body"]
        return body

    # What comes before the window

    def _top(self, i: PrimExpr) -> PrimExpr:
        """The first row of an image that the window of output row `i` reads."""
        return i * self.window.stride[0] - self.window.low[0]

    def _new_rows(self, image: PrimExpr, i: PrimExpr, t: PrimExpr) -> Stmt:
        """The rows that the stripe's windows read and that no earlier stripe has made."""
        window, kept = self.window, self.chain.kept
        top = self._top(i)
        end = tirx.min(top + (kept + self.chain.new_rows(self.cut.rows)), window.h)
        start = tirx.max(tirx.Select(t == 0, top, top + kept), 0)
        y = tirx.Var("y", "int32")
        begin = (image * window.h + y) * window.w
        stages = [self._positions(k, self._places(k, image, i, y), begin, window.w)
                  for k in range(len(self.chain.before))]  # fmt: skip
        extent = tirx.max(end - start, 0)
        return tirx.For(y, start, extent, tirx.ForKind.SERIAL, sequence(stages))

    def _keep(self) -> Stmt:
        """Move the rows that the next stripe reads too to the front."""
        last = len(self.chain.before) - 1
        buffer = self.buffers[last]
        row = self.window.w * self.chain.stages[last].channels
        ahead = self.chain.new_rows(self.cut.rows) * row
        return along(self.chain.kept * row, lambda at: put(buffer, at, buffer[at + ahead]))

    # Where stages read and write

    def _places(
        self, k: int, image: PrimExpr, i: PrimExpr, y: PrimExpr | None = None
    ) -> list[Memory]:
        """Where the inputs and the output of stage `k` lie during a stripe."""
        found = [Memory(self._outer(v)) for v in self.kernels[k].operands]
        if k > 0:
            found[self.chain.stages[k].entry] = self._between(k - 1, image, i, y)
        last = k == len(self.chain.stages) - 1
        out = Memory(self.parameters.outputs[0].buffer) if last else self._between(k, image, i, y)
        return [*found, out]

    def _outer(self, v: int) -> Any:
        """The buffer of an operand that comes from outside; the one from inside is replaced."""
        return self.parameters.inputs[v].buffer if v < len(self.body.inputs) else None

    def _between(self, k: int, image: PrimExpr, i: PrimExpr, y: PrimExpr | None) -> Memory:
        """The scratch of stage `k`'s result."""
        window, channels = self.window, self.chain.stages[k].channels
        last = len(self.chain.before) - 1
        if k < last:
            assert y is not None
            first = (image * window.h + y) * window.w
        elif k == last:
            first = (image * window.h + self._top(i)) * window.w
        else:
            first = (image * window.oh + i) * window.ow
        return Memory(self.buffers[k], const(0, "int32") - first * channels)

    def _positions(self, k: int, places: Sequence[Memory], begin: PrimExpr, count: int) -> Stmt:
        """Stage `k` for `count` positions."""
        stage, body = self.chain.stages[k], self._inner(k)
        if stage.kind == "nest":
            return build_span(body, places, Span(begin, count, stage.channels))
        if stage.window is not None:
            windowed = Windowed.of(body, "conv")
            shape = conv_shape(windowed)
        else:
            windowed, shape = self._rows_of(stage), stage.shape
        return ConvNest(windowed, shape, stage.tile(count), places, begin, count).positions()

    def _rows_of(self, stage: Stage) -> Windowed:
        (anchor,) = (k for k, n in enumerate(stage.body.nodes) if n.op == "dot_general")
        node = stage.body.nodes[anchor]
        return RowsOf(stage.body, node, stage.body.results(anchor)[0], stage)


def space(body: Graph, constant: tuple[bool, ...], threads: int) -> list[Candidate]:
    """None: joined kernels are made of kernels that have their schedules already."""
    return []


def build(body: Graph, schedule: Schedule) -> Any:
    """The PrimFunc of a joined kernel over flat buffers: inputs, then the output."""
    cut = Cut(schedule.number("rows"), schedule.number("bands"))
    return Stripes(body, cut, bool(schedule.number("parallel"))).build()


STRIPES = Template("stripes", space, build)
