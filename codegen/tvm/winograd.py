"""The template of 3 x 3 convolutions by minimal filtering: products in a transformed space.

Block by block of tiles, their data is transformed into planes [tiles / mr, planes, mr, inputs];
then every item multiplies a group of tiles by a panel of weights, plane by plane, and transforms
the products back into results.  Weights are packed as [panels, planes, inputs, nr].  A sum over
channels is never split, so that a result depends neither on the tile nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from plait.codegen.core import simd
from plait.codegen.schedule import Schedule
from plait.codegen.target import Candidate, Template
from plait.codegen.tiles import ceil_div
from plait.codegen.tvm.access import source_input
from plait.codegen.tvm.conv import conv_shape
from plait.codegen.tvm.image import ZERO, Ports, Windowed
from plait.codegen.tvm.loops import Ahead, Memory, apart, loop, sequence
from plait.codegen.tvm.register_tile import UNROLLED, RegisterTile, vectorized
from plait.codegen.tvm.scalars import const
from plait.codegen.tvm.sharing import shared
from plait.codegen.winograd import (
    PAD,
    WinogradTile,
    terms,
    tile_count,
    winograd_tiles,
)
from plait.ir.graph import Graph
from plait.ir.winograd import filtering
from plait.passes.select import Selection

PrimExpr = Any
Stmt = Any
Lane = Callable[[int, PrimExpr], PrimExpr]  # a vector's number and a lane to an element
Put = Callable[[int, PrimExpr, PrimExpr], Stmt]
RAISED = 1.1


def local(count: int, name: str) -> Any:
    """A buffer of vectors, which becomes registers."""
    return tirx.decl_buffer((count * simd(),), "float32", name=name)


def put_lane(buffer: Any) -> Put:
    return lambda k, q, value: tirx.BufferStore(buffer, value, [k * simd() + q])


def lane(buffer: Any) -> Lane:
    return lambda k, q: buffer[k * simd() + q]


def every(read: Lane, first: int, step: int) -> Lane:
    """Vectors first, first + step and so on."""
    return lambda k, q: read(first + k * step, q)


def put_every(put: Put, first: int, step: int) -> Put:
    """`every`, for what puts vectors."""
    return lambda k, q, value: put(first + k * step, q, value)


def both_ways(matrix: Any, read: Lane, half: Any, put: Put) -> list[Stmt]:
    """Matrix times a square of vectors times the matrix transposed, by way of a local buffer.

    `read` and `put` take row-major numbers of vectors.
    """
    rows, size = matrix.shape
    stmts: list[Stmt] = []
    for j in range(size):
        stmts += transformed(matrix, every(read, j, size), put_every(put_lane(half), j, size))
    for i in range(rows):
        row = every(lane(half), i * size, 1)
        stmts += transformed(matrix, row, put_every(put, i * rows, 1))
    return stmts


def transformed(matrix: Any, read: Lane, put: Put) -> list[Stmt]:
    """Statements that put the product of a matrix with a column of vectors."""

    def total(row: Any, q: PrimExpr) -> PrimExpr:
        value: PrimExpr = None
        for factor, source in terms(row):
            x = read(source, q)
            x = x if abs(factor) == 1 else x * const(abs(factor), "float32")
            if value is None:
                value = x if factor > 0 else -x
            else:
                value = value + x if factor > 0 else value - x
        return value

    return [vectorized(simd(), lambda q, k=k, row=row: put(k, q, total(row, q)))
            for k, row in enumerate(matrix)]  # fmt: skip


class WinogradNest:
    """Builds the PrimFunc of one convolution."""

    def __init__(
        self, windowed: Windowed, tile: WinogradTile, threads: int, places: Sequence[Memory] = ()
    ) -> None:
        self.ports, self.tile = Ports(windowed, places), tile
        self.windowed, self.shape = windowed, conv_shape(windowed)
        self.window, self.inputs = self.shape.window, self.shape.inputs
        self.tiles = tile_count(self.shape, tile.m)
        self.panels = ceil_div(self.shape.oc, tile.nr)
        self.threads = threads if tile.parallel else 1
        weight = source_input(windowed.body, windowed.node.operands[1])
        self.weight = self.ports.inputs[weight].buffer
        self.matrices = filtering(tile.m)
        self.ahead = Ahead(self.weight, self.panels * tile.planes, self.inputs, tile.nr, tile.group)
        self.plane = tile.mr * self.inputs + PAD  # floats between planes of data
        size = tile.block // tile.mr * tile.planes * self.plane
        self.data = tirx.decl_buffer((size,), "float32", name="planes")

    def build(self) -> Any:
        def block(k: PrimExpr) -> Stmt:
            first = k * self.tile.block
            return sequence([shared(self.tile.block, self.threads, lambda t: self._data(first, t)),
                             self._products(first)])  # fmt: skip

        blocks = loop(ceil_div(self.tiles, self.tile.block), block, None, "block")
        return self.ports.function([tirx.AllocBuffer(self.data), blocks])

    def _place(self, tile: PrimExpr) -> tuple[PrimExpr, PrimExpr, PrimExpr]:
        """(image, row, column) of a tile's first result."""
        m, window = self.tile.m, self.window
        high, wide = ceil_div(window.oh, m), ceil_div(window.ow, m)
        image, at = ZERO, tile
        if window.n > 1:
            image, at = tirx.floordiv(tile, high * wide), tirx.floormod(tile, high * wide)
        return image, tirx.floordiv(at, wide) * m, tirx.floormod(at, wide) * m

    # Data

    def _data(self, first: PrimExpr, t: PrimExpr) -> Stmt:
        """Transform a tile of data in all channels; what lies beyond the last repeats it."""
        tile, window, size = self.tile, self.window, self.tile.size
        image, i, j = self._place(tirx.min(first + t, self.tiles - 1))
        top, left = i - window.low[0], j - window.low[1]
        n, _, h, w = self.windowed.steps
        source = image * n + top * h + left * w
        to = tirx.floordiv(t, tile.mr) * (tile.planes * self.plane)
        to = to + tirx.floormod(t, tile.mr) * self.inputs

        def inside(k: PrimExpr) -> Stmt:
            def read(at: int, q: PrimExpr) -> PrimExpr:
                offset = at // size * h + at % size * w
                return self.ports.data[source + offset + k * simd() + q]

            return sequence(self._one_data(read, to + k * simd()))

        def border(k: PrimExpr) -> Stmt:
            patch = local(tile.planes, "patch")
            copy = self._patch(patch, source + k * simd(), top, left)
            rest = self._one_data(lane(patch), to + k * simd())
            return sequence([tirx.AllocBuffer(patch), copy, *rest])

        vectors = self.inputs // simd()
        within = loop(vectors, inside, None, "c")
        if window.padded or window.oh % tile.m or window.ow % tile.m:
            fits = tirx.all(top >= 0, top + size <= window.h, left >= 0, left + size <= window.w)
            return tirx.IfThenElse(fits, within, loop(vectors, border, None, "c"))
        return within

    def _patch(self, patch: Any, source: PrimExpr, top: PrimExpr, left: PrimExpr) -> Stmt:
        """Copy a tile of one vector, with zeros outside the image."""
        size, window = self.tile.size, self.window
        _, _, h, w = self.windowed.steps

        def cell(i: PrimExpr, j: PrimExpr) -> Stmt:
            at, y, x = i * size + j, top + i, left + j

            def put(value: Callable[[PrimExpr], PrimExpr]) -> Stmt:
                return vectorized(simd(), lambda q: put_lane(patch)(at, q, value(q)))

            here = source + i * h + j * w
            live = tirx.all(y >= 0, y < window.h, x >= 0, x < window.w)
            return tirx.IfThenElse(live, put(lambda q: self.ports.data[here + q]),
                                   put(lambda q: const(0.0, "float32")))  # fmt: skip

        return loop(size, lambda i: loop(size, lambda j: cell(i, j), None, "j"), None, "i")

    def _one_data(self, read: Lane, to: PrimExpr) -> list[Stmt]:
        """Transform the columns, then the rows, of one vector; `read` takes row * size + column."""
        half = local(self.tile.planes, "half")

        def put(x: int, q: PrimExpr, value: PrimExpr) -> Stmt:
            return tirx.BufferStore(self.data, value, [to + x * self.plane + q])

        return [tirx.AllocBuffer(half), *both_ways(self.matrices.bt, read, half, put)]

    # Products and results

    def _products(self, first: PrimExpr) -> Stmt:
        tile = self.tile
        groups, stride = tile.block // tile.rows, tile.rows * tile.nr + PAD
        made = tirx.decl_buffer((tile.planes * stride,), "float32", name="products")

        def item(k: PrimExpr) -> Stmt:
            if tile.order == "oc":
                panel, group = tirx.floordiv(k, groups), tirx.floormod(k, groups)
            else:
                panel, group = tirx.floormod(k, self.panels), tirx.floordiv(k, self.panels)
            at = first + group * tile.rows
            stmts = [
                loop(tile.planes, lambda x: self._plane(made, stride, x, panel, group), None, "x"),
                loop(tile.rows, lambda t: self._result(made, stride, t, at + t, panel), None, "t"),
            ]
            return tirx.IfThenElse(at < self.tiles, sequence(stmts), None)

        return shared(groups * self.panels, self.threads, item, [made])

    def _plane(self, made: Any, stride: int, x: PrimExpr, panel: PrimExpr, group: PrimExpr) -> Stmt:
        """The products of a group of tiles with a panel in one plane."""
        tile, inputs = self.tile, self.inputs
        block = panel * tile.planes + x
        weights = block * (inputs * tile.nr)

        def register_tile(r: PrimExpr) -> Stmt:
            sums = RegisterTile(tile.mr, tile.nr)
            row = ((group * tile.group + r) * tile.planes + x) * self.plane
            to = x * stride + r * (tile.mr * tile.nr)

            def step(c: PrimExpr) -> Stmt:
                def term(m: PrimExpr, v: PrimExpr) -> PrimExpr:
                    weight = self.weight[weights + c * tile.nr + v]
                    return self.data[row + m * inputs + c] * weight

                ask = self.ahead.ask_after(block, r, c) if self.ahead.worthwhile else None
                return sequence([ask, sums.add(term)])

            return sequence([*sums.clear(), loop(inputs, step, None, "ic"), sums.keep(made, to)])

        return loop(tile.group, register_tile, None, "r")

    def _result(self, made: Any, stride: int, t: PrimExpr, tile: PrimExpr, panel: PrimExpr) -> Stmt:
        """Transform the products of one tile back and write its results."""
        nr = self.tile.nr
        place = self._place(tile)

        def vector(v: PrimExpr) -> Stmt:
            channel = panel * nr + v * simd()
            at = t * nr + v * simd()
            stmt = sequence(self._one_result(lambda x, q: made[x * stride + at + q],
                                             place, channel))  # fmt: skip
            whole = self.shape.oc % nr == 0
            return stmt if whole else tirx.IfThenElse(channel < self.shape.oc, stmt, None)

        stmt = loop(nr // simd(), vector, None, "v")
        whole = self.tiles % self.tile.rows == 0
        return stmt if whole else tirx.IfThenElse(tile < self.tiles, stmt, None)

    def _one_result(
        self, read: Lane, place: tuple[PrimExpr, PrimExpr, PrimExpr], channel: PrimExpr
    ) -> list[Stmt]:
        """One vector of channels; `read` takes a plane.

        Results pass through a local buffer, so that a heavy epilogue is a loop and not repeated.
        """
        m = self.tile.m
        half, stage = local(m * self.tile.size, "half"), local(m * m, "stage")
        stmts = both_ways(self.matrices.at, read, half, put_lane(stage))
        image, row, column = place

        def store(i: PrimExpr, j: PrimExpr) -> Stmt:
            stmt = vectorized(simd(), lambda q: self.ports.store(
                stage[(i * m + j) * simd() + q],
                self.windowed.index(image, channel + q, row + i, column + j)))  # fmt: skip
            whole = self.window.ow % m == 0
            return stmt if whole else tirx.IfThenElse(column + j < self.window.ow, stmt, None)

        def line(i: PrimExpr) -> Stmt:
            stmt = loop(m, lambda j: store(i, j), kind, "j")
            whole = self.window.oh % m == 0
            return stmt if whole else tirx.IfThenElse(row + i < self.window.oh, stmt, None)

        kind = None if self.ports.heavy else UNROLLED
        allocations = [tirx.AllocBuffer(b) for b in (half, stage)]
        return [*allocations, *stmts, loop(m, line, kind, "i")]


def space(body: Graph, constant: tuple[bool, ...], threads: int) -> list[Candidate]:
    """Convolutions with constant weights; estimates are raised, since rounding errors grow."""
    windowed = Windowed.find(body, "conv")
    weight = windowed.weight(constant) if windowed is not None else None
    if windowed is None or weight is None or windowed.steps[1] != 1:
        return []

    def candidate(cycles: float, tile: WinogradTile) -> Candidate:
        schedule = Schedule.make("winograd", m=tile.m, mr=tile.mr, nr=tile.nr, group=tile.group,
                                 block=tile.block, order=tile.order,
                                 parts=threads if tile.parallel else 1)  # fmt: skip
        pack = {weight: (f"winograd{tile.m}", tile.nr)}
        return Candidate(cycles * RAISED, Selection(str(schedule), pack))

    return [candidate(*found) for found in winograd_tiles(conv_shape(windowed), threads)]


def build(body: Graph, schedule: Schedule, pitch: Sequence[int] = ()) -> Any:
    """The PrimFunc of a convolution over flat buffers: inputs, then the output."""
    parts = schedule.number("parts")
    tile = WinogradTile(schedule.number("m"), schedule.number("mr"), schedule.number("nr"),
                        schedule.number("group"), schedule.number("block"),
                        "oc" if schedule.parameters["order"] == "oc" else "pos",
                        parts > 1)  # fmt: skip
    places = apart(body, pitch)
    return WinogradNest(Windowed.of(body, "conv"), tile, parts, places).build()


WINOGRAD = Template("winograd", space, build, "conv")
