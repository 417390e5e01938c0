"""What passes may ask about the world: the target's wishes and a place for side results."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from plait.ir.graph import Graph

if TYPE_CHECKING:
    from plait.passes.memory import MemoryPlan


class Target(Protocol):
    """The part of a target's record that passes read (`plait.codegen.target`)."""

    @property
    def name(self) -> str: ...

    @property
    def whole(self) -> frozenset[str]:
        """Composites that the target compiles as they are; the others are decomposed."""
        ...

    @property
    def approximates(self) -> frozenset[str]:
        """Functions for which the vectorisable polynomial is preferred."""
        ...

    @property
    def channels_last(self) -> bool:
        """Whether convolutions want their channels innermost."""
        ...

    def pack(self, graph: Graph) -> Graph:
        """Bring constant weights into the form that the target's kernels read."""
        ...

    def select(self, body: Graph) -> str:
        """The schedule text for a kernel."""
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
