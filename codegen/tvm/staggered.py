"""Rows of a nest in flight together, each in another phase.

Where the phases of a row follow one another, a core waits: for the lanes of a sum to become one
number, and for one unit or another, since a phase of maxima leaves the multipliers idle and one of
powers all else.  Here a single loop does all phases, each on a row of its own: in every turn a
phase is `GAP` rows ahead of the next, so that what it ends in has a turn to become a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvm import tirx

from plait.codegen.core import core, simd
from plait.codegen.tiles import LINE
from plait.codegen.tvm.build import STACK_BYTES
from plait.codegen.tvm.loops import loop, prefetch, put, sequence, vectors
from plait.codegen.tvm.nest import Nest, Phases
from plait.codegen.tvm.parts import neighbours
from plait.codegen.tvm.scalars import const
from plait.codegen.tvm.sharing import MOST_PARTS
from plait.codegen.tvm.totals import Total, total

PrimExpr = Any
Stmt = Any
Place = Callable[[PrimExpr], dict[int, PrimExpr]]

GAP = 2
UNROLL = 2  # vectors of each phase side by side: with more the registers run out
LEAST_ROWS, GOOD_ROWS = 64, 256  # of a part: the first and last turns of each are not full
ZERO = const(0, "int32")
MOST_BYTES = 4096  # of a row, so that those in flight stay in L1


def in_flight(nest: Nest, count: int, length: int) -> bool:
    """Whether the rows of a nest are to be staggered.

    That pays where values take work: phases that only read are bound by memory anyway.
    """
    if not core().staggers or nest.depth != 2:
        return False
    phases = Phases(nest, {})
    fits = length % (UNROLL * simd()) == 0 and 4 * length <= MOST_BYTES
    if len(phases.reduced) > 1 or not fits or phases.outputs(full=False):
        return False
    return count >= 2 * LEAST_ROWS and any(map(phases.takes_work, range(len(nest.body.types))))


class Staggered(Phases):
    """`count` rows from `first` on, at `place`, by one thread."""

    def __init__(
        self, nest: Nest, length: int, place: Place, first: PrimExpr, count: PrimExpr
    ) -> None:
        super().__init__(nest, {})
        self.length = length
        self.rows = (place, first, count)
        self.turn, self.block = tirx.Var("turn", "int32"), tirx.Var("j", "int32")
        self.phase, self.ended = 0, False
        self.lines: dict[int, tuple[Any, int]] = {}  # of each number, one for each turn since
        self.slots: dict[int, int] = {}
        self.ends: list[Stmt] = []

    def build(self) -> Stmt:
        """Turns of all phases, in blocks of vectors, and what they end in."""
        depth = self.n.depth
        begun: list[Stmt] = []
        steps: list[Stmt] = []
        for level in range(1, depth + 1):
            totals = {v: total(self, v, UNROLL) for v in self.n.reductions(level)}
            begun += [s for a in totals.values() for s in a.begin()]
            steps += self._reducing(level, list(totals.values()))
            self._ending(level, totals)
        self._enter(depth)
        come = self.turn >= GAP * depth  # before, no row has come to the last phase
        steps.append(tirx.IfThenElse(come, sequence(vectors(UNROLL, self._stored)), None))
        blocks = _turns(self.block, self.length // (UNROLL * simd()), sequence(steps))
        turn = sequence([*begun, blocks, *self._older(), *self.ends])
        turns = _turns(self.turn, self.rows[2] + GAP * depth, turn)
        return sequence([*self.allocations, *self._cleared(), turns])

    def _older(self) -> list[Stmt]:
        """The numbers of each line become older by a turn."""
        return [put(line, const(n, "int32"), line[const(n - 1, "int32")])
                for line, size in self.lines.values()
                for n in reversed(range(1, size))]  # fmt: skip

    def _cleared(self) -> list[Stmt]:
        return [put(line, const(n, "int32"), tirx.const(0, line.dtype))
                for line, size in self.lines.values() for n in range(size)]  # fmt: skip

    def _enter(self, phase: int) -> None:
        """What is made from now on is of the row that a phase works on in this turn."""
        place, first, count = self.rows
        self.phase, self.ended = phase, False
        behind = self.turn - GAP * phase
        self.row = place(first + tirx.max(0, tirx.min(behind, count - 1)))

    def _at(self, u: int, v: PrimExpr) -> PrimExpr:
        return self.block * (UNROLL * simd()) + u * simd() + v

    def _slot(self, v: int, at: PrimExpr) -> PrimExpr:
        """The place of an element of the phase's row among the rows of a value that are kept."""
        row = self.turn - GAP * self.phase
        return tirx.bitwise_and(row, const(self.slots[v] - 1, "int32")) * self.length + at

    def _keep_rows(self, v: int, level: int) -> Any:
        """Memory for the rows of a value between this phase and the last that reads it.

        It is never on the stack, where it would begin at no line.
        """
        turns = GAP * (max(self.reading_levels(v)) - level)
        self.slots[v] = 1 << turns.bit_length()
        dtype = self.n.body.types[v].dtype
        size = max(STACK_BYTES // dtype.itemsize, self.slots[v] * self.length)
        return self.allocate(size, dtype, f"kept{v}")

    def _reducing(self, level: int, totals: list[Total]) -> list[Stmt]:
        """A block of vectors of the phase that ends in the reductions of a level."""
        self._enter(level - 1)
        kept = {v: self._keep_rows(v, level) for v in self.worth_keeping(level - 1)}

        def lanes(u: int, v: PrimExpr) -> Stmt:
            at = self._at(u, v)
            index = self.point([at])
            stmts = [put(b, self._slot(x, at), self.n.element(x, index)) for x, b in kept.items()]
            for a in totals:
                x = a.source
                new = kept[x][self._slot(x, at)] if x in kept else self.n.element(x, index)
                stmts.append(a.take(a.lanes, u * simd() + v, new))
            return sequence(stmts)

        made = [*(self._asked() if level == 1 else []), *vectors(UNROLL, lanes)]
        for v, buffer in kept.items():
            self.n.keep(v, partial(self._kept_element, v, buffer))
        return made

    def _kept_element(self, v: int, buffer: Any, index: Sequence[PrimExpr]) -> PrimExpr:
        return buffer[self._slot(v, index[self.reduced[-1]])]

    def _asked(self) -> list[Stmt]:
        """Ask for what the first phase reads soon."""
        stmts: list[Stmt] = []
        for f in self.n.parameters.inputs:
            if f.type.shape == self.n.space.shape and f.steps[self.reduced[-1]] == 1:
                for at in range(0, UNROLL * simd(), LINE):
                    here = f.at(self.point([self.block * (UNROLL * simd()) + at]))
                    stmts.append(prefetch(f.buffer, here + core().ahead))
        return stmts

    def _ending(self, level: int, totals: dict[int, Total]) -> None:
        """Numbers that the phase of a level ends in, and what follows from them alone."""
        self.ended = True
        for v, a in totals.items():
            self.ends += a.fold()
            self._keep_number(v, level, a.total[ZERO])
        for v in self.row_values(level):
            self._keep_number(v, level, self.n.element(v, self.point([ZERO])))

    def _keep_number(self, v: int, level: int, value: PrimExpr) -> None:
        """Keep a number of a row for the phases after the one of its level."""
        size = GAP * (self.n.depth - level + 1)
        line = self.allocate(size, self.n.body.types[v].dtype, f"line{v}")
        self.lines[v] = line, size
        self.ends.append(put(line, ZERO, value))

        def read(_: object) -> PrimExpr:
            """The number of the row that is in this phase, or has ended it in this turn."""
            turns = GAP * (self.phase + 1 - level)
            return line[const(turns if self.ended else turns - 1, "int32")]

        self.n.keep(v, read)

    def _stored(self, u: int, v: PrimExpr) -> Stmt:
        index = self.point([self._at(u, v)])
        return sequence([self.n.store(x, f, index) for x, f in self.outputs(full=True)])


def _turns(var: Any, count: int | PrimExpr, body: Stmt) -> Stmt:
    """A loop whose variable what is inside has been made with."""
    extent = const(count, "int32") if isinstance(count, int) else count
    return tirx.For(var, ZERO, extent, tirx.ForKind.SERIAL, body)


def staggered(nest: Nest, count: int, length: int, place: Place) -> list[Stmt]:
    """The rows of a nest, in parts that threads share."""
    parts = max(2, min(MOST_PARTS, count // GOOD_ROWS))

    def part(k: PrimExpr) -> Stmt:
        first, some = neighbours(count, parts, k)
        return Staggered(nest, length, place, first, some).build()

    return [loop(parts, part, tirx.ForKind.PARALLEL, "part")]
