"""Matrix products: register tiled, parallel, any m, n and k, an elementwise epilogue fused.

The last rows of A are read by a whole tile that ends with them, and panels of B are padded, so that
the sum has no condition; only edge tiles are written under one.  An element is one sum in one
order, whatever the tile and the number of threads: where the reduction is cut into parts, the sums
of one go on in the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from tvm import tirx

from plait.codegen.core import simd
from plait.codegen.tiles import GemmShape, Tile, ceil_div
from plait.codegen.tvm.loops import Ahead, loop, put, sequence, unflatten
from plait.codegen.tvm.register_tile import (
    LastPanel,
    RegisterTile,
    in_lines,
    is_heavy,
    share_of,
    steps_of,
)
from plait.codegen.tvm.scalars import const

PrimExpr = Any
Stmt = Any
Rhs = Literal["packed", "rows", "any"]
Load = Callable[[PrimExpr, PrimExpr], PrimExpr]  # an element of a panel by step and lane
Ask = tuple[PrimExpr, PrimExpr]  # the block of weights that is read next, the pass of this one
SOON = 1536  # steps; what is asked for longer ahead may be gone again


@dataclass(frozen=True)
class Gemm:
    """A product: `sum_k a(b, i, k) * b(...)`, finished and stored, for all batches, rows, columns.

    a_load(batch, row, k): an element of A, through whatever strides or index map.
    b_load, by `rhs`: "packed": (batch, panel, k, lane) of panels packed ahead of time;
    "rows": (batch, k, column), contiguous along columns, read in place if whole panels fit;
    "any": (batch, k, column), packed by the kernel panel by panel if that pays.
    epilogue(sum, batch, row, column): the element to store.
    store(value, batch, row, column): where it goes.
    packed: the buffer of the panels, if `rhs` is "packed".
    claim(batch, row, column): asks for the line that an element is to be stored to, if it is far.
    ask_row(batch, row, k): asks for the line of an element of A, if tiles do for the next one.
    ask_end(batch, row, column): asks for the lines of what the epilogue reads and of the element to
        be stored, if they are far and tiles do so when they begin.
    """

    shape: GemmShape
    tile: Tile
    a_load: Callable[[PrimExpr, PrimExpr, PrimExpr], PrimExpr]
    b_load: Callable[..., PrimExpr]
    epilogue: Callable[[PrimExpr, PrimExpr, PrimExpr, PrimExpr], PrimExpr]
    store: Callable[[PrimExpr, PrimExpr, PrimExpr, PrimExpr], Stmt]
    rhs: Rhs = "packed"
    packed: Any = None
    claim: Callable[[PrimExpr, PrimExpr, PrimExpr], Stmt] | None = None
    ask_row: Callable[[PrimExpr, PrimExpr, PrimExpr], Stmt] | None = None
    ask_end: Callable[[PrimExpr, PrimExpr, PrimExpr], Stmt] | None = None

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


def gemm_loops(gemm: Gemm) -> Stmt:
    """The loops of a product over float32."""
    return _Nest(_normalized(gemm)).build()


def _normalized(gemm: Gemm) -> Gemm:
    """The product with the way B is read and the pieces that its shape allows."""
    shape = gemm.shape
    tile = replace(gemm.tile, mr=min(gemm.tile.mr, shape.m))
    if gemm.rhs == "packed":
        whole = tile.outer == "m" or shape.k % tile.depth != 0
        return replace(gemm, tile=replace(tile, chunks=1, depth=1 if whole else tile.depth))
    tile = replace(tile, blocks=1, depth=1)
    if gemm.rhs == "rows" and not gemm.ragged_columns:
        return replace(gemm, tile=replace(tile, chunks=1))
    row_tiles = ceil_div(shape.m, tile.mr)
    if row_tiles == 1:  # each element of B is used once: nothing to gain from packing
        return replace(gemm, rhs="rows", tile=replace(tile, chunks=1))
    return replace(gemm, rhs="any", tile=replace(tile, chunks=min(tile.chunks, row_tiles)))


class _Nest:
    """The loops of one product."""

    def __init__(self, gemm: Gemm) -> None:
        self.gemm, self.shape, self.tile = gemm, gemm.shape, gemm.tile
        self.rows = gemm.row_tiles // max(self.tile.chunks, self.tile.blocks)  # tiles of a piece
        self.steps = self.shape.k // self.tile.depth
        self.kind = tirx.ForKind.PARALLEL if self.tile.parallel else None
        at = [tirx.Var(name, "int32") for name in ("b", "i", "j")]
        self.heavy = is_heavy(gemm.epilogue(tirx.Var("sum", "float32"), *at))
        self.ahead: Ahead | None = None
        if gemm.packed is not None and self.tile.outer == "n":
            ahead = Ahead(gemm.packed, gemm.panels * self.tile.depth, self.steps, self.tile.nr,
                          self.rows, self.tile.blocks)  # fmt: skip
            self.ahead = ahead if ahead.worthwhile else None

    def build(self) -> Stmt:
        if self.gemm.rhs == "any":
            return self._packing()
        return self._whole_sums() if self.tile.depth == 1 else self._parts_of_sums()

    def _whole_sums(self) -> Stmt:
        """Register tiles, each with its sums from beginning to end."""
        batch, blocks, panels = self.shape.batch, self.tile.blocks, self.gemm.panels

        def tile(item: PrimExpr) -> Stmt:
            if self.tile.outer == "n":
                b, block, panel, part = unflatten(item, [batch, blocks, panels, self.rows])
            else:
                b, block, part, panel = unflatten(item, [batch, blocks, self.rows, panels])
            block_of_weights = tirx.floordiv(item, self.rows)
            ask = (self.ahead.after(block_of_weights), part) if self.ahead else None
            return self._tile(b, block * self.rows + part, panel, self._load(b, panel), ask)

        return loop(batch * blocks * panels * self.rows, tile, self.kind, "tile")

    def _parts_of_sums(self) -> Stmt:
        """Some panels at a time, and of each of them one part of the reduction for all rows of a
        block, before the next part of any: rows and sums stay in L2 meanwhile."""
        size, depth, panels = self.tile.mr * self.tile.nr, self.tile.depth, self.gemm.panels
        span = min(self.tile.span, panels)
        kept = tirx.decl_buffer((span * self.rows * size,), "float32", name="kept")

        def group(item: PrimExpr) -> Stmt:
            block, number = unflatten(item, [self.tile.blocks, ceil_div(panels, span)])
            first = number * span
            count = tirx.min(span, panels - first) if panels % span else span

            def part(c: PrimExpr, begins: bool = False, ends: bool = False) -> Stmt:
                def tile(q: PrimExpr, p: PrimExpr) -> Stmt:
                    sums, at = RegisterTile(self.tile.mr, self.tile.nr), (q * self.rows + p) * size
                    row, panel = block * self.rows + p, first + q
                    ask = (self._following(first, count, c, q), p)
                    load = self._load(const(0, "int32"), panel)
                    return sequence([
                        self._ask_end(sums, const(0, "int32"), row, panel) if ends else None,
                        *(sums.clear() if begins else sums.resume(kept, at)),
                        self._sum(sums, const(0, "int32"), row, load, ask, c * self.steps,
                                  panel if ends else None),
                        *(self._finish(sums, const(0, "int32"), row, panel) if ends
                          else [sums.keep(kept, at)]),
                    ])  # fmt: skip

                def panel(q: PrimExpr) -> Stmt:
                    return loop(self.rows, lambda p: tile(q, p), None, "row")

                return loop(count, panel, None, "panel")

            middle = loop(depth - 2, lambda c: part(c + 1), None, "part") if depth > 2 else None
            outer = part(const(0, "int32"), begins=True), part(const(depth - 1, "int32"), ends=True)
            return sequence([tirx.AllocBuffer(kept), outer[0], middle, outer[1]])

        return loop(self.tile.blocks * ceil_div(panels, span), group, self.kind, "group")

    def _following(
        self, first: PrimExpr, count: PrimExpr | int, c: PrimExpr, q: PrimExpr
    ) -> PrimExpr:
        """The part of a panel that is read after part `c` of panel `q` of the `count` from `first`
        on: of the next panel, or the next part of the first, or of the first panel thereafter."""
        depth, panels = self.tile.depth, self.gemm.panels
        number = c * count + q + 1
        group = first + tirx.floordiv(number, count * depth) * count
        panel = tirx.floormod(group, panels) + tirx.floormod(number, count)
        return panel * depth + tirx.floormod(tirx.floordiv(number, count), depth)

    def _packing(self) -> Stmt:
        """Panel by panel, each packed before its rows pass by."""
        batch, chunks, nr = self.shape.batch, self.tile.chunks, self.tile.nr
        packed = tirx.decl_buffer((self.shape.k * nr,), "float32", name="panel")

        def panel(item: PrimExpr) -> Stmt:
            b, chunk, panel = unflatten(item, [batch, chunks, self.gemm.panels])
            load = self._load(b, panel)
            pack = loop(self.shape.k, lambda k: loop(nr, lambda lane: put(
                packed, k * nr + lane, load(k, lane)), None, "lane"), None, "k")  # fmt: skip

            def tile(p: PrimExpr) -> Stmt:
                row = chunk * self.rows + p
                return self._tile(b, row, panel, lambda k, lane: packed[k * nr + lane])

            rows = loop(self.rows, tile, None, "row")
            return sequence([tirx.AllocBuffer(packed), pack, rows])

        return loop(batch * chunks * self.gemm.panels, panel, self.kind, "panel")

    def _load(self, b: PrimExpr, panel: PrimExpr) -> Load:
        """Elements of a panel of B by step and lane; columns beyond the last repeat it."""
        gemm, nr = self.gemm, self.tile.nr
        if gemm.rhs == "packed":
            return lambda k, lane: gemm.b_load(b, panel, k, lane)

        def unpacked(k: PrimExpr, lane: PrimExpr) -> PrimExpr:
            column = panel * nr + lane
            return gemm.b_load(b, k, tirx.min(column, self.shape.n - 1)
                               if gemm.ragged_columns else column)  # fmt: skip

        return unpacked

    def _tile(
        self, b: PrimExpr, row: PrimExpr, panel: PrimExpr, load: Load, ask: Ask | None = None
    ) -> Stmt:
        """A register tile from zero to its results."""
        sums = RegisterTile(self.tile.mr, self.tile.nr)
        total = self._sum(sums, b, row, load, ask, const(0, "int32"), panel)
        asked = self._ask_end(sums, b, row, panel)
        return sequence([asked, *sums.clear(), total, *self._finish(sums, b, row, panel)])

    def _sum(
        self, sums: RegisterTile, b: PrimExpr, row: PrimExpr, load: Load, ask: Ask | None,
        first: PrimExpr, panel: PrimExpr | None,
    ) -> Stmt:  # fmt: skip
        """Add `steps` terms from the term `first` on.

        panel: where the sums are finished after that, the panel that they are of.
        """
        gemm, begin = self.gemm, self._first(row)

        def step(k: PrimExpr) -> Stmt:
            asked = None
            if self.ahead is not None and ask is not None:
                asked = self.ahead.ask(*ask, k)
            terms = sums.add(
                lambda m, lane: gemm.a_load(b, begin + m, first + k) * load(first + k, lane)
            )
            return sequence([asked, terms])

        if gemm.ask_row is not None:
            return in_lines(self.steps, step, lambda k: self._ask_rows(b, row, panel, first + k))
        return steps_of(self.steps, step, self.tile.mr, self._claim(b, begin, panel))

    def _ask_rows(self, b: PrimExpr, row: PrimExpr, panel: PrimExpr | None, k: PrimExpr) -> Stmt:
        """Ask for a line of this panel's share of the rows of the next tile."""
        gemm = self.gemm
        assert gemm.ask_row is not None and panel is not None
        begin = self._first(tirx.min(row + 1, gemm.row_tiles - 1))
        rows = share_of(self.tile.mr, gemm.panels, panel)
        return sequence([gemm.ask_row(b, begin + m, k) for m in rows])

    def _ask_end(
        self, sums: RegisterTile, b: PrimExpr, row: PrimExpr, panel: PrimExpr
    ) -> Stmt | None:
        """Ask for all lines of what a tile ends with."""
        ask, begin = self.gemm.ask_end, self._first(row)
        if ask is None or self.steps > SOON:
            return None
        return sums.lines(lambda m, lane: ask(b, begin + m, self._column(panel, lane)))

    def _first(self, row: PrimExpr) -> PrimExpr:
        """The first row of a tile: of one that reaches beyond the last row, a few earlier."""
        first = row * self.tile.mr
        return tirx.min(first, self.shape.m - self.tile.mr) if self.gemm.ragged_rows else first

    def _claim(
        self, b: PrimExpr, begin: PrimExpr, panel: PrimExpr | None
    ) -> Callable[[PrimExpr], Stmt] | None:
        """Asks for the lines that a row of a tile of a panel goes to."""
        claim = self.gemm.claim
        if claim is None or panel is None:
            return None
        columns = [self._column(panel, lane) for lane in range(0, self.tile.nr, simd())]
        return lambda m: sequence([claim(b, begin + m, column) for column in columns])

    def _column(self, panel: PrimExpr, lane: PrimExpr | int) -> PrimExpr:
        """The column of a lane of a panel, the last one for lanes beyond it."""
        column = panel * self.tile.nr + lane
        return tirx.min(column, self.shape.n - 1) if self.gemm.ragged_columns else column

    def _finish(
        self, sums: RegisterTile, b: PrimExpr, row: PrimExpr, panel: PrimExpr
    ) -> list[Stmt]:
        """Write a tile through the epilogue."""
        gemm, tile = self.gemm, self.tile
        first = self._first(row)

        def store(total: PrimExpr, m: PrimExpr, lane: PrimExpr) -> Stmt:
            at = (b, first + m, panel * tile.nr + lane)
            return gemm.store(gemm.epilogue(total, *at), *at)

        def owned(m: PrimExpr) -> PrimExpr:
            return first + m >= row * tile.mr

        last = None
        if gemm.ragged_columns:
            full = panel < gemm.panels - 1 if gemm.panels > 1 else None
            last = LastPanel(self.shape.n - (gemm.panels - 1) * tile.nr, full)
        return sums.finish(store, self.heavy, owned if gemm.ragged_rows else None, last)
