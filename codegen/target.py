"""Targets: capabilities, and tables of templates, behind one record.

A template is the way one family of kernels is compiled: `choose` looks at a body and gives its
selection or None, `build` makes the target's function from a body and its schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plait.codegen.schedule import Schedule
from plait.ir.errors import Unsupported
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from plait.passes.select import Selection


@dataclass(frozen=True)
class Template:
    """A family of kernels.

    `choose(body, constant, threads)` gives a selection for a body it can compile, else None;
    `constant` tells which of the body's inputs are constants, which it may ask to be packed.
    `build(body, schedule)` makes the target's own form of the kernel, for TVM a PrimFunc over
    flat buffers, inputs first.
    """

    name: str
    choose: Callable[[Graph, tuple[bool, ...], int], Selection | None]
    build: Callable[[Graph, Schedule], Any]


@dataclass(frozen=True)
class Target:
    """A machine that kernels are compiled for; satisfies `plait.passes.context.Target`.

    `composites` maps a composite that may be taken whole to the test of its operand types.
    `load` gives the templates in the order in which they are tried; it is called when one is
    needed, since a kernel that is known already needs none, and they import a compiler.
    """

    name: str
    channels_last: bool
    approximates: frozenset[str]
    composites: dict[str, Callable[[tuple[TensorType, ...]], bool]]
    load: Callable[[], tuple[Template, ...]]
    threads: int = 2

    @property
    def templates(self) -> tuple[Template, ...]:
        return self.load()

    def takes(self, op: str, types: tuple[TensorType, ...]) -> bool:
        test = self.composites.get(op)
        return test is not None and test(types)

    def select(self, body: Graph, constant: tuple[bool, ...]) -> Selection:
        """The first template, in order, that takes the body; `Unsupported` if none does."""
        for template in self.templates:
            found = template.choose(body, constant, self.threads)
            if found is not None:
                return found
        error = Unsupported(f"target {self.name} has no template for a kernel of {body.name}")
        error.add_note(str(body))
        raise error

    def template(self, name: str) -> Template:
        for template in self.templates:
            if template.name == name:
                return template
        raise Unsupported(f"target {self.name} has no template {name!r}")

    def build(self, body: Graph, schedule: str) -> Any:
        """The target's form of a kernel."""
        parsed = Schedule.parse(schedule)
        return self.template(parsed.template).build(body, parsed)
