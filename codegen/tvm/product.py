"""The template of matrix products: a body's `dot_general` as a batched GEMM with its epilogue.

Any arrangement of dimensions becomes `batch` products of [m, k] by [k, n]: the rows are lhs's free
dimensions in the order of the result, the columns rhs's.  A constant rhs is packed in panels ahead
of time; two activations are multiplied in place or packed by the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from plait.codegen.core import core
from plait.codegen.schedule import Schedule
from plait.codegen.target import Candidate, Template
from plait.codegen.tiles import L2_BYTES, LINE, GemmShape, Tile, gemm_tiles, is_far
from plait.codegen.tvm.access import Access, flat_reads, source_input
from plait.codegen.tvm.gemm import Gemm, gemm_loops
from plait.codegen.tvm.generic import anchor_of
from plait.codegen.tvm.loops import Parameters, arranged, prefetch, sequence, unflatten
from plait.codegen.tvm.register_tile import ask_loads, loads_of
from plait.codegen.tvm.scalars import const
from plait.ir import types as t
from plait.ir.dims import is_static
from plait.ir.graph import Graph
from plait.ir.layout import strides
from plait.ir.ops.contraction import free_dims
from plait.ir.types import TensorType
from plait.passes.select import Selection

PrimExpr = Any
Stmt = Any


@dataclass(frozen=True)
class Product:
    """How the dimensions of a `dot_general` fall into batch, rows, columns and sum."""

    lhs: TensorType
    rhs: TensorType
    lhs_batch: tuple[int, ...]
    rhs_batch: tuple[int, ...]
    lhs_free: tuple[int, ...]
    rhs_free: tuple[int, ...]
    lhs_sum: tuple[int, ...]
    rhs_sum: tuple[int, ...]

    @staticmethod
    def of(body: Graph) -> Product:
        node = body.nodes[anchor_of(body)]
        lhs, rhs = (body.types[v] for v in node.operands)
        a = node.attrs
        return Product(
            lhs, rhs, a["lhs_batch"], a["rhs_batch"],
            tuple(free_dims(lhs.rank, a["lhs_batch"], a["lhs_contract"])),
            tuple(free_dims(rhs.rank, a["rhs_batch"], a["rhs_contract"])),
            a["lhs_contract"], a["rhs_contract"],
        )  # fmt: skip

    def _sizes(self, type: TensorType, dims: Sequence[int]) -> list[int]:
        shape = type.static("TVM code generation")
        return [shape[d] for d in dims]

    @property
    def batch(self) -> list[int]:
        return self._sizes(self.lhs, self.lhs_batch)

    @property
    def rows(self) -> list[int]:
        return self._sizes(self.lhs, self.lhs_free)

    @property
    def columns(self) -> list[int]:
        return self._sizes(self.rhs, self.rhs_free)

    @property
    def sums(self) -> list[int]:
        return self._sizes(self.lhs, self.lhs_sum)

    @property
    def shape(self) -> GemmShape:
        return GemmShape(*(math.prod(p) for p in (self.batch, self.rows, self.columns, self.sums)))

    def lhs_index(self, b: PrimExpr, i: PrimExpr, k: PrimExpr) -> list[PrimExpr]:
        parts = ((self.lhs_batch, b, self.batch), (self.lhs_free, i, self.rows),
                 (self.lhs_sum, k, self.sums))  # fmt: skip
        return _scatter(parts)

    def rhs_index(self, b: PrimExpr, k: PrimExpr, j: PrimExpr) -> list[PrimExpr]:
        parts = ((self.rhs_batch, b, self.batch), (self.rhs_sum, k, self.sums),
                 (self.rhs_free, j, self.columns))  # fmt: skip
        return _scatter(parts)

    def result_index(self, b: PrimExpr, i: PrimExpr, j: PrimExpr) -> list[PrimExpr]:
        parts = zip((b, i, j), (self.batch, self.rows, self.columns), strict=True)
        return [x for position, extents in parts for x in unflatten(position, extents)]


def _scatter(parts: Any) -> list[PrimExpr]:
    dims = [d for part, _, _ in parts for d in part]
    return arranged(dims, [i for _, at, extents in parts for i in unflatten(at, extents)])


def space(body: Graph, constant: tuple[bool, ...], threads: int) -> list[Candidate]:
    """Float32 products with static, non-empty dimensions and one output in the result's shape."""
    anchors = [k for k, n in enumerate(body.nodes) if n.op == "dot_general"]
    if len(anchors) != 1 or len(body.outputs) != 1:
        return []
    node = body.nodes[anchors[0]]
    if node.types[0].dtype != t.f32 or not all(is_static(ty.shape) for ty in body.types):
        return []
    product = Product.of(body)
    shape = product.shape
    if 0 in (shape.batch, shape.m, shape.n, shape.k):
        return []
    rhs = node.operands[1]
    packed = rhs < len(body.inputs) and constant[rhs] and not product.rhs_batch
    packed = packed and len(body.users[rhs]) == 1
    form = "packed" if packed else _unpacked_form(body, rhs, product)

    def candidate(cycles: float, tile: Tile) -> Candidate:
        schedule = Schedule.make(
            "gemm", mr=tile.mr, nr=tile.nr, outer=tile.outer, chunks=tile.chunks,
            parallel=int(tile.parallel), blocks=tile.blocks,
            depth=tile.depth, span=tile.span, rhs=form,
        )  # fmt: skip
        pack = {rhs: ("panels", tile.nr)} if packed else {}
        return Candidate(cycles, Selection(str(schedule), pack))

    return [candidate(*found) for found in gemm_tiles(shape, threads, bool(packed))]


