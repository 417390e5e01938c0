"""What kernels of convolutions and windows share: their bodies, positions, and padded images.

Logical shapes are [N, C, H, W] or [N, C, W]; the latter is an image of width 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from tvm import tirx

from plait.codegen.conv_tiles import WindowShape, window_shape
from plait.codegen.tvm.access import Access, flat_reads
from plait.codegen.tvm.loops import Memory, Parameters, along, indexed, loop, prefetch, sequence
from plait.codegen.tvm.register_tile import ask_loads, is_heavy
from plait.codegen.tvm.scalars import const
from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.dims import is_static
from plait.ir.graph import Graph, Node
from plait.ir.layout import same_memory, strides
from plait.passes.fuse import anchors

PrimExpr = Any
Stmt = Any
ZERO = const(0, "int32")


@dataclass(frozen=True)
class Windowed:
    """A body whose anchor slides windows over one of its inputs."""

    body: Graph
    node: Node
    value: int

    @staticmethod
    def find(body: Graph, *ops: str) -> Windowed | None:
        """The body's view if its only anchor is one of `ops`, in float32 and of static, non-empty
        shapes over one or two dimensions, and it has one output of the anchor's shape."""
        found = anchors(body)
        if len(found) != 1 or len(body.outputs) != 1 or body.nodes[found[0]].op not in ops:
            return None
        node = body.nodes[found[0]]
        (made,) = node.types
        data = body.types[node.operands[0]]
        fits = (
            made.dtype == t.f32
            and made.rank in (3, 4)
            and all(is_static(ty.shape) for ty in body.types)
            and 0 not in (*made.shape, *data.shape)
            and body.output_types[0].shape == made.shape
            and node.operands[0] < len(body.inputs)
        )
        return Windowed(body, node, body.results(found[0])[0]) if fits else None

    @staticmethod
    def of(body: Graph, *ops: str) -> Windowed:
        """The view of a body that a template has taken."""
        found = Windowed.find(body, *ops)
        assert found is not None, f"the body of {body.name} is none of {ops}"
        return found

    @property
    def data(self) -> int:
        """The body's input that windows slide over."""
        return self.node.operands[0]

    def weight(self, constant: tuple[bool, ...]) -> int | None:
        """The body's input that is the weight, if it is constant and nothing else reads it."""
        w = self.node.operands[1]
        packable = w < len(self.body.inputs) and constant[w] and len(self.body.users[w]) == 1
        return w if packable and w != self.data else None

    @cached_property
    def shape(self) -> WindowShape:
        x = self.body.types[self.data].static("TVM code generation")
        if self.node.op == "conv":
            window = self.body.types[self.node.operands[1]].static("TVM code generation")[2:]
        else:
            window = self.node.attrs["window"]
        return window_shape(x, window, self.node.attrs)

    @cached_property
    def steps(self) -> tuple[int, int, int, int]:
        """Elements of memory between neighbours of the data along n, c, h and w."""
        found = [s for s in strides(self.body.types[self.data]) if isinstance(s, int)]
        n, c, h, w = (*found, 0) if len(found) == 3 else found
        return n, c, h, w

    def index(self, b: PrimExpr, ch: PrimExpr, i: PrimExpr, j: PrimExpr) -> list[PrimExpr]:
        """The logical index of a result."""
        return [b, ch, i, j] if self.node.types[0].rank == 4 else [b, ch, i]

    def at(self, position: PrimExpr, ch: PrimExpr) -> list[PrimExpr]:
        """The index of a result by its position.

        Where nothing tells images, rows and columns apart, the position itself stands for the
        innermost of them: that saves the divisions.
        """
        if self._line is None:
            image, i, j = place(self.shape, position)
            return self.index(image, ch, i, j)
        index = [ZERO] * self.node.types[0].rank
        index[1], index[self._line] = ch, position
        return index

    @cached_property
    def _line(self) -> int | None:
        """The dimension along which all positions lie at one distance, in all that is read or
        written at a position; None if there is none."""
        made = self.node.types[0]
        dims = [d for d in made.order if d != 1 and made.shape[d] != 1]
        if made.order[-1] != 1 or not dims or dims != sorted(dims):
            return None
        for v in self._epilogue():
            type = self.body.types[v]
            lead = made.rank - type.rank
            sizes = [type.shape[d - lead] if d >= lead else 1 for d in dims]
            whole = type.shape == made.shape and same_memory(type.with_dtype(made.dtype), made)
            if not whole and any(n != 1 for n in sizes):
                return None
        return dims[-1] if all(map(self._by_elements, self._epilogue_nodes)) else None

    @cached_property
    def _epilogue_nodes(self) -> list[Node]:
        """The nodes that lead from the anchor's result to the output."""
        found: list[Node] = []
        after = {self.value}
        for k, node in enumerate(self.body.nodes):
            if after.intersection(node.operands):
                found.append(node)
                after.update(self.body.results(k))
        return found

    def _epilogue(self) -> list[int]:
        """The values that these nodes read, and the output."""
        return [*(v for n in self._epilogue_nodes for v in n.operands), *self.body.outputs]

    def _by_elements(self, node: Node) -> bool:
        """Whether an epilogue node and what it reads beside inputs work element by element."""
        made = [self.body.producer(v) for v in node.operands]
        inner = (m is None or m.op in ("constant", self.node.op) or m in self._epilogue_nodes
                 for m in made)  # fmt: skip
        return ops.has_trait(node.op, "elementwise") and all(inner)


