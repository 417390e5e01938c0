"""The template of convolutions: register tiles of output positions by output channels.

Weights are packed in panels [groups * panels, kh, kw, inputs, nr].  A tile's sum runs over kernel
rows, kernel columns and channels in that order and is never split, so that a result depends
neither on the tile nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from tvm import tirx

from plait.codegen.conv_tiles import ConvShape, ConvTile, conv_tiles, cuts_rows
from plait.codegen.core import core, simd
from plait.codegen.schedule import Schedule
from plait.codegen.target import Candidate, Template
from plait.codegen.tiles import SHARED_BYTES, ceil_div, is_far
from plait.codegen.tvm.access import source_input
from plait.codegen.tvm.image import ZERO, Image, Ports, Windowed
from plait.codegen.tvm.loops import Ahead, Memory, apart, loop, prefetch, sequence
from plait.codegen.tvm.register_tile import LastPanel, RegisterTile, in_lines, share_of, steps_of
from plait.codegen.tvm.scalars import const
from plait.ir.graph import Graph
from plait.passes.select import Selection

PrimExpr = Any
Stmt = Any
SMALLEST_GROUP = 4  # output channels; the vectors of smaller groups would be almost empty


def conv_shape(windowed: Windowed) -> ConvShape:
    """The convolution of a body whose anchor is one."""
    outputs = windowed.node.types[0].static("TVM code generation")[1]
    return ConvShape(windowed.shape, outputs, windowed.node.attrs["groups"])


class ConvNest:
    """Builds one convolution; `count` positions from `begin`, all of them unless told."""

    def __init__(
        self, windowed: Windowed, shape: ConvShape, tile: ConvTile, places: Sequence[Memory] = (),
        begin: PrimExpr = ZERO, count: int = 0,
    ) -> None:  # fmt: skip
        self.ports, self.shape, self.window = Ports(windowed, places), shape, shape.window
        self.begin, self.count = begin, count or self.window.positions
        self.tile = tile = replace(tile, mr=min(tile.mr, self.count))
        self.panels = tile.panels(self.shape)  # in a group
        self.all_panels = self.shape.groups * self.panels
        self.tiles = ceil_div(self.count, tile.mr)
        self.block = ceil_div(self.tiles, tile.blocks)
        self.blocks = ceil_div(self.tiles, self.block)
        self.image = Image(self.ports)
        self.at = windowed.at
        weight = source_input(windowed.body, windowed.node.operands[1])
        self.weight = self.ports.inputs[weight].buffer
        self.ahead = Ahead(self.weight, self.all_panels, self.shape.taps, tile.nr,
                           self.block, self.blocks)  # fmt: skip

    def build(self) -> Any:
        """The PrimFunc over flat buffers: inputs, then the output."""
        return self.ports.function([*self.image.copy(self.tile.parallel), self.positions()])

    def positions(self) -> Stmt:
        """All tiles of all positions."""
        if self.tile.parallel or self.blocks == 1:
            kind = tirx.ForKind.PARALLEL if self.tile.parallel else None
            return loop(self.all_panels * self.tiles, self._item, kind, "tile")

        def tiles(turn: PrimExpr) -> Stmt:
            # A loop of its own: of a joint number LLVM works out the rows' places in every step.
            part = tirx.Var("tile", "int32")
            size = self._size(tirx.floordiv(turn, self.all_panels))
            return tirx.For(part, 0, size, tirx.ForKind.SERIAL, self._tile(turn, part))

        return loop(self.blocks * self.all_panels, tiles, None, "panel")

    def _size(self, block: PrimExpr) -> PrimExpr:
        """Tiles of a block: the last may have fewer."""
        return tirx.min(self.block, self.tiles - block * self.block)

    def _item(self, item: PrimExpr) -> Stmt:
        """A tile by its number among all."""
        panels = self.all_panels
        if self.tile.order == "pos":
            return self._tile(tirx.floormod(item, panels), tirx.floordiv(item, panels))
        block = tirx.floordiv(item, panels * self.block) if self.blocks > 1 else ZERO
        rest, size = item - block * (panels * self.block), self._size(block)
        return self._tile(block * panels + tirx.floordiv(rest, size), tirx.floormod(rest, size))

    def _tile(self, turn: PrimExpr, part: PrimExpr) -> Stmt:
        """One tile: zero the accumulators, sum, finish.

        Panels take turns, all of them for one block of tiles after the other; this is number `part`
        of the tiles of a turn.
        """
        block, panel = ZERO, turn
        if self.blocks > 1:
            block, panel = (f(turn, self.all_panels) for f in (tirx.floordiv, tirx.floormod))
        own = first = self.begin + (block * self.block + part) * self.tile.mr
        if self.ragged:  # the last tile ends with the last position: all its rows can be read
            first = tirx.min(own, self.begin + self.count - self.tile.mr)
        sums = RegisterTile(self.tile.mr, self.tile.nr)
        return sequence([
            self._ask_end(sums, panel, first), *sums.clear(),
            self._sum(sums, panel, (turn, part), first),
            *self._finish(sums, panel, first, own),
        ])  # fmt: skip

    def _sum(
        self, sums: RegisterTile, panel: PrimExpr, time: tuple[PrimExpr, PrimExpr], first: PrimExpr
    ) -> Stmt:
        """Add all taps."""
        window, inputs, nr = self.window, self.shape.inputs, self.tile.nr
        asks = self.tile.order == "oc" and self.ahead.worthwhile
        group = tirx.floordiv(panel, self.panels) * inputs if self.shape.groups > 1 else ZERO

        def step(r: PrimExpr, s: PrimExpr, c: PrimExpr) -> Stmt:
            tap = self.image.tap(r, s, group + c)
            number = (r * window.kw + s) * inputs + c
            at = (panel * self.shape.taps + number) * nr

            def term(m: PrimExpr, lane: PrimExpr) -> PrimExpr:
                return self.image.buffer[self.image.at(first + m) + tap] * self.weight[at + lane]

            ask = self.ahead.ask_after(*time, number) if asks else None
            return sequence([ask, sums.add(term)])

        def columns(r: PrimExpr) -> Stmt:
            return loop(window.kw, lambda s: loop(inputs, lambda c: step(r, s, c), None, "ic"),
                        None, "kw")  # fmt: skip

        low, high = self._live_rows(first)
        if self.asking:
            return in_lines(inputs, lambda c: step(ZERO, ZERO, c),
                            lambda c: self._ask(panel, first, group + c))  # fmt: skip
        if high is None and window.kh == window.kw == 1:
            claim = self._claim(panel, first) if self.far else None
            return steps_of(inputs, lambda c: step(ZERO, ZERO, c), self.tile.mr, claim)
        if high is None:
            return loop(window.kh, columns, None, "kh")
        var = tirx.Var("kh", "int32")
        return tirx.For(var, low, high - low, tirx.ForKind.SERIAL, columns(var))

    @cached_property
    def asking(self) -> bool:
        """Whether panels ask for the pixels of the next tile."""
        by_tiles = self.tile.order == "pos" or self.panels == 1
        whole = self.count == self.window.positions  # stripes find theirs in L2
        in_rows = self.image.steps[1] == 1  # of channels
        return self.shape.asks and by_tiles and whole and in_rows

    def _ask(self, panel: PrimExpr, first: PrimExpr, channel: PrimExpr) -> Stmt:
        """Ask for the line of a channel in a panel's share of those pixels."""
        next_first = tirx.min(first + self.tile.mr, self.begin + self.count - self.tile.mr)
        pixels = share_of(self.tile.mr, self.panels, tirx.floormod(panel, self.panels))
        tap = self.image.tap(ZERO, ZERO, channel)
        return sequence([prefetch(self.image.buffer, self.image.at(next_first + m) + tap)
                         for m in pixels])  # fmt: skip

    def _claim(self, panel: PrimExpr, first: PrimExpr) -> Callable[[PrimExpr], Stmt]:
        """Asks for the lines that a row of a tile of a panel goes to."""

        def lines(m: PrimExpr) -> Stmt:
            lanes = (const(lane, "int32") for lane in range(0, self.tile.nr, simd()))
            places = [self.at(first + m, self._present(panel, lane)) for lane in lanes]
            return sequence([self.ports.claim(at) for at in places])

        return lines

    def _ask_end(self, sums: RegisterTile, panel: PrimExpr, first: PrimExpr) -> Stmt | None:
        """Ask for the lines that a tile's results go to, and for what is added to them there, in
        time for the end of its sum."""
        if not core().tiles_ask or self.results <= SHARED_BYTES:
            return None
        channel = partial(self._present, panel)
        return sums.lines(lambda m, lane: self.ports.ask_end(self.at(first + m, channel(lane))))

    def _present(self, panel: PrimExpr, lane: PrimExpr) -> PrimExpr:
        """The output channel of a lane of a panel, the last one for lanes beyond it."""
        return tirx.min(self._channel(panel, lane), self.shape.oc - 1)

    @property
    def far(self) -> bool:
        """Whether the output comes from the last-level cache."""
        return self.count == self.window.positions and is_far(self.results)

    @property
    def results(self) -> int:
        """Bytes of the tensor that is written; stripes may write to scratch, whose place is
        computed, instead."""
        kept = isinstance(self.ports.output.start, int)
        return 4 * (self.window.positions if kept else self.count) * self.shape.oc

    @property
    def ragged(self) -> bool:
        """Whether the last tile has fewer positions than rows."""
        return self.count % self.tile.mr != 0

    def _live_rows(self, first: PrimExpr) -> tuple[PrimExpr, PrimExpr | None]:
        """Kernel rows [low, high) that some position of the tile finds inside the image."""
        window, mr = self.window, self.tile.mr
        if not cuts_rows(self.shape, mr):
            return ZERO, None
        first = tirx.floormod(first, window.oh * window.ow) if window.n > 1 else first
        last = first + mr - 1
        step, gap, top = window.stride[0], window.dilation[0], window.low[0]
        low = tirx.floordiv(top - tirx.floordiv(last, window.ow) * step + gap - 1, gap)
        high = tirx.floordiv(window.h - 1 + top - tirx.floordiv(first, window.ow) * step, gap) + 1
        return tirx.max(low, 0), tirx.min(high, window.kh)

    def _finish(
        self, sums: RegisterTile, panel: PrimExpr, first: PrimExpr, own: PrimExpr
    ) -> list[Stmt]:
        """Write the tile, the positions from `own` on, through the epilogue."""
        present = self.shape.outputs - (self.panels - 1) * self.tile.nr
        full = None if self.panels == 1 else tirx.floormod(panel, self.panels) < self.panels - 1
        last = LastPanel(present, full) if present < self.tile.nr else None

        def owned(m: PrimExpr) -> PrimExpr:
            return first + m >= own

        def store(total: PrimExpr, m: PrimExpr, lane: PrimExpr) -> Stmt:
            return self.ports.store(total, self.at(first + m, self._channel(panel, lane)))

        return sums.finish(store, self.ports.heavy, owned if self.ragged else None, last)

    def _channel(self, panel: PrimExpr, lane: PrimExpr) -> PrimExpr:
        """The output channel of a lane of a panel."""
        if self.shape.groups == 1:
            return panel * self.tile.nr + lane
        group, at = tirx.floordiv(panel, self.panels), tirx.floormod(panel, self.panels)
        return group * self.shape.outputs + at * self.tile.nr + lane


