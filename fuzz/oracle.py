"""What can be judged: outputs of a random graph that do not hang on rounding alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.ir.agreement import compare
from plait.ir.graph import Graph
from plait.ir.interp import interpret


def settled(graph: Graph, inputs: Sequence[Any], results: Sequence[Any]) -> list[bool]:
    """Which results differ by no more than they may when inputs change in their last digits.

    The sum of a normalised row, say, is rounding and nothing else: any two ways differ wholly.
    Whole numbers stay as they are: to round them is no matter of digits.
    """

    def moved(array: Any) -> Any:
        if array.dtype.kind not in "fc":
            return array
        changed = array * array.dtype.type(1 + 4 * float(np.finfo(array.dtype).eps))
        return np.where(array == np.round(array), array, changed)

    with np.errstate(all="ignore"):
        changed = interpret(graph, [moved(np.asarray(a)) for a in inputs])
        return [compare(a, b).agrees for a, b in zip(changed, results, strict=True)]