def _unpacked_form(body: Graph, rhs: int, product: Product) -> str:
    """ "rows" if neighbouring columns are neighbours in memory, else "any"."""
    if rhs >= len(body.inputs) or not product.rhs_free:
        return "any"
    inner = product.rhs_free[-1]
    return "rows" if strides(body.types[rhs])[inner] == 1 else "any"


def build(body: Graph, schedule: Schedule) -> Any:
    """The PrimFunc of a product over flat buffers: inputs, then the output."""
    product = Product.of(body)
    node = body.nodes[anchor_of(body)]
    (anchor,) = body.results(anchor_of(body))
    shape = product.shape
    tile = Tile(schedule.number("mr"), schedule.number("nr"),
                "m" if schedule.parameters["outer"] == "m" else "n",
                schedule.number("chunks"), bool(schedule.number("parallel")),
                schedule.number("blocks"), schedule.number("depth"),
                schedule.number("span"))  # fmt: skip
    rhs = schedule.parameters["rhs"]
    parameters = Parameters(body)
    access = Access(body, flat_reads(parameters.inputs))
    (out,) = parameters.outputs
    packed = source_input(body, node.operands[1]) if rhs == "packed" else None
    panels = None if packed is None else parameters.inputs[packed].buffer

    def a_load(b: PrimExpr, i: PrimExpr, k: PrimExpr) -> PrimExpr:
        return access.element(node.operands[0], product.lhs_index(b, i, k))

    def b_load(b: PrimExpr, *at: PrimExpr) -> PrimExpr:
        if panels is not None:
            panel, k, lane = at
            return panels[(panel * shape.k + k) * tile.nr + lane]
        return access.element(node.operands[1], product.rhs_index(b, *at))

    def epilogue(total: PrimExpr, *at: PrimExpr) -> PrimExpr:
        return access.epilogue(anchor, total, body.outputs[0], product.result_index(*at))

    def store(value: PrimExpr, *at: PrimExpr) -> Stmt:
        return out.store(product.result_index(*at), value)

    def claim(*at: PrimExpr) -> Stmt:
        return prefetch(out.buffer, out.at(product.result_index(*at)), write=True)

    results = shape.batch * shape.m * shape.n

    def ask_row(*at: PrimExpr) -> Stmt:
        return ask_loads(a_load(*at), shape.batch * shape.m * shape.k)

    def ask_end(*at: PrimExpr) -> Stmt:
        finished = epilogue(tirx.Var("total", "float32"), *at)
        return sequence([ask_loads(finished, results), claim(*at)])

    by_rows = packed is not None and tile.outer == "m" and shape.asks and _in_lines(a_load)
    gemm = Gemm(shape, tile, a_load, b_load, epilogue, store,
                rhs if rhs in ("packed", "rows") else "any", panels,  # type: ignore[arg-type]
                claim if is_far(4 * results) else None,
                ask_row if by_rows else None,
                ask_end if core().tiles_ask and 4 * results > L2_BYTES // 2 else None)  # fmt: skip
    return parameters.function([gemm_loops(gemm)])


def _in_lines(a_load: Callable[..., PrimExpr]) -> bool:
    """Whether terms of a row that are neighbours lie side by side, a line of them at least."""
    zero, last = const(0, "int32"), const(LINE - 1, "int32")
    places = [[load.indices[0] for load in loads_of(a_load(zero, zero, k))] for k in (zero, last)]
    fixed = all(isinstance(at, tirx.IntImm) for found in places for at in found)
    return fixed and [int(at) + LINE - 1 for at in places[0]] == [int(at) for at in places[1]]


GEMM = Template("gemm", space, build)