def space(body: Graph, constant: tuple[bool, ...], threads: int) -> list[Candidate]:
    """Convolutions with constant weights, unless their groups have few outputs."""
    windowed = Windowed.find(body, "conv")
    weight = windowed.weight(constant) if windowed is not None else None
    if windowed is None or weight is None:
        return []
    shape = conv_shape(windowed)
    if shape.groups > 1 and shape.outputs < SMALLEST_GROUP:
        return []

    def candidate(cycles: float, tile: ConvTile) -> Candidate:
        schedule = Schedule.make("conv", mr=tile.mr, nr=tile.nr, order=tile.order,
                                 parallel=int(tile.parallel), blocks=tile.blocks)  # fmt: skip
        return Candidate(cycles, Selection(str(schedule), {weight: ("conv", tile.nr)}))

    return [candidate(*found) for found in conv_tiles(shape, threads)]


def tile_of(schedule: Schedule) -> ConvTile:
    """The tile that a schedule of this template names."""
    return ConvTile(schedule.number("mr"), schedule.number("nr"),
                    "pos" if schedule.parameters["order"] == "pos" else "oc",
                    bool(schedule.number("parallel")), schedule.number("blocks"))  # fmt: skip


def build(body: Graph, schedule: Schedule, pitch: Sequence[int] = ()) -> Any:
    """The PrimFunc of a convolution over flat buffers: inputs, then the output."""
    windowed = Windowed.of(body, "conv")
    places = apart(body, pitch)
    return ConvNest(windowed, conv_shape(windowed), tile_of(schedule), places).build()


CONV = Template("conv", space, build, "conv")
