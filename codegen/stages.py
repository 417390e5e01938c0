"""Stages: kernels that can be computed a few rows at a time, seen as positions of channels.

Sizes are in elements of float32 unless they say bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

from plait.codegen.collapse import collapse, loop_space
from plait.codegen.conv_tiles import (
    ConvShape,
    ConvTile,
    WindowShape,
    WindowTile,
    conv_cycles,
    efficiency,
    window_cycles,
    window_shape,
)
from plait.codegen.core import Core, core
from plait.codegen.schedule import Schedule
from plait.ir import types as t
from plait.ir.dims import is_static
from plait.ir.graph import Graph, Node
from plait.ir.layout import strides
from plait.ir.ops.contraction import free_dims
from plait.ir.types import TensorType
from plait.passes.fuse import anchors

Kind: TypeAlias = Literal["points", "window", "nest"]


@dataclass(frozen=True)
class Stage:
    """A kernel that can be computed row by row, its memory seen as positions of channels.

    entry: the body's input that the stage before makes, -1 for the first.  It reads `given`
    positions of `inputs` channels and makes `positions` of `channels`.  `window` has the rows and
    columns of the images, None where the kernel knows but positions.
    """

    kind: Kind
    body: Graph
    schedule: Schedule
    entry: int
    given: int
    positions: int
    inputs: int
    channels: int
    window: WindowShape | None

    @property
    def shape(self) -> ConvShape:
        """A stage of points as a convolution of a column of positions."""
        return column(self.positions, self.inputs, self.channels)

    @property
    def weights(self) -> int:
        """Bytes of the stage's weights."""
        return 4 * self.inputs * self.channels if self.kind == "points" else 0

    def tile(self, count: int) -> ConvTile:
        """The register tile for `count` positions, over weights that are packed already."""
        nr = self.schedule.number("nr")
        mr, _ = _best_rows(count, self.inputs, self.channels, nr)
        return ConvTile(mr, nr, "oc", False)

    def cycles(self, count: int) -> float:
        """Cycles of one thread for `count` positions."""
        if self.kind == "nest":
            return 0.0  # the same in any order: it cancels
        if self.window is not None and self.kind == "window":
            return count / self.positions * window_cycles(self.window, self.columns, 1)
        return _best_rows(count, self.inputs, self.channels, self.schedule.number("nr"))[1]

    @property
    def columns(self) -> WindowTile:
        """The tile of a window's columns, all channels by one thread."""
        number = self.schedule.number
        return WindowTile(number("mr"), number("vectors"), 1, False)


def column(positions: int, inputs: int, channels: int) -> ConvShape:
    """A product of rows by a matrix as a convolution over a column of positions."""
    return ConvShape(WindowShape(1, positions, 1, inputs, 1, 1), channels)


def _best_rows(count: int, inputs: int, channels: int, nr: int) -> tuple[int, float]:
    """Rows of the register tile for `count` positions by panels of `nr`, and the cycles."""
    return _best_rows_on(core(), count, inputs, channels, nr)


@cache
def _best_rows_on(of: Core, count: int, inputs: int, channels: int, nr: int) -> tuple[int, float]:
    shape = column(count, inputs, channels)
    rows = [mr for mr, width in efficiency() if width == nr and mr <= count] or [1]
    return min(((mr, conv_cycles(shape, mr, nr, 1)) for mr in rows), key=lambda found: found[1])


def stage_of(node: Node, entry: int) -> Stage | None:
    """The stage that a selected kernel is, None if it cannot be cut into rows."""
    body: Graph = node.attrs["body"]
    types = (*body.input_types, *body.output_types)
    if len(body.outputs) != 1 or not all(is_static(ty.shape) and 0 not in ty.shape for ty in types):
        return None
    schedule = Schedule.parse(node.attrs["schedule"])
    find = {"conv": _points, "gemm": _product, "depthwise": _window, "loops": _nest}
    make = find.get(schedule.template)
    if make is None or body.output_types[0].dtype != t.f32:
        return None
    return make(body, schedule, entry)


