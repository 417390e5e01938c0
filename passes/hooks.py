"""Subscribers of the hook around passes: verification, dumps, timing, reference check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.ir.agreement import compare
from plait.ir.errors import PassMismatch, VerifyError
from plait.ir.interp import interpret
from plait.ir.verify import verify
from plait.passes.memory_check import check_plan
from plait.passes.pipeline import Event


def verify_each(event: Event) -> None:
    """Check the graph's invariants, its stage's contract, its unchanged signature, and its memory
    plan once it has one."""
    verify(event.after, event.applied.leaves)
    if event.context.plan is not None:
        check_plan(event.after, event.context.plan)
    for what, before, after in (
        ("inputs", event.before.input_types, event.after.input_types),
        ("outputs", event.before.output_types, event.after.output_types),
    ):
        if [t.with_layout(None) for t in before] != [t.with_layout(None) for t in after]:
            raise VerifyError(f"the {what} changed", where=f"pass {event.applied.name}")


@dataclass
class Timing:
    """Seconds by pass, in the order they ran."""

    seconds: list[tuple[str, float]] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.seconds.append((event.applied.name, event.seconds))


@dataclass(frozen=True)
class Dump:
    """Write `NN-pass.txt` into a folder whenever a pass changed the graph."""

    folder: Path

    def __call__(self, event: Event) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if event.index == 0:
            (self.folder / "00-input.txt").write_text(str(event.before))
        if event.after != event.before:
            path = self.folder / f"{event.index + 1:02d}-{event.applied.name}.txt"
            path.write_text(str(event.after))


@dataclass
class ReferenceCheck:
    """Interpret the graph after each pass that changed it; compare with the one that entered.

    Outputs must agree by `plait.ir.agreement`.  Raises `PassMismatch` naming the pass and the
    output.
    """

    inputs: Sequence[Any]
    _expected: list[Any] = field(default_factory=list, init=False)

    def __call__(self, event: Event) -> None:
        if event.index == 0:
            self._expected = interpret(event.before, self.inputs)
        if event.after == event.before:
            return
        found = interpret(event.after, self.inputs)
        for k, (want, got) in enumerate(zip(self._expected, found, strict=True)):
            verdict = compare(got, want)
            if not verdict.agrees:
                raise PassMismatch(name=event.applied.name, output=k, reason=verdict.reason)
