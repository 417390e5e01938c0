"""The templates of windows that keep channels apart: depthwise convolutions and pools.

An item is one output row and one chunk of channels; its columns go through registers in tiles.
The tiles at the borders know at compile time which taps fall outside, and loop bounds cut the
kernel's rows, so nothing is padded.  Each result is summed in order by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from plait.codegen.conv_tiles import WindowShape, WindowTile, window_tiles
from plait.codegen.core import core, simd
from plait.codegen.schedule import Schedule
from plait.codegen.target import Candidate, Template
from plait.codegen.tiles import LINE, ceil_div
from plait.codegen.tvm.access import source_input
from plait.codegen.tvm.image import ZERO, Ports, Windowed
from plait.codegen.tvm.loops import Memory, apart, loop, prefetch, sequence
from plait.codegen.tvm.register_tile import UNROLLED, lanes_of, vectorized
from plait.codegen.tvm.scalars import FUNCTIONS, const
from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.graph import Graph
from plait.passes.select import Selection

PrimExpr = Any
Stmt = Any

MOST_TAPS = 64  # of a row of a window: they are written out one by one


@dataclass(frozen=True)
class Columns:
    """Tiles of `size` output columns each, `count` of them, from column `first`.

    inside: whether all their taps lie inside the row; the others come one by one.
    """

    first: int
    count: int
    size: int
    inside: bool


class WindowNest:
    """Builds the PrimFunc of one depthwise convolution or pool."""

    def __init__(self, windowed: Windowed, tile: WindowTile, places: Sequence[Memory] = ()) -> None:
        self.ports, self.tile = Ports(windowed, places), tile
        self.windowed = windowed
        self.shape, self.turned = upright(windowed)
        n, c, h, w = windowed.steps
        self.steps = (n, c, w, h) if self.turned else windowed.steps
        self.op = windowed.node.op
        # Scratch, whose place is computed, lies in L2.
        known = isinstance(self.ports.data_start, int)
        self.asking = self.shape.asks and known and self.steps[1] == 1
        self.near = core().once_ahead > 0 and not self.shape.overlap
        self.weight: Any = None
        if self.op == "conv":
            packed = source_input(windowed.body, windowed.node.operands[1])
            self.weight = self.ports.inputs[packed].buffer

    def build(self) -> Any:
        self.ports.parameters.send_past()
        kind = tirx.ForKind.PARALLEL if self.tile.parallel else None
        items = self.shape.n * self.shape.oh * self.tile.chunks
        return self.ports.function([loop(items, self._item, kind, "item")])

    def _item(self, item: PrimExpr) -> Stmt:
        """One output row, one chunk of channels."""
        s, chunks = self.shape, self.tile.chunks
        row = tirx.floordiv(item, chunks)
        b, i = tirx.floordiv(row, s.oh), tirx.floormod(row, s.oh)
        return self.row(b, i, tirx.floormod(item, chunks))

    def row(self, b: PrimExpr, i: PrimExpr, chunk: PrimExpr) -> Stmt:
        """Row `i` of the results for image `b`, in one chunk of channels."""
        width = self.shape.c // self.tile.chunks
        base = chunk * width
        step = self.tile.vectors * simd()
        blocks, tail = divmod(width, step)

        def channels(at: Callable[[PrimExpr, int], Stmt]) -> Stmt:
            return sequence([
                loop(blocks, lambda k: at(base + k * step, step), None, "cb") if blocks else None,
                at(base + blocks * step, tail) if tail else None,
            ])  # fmt: skip

        return sequence([self._columns(group, b, i, channels) for group in self._tiles()])

    def _columns(self, group: Columns, b: PrimExpr, i: PrimExpr, channels: Any) -> Stmt:
        def tile(k: PrimExpr) -> Stmt:
            first = k * group.size + group.first
            return channels(lambda c, width: Tile(self, group, b, i, first, c, width).build())

        return loop(group.count, tile, None, "jt")

    def _tiles(self) -> list[Columns]:
        """All columns of a row; neighbouring equal tiles inside the row are one loop."""
        s, found = self.shape, list[Columns]()
        for j in range(0, s.ow, self.tile.mr):
            size = min(self.tile.mr, s.ow - j)
            inside = all(self.live(k, s) for k in range(j, j + size) for s in range(self.shape.kw))
            last = found[-1] if found else None
            if last is not None and inside and last.inside and last.size == size:
                found[-1] = replace(last, count=last.count + 1)
            else:
                found.append(Columns(j, 1, size, inside))
        return found

    def live(self, column: int, tap: int) -> bool:
        """Whether a tap of an output column lies inside the row."""
        s = self.shape
        return 0 <= column * s.stride[1] + tap * s.dilation[1] - s.low[1] < s.w

    def index(self, b: PrimExpr, ch: PrimExpr, i: PrimExpr, j: PrimExpr) -> list[PrimExpr]:
        return self.windowed.index(b, ch, *((j, i) if self.turned else (i, j)))

    @property
    def start(self) -> float:
        """The result of an empty window."""
        return float(e.identity("max", t.f32)) if self.op == "max_pool" else 0.0

    def combine(self, total: PrimExpr, x: PrimExpr, r: PrimExpr, s: int, c: PrimExpr) -> PrimExpr:
        """One more tap, at row `r` and column `s` of the window."""
        if self.op == "conv":
            return total + x * self.weight[(r * self.shape.kw + s) * self.shape.c + c]
        if self.op == "max_pool":
            return FUNCTIONS["max"](t.f32, x, total)
        return total + x


@dataclass
class Tile:
    """Some output columns from `first` and `width` channels from `c`."""

    nest: WindowNest
    columns: Columns
    b: PrimExpr
    i: PrimExpr
    first: PrimExpr
    c: PrimExpr
    width: int

    def build(self) -> Stmt:
        self.acc = tirx.decl_buffer((self.columns.size * self.width,), "float32", name="acc")
        start = const(self.nest.start, "float32")
        return sequence([
            tirx.AllocBuffer(self.acc),
            self._ask() if self.nest.asking else None,
            self._each(range(self.columns.size),
                       lambda at, m, c: tirx.BufferStore(self.acc, start, [at])),
            self._rows(),
            self._finish(),
        ])  # fmt: skip

    def _each(
        self, rows: range, stmt: Callable[[Any, Any, Any], Stmt], kind: Any = UNROLLED
    ) -> Stmt:
        """`stmt(cell, column of the tile, channel)` for some columns."""
        if not rows:
            return None

        def vectors(k: int, lanes: int) -> Stmt:
            def row(m: PrimExpr) -> Stmt:
                at = (m + rows.start) * self.width + k
                return vectorized(lanes, lambda q: stmt(at + q, m + rows.start, self.c + k + q))

            return loop(len(rows), row, kind, "m")

        return sequence([vectors(k, lanes) for k, lanes in lanes_of(self.width)])

    def _rows(self) -> Stmt:
        """All taps; kernel rows outside the image are cut off."""
        s = self.nest.shape
        top, gap = self.i * s.stride[0] - s.low[0], s.dilation[0]
        if max(s.low[0], s.high[0]) <= 0:
            return loop(s.kh, lambda r: self._taps(r, top), None, "kh")
        low = tirx.max(tirx.floordiv(gap - 1 - top, gap), 0)
        high = tirx.min(tirx.floordiv(s.h - top + gap - 1, gap), s.kh)
        if s.kh == 1:
            return tirx.IfThenElse(low < high, self._taps(ZERO, top), None)
        var = tirx.Var("kh", "int32")
        return tirx.For(var, low, high - low, tirx.ForKind.SERIAL, self._taps(var, top))

    def _ask(self) -> Stmt:
        """Ask for what no tile above or before reads, a little ahead."""
        starts, lines = self.streams()

        def stream(start: PrimExpr) -> Stmt:
            first = tirx.Var("at", "int32")
            asks = [
                prefetch(self.nest.ports.data, first + k * LINE, near=self.nest.near)
                for k in range(lines)
            ]
            return sequence([tirx.Bind(first, start), *asks])

        return sequence([stream(start) for start in starts])

    def streams(self) -> tuple[list[PrimExpr], int]:
        """Where the lines begin that are asked for in each new row of the image, and how many.

        Each row is one stream, in whatever turns tiles read its pixels and channels: memory
        delivers streams faster than pieces.
        """
        s, (n, _, h, w) = self.nest.shape, self.nest.steps
        (down, right), width = s.stride, s.c // self.nest.tile.chunks
        bottom = self.i * down - s.low[0] + (s.kh - 1) * s.dilation[0]
        column = self.first * right - s.low[1] + (s.kw - 1) * s.dilation[1] + 1 - right
        inside, pixels = tirx.floormod(self.c, width), self.columns.size * right
        ahead = core().once_ahead if self.nest.near else core().ahead
        place = column * width + inside * pixels + ahead
        if w != width:
            place = tirx.floordiv(place, width) * w + tirx.floormod(place, width)
        lines = ceil_div(pixels * self.width, LINE)
        image = self.b * n + (self.c - inside) + self.nest.ports.data_start
        last = (s.h - 1) * h + (s.w - 1) * w + width - lines * LINE
        rows = [bottom - up for up in range(0, down, s.dilation[0])[: s.kh]]
        return [image + tirx.max(tirx.min(row * h + place, last), 0) for row in rows], lines

    def _taps(self, r: PrimExpr, top: PrimExpr) -> Stmt:
        """The taps of one kernel row."""
        nest, s = self.nest, self.nest.shape
        n, ch, h, w = nest.steps
        row = self.b * n + (top + r * s.dilation[0]) * h + nest.ports.data_start

        def one(tap: int) -> Stmt:
            offset = tap * s.dilation[1] - s.low[1]

            def add(at: PrimExpr, m: PrimExpr, c: PrimExpr) -> Stmt:
                column = (self.first + m) * s.stride[1] + offset
                x = nest.ports.data[row + column * w + c * ch]
                return tirx.BufferStore(self.acc, nest.combine(self.acc[at], x, r, tap, c), [at])

            return self._each(self._live(tap), add)

        return sequence([one(tap) for tap in range(s.kw)])

    def _live(self, tap: int) -> range:
        """Columns of the tile for which a tap lies inside the row: they are neighbours."""
        size = self.columns.size
        if self.columns.inside:
            return range(size)
        live = [m for m in range(size) if self.nest.live(self.columns.first + m, tap)]
        return range(live[0], live[-1] + 1) if live else range(0)

    def _finish(self) -> Stmt:
        """Write through the epilogue; a heavy one is a loop that reads a copy."""
        nest = self.nest
        rows = range(self.columns.size)

        def store(source: Any, at: PrimExpr, m: PrimExpr, c: PrimExpr) -> Stmt:
            return nest.ports.store(source[at], nest.index(self.b, c, self.i, self.first + m))

        if not nest.ports.heavy:
            return self._each(rows, lambda *at: store(self.acc, *at))
        stage = tirx.decl_buffer((self.columns.size * self.width,), "float32", name="stage")
        return sequence([
            tirx.AllocBuffer(stage),
            self._each(rows, lambda at, m, c: tirx.BufferStore(stage, self.acc[at], [at])),
            self._each(rows, lambda *at: store(stage, *at), None),
        ])  # fmt: skip


def upright(windowed: Windowed) -> tuple[WindowShape, bool]:
    """The windows, turned if that makes columns of a single one, and whether they are."""
    shape = windowed.shape
    turned = shape.w == shape.ow == shape.kw == 1
    return (shape.turned if turned else shape), turned


def _candidates(
    name: str, windowed: Windowed, threads: int, pack: dict[int, tuple[str, int]]
) -> list[Candidate]:
    def candidate(cycles: float, tile: WindowTile) -> Candidate:
        schedule = Schedule.make(name, mr=tile.mr, vectors=tile.vectors, chunks=tile.chunks,
                                 parallel=int(tile.parallel))  # fmt: skip
        return Candidate(cycles, Selection(str(schedule), pack))

    shape = upright(windowed)[0]
    if shape.kw > MOST_TAPS:
        return []
    return [candidate(*found) for found in window_tiles(shape, threads)]


def tile_of(schedule: Schedule) -> WindowTile:
    """The tile that a schedule of these templates names."""
    return WindowTile(schedule.number("mr"), schedule.number("vectors"),
                      schedule.number("chunks"), bool(schedule.number("parallel")))  # fmt: skip


def depthwise_space(body: Graph, constant: tuple[bool, ...], threads: int) -> list[Candidate]:
    """Convolutions with a group, and one output, for each channel, and constant weights."""
    windowed = Windowed.find(body, "conv")
    weight = windowed.weight(constant) if windowed is not None else None
    if windowed is None or weight is None:
        return []
    channels = windowed.shape.c
    if not channels == windowed.node.attrs["groups"] == windowed.node.types[0].shape[1]:
        return []
    return _candidates("depthwise", windowed, threads, {weight: ("depthwise", 0)})


def pool_space(body: Graph, constant: tuple[bool, ...], threads: int) -> list[Candidate]:
    """Pools; the division that makes a mean is part of the epilogue."""
    windowed = Windowed.find(body, "max_pool", "sum_pool")
    return [] if windowed is None else _candidates("pool", windowed, threads, {})


def build(body: Graph, schedule: Schedule, pitch: Sequence[int] = ()) -> Any:
    """The PrimFunc of a depthwise convolution or a pool over flat buffers: inputs, then the
    output."""
    windowed = Windowed.of(body, "conv", "max_pool", "sum_pool")
    return WindowNest(windowed, tile_of(schedule), apart(body, pitch)).build()


DEPTHWISE = Template("depthwise", depthwise_space, build)
POOL = Template("pool", pool_space, build)
