"""Which kernels read and write tensors whose rows lie apart, inside wider ones; needs no compiler.

The numbers of operands and results are those of a body: its inputs first, then its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from plait.codegen.collapse import collapse, loop_space
from plait.ir.graph import Graph


def _takes_rows(body: Graph, number: int) -> bool:
    """Loop nests: rows that are rows of the space too, or elements addressed by all dimensions."""
    type = (*body.input_types, *body.output_types)[number]
    if collapse(body) is body:
        return True
    space = loop_space(body)
    return type.shape == space.shape and type.order == space.order


def _is_output(body: Graph, number: int) -> bool:
    """Windows: results alone."""
    return number >= len(body.inputs)


# By the name of the template; others take only tensors that lie in one piece.
APART: Final[Mapping[str, Callable[[Graph, int], bool]]] = MappingProxyType({
    "loops": _takes_rows,
    **dict.fromkeys(("conv", "winograd", "depthwise", "pool"), _is_output),
})  # fmt: skip
