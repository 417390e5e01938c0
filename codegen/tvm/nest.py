"""A loop nest under construction: its space, its values' elements, and the phases of reductions.

Values fall into levels: 0 for what needs no reduction, k + 1 for a reduction over values of
level k.  Phase k reads the reduced dimensions once and feeds all reductions of level k; what later
phases read again may be kept in memory (`Nest.keep`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from plait.codegen.collapse import Space, collapse, loop_space
from plait.codegen.compose import Composer
from plait.codegen.tvm.loops import Flat, Memory, Parameters, arranged, as_stored, sequence
from plait.codegen.tvm.lower import lower
from plait.codegen.tvm.scalars import tir_dtype
from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.graph import Graph

PrimExpr = Any
Stmt = Any
Read = Callable[[Sequence[PrimExpr]], PrimExpr]
COSTLY = frozenset({"exp", "log", "tanh", "erf", "sigmoid", "gelu", "silu", "sin", "cos", "pow",
                    "expm1", "log1p", "div", "take", "gather"})  # fmt: skip


@dataclass(frozen=True)
class Span:
    """Some neighbouring rows of a nest: `count` of them, of `width` elements."""

    first: PrimExpr
    count: int
    width: int


class Nest:
    """What all parts of one loop-nest kernel share."""

    def __init__(self, body: Graph, places: Sequence[Memory] = ()) -> None:
        self.body = collapse(body, rows=any(m.pitch for m in places))
        self.space: Space = loop_space(self.body)
        self.parameters = Parameters(self.body, places)
        self.axes = e.axes(*self.space.shape)
        self.index = [e.index(a) for a in self.axes]
        self.composer = Composer(self.body)
        self.stored: dict[int, Read] = {}  # kept value v is read as operand -1 - v
        self.levels = self._levels()

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

    def reduction(self, v: int) -> tuple[int, str, t.DType]:
        """The operand, kind and dtype of a value that is a reduction."""
        made = self.body.producer(v)
        assert made is not None
        return made.operands[0], made.op.removeprefix("reduce_"), self.body.types[v].dtype

    @property
    def depth(self) -> int:
        return max(self.levels, default=0)

    @property
    def cost(self) -> int:
        """Elementary operations per element, roughly."""
        return sum(12 if n.op in COSTLY else 1 for n in self.body.nodes) or 1

    def is_full(self, v: int) -> bool:
        """Whether a value varies along a reduced dimension."""
        shape = self.body.types[v].shape
        lead = len(self.space.shape) - len(shape)
        varies = any(lead <= a and shape[a - lead] != 1 for a in self.space.axes)
        return varies or not self.space.axes

    def row_index(self, v: int, index: Sequence[Any]) -> list[Any]:
        """The part of an index of the space that addresses a value of fewer dimensions."""
        return list(index[len(self.space.shape) - self.body.types[v].rank :])

    def element(self, v: int, index: Sequence[PrimExpr]) -> PrimExpr:
        """TIR of a value's element at an index of the space."""
        expr = self.composer.element(v, tuple(self.row_index(v, self.index)))
        found = lower(expr, self._load, dict(zip(self.axes, index, strict=True)))
        return as_stored(found, self.body.types[v].dtype)

    def _load(self, k: int, index: list[PrimExpr]) -> PrimExpr:
        return self.stored[k](index) if k in self.stored else self.parameters.inputs[k].load(index)

    def store(self, v: int, out: Flat, index: Sequence[PrimExpr]) -> Stmt:
        """Store a value's element at an index of the space into an output."""
        return out.store(self.row_index(v, index), self.element(v, index))

    def keep(self, v: int, read: Read) -> None:
        """From now on a value is read from memory: `read` gives its element at its index."""
        dtype = self.body.types[v].dtype
        self.stored[-1 - v] = read
        stops = {**self.composer.stops, v: lambda index: e.Load(-1 - v, index, dtype)}
        self.composer = Composer(self.body, stops)

    def kept(self, v: int) -> Read | None:
        """How a value is read from memory, None if it is computed where it is used."""
        return self.stored.get(-1 - v)

    def forget(self) -> None:
        """Drop all kept values: each row has memory of its own."""
        self.stored.clear()
        self.composer = Composer(self.body)


class Phases:
    """What rows and columns share: levels in order, values kept between phases."""

    def __init__(self, nest: Nest, row: dict[int, PrimExpr]) -> None:
        self.n = nest
        self.row = row
        self.reduced = [d for d in nest.space.order if d in nest.space.axes]
        self.allocations: list[Stmt] = []
        nest.forget()

    def allocate(self, size: int, dtype: t.DType, name: str) -> Any:
        buffer = tirx.decl_buffer((size,), tir_dtype(dtype), name=name)
        self.allocations.append(tirx.AllocBuffer(buffer))
        return buffer

    def point(self, reduced: Iterable[PrimExpr]) -> list[PrimExpr]:
        """The index of an element of the space, given along the reduced dimensions."""
        return arranged([*self.row, *self.reduced], [*self.row.values(), *reduced])

    def build(self) -> Stmt:
        stmts: list[Stmt] = []
        for level in range(1, self.n.depth + 1):
            stmts += self.reduce(level)
            stmts += self.finish_level(level)
        stmts += self.final()
        return sequence([*self.allocations, *stmts])

    def reduce(self, level: int) -> list[Stmt]:
        """Compute the reductions of a level."""
        raise NotImplementedError

    def finish_level(self, level: int) -> list[Stmt]:
        """Compute what follows from the reductions of a level and no longer varies."""
        raise NotImplementedError

    def final(self) -> list[Stmt]:
        """Compute the outputs that no phase has stored."""
        raise NotImplementedError

    def outputs(self, full: bool) -> list[tuple[int, Flat]]:
        pairs = zip(self.n.body.outputs, self.n.parameters.outputs, strict=True)
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
        found = []
        for v in range(len(self.n.body.inputs), len(self.n.body.types)):
            if self.n.levels[v] != level or not self.n.is_full(v) or not self.takes_work(v):
                continue
            phases = self.reading_levels(v)
            if level + 1 in phases and max(phases) > level + 1 and self._leaves_level(v):
                found.append(v)
        return found

    def takes_work(self, v: int) -> bool:
        """Whether a costly function or a gather is computed for each element at its level."""
        made = self.n.body.producer(v)
        if made is None or made.op.startswith("reduce_") or not self.n.is_full(v):
            return False
        same = (o for o in made.operands if self.n.levels[o] == self.n.levels[v])
        return made.op in COSTLY or any(map(self.takes_work, same))

    def _leaves_level(self, v: int) -> bool:
        """Whether a reader of the value belongs to a later level."""
        body = self.n.body
        return any(
            self.n.levels[r] > self.n.levels[v] for u in body.users[v] for r in body.results(u)
        )

    def reading_levels(self, v: int) -> set[int]:
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
                    phases |= self.reading_levels(r)
        return phases
