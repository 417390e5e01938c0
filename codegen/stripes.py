"""Stripes: which kernels of a chain are computed together, a few rows at a time, and when it pays.

A block is up to three parts in a row: kernels of single positions whose results a window reads
(`before`), the window, and kernels of single positions (`after`).  A stripe is `rows` rows of the
block's results.  The rows of `before` that the next stripe's window reads too are kept, so that
nothing is computed twice but at the seam of two bands; each band of stripes belongs to one thread.
Source of the idea: the inverted residuals of MobileNetV2 (Sandler et al. 2018) never need their
wide tensors whole.  Sizes are in elements of float32 unless they say bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from plait.codegen.conv_tiles import WindowShape
from plait.codegen.schedule import Schedule
from plait.codegen.stages import Stage, stage_of
from plait.codegen.tiles import SHARED_BYTES, ceil_div
from plait.ir.graph import Graph
from plait.passes.stripe import Block, Link

WORKSPACE_BYTES = 256 * 1024  # of a thread: half of L2, the rest is for weights
SMALL_BYTES = 256 * 1024  # a tensor that L2 still holds when the next kernel reads it
L3_RATE, MEMORY_RATE = 20.0, 3.6  # bytes a cycle of one core of two that stream
COPY_RATE = 12.0  # bytes a cycle that one core moves inside L2
MARGIN = 0.93  # a block must take less than this part of the time of its kernels
SPAN_CYCLES = 60  # around the rows of a stage


@dataclass(frozen=True)
class Cut:
    """How a block is cut: rows of a stripe, bands of stripes for each image."""

    rows: int
    bands: int


@dataclass(frozen=True)
class Chain:
    """Stages that pass positions on, and the block that they make."""

    stages: tuple[Stage, ...]

    @cached_property
    def at(self) -> int | None:
        """The number of the window, None if all stages are of single positions."""
        return next((k for k, s in enumerate(self.stages) if s.kind == "window"), None)

    @property
    def before(self) -> tuple[Stage, ...]:
        return self.stages[: self.at or 0]

    @property
    def after(self) -> tuple[Stage, ...]:
        return self.stages if self.at is None else self.stages[self.at + 1 :]

    @cached_property
    def window(self) -> WindowShape:
        """The block's window; without one, rows of single positions of one image."""
        if self.at is not None:
            shape = self.stages[self.at].window
            assert shape is not None
            return shape
        return WindowShape(1, self.stages[0].positions, 1, self.stages[0].inputs, 1, 1)

    @property
    def kept(self) -> int:
        """Rows that two neighbouring stripes both read."""
        return self.window.kh - self.window.stride[0]

    @property
    def fits(self) -> bool:
        """Whether the stages can be a block: at most one window, whose stripes overlap if some
        stage before it makes what they read."""
        if sum(s.kind == "window" for s in self.stages) > 1:
            return False
        return not self.before or self.kept >= 1

    def new_rows(self, rows: int) -> int:
        """Rows of `before` that a stripe adds."""
        return rows * self.window.stride[0]

    def shares(self, cut: Cut) -> tuple[int, int]:
        """The stripes of an image and those of a band; the last band may have fewer, never none."""
        stripes = self.window.oh // cut.rows
        each = ceil_div(stripes, cut.bands)
        assert stripes * cut.rows == self.window.oh, f"{cut} leaves rows out"
        assert (cut.bands - 1) * each < stripes, f"{cut} has empty bands"
        return stripes, each

    def scratch(self, cut: Cut) -> list[int]:
        """Elements of the result of each stage but the last."""
        w, last_before = self.window, len(self.before) - 1
        sizes = []
        for k, stage in enumerate(self.stages[:-1]):
            if k < last_before:
                rows = 1 * w.w
            elif k == last_before:
                rows = (self.new_rows(cut.rows) + self.kept) * w.w
            else:
                rows = cut.rows * w.ow
            sizes.append(rows * stage.channels)
        return sizes

    def cuts(self, threads: int) -> list[Cut]:
        """All cuts whose scratch is small enough."""
        w, found = self.window, list[Cut]()
        for rows in range(1, w.oh + 1):
            stripes = w.oh // rows
            wanted = min(stripes, threads // math.gcd(w.n, threads)) if self.before else stripes
            cut = Cut(rows, ceil_div(stripes, ceil_div(stripes, wanted)))
            if 4 * sum(self.scratch(cut)) > WORKSPACE_BYTES:
                break
            if w.oh % rows == 0:
                found.append(cut)
        return found

    def cycles(self, cut: Cut, threads: int) -> float:
        """Estimated cycles of the busiest thread."""
        w, (_, each) = self.window, self.shares(cut)
        new = self.new_rows(cut.rows)
        row = sum(s.cycles(w.w) + SPAN_CYCLES for s in self.before)
        stripe = row * new + sum(s.cycles(cut.rows * w.ow) + SPAN_CYCLES for s in self._later)
        band = each * (stripe + self._keeping) + (row * self.kept if self.before else 0)
        items = w.n * cut.bands
        weights = sum(s.weights for s in self.stages)
        again = weights / L3_RATE * each if weights > SMALL_BYTES else 0.0
        return ceil_div(items, threads) * (band + again) + self.moved(threads)

    @property
    def _keeping(self) -> float:
        """Cycles to move the rows that the next stripe reads too."""
        kept = self.kept * self.window.w * self.before[-1].channels if self.before else 0
        return 4 * kept / COPY_RATE

    @property
    def _later(self) -> tuple[Stage, ...]:
        return self.stages if self.at is None else self.stages[self.at :]

    def moved(self, threads: int) -> float:
        """Cycles to read what the first stage reads and to write what the last one makes."""
        first, last = self.stages[0], self.stages[-1]
        sizes = (4 * first.given * first.inputs, 4 * last.positions * last.channels)
        rate = L3_RATE if sum(sizes) <= SHARED_BYTES else MEMORY_RATE
        return sum(size / rate for size in sizes if size > SMALL_BYTES) / threads


def blocks(links: Sequence[Link], threads: int) -> list[Block]:
    """The parts of a chain of kernels that are best computed together, with their schedules.

    The partition with the least estimated time, by dynamic programming over where it is cut.
    """
    heads = [stage_of(link.node, -1) for link in links]
    stages = [stage_of(link.node, link.entry) for link in links]
    best: list[tuple[float, list[Block]]] = [(0.0, [])]
    for last in range(len(stages)):
        options = []
        for first in range(last + 1):
            found = _cost([heads[first], *stages[first + 1 : last + 1]], threads)
            if found is not None:
                cost, schedule = found
                before, made = best[first]
                block = [Block(first, last, schedule)] if schedule else []
                options.append((before + cost, [*made, *block]))
        best.append(min(options, key=lambda o: o[0]))
    return best[-1][1]


def _cost(stages: Sequence[Stage | None], threads: int) -> tuple[float, str] | None:
    """Cycles and schedule of some stages as a block; a single kernel needs no schedule."""
    known = tuple(s for s in stages if s is not None)
    if len(stages) == 1:
        if not known:
            return 0.0, ""
        (stage,) = known
        return stage.cycles(stage.positions) / threads + Chain(known).moved(threads), ""
    if len(known) < len(stages):
        return None
    joined = all((a.positions, a.channels) == (b.given, b.inputs) for a, b in pairwise(known))
    chain = Chain(known)
    if not joined or not chain.fits:
        return None
    found = [(chain.cycles(cut, threads), cut) for cut in chain.cuts(threads)]
    if not found:
        return None
    cycles, cut = min(found, key=lambda c: c[0])
    schedule = Schedule.make("stripes", rows=cut.rows, bands=cut.bands, parallel=int(threads > 1))
    return cycles / MARGIN, str(schedule)


def chain_of(body: Graph) -> Chain:
    """The chain that a joined kernel's body holds."""
    stages: list[Stage] = []
    source: dict[int, int] = {}
    last = -1
    for k, node in enumerate(body.nodes):
        (result,) = body.results(k)
        if node.op != "kernel":
            source[result] = source.get(node.operands[0], node.operands[0])
            continue
        seen = [source.get(v, v) for v in node.operands]
        stage = stage_of(node, seen.index(last) if last in seen else -1)
        assert stage is not None, "a joined kernel holds stages alone"
        stages.append(stage)
        last = result
    return Chain(tuple(stages))
