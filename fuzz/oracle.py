"""What can be judged: outputs of a random graph that do not hang on rounding alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.ir.agreement import compare
from plait.ir.graph import Graph
from plait.ir.interp import interpret


def settled(graph: Graph, inputs: Sequence[Any]) -> list[bool]:
    """Which outputs differ by no more than results may when inputs change in their last digits.

    The sum of a normalised row, say, is rounding and nothing else: any two ways differ wholly.
    """

    def moved(array: Any) -> Any:
        if array.dtype.kind not in "fc":
            return array
        return array * array.dtype.type(1 + 4 * float(np.finfo(array.dtype).eps))

    with np.errstate(all="ignore"):
        changed = interpret(graph, [moved(np.asarray(a)) for a in inputs])
        pairs = zip(changed, interpret(graph, inputs), strict=True)
        return [compare(a, b).agrees for a, b in pairs]