class Ports:
    """The flat parameters of a windowed kernel, and its epilogue."""

    def __init__(self, windowed: Windowed, places: Sequence[Memory] = ()) -> None:
        body = windowed.body
        self.windowed = windowed
        self.parameters = Parameters(body, places)
        self.inputs = self.parameters.inputs
        (self.output,) = self.parameters.outputs
        self.access = Access(body, flat_reads(self.inputs))

    @property
    def data(self) -> Any:
        """The buffer of the data."""
        return self.inputs[self.windowed.data].buffer

    @property
    def data_start(self) -> PrimExpr | int:
        """The place of the data's first element in its buffer."""
        return self.inputs[self.windowed.data].start

    def finished(self, total: PrimExpr, index: Sequence[PrimExpr]) -> PrimExpr:
        """The output's element where the anchor's is `total`."""
        body = self.windowed.body
        return self.access.epilogue(self.windowed.value, total, body.outputs[0], index)

    def store(self, total: PrimExpr, index: Sequence[PrimExpr]) -> Stmt:
        return self.output.store(index, self.finished(total, index))

    def claim(self, index: Sequence[PrimExpr]) -> Stmt:
        """Ask for the line that an element of the output is to be stored to."""
        return prefetch(self.output.buffer, self.output.at(index), write=True)

    def ask_end(self, index: Sequence[PrimExpr]) -> Stmt:
        """Ask for the lines of an element of the output and of what its epilogue reads."""
        size = math.prod(self.windowed.node.types[0].static("TVM code generation"))
        finished = self.finished(tirx.Var("total", "float32"), index)
        return sequence([ask_loads(finished, size), self.claim(index)])

    @cached_property
    def heavy(self) -> bool:
        """Whether the epilogue is too much code to repeat for every vector of a tile."""
        index = self.windowed.index(*(tirx.Var(v, "int32") for v in "bcij"))
        return is_heavy(self.finished(tirx.Var("total", "float32"), index))

    def function(self, stmts: Sequence[Stmt]) -> Any:
        return self.parameters.function(stmts)


def place(shape: WindowShape, position: PrimExpr) -> tuple[PrimExpr, PrimExpr, PrimExpr]:
    """(image, row, column) of an output position."""
    oh, ow = shape.oh, shape.ow
    image, at = ZERO, position
    if shape.n > 1:
        image, at = tirx.floordiv(position, oh * ow), tirx.floormod(position, oh * ow)
    if ow == 1:
        return image, at, ZERO
    if oh == 1:
        return image, ZERO, at
    return image, tirx.floordiv(at, ow), tirx.floormod(at, ow)


