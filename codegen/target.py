"""Targets: capabilities, and tables of templates, behind one record.

A template is the way one family of kernels is compiled: `space` looks at a body and gives the
schedules that are worth trying, `build` makes the target's function from a body and a schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from plait.codegen.apart import APART
from plait.codegen.core import AVX2, Core, making_for
from plait.codegen.schedule import Schedule
from plait.ir.errors import Unsupported
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from plait.passes.select import Selection
from plait.passes.stripe import Block, Link


@dataclass(frozen=True)
class Candidate:
    """A schedule worth trying; `cycles` of the busiest thread is an estimate, to rank by."""

    cycles: float
    selection: Selection


Space: TypeAlias = Callable[[Graph, tuple[bool, ...], int], Sequence[Candidate]]


@dataclass(frozen=True)
class Template:
    """A family of kernels.

    `space(body, constant, threads)` gives the candidates for a body it can compile, else none;
    `constant` tells which of the body's inputs are constants, which it may ask to be packed.
    `build(body, schedule)` makes the target's own form of the kernel, for TVM a PrimFunc over
    flat buffers, inputs first; those of `plait.codegen.apart` take a third argument, the `pitch`
    of a kernel's attributes.  Templates with the same `rivals` compete for a body.
    """

    name: str
    space: Space
    build: Callable[..., Any]
    rivals: str = ""


def single(choose: Callable[[Graph, tuple[bool, ...], int], Selection | None]) -> Space:
    """The space of a template that knows one schedule for a body, or None."""

    def space(body: Graph, constant: tuple[bool, ...], threads: int) -> list[Candidate]:
        found = choose(body, constant, threads)
        return [] if found is None else [Candidate(0.0, found)]

    return space


@dataclass(frozen=True)
class Target:
    """A machine that kernels are compiled for; satisfies `plait.passes.context.Target`.

    `composites` maps a composite that may be taken whole to the test of its operand types.
    `load` gives the templates in the order in which they are tried; it is called when one is
    needed, since a kernel that is known already needs none, and they import a compiler.
    `join(chain, threads)` tells which kernels of a chain are better one.
    Schedules of another `core` than `AVX2` name it.
    """

    name: str
    channels_last: bool
    approximates: frozenset[str]
    composites: dict[str, Callable[[tuple[TensorType, ...]], bool]]
    load: Callable[[], tuple[Template, ...]]
    threads: int = 2
    join: Callable[[Sequence[Link], int], Sequence[Block]] | None = None
    core: Core = AVX2

    @property
    def templates(self) -> tuple[Template, ...]:
        return self.load()

    def takes(self, op: str, types: tuple[TensorType, ...]) -> bool:
        test = self.composites.get(op)
        return test is not None and test(types)

    def candidates(self, body: Graph, constant: tuple[bool, ...]) -> list[Candidate]:
        """The spaces of the first template that takes the body and of its rivals, best first.

        Raises `Unsupported` if none does.
        """
        for template in self.templates:
            rivals = [template]
            if template.rivals:
                rivals = [t for t in self.templates if t.rivals == template.rivals]
            with making_for(self.core):
                found = [c for rival in rivals for c in rival.space(body, constant, self.threads)]
            if found:
                return [self._named(c) for c in sorted(found, key=lambda c: c.cycles)]
        error = Unsupported(f"target {self.name} has no template for a kernel of {body.name}")
        error.add_note(str(body))
        raise error

    def _named(self, candidate: Candidate) -> Candidate:
        """The candidate with the core in its schedule."""
        found = candidate.selection
        return replace(candidate, selection=replace(found, schedule=self._on_core(found.schedule)))

    def _on_core(self, schedule: str) -> str:
        if self.core == AVX2:
            return schedule
        parsed = Schedule.parse(schedule)
        return str(Schedule.make(parsed.template, **parsed.parameters, core=self.core.name))

    def select(self, body: Graph, constant: tuple[bool, ...]) -> Selection:
        """The best candidate by its estimate."""
        return self.candidates(body, constant)[0].selection

    def blocks(self, chain: Sequence[Link]) -> Sequence[Block]:
        """The parts of a chain that are joined."""
        if self.join is None:
            return ()
        with making_for(self.core):
            found = self.join(chain, self.threads)
        return [replace(block, schedule=self._on_core(block.schedule)) for block in found]

    def template(self, name: str) -> Template:
        for template in self.templates:
            if template.name == name:
                return template
        raise Unsupported(f"target {self.name} has no template {name!r}")

    def within(self, body: Graph, schedule: str, number: int) -> bool:
        """Whether a kernel can take an operand or a result whose rows lie apart in memory."""
        takes = APART.get(Schedule.parse(schedule).template)
        return takes is not None and takes(body, number)

    def build(self, body: Graph, schedule: str, pitch: Sequence[int] = ()) -> Any:
        """The target's form of a kernel."""
        parsed = Schedule.parse(schedule)
        template = self.template(parsed.template)
        if pitch and template.name not in APART:
            raise Unsupported(f"{template.name} kernels take only tensors that lie in one piece")
        with making_for(parsed.core):
            return template.build(body, parsed, pitch) if pitch else template.build(body, parsed)
