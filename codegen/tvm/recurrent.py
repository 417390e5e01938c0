"""A recurrent layer as one kernel: the loop over time inside, the state in scratch.

A step cuts the hidden units into chunks.  The gates of a chunk are products of the hidden state
with panels of weights [chunk, panel, k, column]: a panel stays in the nearest cache while all rows
of the batch pass over it, register tile by register tile.  Then the cell's formula gives the
chunk's new state.  The hidden state is kept twice, read and written in turn.  Threads share the
chunks of a step and meet between steps: each core then reads only its own part of the weights,
which its cache may hold.  Or each has rows of the batch for itself: all read all weights, but never
meet; that is faster where a tile of those rows has work for as long as its weights take to arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx

from plait.codegen.cell_tiles import layer_step_cycles, live_vectors
from plait.codegen.core import simd
from plait.codegen.schedule import Schedule
from plait.codegen.target import Candidate, Template
from plait.codegen.tiles import LINE, ceil_div, register_tiles
from plait.codegen.tvm.access import Access, flat_reads, source_input
from plait.codegen.tvm.blocks import ZERO, bounded, scratch
from plait.codegen.tvm.cells import CELLS, Unit
from plait.codegen.tvm.generic import anchor_of
from plait.codegen.tvm.loops import (
    Flat,
    Parameters,
    along,
    loop,
    prefetch,
    put,
    sequence,
    unrolled,
    vectors,
)
from plait.codegen.tvm.phases import Phases
from plait.codegen.tvm.scalars import const
from plait.ir.graph import Graph
from plait.passes.packing import GatePanels
from plait.passes.select import Selection

PrimExpr = Any
Stmt = Any

SHARED_STEP = 50_000  # multiply-adds of a step from which sharing it costs less than it saves
MOST_VECTORS = 6  # of a panel: its weights come from L2, a vector a cycle
ALL_BYTES = 2 << 20  # of weights that threads may each read wholly in every step


def space(body: Graph, constant: tuple[bool, ...], threads: int) -> list[Candidate]:
    """Register tiles for any body of a recurrence, best first.

    Constant weights are packed ahead of time, others by the kernel.
    """
    if not any(n.op in CELLS for n in body.nodes):
        return []
    node = body.nodes[anchor_of(body)]
    cell = CELLS[node.op]
    steps, batch, wide = body.types[node.operands[0]].static("selection")
    units = wide // cell.gates
    w = node.operands[cell.weights]
    packed = w < len(body.inputs) and constant[w] and len(body.users[w]) == 1
    most = threads if batch * wide * units >= SHARED_STEP else 1
    found = []
    for rows in sorted({batch, ceil_div(batch, most)}):
        for mr, nr in register_tiles(rows, min(wide, MOST_VECTORS * simd())):
            apart = rows < batch
            if apart and (mr < rows or 4 * wide * units > ALL_BYTES):
                continue
            chunks = ceil_div(units, GatePanels(cell.gates, nr, simd()).units)
            parts = ceil_div(batch, rows) if apart else min(most, chunks)
            schedule = Schedule.make("recurrent", mr=mr, nr=nr, packed=int(packed), parts=parts,
                                     rows=rows)  # fmt: skip
            selection = Selection(str(schedule), {w: (f"gates{simd()}", nr)} if packed else {})
            cycles = layer_step_cycles(batch, rows, units, cell.gates, mr, nr, parts)
            found.append(Candidate(steps * cycles, selection))
    return sorted(found, key=lambda c: c.cycles)


def build(body: Graph, schedule: Schedule) -> Any:
    """The PrimFunc over flat buffers: inputs, then the results that the body gives."""
    numbers = (schedule.number(k) for k in ("mr", "nr", "packed", "parts", "rows"))
    return Layer(body, *numbers).build()


class Layer:
    """Builds the kernel of one body."""

    def __init__(self, body: Graph, mr: int, nr: int, packed: int, parts: int, rows: int) -> None:
        self.body, self.mr, self.nr, self.parts, self.rows = body, mr, nr, parts, rows
        anchor = anchor_of(body)
        self.node = body.nodes[anchor]
        self.cell = CELLS[self.node.op]
        self.reverse: bool = self.node.attrs["reverse"]
        shape = body.types[self.node.operands[0]].static("TVM code generation")
        self.steps, self.batch, self.units = shape[0], shape[1], shape[2] // self.cell.gates
        self.chunk = GatePanels(self.cell.gates, nr, simd()).units
        self.wide = self.cell.gates * self.chunk  # columns of a chunk
        self.chunks = ceil_div(self.units, self.chunk)
        self.padded = self.chunks * self.chunk
        self.parameters = Parameters(body)
        self.access = Access(body, flat_reads(self.parameters.inputs))
        share = self.node.operands[0]
        # A single row's shares lie in a few lines: asking costs as much as it gains.
        asked = self.batch > 1 and share < len(body.inputs)
        self.source = self.parameters.inputs[share] if asked else None
        results = body.results(anchor)
        self.given = [results.index(v) for v in body.outputs]
        self.hidden = scratch(2 * self.batch * self.padded, "hidden")
        self.carried = [scratch(self.batch * self.padded, f"state{k}")
                        for k in range(1, self.cell.states)]  # fmt: skip
        self.gates = scratch(parts * rows * self.wide, "gates")
        self.own = [self.hidden, *self.carried, self.gates]
        self.phases = Phases(parts) if parts > 1 and rows == self.batch else None
        if packed:
            weights = source_input(body, self.node.operands[self.cell.weights])
            self.panels = self.parameters.inputs[weights].buffer
        else:
            self.panels = scratch(self.chunks * self.units * self.wide, "panels")
            self.own.append(self.panels)

    def build(self) -> Any:
        steps = self.together(self.phases) if self.phases else self.alone()
        packing = [self.pack()] if self.panels in self.own else []
        return self.parameters.function([
            *map(tirx.AllocBuffer, self.own), *packing, self.start(), steps, self.finish(),
        ])  # fmt: skip

    def operand(self, number: int, index: Sequence[PrimExpr]) -> PrimExpr:
        return self.access.element(self.node.operands[number], index)

    def pack(self) -> Stmt:
        """The weights in panels; units beyond the last repeat it."""
        panels = self.wide // self.nr

        def line(at: PrimExpr) -> Stmt:
            panel, k = at // self.units, at % self.units

            def element(i: PrimExpr) -> Stmt:
                column = panel % panels * self.nr + i
                unit = panel // panels * self.chunk + column % self.chunk
                row = column // self.chunk * self.units + bounded(unit, self.units - 1, True)
                return put(self.panels, at * self.nr + i, self.operand(self.cell.weights, [row, k]))

            return loop(self.nr, element, None, "column")

        return loop(self.chunks * panels * self.units, line, None, "line")

    def start(self) -> Stmt:
        """The first states; units beyond the last start at 0, and no result depends on them."""
        states = [self.hidden, *self.carried]

        def beyond(at: PrimExpr) -> Stmt:
            return sequence([put(state, at, ZERO) for state in states])

        def row(b: PrimExpr) -> Stmt:
            first = b * self.padded
            return sequence([
                along(self.units, lambda j: sequence(
                    [put(state, first + j, self.operand(k, [b, j]))
                     for k, state in enumerate(states, 1)])),
                along(self.padded - self.units, lambda j: beyond(first + self.units + j)),
            ])  # fmt: skip

        return loop(self.batch, row, None, "row")

    def finish(self) -> Stmt:
        """The last state, where the body gives it."""
        last = self.steps % 2 * self.batch * self.padded
        sources = {1: (self.hidden, last), **{k: (s, 0) for k, s in enumerate(self.carried, 2)}}

        def row(b: PrimExpr) -> Stmt:
            return along(self.units, lambda j: sequence([
                out.store([b, j], sources[r][0][b * self.padded + j + sources[r][1]])
                for r, out in zip(self.given, self.parameters.outputs, strict=True) if r in sources
            ]))  # fmt: skip

        return loop(self.batch, row, None, "row")

    # The steps

    def alone(self) -> Stmt:
        """Parts with rows of their own, each for all steps; or one part."""
        whole, rest = divmod(self.batch, self.rows)

        def part(p: PrimExpr) -> Stmt:
            def made(rows: int) -> Stmt:
                place = Place(p * self.rows, rows, const(0, "int32"))
                return loop(self.steps, lambda number: loop(
                    self.chunks, lambda c: self.chunk_step(number, c, place), None, "chunk",
                ), None, "step")  # fmt: skip

            return (
                tirx.IfThenElse(p < whole, made(self.rows), made(rest)) if rest else made(self.rows)
            )

        kind = tirx.ForKind.PARALLEL if self.parts > 1 else None
        return loop(self.parts, part, kind, "part")

    def together(self, phases: Phases) -> Stmt:
        """Parts that share the chunks of a step, which is a phase."""

        def part(number: PrimExpr, p: PrimExpr) -> Stmt:
            first = p * self.chunks // self.parts
            count = (p + 1) * self.chunks // self.parts - first
            place = Place(const(0, "int32"), self.batch, p * self.batch)
            return loop(count, lambda i: self.chunk_step(
                number, first + _there_and_back(number, i, count), place), None, "chunk",
            )  # fmt: skip

        def thread(own: PrimExpr) -> Stmt:
            return loop(self.steps, lambda number: phases.run(
                number, self.parts, own, partial(part, number)), None, "step",
            )  # fmt: skip

        threads = loop(self.parts, thread, tirx.ForKind.PARALLEL, "part")
        return phases.around(threads)

    def chunk_step(self, number: PrimExpr, c: PrimExpr, place: Place) -> Stmt:
        time = self.steps - 1 - number if self.reverse else number
        size = self.batch * self.padded
        old, new = number % 2 * size, (number + 1) % 2 * size

        def made(units: int) -> Stmt:
            return Chunk(self, time, old, new, c, place, units).build()

        whole, rest = divmod(self.units, self.chunk)
        if whole and rest:
            return tirx.IfThenElse(c < whole, made(self.chunk), made(rest))
        return made(rest or self.chunk)


def _there_and_back(step: PrimExpr, i: PrimExpr, count: PrimExpr) -> PrimExpr:
    """The i-th of some chunks, in every other step from the last to the first.

    A step begins with the weights that the one before ended with: caches that hold less than all
    still hold these.
    """
    return tirx.Select(step % 2 == 0, i, count - 1 - i)


@dataclass(frozen=True)
class Place:
    """What a part of a step works on: `rows` rows of the batch from `first`.

    The gates of a row of the batch lie `skipped` rows further on in their scratch.
    """

    first: PrimExpr
    rows: int
    skipped: PrimExpr


class Chunk:
    """One step of a chunk, of which `size` units are there, for the rows of a part."""

    def __init__(self, layer: Layer, time: PrimExpr, old: PrimExpr, new: PrimExpr,
                 chunk: PrimExpr, place: Place, size: int) -> None:  # fmt: skip
        self.layer, self.time, self.old, self.new = layer, time, old, new
        self.chunk, self.size = chunk, size
        self.rows, self.first_row = place.rows, place.first
        self.gates = place.skipped * layer.wide
        self.base = chunk * layer.chunk

    def build(self) -> Stmt:
        layer = self.layer
        whole, rest = divmod(self.rows, layer.mr)

        def panel(number: int) -> Stmt:
            def tile(i: PrimExpr, rows: int) -> Stmt:
                return self.tile(number, self.first_row + i * layer.mr, rows)

            made = [loop(whole, lambda i: tile(i, layer.mr), None, "tile")] if whole else []
            made += [tile(const(whole, "int32"), rest)] if rest else []
            return sequence(made)

        asks = [self.each_row(partial(self.ask, layer.source))] if layer.source else []
        panels = [panel(p) for p in range(layer.wide // layer.nr) if self.live(p)]
        phases = [self.each_row(partial(self.renew, phase)) for phase in layer.cell.phases]
        outputs = [self.each_row(self.output)] if 0 in layer.given else []
        return sequence([*asks, *panels, *phases, *outputs])

    def each_row(self, stmt: Callable[[PrimExpr], Stmt]) -> Stmt:
        return loop(self.rows, lambda i: stmt(self.first_row + i), None, "row")

    def ask(self, source: Flat, row: PrimExpr) -> Stmt:
        """Ask for the input's shares of a row's gates, which are added once the sums are made."""
        cell, units = self.layer.cell, self.layer.units
        columns = [
            gate * units + self.base + u
            for gate in range(cell.gates)
            for u in range(0, self.size, LINE)
        ]
        return sequence([prefetch(source.buffer, source.at([self.time, row, column]))
                         for column in columns])  # fmt: skip

    def live(self, panel: int) -> list[int]:
        return live_vectors(panel, self.layer.nr, self.layer.chunk, self.size)

    def tile(self, panel: int, first: PrimExpr, rows: int) -> Stmt:
        """A panel's columns of the gates for a few rows, without those beyond the last unit."""
        layer, nr, live = self.layer, self.layer.nr, self.live(panel)
        acc = scratch(rows * len(live) * simd(), "acc")
        line = (self.chunk * (layer.wide // nr) + panel) * layer.units

        def each(stmt: Callable[[PrimExpr, PrimExpr, PrimExpr, int], Stmt]) -> Stmt:
            """`stmt(row, its place in acc, lane, the vector's first column)`."""
            return unrolled(rows, lambda r: sequence(vectors(
                len(live), lambda u, v: stmt(r, (r * len(live) + u) * simd() + v, v,
                                             live[u] * simd()))))  # fmt: skip

        def term(k: PrimExpr) -> Stmt:
            def add(r: PrimExpr, at: PrimExpr, v: PrimExpr, column: int) -> Stmt:
                state = layer.hidden[self.old + (first + r) * layer.padded + k]
                return put(acc, at, state * layer.panels[(line + k) * nr + column + v] + acc[at])

            return each(add)

        def save(r: PrimExpr, at: PrimExpr, v: PrimExpr, column: int) -> Stmt:
            gate, unit = divmod(panel * nr + column, layer.chunk)
            place = self.gates + (first + r) * layer.wide + panel * nr + column + v
            return put(layer.gates, place, acc[at] + self.beside(gate, first + r, unit + v))

        return tirx.SeqStmt([
            tirx.AllocBuffer(acc), each(lambda r, at, v, column: put(acc, at, ZERO)),
            loop(layer.units, term, None, "k"), each(save),
        ])  # fmt: skip

    def beside(self, gate: int, row: PrimExpr, u: PrimExpr) -> PrimExpr:
        """What the product for a gate of the chunk's unit u is added to."""
        if gate not in self.layer.cell.apart:
            return self.input(gate, row, u)
        return self.layer.operand(self.layer.cell.bias, [self.unit(u)])

    def input(self, gate: int, row: PrimExpr, u: PrimExpr) -> PrimExpr:
        """The input's share of a gate of the chunk's unit u."""
        column = gate * self.layer.units + self.unit(u)
        return self.layer.operand(0, [self.time, row, column])

    def unit(self, u: PrimExpr) -> PrimExpr:
        return bounded(self.base + u, self.layer.units - 1, self.size % simd() != 0)

    def renew(self, phase: Callable[[Unit], Stmt], row: PrimExpr) -> Stmt:
        """A part of the cell's formula for a row."""
        layer = self.layer
        place = row * layer.padded + self.base
        gates = self.gates + row * layer.wide

        def unit(u: PrimExpr) -> Stmt:
            return phase(Unit(
                [(layer.gates, gates + g * layer.chunk + u) for g in range(layer.cell.gates)],
                lambda gate: self.input(gate, row, u),
                (layer.hidden, self.old + place + u),
                (layer.hidden, self.new + place + u),
                [(state, place + u) for state in layer.carried],
            ))  # fmt: skip

        return along(ceil_div(self.size, simd()) * simd(), unit)

    def output(self, row: PrimExpr) -> Stmt:
        """A row's new hidden state as an output."""
        layer = self.layer
        out = layer.parameters.outputs[layer.given.index(0)]
        place = row * layer.padded + self.base
        return along(self.size, lambda u: out.store(
            [self.time, row, self.base + u],
            layer.hidden[self.new + place + u]))  # fmt: skip


RECURRENT = Template("recurrent", space, build)
