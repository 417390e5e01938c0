"""Matrix products: register tiled, parallel, any m, n and k, an elementwise epilogue fused.

The sum is written in tile space, `acc[batch, row tile, panel, row, lane]`, whose extents are padded
to whole tiles.  Reads of A are clamped to its last row and panels of B are padded, so that the
reduction has no predicate; only the write-back of edge tiles has one.  The reduction is never
split: an element's value depends neither on the tile nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import tvm_ffi
from tvm import s_tir, te, tirx

from plait.codegen.core import simd
from plait.codegen.tiles import GemmShape, Tile, ceil_div
from plait.codegen.tvm.loops import Ahead

REDUCED = "k"  # the loop of the reduction
HEAVY_EPILOGUE = 24  # expression nodes from which an unrolled epilogue is too much code

Rhs = Literal["packed", "rows", "any"]


@dataclass(frozen=True)
class Gemm:
    """A product to schedule: `out[b, i, j] = epilogue(sum_k a(b, i, k) * b(...), (b, i, j))`.

    operands: the placeholders that the loads and the epilogue read, in the order of parameters.
    a_load(batch, row, k): an element of A, through whatever strides or index map.
    b_load, by `rhs`: "packed": (batch, panel, k, lane) of panels packed ahead of time;
    "rows": (batch, k, column), contiguous along columns, read in place if whole panels fit;
    "any": (batch, k, column), packed by the kernel panel by panel if that pays.
    epilogue(sum, (batch, row, column)): may read operands at any index made from the element's own.
    packed: the operand that holds the panels, if `rhs` is "packed".
    out_map: maps (batch, row, column) to the indices of an output of another layout.
    """

    shape: GemmShape
    tile: Tile
    operands: Sequence[Any]
    a_load: Callable[[Any, Any, Any], Any]
    b_load: Callable[..., Any]
    epilogue: Callable[[Any, tuple[Any, Any, Any]], Any]
    rhs: Rhs = "packed"
    packed: int | None = None
    out_map: Callable[..., list[Any]] | None = None

    @property
    def row_tiles(self) -> int:
        """Tiles along m, in whole pieces: a split that leaves a rest would need predicates."""
        pieces = max(self.tile.chunks, self.tile.blocks)
        return ceil_div(ceil_div(self.shape.m, self.tile.mr), pieces) * pieces

    @property
    def panels(self) -> int:
        return ceil_div(self.shape.n, self.tile.nr)

    @property
    def ragged_rows(self) -> bool:
        return self.row_tiles * self.tile.mr != self.shape.m

    @property
    def ragged_columns(self) -> bool:
        return self.shape.n % self.tile.nr != 0


def schedule_gemm(gemm: Gemm) -> Any:
    """The scheduled PrimFunc over `[*operands, out]`, with a float32 `out[batch, m, n]`."""
    gemm = _normalized(gemm)
    out, staged = _compute(gemm)
    sch = s_tir.Schedule(
        te.create_prim_func([*gemm.operands, out]), debug_mask="none", enable_check=False
    )
    _schedule(sch, gemm.tile, pack=gemm.rhs == "any", staged=staged)
    if gemm.out_map is not None:
        sch.transform_layout(sch.get_sblock("out"), ("write", 0), gemm.out_map)
    func = sch.mod["main"]
    if gemm.packed is not None and gemm.tile.outer == "n":
        func = func.with_body(_asking_ahead(func, gemm))
    if gemm.ragged_rows or gemm.ragged_columns:
        func = func.with_body(_guard_stores(func.body, gemm))
    return func


def _normalized(gemm: Gemm) -> Gemm:
    """The product with the way B is read and the chunks that its shape allows."""
    tile, shape = gemm.tile, gemm.shape
    if gemm.rhs == "packed":
        return replace(gemm, tile=replace(tile, chunks=1))
    tile = replace(tile, blocks=1)
    if gemm.rhs == "rows" and not gemm.ragged_columns:
        return replace(gemm, tile=replace(tile, chunks=1))
    row_tiles = ceil_div(shape.m, tile.mr)
    if row_tiles == 1:  # each element of B is used once: nothing to gain from packing
        return replace(gemm, rhs="rows", tile=replace(tile, chunks=1))
    return replace(gemm, rhs="any", tile=replace(tile, chunks=min(tile.chunks, row_tiles)))


def _compute(gemm: Gemm) -> tuple[Any, bool]:
    """The output tensor, and whether its epilogue reads the tile from memory."""
    m, n, k, mr, nr = gemm.shape.m, gemm.shape.n, gemm.shape.k, gemm.tile.mr, gemm.tile.nr
    axis = te.reduce_axis((0, k), name=REDUCED)
    rhs = _rhs_load(gemm)

    def row(tile: Any, lane: Any) -> Any:
        at = tile * mr + lane
        return te.min(at, m - 1) if gemm.ragged_rows else at

    acc = te.compute(
        (gemm.shape.batch, gemm.row_tiles, gemm.panels, mr, nr),
        lambda b, p, o, r, i: te.sum(gemm.a_load(b, row(p, r), axis) * rhs(b, o, axis, i), axis),
        name="acc",
    )
    probe = gemm.epilogue(tirx.Var("acc", "float32"), (*(tirx.Var(v, "int32") for v in "bij"),))
    # Registers have no index: an epilogue that is a loop reads a copy of the tile.
    staged = n % simd() != 0 or _size(probe) > HEAVY_EPILOGUE
    source = te.compute(acc.shape, lambda *i: acc[i], name="stage") if staged else acc
    out = te.compute(
        (gemm.shape.batch, m, n),
        lambda b, i, j: gemm.epilogue(source(b, i // mr, j // nr, i % mr, j % nr), (b, i, j)),
        name="out",
    )
    return out, staged


def _rhs_load(gemm: Gemm) -> Callable[..., Any]:
    """The load of B by (batch, panel, k, lane)."""
    n, nr = gemm.shape.n, gemm.tile.nr
    if gemm.rhs == "packed":
        return gemm.b_load

    def unpacked(b: Any, panel: Any, k: Any, lane: Any) -> Any:
        column = panel * nr + lane
        return gemm.b_load(b, k, te.min(column, n - 1) if gemm.ragged_columns else column)

    if gemm.rhs == "rows":
        return unpacked
    packed = te.compute((gemm.shape.batch, gemm.panels, gemm.shape.k, nr), unpacked, name="panel")
    return lambda *index: packed[index]


def _size(expr: Any) -> int:
    """Nodes of an expression."""
    nodes: list[Any] = []
    tvm_ffi.structural_walk(expr, (tirx.Expr, nodes.append))
    return len(nodes)


def _schedule(sch: Any, tile: Tile, pack: bool, staged: bool) -> None:
    """Order the tile loops, keep the tile in registers, place the epilogue, share out the work.

    The accumulators keep scope "global": only that, below 4 KiB, becomes registers; scope "local"
    is a heap allocation.
    """
    acc, out = sch.get_sblock("acc"), sch.get_sblock("out")
    b, p, o, r, i, k = sch.get_loops(acc)
    if pack:
        chunk, p = sch.split(p, [tile.chunks, None])
        sch.reorder(b, chunk, o, p, k, r, i)
        shared, at = sch.fuse(b, chunk, o), p
        sch.compute_at(sch.get_sblock("panel"), shared, preserve_unit_loops=True)
    else:
        block, p = sch.split(p, [tile.blocks, None])
        order = (b, block, o, p) if tile.outer == "n" else (b, block, p, o)
        sch.reorder(*order, k, r, i)
        shared = at = sch.fuse(*order)
    if staged:
        stage = sch.get_sblock("stage")
        sch.reverse_compute_at(stage, at, preserve_unit_loops=True)
        _vectorize_tile(sch, stage, unroll=True)
    sch.reverse_compute_at(out, at, preserve_unit_loops=True)
    _vectorize_tile(sch, out, unroll=not staged)
    if tile.parallel:
        sch.parallel(shared)
    vectors, lanes = sch.split(i, [None, simd()])
    sch.vectorize(lanes)
    sch.unroll(r)
    sch.unroll(vectors)
    sch.decompose_reduction(acc, k)


def _vectorize_tile(sch: Any, block: Any, unroll: bool) -> None:
    """Vectorize the innermost loop of a block over a tile; unroll the rest, or make it one loop.

    Of two nested loops LLVM would think that they run more often than the reduction, and keep the
    epilogue's constants in registers rather than the accumulators.
    """
    rows, columns = sch.get_loops(block)[-2:]
    vectors, lanes = sch.split(columns, [None, simd()])
    sch.vectorize(lanes)
    if unroll:
        sch.unroll(rows)
        sch.unroll(vectors)
    else:
        sch.fuse(rows, vectors)


def _asking_ahead(func: Any, gemm: Gemm) -> Any:
    """The body with a request for the next panel of B in every step of the reduction."""
    rows, blocks = gemm.row_tiles // gemm.tile.blocks, gemm.tile.blocks
    ahead = Ahead(func.params[gemm.packed], gemm.panels, gemm.shape.k, gemm.tile.nr, rows, blocks)
    if not ahead.worthwhile:
        return func.body
    loops: list[Any] = []
    tvm_ffi.structural_walk(func.body, (tirx.For, lambda found: loops.append(found)), order="pre")
    tile = loops[0].loop_var  # the outermost loop: blocks of rows, panels, and row tiles in each

    def asking(loop: Any) -> Any:
        if loop.loop_var.name != REDUCED:
            return loop
        panel, row = tirx.floordiv(tile, rows), tirx.floormod(tile, rows)
        body = tirx.SeqStmt([ahead.ask(panel, row, loop.loop_var), loop.body])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body)

    return tvm_ffi.structural_map(func.body, (tirx.For, asking))


def _guard_stores(body: Any, gemm: Gemm) -> Any:
    """Replace the output's predicate per element by one test per vector, and a scalar tail."""

    def guard(loop: Any) -> Any:
        realize = loop.body
        if loop.kind != tirx.ForKind.VECTORIZED or not isinstance(realize, s_tir.SBlockRealize):
            return loop
        if realize.block.name_hint != "out":
            return loop
        _, i, j = realize.iter_values
        last = _substitute(j, loop.loop_var, tirx.const(simd() - 1, "int32"))
        full = last < gemm.shape.n
        if gemm.ragged_rows:
            full = tirx.all(i < gemm.shape.m, full)
        whole = s_tir.SBlockRealize(realize.iter_values, True, realize.block)
        vector = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, whole)
        if gemm.shape.n % simd() == 0:
            return tirx.IfThenElse(full, vector, None)
        lane = tirx.Var("lane", "int32")
        tail = _substitute(realize, loop.loop_var, lane)
        scalar = tirx.For(lane, loop.min, loop.extent, tirx.ForKind.SERIAL, tail)
        return tirx.IfThenElse(full, vector, scalar)

    return tvm_ffi.structural_map(body, (tirx.For, guard))


def _substitute(node: Any, var: Any, value: Any) -> Any:
    return tvm_ffi.structural_map(node, (tirx.Var, lambda v: value if v.same_as(var) else v))
