"""A layer of an LSTM as one kernel: the loop over time inside, the state in scratch.

The weights lie in panels [chunk, k, gate, unit], so that one pass over k gives all four gates of a
chunk of hidden units in registers; the new state follows at once.  The hidden state is kept twice,
read and written in turn.  Threads share the chunks of a step and meet at a barrier after it: each
core then reads only its own part of the weights, which its cache may hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import tirx

from plait.codegen.schedule import Schedule
from plait.codegen.target import Template, single
from plait.codegen.tiles import LANES, ceil_div
from plait.codegen.tvm.access import Access, flat_reads, source_input
from plait.codegen.tvm.blocks import (
    across,
    bounded,
    polynomial,
    scratch,
    unrolled,
)
from plait.codegen.tvm.generic import anchor_of
from plait.codegen.tvm.loops import Parameters, along, loop, put, sequence
from plait.codegen.tvm.scalars import const
from plait.ir.graph import Graph
from plait.passes.select import Selection

PrimExpr = Any
Stmt = Any

GATES = 4
MAX_ROWS = 3  # batch rows of a register tile: with 4 gates of 8 units, 12 accumulators
SHARED_STEP = 50_000  # multiply-adds of a step from which a barrier costs less than it saves


def choose(body: Graph, constant: tuple[bool, ...], threads: int) -> Selection | None:
    """Any body of an lstm; constant weights are packed ahead of time, others by the kernel."""
    if not any(n.op == "lstm" for n in body.nodes):
        return None
    node = body.nodes[anchor_of(body)]
    _, batch, wide = body.types[node.operands[0]].static("selection")
    units = wide // GATES
    # One batch row needs 16 units for as many chains of multiply-adds as two rows of 8 have.
    chunk = 2 * LANES if batch == 1 and units > LANES else LANES
    w = node.operands[3]
    packed = w < len(body.inputs) and constant[w] and len(body.users[w]) == 1
    shared = threads > 1 and batch * wide * units >= SHARED_STEP
    schedule = Schedule.make("lstm", units=chunk, packed=int(packed), shared=int(shared))
    return Selection(str(schedule), {w: ("gates", chunk)} if packed else {})


def build(body: Graph, schedule: Schedule) -> Any:
    """The PrimFunc over flat buffers: inputs, then the results that the body gives."""
    numbers = (schedule.number(k) for k in ("units", "packed", "shared"))
    return Layer(body, *numbers).build()


class Layer:
    """Builds the kernel of one body."""

    def __init__(self, body: Graph, chunk: int, packed: int, shared: int) -> None:
        self.body, self.chunk, self.packed, self.shared = body, chunk, bool(packed), bool(shared)
        anchor = anchor_of(body)
        self.node = body.nodes[anchor]
        self.reverse: bool = self.node.attrs["reverse"]
        shape = body.types[self.node.operands[0]].static("TVM code generation")
        self.steps, self.batch, self.units = shape[0], shape[1], shape[2] // GATES
        self.chunks = ceil_div(self.units, chunk)
        self.padded = self.chunks * chunk
        self.parameters = Parameters(body)
        self.access = Access(body, flat_reads(self.parameters.inputs))
        results = body.results(anchor)
        self.given = [results.index(v) for v in body.outputs]
        self.hidden = scratch(2 * self.batch * self.padded, "hidden")
        self.cell = scratch(self.batch * self.padded, "cell")
        self.panels = scratch(self.padded * GATES * self.units, "panels")
        if self.packed:
            self.panels = self.parameters.inputs[source_input(body, self.node.operands[3])].buffer

    def build(self) -> Any:
        buffers = [self.hidden, self.cell, *([] if self.packed else [self.panels])]
        steps = loop(self.steps, self.step, None, "step")
        if self.shared:
            steps = _attribute("pragma_parallel_launch_point", steps)
        return self.parameters.function([
            *(tirx.AllocBuffer(b) for b in buffers), *([] if self.packed else [self.pack()]),
            self.start(), steps, self.finish(),
        ])  # fmt: skip

    def operand(self, number: int, index: Sequence[PrimExpr]) -> PrimExpr:
        return self.access.element(self.node.operands[number], index)

    def pack(self) -> Stmt:
        """The weights in panels; units beyond the last repeat it."""

        def line(at: PrimExpr) -> Stmt:
            chunk, k = at // self.units, at % self.units

            def element(i: PrimExpr) -> Stmt:
                unit = bounded(chunk * self.chunk + i % self.chunk, self.units - 1, True)
                row = i // self.chunk * self.units + unit
                return put(self.panels, at * (GATES * self.chunk) + i, self.operand(3, [row, k]))

            return loop(GATES * self.chunk, element, None, "unit")

        return loop(self.chunks * self.units, line, None, "line")

    def start(self) -> Stmt:
        def row(b: PrimExpr) -> Stmt:
            def state(j: PrimExpr) -> Stmt:
                at = b * self.padded + j
                return tirx.SeqStmt([put(self.hidden, at, self.operand(1, [b, j])),
                                     put(self.cell, at, self.operand(2, [b, j]))])  # fmt: skip

            return along(self.units, state)

        return loop(self.batch, row, None, "row")

    def finish(self) -> Stmt:
        """The last state, where the body gives it."""
        last = self.steps % 2 * self.batch * self.padded
        sources = {1: (self.hidden, last), 2: (self.cell, 0)}

        def row(b: PrimExpr) -> Stmt:
            return along(self.units, lambda j: sequence([
                out.store([b, j], sources[r][0][b * self.padded + j + sources[r][1]])
                for r, out in zip(self.given, self.parameters.outputs, strict=True) if r in sources
            ]))  # fmt: skip

        return loop(self.batch, row, None, "row")

    # One step

    def step(self, number: PrimExpr) -> Stmt:
        time = self.steps - 1 - number if self.reverse else number
        old = number % 2 * (self.batch * self.padded)
        new = (number + 1) % 2 * (self.batch * self.padded)
        whole = self.units // self.chunk

        def chunk(c: PrimExpr) -> Stmt:
            if whole == self.chunks:
                return self.rows(time, old, new, c, ragged=False)
            last = self.rows(time, old, new, c, ragged=True)
            if whole == 0:
                return last
            return tirx.IfThenElse(c < whole, self.rows(time, old, new, c, ragged=False), last)

        if not self.shared:
            return loop(self.chunks, chunk, None, "chunk")
        chunks = loop(self.chunks, chunk, tirx.ForKind.PARALLEL, "chunk")
        return _attribute("pragma_parallel_barrier_when_finish", chunks)

    def rows(self, time: PrimExpr, old: PrimExpr, new: PrimExpr, chunk: PrimExpr, *, ragged: bool
             ) -> Stmt:  # fmt: skip
        """A chunk of units for all rows of the batch, register tile by register tile."""
        rows = MAX_ROWS if self.chunk == LANES else 1
        rows = next((n for n in (rows, rows - 1) if n > 0 and self.batch % n == 0), rows)
        whole, rest = divmod(self.batch, rows)

        def tile(first: PrimExpr, count: int) -> Stmt:
            return Cell(self, time, old, new, chunk, first, count, ragged).build()

        parts = [loop(whole, lambda i: tile(i * rows, rows), None, "tile")] if whole else []
        if rest:
            parts.append(tile(const(whole * rows, "int32"), rest))
        return sequence(parts)


class Cell:
    """One step of a chunk of units for a few rows of the batch."""

    def __init__(self, layer: Layer, time: PrimExpr, old: PrimExpr, new: PrimExpr,
                 chunk: PrimExpr, first: PrimExpr, rows: int, ragged: bool) -> None:  # fmt: skip
        self.layer, self.time, self.old, self.new = layer, time, old, new
        self.chunk, self.first, self.rows, self.ragged = chunk, first, rows, ragged
        self.base = chunk * layer.chunk

    def build(self) -> Stmt:
        layer, width = self.layer, GATES * self.layer.chunk
        acc = scratch(self.rows * width, "acc")
        gates = scratch(self.rows * width, "gates")

        def each(stmt: Any) -> Stmt:
            return unrolled(self.rows, lambda r: across(width, lambda i: stmt(r, i)))

        def load(r: PrimExpr, g: PrimExpr, u: PrimExpr) -> Stmt:
            unit = bounded(self.base + u, layer.units - 1, self.ragged)
            value = layer.operand(0, [self.time, self.first + r, g * layer.units + unit])
            return put(acc, r * width + g * layer.chunk + u, value)

        def start(r: PrimExpr) -> Stmt:
            return unrolled(GATES, lambda g: across(layer.chunk, lambda u: load(r, g, u)))

        def term(k: PrimExpr) -> Stmt:
            panel = (self.chunk * layer.units + k) * width
            return each(lambda r, i: put(
                acc, r * width + i,
                layer.hidden[self.old + (self.first + r) * layer.padded + k]
                * layer.panels[panel + i] + acc[r * width + i]))  # fmt: skip

        # The update is a loop, and registers have no index: it reads a copy.
        copy = each(lambda r, i: put(gates, r * width + i, acc[r * width + i]))
        return tirx.SeqStmt([
            tirx.AllocBuffer(acc), tirx.AllocBuffer(gates), unrolled(self.rows, start),
            loop(layer.units, term, None, "k"), copy,
            loop(self.rows, lambda r: self.update(gates, r), None, "r"),
        ])  # fmt: skip

    def update(self, gates: Any, row: PrimExpr) -> Stmt:
        """The new state of one row, and its output."""
        layer = self.layer
        place = (self.first + row) * layer.padded + self.base

        def gate(number: int, u: PrimExpr) -> PrimExpr:
            return gates[(row * GATES + number) * layer.chunk + u]

        def unit(u: PrimExpr) -> Stmt:
            i, f, o = (polynomial("sigmoid", gate(n, u)) for n in (0, 1, 3))
            cell = f * layer.cell[place + u] + i * polynomial("tanh", gate(2, u))
            hidden = o * polynomial("tanh", layer.cell[place + u])
            return tirx.SeqStmt([put(layer.cell, place + u, cell),
                                 put(layer.hidden, self.new + place + u, hidden)])  # fmt: skip

        return sequence([along(layer.chunk, unit), self.output(row, place)])

    def output(self, row: PrimExpr, place: PrimExpr) -> Stmt | None:
        layer = self.layer
        if 0 not in layer.given:
            return None
        out = layer.parameters.outputs[layer.given.index(0)]
        count = layer.units % layer.chunk if self.ragged else layer.chunk
        return along(count, lambda u: out.store(
            [self.time, self.first + row, self.base + u],
            layer.hidden[self.new + place + u]))  # fmt: skip


def _attribute(key: str, body: Stmt) -> Stmt:
    return tirx.AttrStmt(tvm.ir.StringImm("default"), key, const(1, "int32"), body)


LSTM = Template("lstm", single(choose), build)