def _pixels(type: TensorType) -> int | None:
    """The channels of a tensor whose memory is positions of channels, whole; None for others."""
    dense = type.static("stripes")
    channels = dense[type.order[-1]]
    return channels if channels > 1 and type.dtype == t.f32 else None


def _images(type: TensorType) -> bool:
    """Whether a tensor is [n, c, h, w] with its channels innermost."""
    if type.rank != 4:
        return False
    _, c, _, w = type.static("stripes")
    return strides(type)[1:] == (1, w * c, c)


def _anchored(body: Graph, entry: int) -> Node | None:
    """The only anchor, if it alone reads the entry, as its data."""
    found = anchors(body)
    if len(found) != 1:
        return None
    node = body.nodes[found[0]]
    data = node.operands[0]
    alone = data < len(body.inputs) and body.users[data] == (found[0],)
    return node if alone and entry in (-1, data) and node.operands[1] != data else None


def _conv(body: Graph, schedule: Schedule, entry: int, kind: Kind) -> Stage | None:
    node = _anchored(body, entry)
    if node is None:
        return None
    data, made = body.types[node.operands[0]], node.types[0]
    if not (_images(data) and _images(made) and _images(body.output_types[0])):
        return None
    x = data.static("stripes")
    window = body.types[node.operands[1]].static("stripes")[2:]
    shape = window_shape(x, window, node.attrs)
    n, channels, _, _ = made.static("stripes")
    return Stage(kind, body, schedule, entry, x[0] * x[2] * x[3], n * shape.oh * shape.ow,
                 x[1], channels, shape)  # fmt: skip


def _points(body: Graph, schedule: Schedule, entry: int) -> Stage | None:
    found = _conv(body, schedule, entry, "points")
    fits = found is not None and found.window is not None and found.window.pointwise
    (anchor,) = anchors(body)
    single = body.nodes[anchor].attrs["groups"] == 1
    return found if fits and single and _packed(schedule) else None


def _window(body: Graph, schedule: Schedule, entry: int) -> Stage | None:
    found = _conv(body, schedule, entry, "window")
    if found is None or found.window is None or found.window.w == 1:
        return None
    shape = found.window
    plain = shape.dilation == (1, 1) and min(*shape.low, *shape.high) >= 0
    return found if plain else None


def _product(body: Graph, schedule: Schedule, entry: int) -> Stage | None:
    """A product of rows by a packed matrix, its sum over the innermost dimension."""
    node = _anchored(body, entry)
    if node is None or schedule.parameters["rhs"] != "packed" or not _packed(schedule):
        return None
    a = node.attrs
    lhs, rhs = (body.types[v] for v in node.operands)
    columns = free_dims(rhs.rank, a["rhs_batch"], a["rhs_contract"])
    plain = not a["lhs_batch"] and a["lhs_contract"] == (lhs.rank - 1,) and len(columns) == 1
    if not plain or any(ty.layout for ty in (lhs, node.types[0], body.output_types[0])):
        return None
    *rows, inputs = lhs.static("stripes")
    channels = rhs.static("stripes")[columns[0]]
    count = math.prod(rows)
    return Stage("points", body, schedule, entry, count, count, inputs, channels, None)


def _nest(body: Graph, schedule: Schedule, entry: int) -> Stage | None:
    """A loop nest whose rows are positions: elementwise, or reducing each row."""
    flat = collapse(body)
    space = loop_space(flat)
    if flat is body or not space.order:
        return None
    channels = _pixels(body.output_types[0])
    size = math.prod(body.output_types[0].static("stripes"))
    if channels is None or size != math.prod(space.shape):
        return None
    inner = space.order[-1]
    rows = space.axes in ((), (inner,))
    whole = space.shape[inner] == channels or (len(space.order) == 1 and not space.axes)
    entered = entry == -1 or body.input_types[entry] == body.output_types[0]
    if not (rows and whole and entered):
        return None
    count = size // channels
    return Stage("nest", body, schedule, entry, count, count, channels, channels, None)


def _packed(schedule: Schedule) -> bool:
    """Whether the model knows tiles for the width of the panels."""
    return schedule.number("nr") in {nr for _, nr in efficiency()}
