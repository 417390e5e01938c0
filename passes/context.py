"""What passes may ask about the world: the target's wishes and a place for side results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from plait.ir.graph import Graph
from plait.ir.types import TensorType

if TYPE_CHECKING:
    from plait.passes.memory import MemoryPlan
    from plait.passes.select import Selection
    from plait.passes.stripe import Block, Link


class Target(Protocol):
    """The part of a target's record that passes read (`plait.codegen.target`)."""

    @property
    def name(self) -> str: ...

    def takes(self, op: str, types: tuple[TensorType, ...]) -> bool:
        """Whether the target compiles a composite as it is; the others are decomposed."""
        ...

    @property
    def approximates(self) -> frozenset[str]:
        """Functions for which the vectorisable polynomial is preferred."""
        ...

    @property
    def channels_last(self) -> bool:
        """Whether convolutions want their channels innermost."""
        ...

    def select(self, body: Graph, constant: tuple[bool, ...]) -> Selection:
        """The schedule of a kernel; `constant` tells which operands are constants."""
        ...

    def within(self, body: Graph, schedule: str, number: int) -> bool:
        """Whether a kernel can take an operand or a result, numbered after those, of which the
        rows lie apart in memory."""
        ...

    def blocks(self, chain: Sequence[Link]) -> Sequence[Block]:
        """The parts of a chain of kernels that are better computed together."""
        ...


@dataclass
class Context:
    """Passed to every pass.

    `fired` counts the rewrite rules that were applied; `plan` is the memory plan once
    `allocate` has run.
    """

    target: Target | None = None
    fired: Counter[str] = field(default_factory=Counter)
    plan: MemoryPlan | None = None

    def require_target(self, pass_name: str) -> Target:
        if self.target is None:
            raise ValueError(f"pass {pass_name!r} needs a target in its context")
        return self.target
