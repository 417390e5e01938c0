"""Loop nests: elementwise kernels and reductions with what surrounds them, as one pass each.

A nest runs over one space.  Without reductions its innermost loop is vectorised and the rest is
shared among threads.  With reductions over the innermost dimension ("rows") every row is
finished by one thread, phase by phase: a phase reads the row once and feeds all reductions of
one level.  With the innermost dimension kept ("columns") vectors of columns are reduced
together.  An element's value never depends on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx

from plait.codegen.collapse import Space, collapse, loop_space
from plait.codegen.compose import Composer
from plait.codegen.tvm.lower import FUNCTIONS, const, dtype_of, lower, tir_dtype
from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.dims import Dim
from plait.ir.graph import Graph
from plait.ir.layout import strides
from plait.ir.types import TensorType

PrimExpr = Any
Stmt = Any
LANES = 8
UNROLL = 4
# Below about this many elementary operations a second thread costs more than it saves.
PARALLEL_WORK = 30_000
COSTLY = frozenset({"exp", "log", "tanh", "erf", "sigmoid", "gelu", "silu", "sin", "cos", "pow",
                    "expm1", "log1p", "div", "take", "gather"})  # fmt: skip
MAX_ROW_BYTES = 256 * 1024


def loop(n: int, body: Callable[[Any], Stmt], kind: Any = None, name: str = "i") -> Stmt:
    """A loop of `n` iterations; one or none needs no loop."""
    if n == 1 and kind != tirx.ForKind.VECTORIZED:
        return body(const(0, "int32"))
    var = tirx.Var(name, "int32")
    return tirx.For(var, const(0, "int32"), const(n, "int32"), kind or tirx.ForKind.SERIAL, body(var))


def sequence(stmts: Sequence[Stmt]) -> Stmt:
    kept = [s for s in stmts if s is not None]
    if not kept:
        return tirx.Evaluate(const(0, "int32"))
    return kept[0] if len(kept) == 1 else tirx.SeqStmt(kept)


def unflatten(position: PrimExpr, extents: Sequence[int]) -> list[PrimExpr]:
    """The index of a row-major position."""
    index: list[PrimExpr] = []
    for n in reversed(extents[1:]):
        index.append(tirx.floormod(position, n))
        position = tirx.floordiv(position, n)
    return ([position, *reversed(index)]) if extents else []


@dataclass
class Flat:
    """A tensor as flat memory, addressed by logical index."""

    type: TensorType
    buffer: Any
    steps: tuple[Dim, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.steps = strides(self.type)

    def at(self, index: Sequence[PrimExpr]) -> PrimExpr:
        offset: PrimExpr = const(0, "int32")
        for i, step, n in zip(index, self.steps, self.type.shape, strict=True):
            if n != 1:
                offset = offset + i * step if step != 1 else offset + i
        return offset

    def load(self, index: Sequence[PrimExpr]) -> PrimExpr:
        return self.buffer[self.at(index)]

    def store(self, index: Sequence[PrimExpr], value: PrimExpr) -> Stmt:
        return tirx.BufferStore(self.buffer, value, [self.at(index)])


def flat(type: TensorType, name: str) -> Flat:
    size = max(1, math.prod(type.static("TVM code generation")))
    return Flat(type, tirx.decl_buffer((size,), tir_dtype(type.dtype), name=name))


def as_stored(value: PrimExpr, dtype: t.DType) -> PrimExpr:
    """Index arithmetic is int32; memory has the full width."""
    want = tir_dtype(dtype)
    return value if dtype_of(value) == want else value.astype(want)


class Nest:
    """Builds the PrimFunc of one loop-nest kernel."""

    def __init__(self, body: Graph) -> None:
        self.body = collapse(body)
        self.space: Space = loop_space(self.body)
        self.inputs = [flat(i.type, f"x{k}") for k, i in enumerate(self.body.inputs)]
        self.outputs = [flat(ty, f"y{k}") for k, ty in enumerate(self.body.output_types)]
        self.axes = e.axes(*self.space.shape)
        self.index = [e.index(a) for a in self.axes]
        self.composer = Composer(self.body, {})
        self.stored: dict[int, Callable[[Sequence[PrimExpr]], PrimExpr]] = {}
        self.levels = self._levels()

    def build(self) -> Any:
        """A PrimFunc whose parameters are flat buffers: inputs, then outputs."""
        params = [f.buffer for f in (*self.inputs, *self.outputs)]
        attrs = {"tirx.noalias": False}
        func = tirx.PrimFunc(params, sequence(self._body()))
        del attrs
        return func.with_attr("s_tir", True)

    def _body(self) -> list[Stmt]:
        if any(n == 0 for n in self.space.shape) and not self.space.axes:
            return []
        if not self.space.axes:
            return self._pointwise()
        inner = self.space.order[-1]
        return self._rows() if inner in self.space.axes else self._columns()

    # Levels: 0 for what needs no reduction, k + 1 for a reduction over values of level k.

    def _levels(self) -> list[int]:
        levels = [0] * len(self.body.inputs)
        for node in self.body.nodes:
            level = max((levels[v] for v in node.operands), default=0)
            levels += [level + 1 if node.op.startswith("reduce_") else level] * len(node.types)
        return levels

    def reductions(self, level: int) -> list[int]:
        """Values that are reductions of one level."""
        return [
            v for k, node in enumerate(self.body.nodes) if node.op.startswith("reduce_")
            for v in self.body.results(k) if self.levels[v] == level
        ]  # fmt: skip

    @property
    def depth(self) -> int:
        return max(self.levels, default=0)

    def is_full(self, v: int) -> bool:
        """Whether a value varies along a reduced dimension."""
        shape = self.body.types[v].shape
        rank = len(self.space.shape)
        lead = rank - len(shape)
        return any(
            lead <= a and shape[a - lead] != 1 for a in self.space.axes
        ) or (not self.space.axes)

    def row_index(self, v: int, index: Sequence[Any]) -> list[Any]:
        """The part of a full index that addresses a value of fewer or shorter dimensions."""
        shape = self.body.types[v].shape
        rank = len(self.space.shape)
        kept = [d for d in range(rank) if d not in self.space.axes]
        if len(shape) == len(kept) < rank and self._drops(v):
            return [index[d] for d in kept]
        return list(index[rank - len(shape) :])

    def _drops(self, v: int) -> bool:
        """Whether a value's shape lacks the reduced dimensions."""
        made = self.body.producer(v)
        while made is not None and not made.op.startswith("reduce_"):
            sources = [o for o in made.operands if self.levels[o] > 0]
            if not sources:
                return False
            made = self.body.producer(sources[0])
        return made is not None and not made.attrs["keepdims"]

    # Expressions

    def element(self, v: int, where: dict[e.Axis, PrimExpr]) -> PrimExpr:
        """TIR of a value's element at the current index."""
        index = [self._index_of(d, v) for d in range(len(self.space.shape))]
        expr = self.composer.element(v, tuple(self.row_index(v, index)))
        return as_stored(self.lowered(expr, where), self.body.types[v].dtype)

    def _index_of(self, d: int, v: int) -> e.Expr:
        return self.index[d]

    def lowered(self, expr: e.Expr, where: dict[e.Axis, PrimExpr]) -> PrimExpr:
        def load(k: int, index: list[PrimExpr]) -> PrimExpr:
            if k in self.stored:
                return self.stored[k](index)
            return self.inputs[k].load(index)

        return lower(expr, load, where)

    def keep(self, v: int, read: Callable[[Sequence[PrimExpr]], PrimExpr]) -> None:
        """From now on a value is read from memory: `read` gives its element at its index."""
        name = 1_000 + v
        dtype = self.body.types[v].dtype
        self.stored[name] = read
        self.composer.stops[v] = lambda index: e.Load(name, index, dtype)
        self.composer = Composer(self.body, self.composer.stops)

    def where(self, index: Sequence[PrimExpr]) -> dict[e.Axis, PrimExpr]:
        return dict(zip(self.axes, index, strict=True))

    # No reductions

    def _pointwise(self) -> list[Stmt]:
        order, shape = self.space.order, self.space.shape
        extents = [shape[d] for d in order]
        inner = extents[-1] if extents else 1
        outer = extents[:-1]
        rows = math.prod(outer)

        def stores(outer_index: list[PrimExpr], at: PrimExpr) -> Stmt:
            index: list[PrimExpr] = [None] * len(order)
            for d, i in zip(order, [*outer_index, at], strict=bool(order)):
                index[d] = i
            where = self.where(index)
            # All values first, then all stores: an output may lie in the place of an operand.
            return sequence([
                out.store(self.row_index(v, index), self.element(v, where))
                for v, out in zip(self.body.outputs, self.outputs, strict=True)
            ])  # fmt: skip

        if not order:
            return [stores([], const(0, "int32"))]
        busy = rows * inner * self._cost() >= PARALLEL_WORK
        if rows >= 2 or not busy:
            kind = tirx.ForKind.PARALLEL if busy and rows >= 2 else None
            return [loop(rows, lambda r: self._vectors(inner, lambda at: stores(unflatten(r, outer), at)),
                         kind, "row")]  # fmt: skip
        chunk = max(4 * LANES, -(-inner // 16) // LANES * LANES)
        whole = inner // chunk
        zero = unflatten(const(0, "int32"), outer)
        shared = loop(
            whole,
            lambda c: self._vectors(chunk, lambda at: stores(zero, c * chunk + at)),
            tirx.ForKind.PARALLEL,
            "chunk",
        )
        rest = inner - whole * chunk
        tail = self._vectors(rest, lambda at: stores(zero, whole * chunk + at)) if rest else None
        return [shared, tail]

    def _cost(self) -> int:
        """Elementary operations per element, roughly."""
        return sum(12 if n.op in COSTLY else 1 for n in self.body.nodes) or 1

    def _vectors(self, n: int, stmt: Callable[[PrimExpr], Stmt]) -> Stmt:
        """`stmt` at 0..n-1: vectors of 8, then single elements."""
        whole, rest = divmod(n, LANES)
        parts: list[Stmt] = []
        if whole:
            parts.append(loop(whole, lambda j: vector(lambda v: stmt(j * LANES + v)), None, "j"))
        if rest:
            parts.append(loop(rest, lambda v: stmt(whole * LANES + v), None, "tail"))
        return sequence(parts)

    # Reductions over the innermost dimension

    def _rows(self) -> list[Stmt]:
        kept = [d for d in self.space.order if d not in self.space.axes]
        extents = [self.space.shape[d] for d in kept]
        rows = math.prod(extents)
        if rows == 0:
            return []
        length = math.prod(self.space.shape[a] for a in self.space.axes)
        busy = rows >= 2 and rows * length * self._cost() >= PARALLEL_WORK
        kind = tirx.ForKind.PARALLEL if busy else None
        return [loop(rows, lambda r: Rows(self, dict(zip(kept, unflatten(r, extents), strict=True)),
                                          length).build(), kind, "row")]  # fmt: skip

    # Reductions with the innermost dimension kept

    def _columns(self) -> list[Stmt]:
        order = self.space.order
        outer = [d for d in order[:-1] if d not in self.space.axes]
        extents = [self.space.shape[d] for d in outer]
        inner = self.space.shape[order[-1]]
        rows = math.prod(extents)
        if rows == 0 or inner == 0:
            return []
        length = math.prod(self.space.shape[a] for a in self.space.axes)
        parts: list[Stmt] = []
        at = 0
        for width in (UNROLL * LANES, LANES, 1):
            count = (inner - at) // width
            if not count:
                continue
            work = rows * count * width * length * self._cost()
            busy = rows * count >= 2 and work >= PARALLEL_WORK
            kind = tirx.ForKind.PARALLEL if busy else None
            start, tiles = at, count

            def tile(p: PrimExpr, width: int = width, start: int = start, tiles: int = tiles) -> Stmt:
                row = unflatten(tirx.floordiv(p, tiles), extents)
                base = const(start, "int32") + tirx.floormod(p, tiles) * width
                return Columns(self, dict(zip(outer, row, strict=True)), base, width).build()

            parts.append(loop(rows * count, tile, kind, "tile"))
            at += count * width
        return parts


def vector(stmt: Callable[[PrimExpr], Stmt]) -> Stmt:
    return loop(LANES, stmt, tirx.ForKind.VECTORIZED, "v")


def combine(kind: str, dtype: t.DType, a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """One step of a reduction; `a` is the accumulator."""
    name = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}[kind]
    return FUNCTIONS[name](dtype, a, b)


class Phases:
    """What rows and columns share: levels in order, values kept between phases."""

    def __init__(self, nest: Nest, row: dict[int, PrimExpr]) -> None:
        self.n = nest
        self.row = row
        self.allocations: list[Stmt] = []
        # Each row has memory of its own, so a nest's stored values start anew.
        nest.stored.clear()
        nest.composer = Composer(nest.body, {})

    def allocate(self, size: int, dtype: t.DType, name: str) -> Any:
        buffer = tirx.decl_buffer((size,), tir_dtype(dtype), name=name)
        self.allocations.append(tirx.AllocBuffer(buffer))
        return buffer

    def build(self) -> Stmt:
        stmts: list[Stmt] = []
        for level in range(1, self.n.depth + 1):
            stmts += self.reduce(level)
            stmts += self.finish_level(level)
        stmts += self.final()
        return sequence([*self.allocations, *stmts])

    def reduce(self, level: int) -> list[Stmt]:
        raise NotImplementedError

    def finish_level(self, level: int) -> list[Stmt]:
        raise NotImplementedError

    def final(self) -> list[Stmt]:
        raise NotImplementedError

    def outputs(self, full: bool) -> list[tuple[int, Flat]]:
        pairs = zip(self.n.body.outputs, self.n.outputs, strict=True)
        return [(v, f) for v, f in pairs if self.n.is_full(v) == full]

    def row_values(self, level: int) -> list[int]:
        """Computed values that do not vary along the reduced dimensions, of one level."""
        body = self.n.body
        return [
            v for k, node in enumerate(body.nodes) if not node.op.startswith("reduce_")
            and node.op not in ("constant", "iota")
            for v in body.results(k) if self.n.levels[v] == level and not self.n.is_full(v)
        ]  # fmt: skip

    def worth_keeping(self, level: int) -> list[int]:
        """Full values of one level that take work, feed this phase, and are read by a later one."""
        body, found = self.n.body, []
        for k, node in enumerate(body.nodes):
            (v,) = body.results(k)
            if self.n.levels[v] != level or not self.n.is_full(v) or not self._takes_work(v):
                continue
            phases = self._reading_levels(v)
            if level + 1 in phases and max(phases) > level + 1 and self._leaves_level(v):
                found.append(v)
        return found

    def _takes_work(self, v: int) -> bool:
        """Whether a costly function or a gather is computed for a value at its level."""
        made = self.n.body.producer(v)
        if made is None or made.op.startswith("reduce_"):
            return False
        same = (o for o in made.operands if self.n.levels[o] == self.n.levels[v])
        return made.op in COSTLY or any(map(self._takes_work, same))

    def _leaves_level(self, v: int) -> bool:
        """Whether a reader of the value belongs to a later level."""
        body = self.n.body
        return any(
            self.n.levels[r] > self.n.levels[v] for u in body.users[v] for r in body.results(u)
        )

    def _reading_levels(self, v: int) -> set[int]:
        """Phases (numbered by the level they produce) in which a value is needed."""
        body = self.n.body
        phases: set[int] = set()
        if v in body.outputs:
            phases.add(self.n.depth + 1)
        for u in body.users[v]:
            for r in body.results(u):
                if body.nodes[u].op.startswith("reduce_"):
                    phases.add(self.n.levels[r])
                else:
                    phases |= self._reading_levels(r)
        return phases


class Rows(Phases):
    """One row of a nest that reduces its innermost dimension."""

    def __init__(self, nest: Nest, row: dict[int, PrimExpr], length: int) -> None:
        super().__init__(nest, row)
        self.reduced = [d for d in nest.space.order if d in nest.space.axes]
        self.inner = nest.space.shape[self.reduced[-1]]
        self.outer = [nest.space.shape[d] for d in self.reduced[:-1]]
        self.length = length

    def index(self, outer: Sequence[PrimExpr], at: PrimExpr) -> list[PrimExpr]:
        index: list[PrimExpr] = [None] * len(self.n.space.shape)
        for d, i in self.row.items():
            index[d] = i
        for d, i in zip(self.reduced, [*outer, at], strict=True):
            index[d] = i
        return index

    def place(self, outer: Sequence[PrimExpr], at: PrimExpr) -> PrimExpr:
        """Position inside the row."""
        position: PrimExpr = const(0, "int32")
        for i, n in zip(outer, self.outer, strict=True):
            position = position * n + i
        return position * self.inner + at

    def over_row(self, wide: Any, narrow: Any) -> list[Stmt]:
        """Statements for every element: `wide(outer, at, u)` inside a vector loop, where u
        numbers the accumulator, and `narrow(outer, at)` for the rest."""
        step = UNROLL * LANES
        blocks, rest = divmod(self.inner, step)
        vectors, tail = divmod(rest, LANES)

        def inside(p: PrimExpr) -> Stmt:
            outer = unflatten(p, self.outer)
            parts: list[Stmt] = []
            if blocks:
                parts.append(loop(blocks, lambda j: sequence([
                    vector(lambda v, u=u: wide(outer, j * step + u * LANES + v, u, v))
                    for u in range(UNROLL)]), None, "j"))  # fmt: skip
            for k in range(vectors):
                base = blocks * step + k * LANES
                parts.append(vector(lambda v, base=base, k=k: wide(outer, base + v, k, v)))
            if tail:
                base = self.inner - tail
                parts.append(loop(tail, lambda v: narrow(outer, base + v), None, "tail"))
            return sequence(parts)

        return [loop(math.prod(self.outer), inside, None, "o")]

    def reduce(self, level: int) -> list[Stmt]:
        body = self.n.body
        kept = [v for v in self.worth_keeping(level - 1) if self._row_bytes(v) <= MAX_ROW_BYTES]
        early = [
            (v, f) for v, f in self.outputs(full=True)
            if self.n.levels[v] == level - 1 and body.users[v] and v not in kept
        ]  # fmt: skip
        before: list[Stmt] = []
        spaces = {v: self.allocate(self.length, body.types[v].dtype, f"kept{v}") for v in kept}
        accs: list[tuple[int, str, t.DType, Any, Any]] = []
        for v in self.n.reductions(level):
            made = body.producer(v)
            assert made is not None
            kind, dtype = made.op.removeprefix("reduce_"), body.types[v].dtype
            lanes = self.allocate(UNROLL * LANES, dtype, f"acc{v}")
            total = self.allocate(1, dtype, f"red{v}")
            start = const(e.identity(kind, dtype), tir_dtype(dtype))
            before.append(tirx.BufferStore(total, start, [const(0, "int32")]))
            before += [
                vector(lambda i, u=u, lanes=lanes, start=start:
                       tirx.BufferStore(lanes, start, [u * LANES + i]))
                for u in range(UNROLL)
            ]  # fmt: skip
            accs.append((made.operands[0], kind, dtype, lanes, total))

        def shared(outer: Any, at: Any) -> list[Stmt]:
            """Store what later phases read again, and read it back in this one."""
            where = self.n.where(self.index(outer, at))
            stmts = [tirx.BufferStore(spaces[v], self.n.element(v, where), [self.place(outer, at)])
                     for v in kept]  # fmt: skip
            stmts += [f.store(self.n.row_index(v, self.index(outer, at)), self.n.element(v, where))
                      for v, f in early]  # fmt: skip
            return stmts

        def wide(outer: Any, at: Any, u: int, v: Any) -> Stmt:
            stmts = shared(outer, at)
            for source, kind, dtype, lanes, _ in accs:
                value = self._read(source, spaces, early, outer, at)
                slot = u * LANES + v
                stmts.append(tirx.BufferStore(lanes, combine(kind, dtype, lanes[slot], value), [slot]))
            return sequence(stmts)

        def narrow(outer: Any, at: Any) -> Stmt:
            stmts = shared(outer, at)
            for source, kind, dtype, _, total in accs:
                value = self._read(source, spaces, early, outer, at)
                zero = const(0, "int32")
                stmts.append(tirx.BufferStore(total, combine(kind, dtype, total[zero], value), [zero]))
            return sequence(stmts)

        loops = self.over_row(wide, narrow)
        for v in kept:
            self.n.keep(v, self._row_reader(spaces[v]))
        for v, f in early:
            self.n.keep(v, f.load)
        return [*before, *loops, *self._fold(accs)]

    def _read(self, v: int, spaces: dict[int, Any], early: Any, outer: Any, at: Any) -> PrimExpr:
        """A value's element, from memory if this very phase has just stored it."""
        if v in spaces:
            return spaces[v][self.place(outer, at)]
        for other, f in early:
            if other == v:
                return f.load(self.n.row_index(v, self.index(outer, at)))
        return self.n.element(v, self.n.where(self.index(outer, at)))

    def _row_reader(self, buffer: Any) -> Callable[[Sequence[PrimExpr]], PrimExpr]:
        def read(index: Sequence[PrimExpr]) -> PrimExpr:
            return buffer[self.place([index[d] for d in self.reduced[:-1]], index[self.reduced[-1]])]

        return read

    def _row_bytes(self, v: int) -> int:
        full = self.n.body.types[v].shape == self.n.space.shape
        return self.length * self.n.body.types[v].dtype.itemsize if full else MAX_ROW_BYTES + 1

    def _fold(self, accs: list[tuple[int, str, t.DType, Any, Any]]) -> list[Stmt]:
        """Lanes to one number, in a fixed order."""
        zero = const(0, "int32")
        stmts: list[Stmt] = []
        for _, kind, dtype, lanes, total in accs:
            half = UNROLL * LANES // 2
            while half >= LANES:
                for u in range(half // LANES):
                    stmts.append(vector(lambda v, u=u, h=half, kind=kind, dtype=dtype, lanes=lanes:
                        tirx.BufferStore(lanes, combine(kind, dtype, lanes[u * LANES + v],
                                         lanes[h + u * LANES + v]), [u * LANES + v])))  # fmt: skip
                half //= 2
            stmts.append(loop(LANES, lambda v, kind=kind, dtype=dtype, lanes=lanes, total=total:
                tirx.BufferStore(total, combine(kind, dtype, total[zero], lanes[v]), [zero]),
                tirx.ForKind.UNROLLED, "lane"))  # fmt: skip
        return stmts

    def finish_level(self, level: int) -> list[Stmt]:
        """Reductions and what follows from them alone become numbers of this row."""
        zero = const(0, "int32")
        for v in self.n.reductions(level):
            buffer = next(a.buffer for a in self.allocations if a.buffer.name == f"red{v}")
            self.n.keep(v, lambda _, buffer=buffer: buffer[zero])
        stmts: list[Stmt] = []
        for v in self.row_values(level):
            buffer = self.allocate(1, self.n.body.types[v].dtype, f"row{v}")
            where = self.n.where(self.index([zero] * len(self.outer), zero))
            stmts.append(tirx.BufferStore(buffer, self.n.element(v, where), [zero]))
            self.n.keep(v, lambda _, buffer=buffer: buffer[zero])
        return stmts

    def final(self) -> list[Stmt]:
        zero = const(0, "int32")
        stmts: list[Stmt] = []
        done = set(self.n.composer.stops)
        late = [(v, f) for v, f in self.outputs(full=True) if not self._is_memory(v, f, done)]

        def stores(outer: Any, at: Any) -> Stmt:
            index = self.index(outer, at)
            return sequence([f.store(self.n.row_index(v, index), self.n.element(v, self.n.where(index)))
                             for v, f in late])  # fmt: skip

        if late:
            stmts += self.over_row(lambda o, at, u, v: stores(o, at), stores)
        index = self.index([zero] * len(self.outer), zero)
        for v, f in self.outputs(full=False):
            stmts.append(f.store(self.n.row_index(v, index), self.n.element(v, self.n.where(index))))
        return stmts

    def _is_memory(self, v: int, f: Flat, done: set[int]) -> bool:
        """Whether an output was stored by an earlier phase."""
        return v in done and self.n.stored.get(1_000 + v) == f.load


class Columns(Phases):
    """`width` columns of a nest that keeps its innermost dimension."""

    def __init__(self, nest: Nest, row: dict[int, PrimExpr], base: PrimExpr, width: int) -> None:
        super().__init__(nest, row)
        self.base, self.width = base, width
        self.column = nest.space.order[-1]
        self.reduced = [d for d in nest.space.order if d in nest.space.axes]
        self.extents = [nest.space.shape[d] for d in self.reduced]

    def index(self, reduced: Sequence[PrimExpr], lane: PrimExpr) -> list[PrimExpr]:
        index: list[PrimExpr] = [None] * len(self.n.space.shape)
        for d, i in self.row.items():
            index[d] = i
        for d, i in zip(self.reduced, reduced, strict=True):
            index[d] = i
        index[self.column] = self.base + lane
        return index

    def lanes(self, stmt: Callable[[PrimExpr], Stmt]) -> Stmt:
        if self.width == 1:
            return stmt(const(0, "int32"))
        return sequence([
            vector(lambda v, u=u: stmt(u * LANES + v)) for u in range(self.width // LANES)
        ])  # fmt: skip

    def over(self, stmt: Callable[[list[PrimExpr], PrimExpr], Stmt]) -> Stmt:
        return loop(
            math.prod(self.extents),
            lambda p: self.lanes(lambda lane: stmt(unflatten(p, self.extents), lane)),
            None,
            "r",
        )

    def reduce(self, level: int) -> list[Stmt]:
        body = self.n.body
        before: list[Stmt] = []
        updates: list[tuple[int, str, t.DType, Any]] = []
        for v in self.n.reductions(level):
            made = body.producer(v)
            assert made is not None
            kind, dtype = made.op.removeprefix("reduce_"), body.types[v].dtype
            acc = self.allocate(self.width, dtype, f"acc{v}")
            start = const(e.identity(kind, dtype), tir_dtype(dtype))
            before.append(self.lanes(lambda i, acc=acc, start=start: tirx.BufferStore(acc, start, [i])))
            updates.append((made.operands[0], kind, dtype, acc))

        def step(reduced: list[PrimExpr], lane: PrimExpr) -> Stmt:
            where = self.n.where(self.index(reduced, lane))
            return sequence([
                tirx.BufferStore(acc, combine(kind, dtype, acc[lane], self.n.element(v, where)), [lane])
                for v, kind, dtype, acc in updates
            ])  # fmt: skip

        loops = self.over(step)
        for v, (_, _, _, acc) in zip(self.n.reductions(level), updates, strict=True):
            self.n.keep(v, self._lane_reader(acc, v))
        return [*before, loops]

    def _lane_reader(self, buffer: Any, v: int) -> Callable[[Sequence[PrimExpr]], PrimExpr]:
        at = self.n.row_index(v, list(range(len(self.n.space.shape)))).index(self.column)
        return lambda index: buffer[index[at] - self.base]

    def finish_level(self, level: int) -> list[Stmt]:
        zero = [const(0, "int32")] * len(self.reduced)
        stmts: list[Stmt] = []
        for v in self.row_values(level):
            if self.n.body.types[v].shape[-1:] == () or not self._varies(v):
                continue
            buffer = self.allocate(self.width, self.n.body.types[v].dtype, f"row{v}")
            stmts.append(self.lanes(lambda i, v=v, buffer=buffer: tirx.BufferStore(
                buffer, self.n.element(v, self.n.where(self.index(zero, i))), [i])))  # fmt: skip
            self.n.keep(v, self._lane_reader(buffer, v))
        return stmts

    def _varies(self, v: int) -> bool:
        names = self.n.row_index(v, list(range(len(self.n.space.shape))))
        return self.column in names and self.n.body.types[v].shape[names.index(self.column)] != 1

    def final(self) -> list[Stmt]:
        zero = [const(0, "int32")] * len(self.reduced)
        stmts: list[Stmt] = []
        late = self.outputs(full=True)

        def stores(reduced: list[PrimExpr], lane: PrimExpr) -> Stmt:
            index = self.index(reduced, lane)
            return sequence([f.store(self.n.row_index(v, index), self.n.element(v, self.n.where(index)))
                             for v, f in late])  # fmt: skip

        if late:
            stmts.append(self.over(stores))
        for v, f in self.outputs(full=False):
            stmts.append(self.lanes(lambda i, v=v, f=f: f.store(
                self.n.row_index(v, self.index(zero, i)),
                self.n.element(v, self.n.where(self.index(zero, i))))))  # fmt: skip
        return stmts


def build_nest(body: Graph) -> Any:
    """The PrimFunc of a loop-nest kernel over flat buffers: inputs, then outputs."""
    return Nest(body).build()