class Image:
    """The data of a convolution, copied between zeros where windows reach over its border.

    The copy keeps the order of the data: rows of pixels, or of one channel.
    """

    def __init__(self, ports: Ports) -> None:
        windowed = ports.windowed
        self.shape = s = windowed.shape
        self.source, self.source_steps = ports.inputs[windowed.data], windowed.steps
        _, c, h, w = windowed.steps
        if s.padded:
            self.height, self.width = s.h + s.low[0] + s.high[0], s.w + s.low[1] + s.high[1]
            self.pixels = c == 1 and (w == s.c or s.w == 1)
            self.steps = self._copied_steps()
            size = indexed(s.n * s.c * self.height * self.width, "the padded data of a convolution")
            self.buffer = tirx.decl_buffer((size,), "float32", name="padded")
            self.start = 0
        else:
            self.buffer, self.steps = ports.data, windowed.steps
            self.start = ports.data_start - s.low[0] * h - s.low[1] * w

    def _copied_steps(self) -> tuple[int, int, int, int]:
        c, plane = self.shape.c, self.height * self.width
        if self.pixels:
            return plane * c, 1, self.width * c, c
        return plane * c, plane, self.width, 1

    @cached_property
    def line(self) -> int | None:
        """The distance between positions in memory, if all positions have the same."""
        s, (n, _, h, w) = self.shape, self.steps
        dims = [d for d in ((s.n, n), (s.h, h), (s.w, w)) if d[0] > 1]
        regular = all(a[1] == b[0] * b[1] for a, b in pairwise(dims))
        return (dims[-1][1] if dims else 0) if s.pointwise and regular else None

    def at(self, position: PrimExpr) -> PrimExpr:
        """Offset of the first tap of an output position, in channel 0."""
        n, _, h, w = self.steps
        if self.line is not None:
            return position * self.line + self.start
        image, i, j = place(self.shape, position)
        sh, sw = self.shape.stride
        return image * n + i * (sh * h) + j * (sw * w) + self.start

    def tap(self, r: PrimExpr, s: PrimExpr, channel: PrimExpr) -> PrimExpr:
        """Offset of a tap from the first one."""
        _, c, h, w = self.steps
        dh, dw = self.shape.dilation
        return r * (dh * h) + s * (dw * w) + channel * c

    def copy(self, parallel: bool) -> list[Stmt]:
        """Statements that come before any read."""
        s = self.shape
        if not s.padded:
            return []
        unit = s.c if self.pixels else 1
        planes = 1 if self.pixels else s.c
        kind = tirx.ForKind.PARALLEL if parallel else None
        rows = loop(s.n * planes * self.height, lambda r: self._row(r, planes, unit), kind, "row")
        return [tirx.AllocBuffer(self.buffer), rows]

    def _row(self, r: PrimExpr, planes: int, unit: int) -> Stmt:
        """One row of the copy, of pixels of `unit` elements."""
        s, (n, c, h, w) = self.shape, self.source_steps
        lead, i = tirx.floordiv(r, self.height), tirx.floormod(r, self.height)
        base = r * (self.width * unit)
        source = tirx.floordiv(lead, planes) * n + tirx.floormod(lead, planes) * c
        source = source + (i - s.low[0]) * h + self.source.start
        data = self.source.buffer
        left, right = max(s.low[1], 0), max(s.high[1], 0)
        first, kept = max(-s.low[1], 0) * w, self.width - left - right
        step = 1 if self.pixels else w

        def fill(begin: int, count: int) -> Stmt | None:
            if count == 0:
                return None
            zero, at = const(0.0, "float32"), base + begin * unit
            return along(count * unit, lambda k: tirx.BufferStore(self.buffer, zero, [at + k]))

        whole = sequence([
            fill(0, left),
            along(kept * unit, lambda k: tirx.BufferStore(
                self.buffer, data[source + first + k * step], [base + left * unit + k])),
            fill(left + kept, right),
        ])  # fmt: skip
        if max(s.low[0], s.high[0]) <= 0:
            return whole
        inside = tirx.all(i >= s.low[0], i < s.h + s.low[0])
        return tirx.IfThenElse(inside, whole, fill(0, self.width))
