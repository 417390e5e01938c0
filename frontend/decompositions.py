"""Which ATen operators torch takes apart for us, and which reach the importer whole.

The table is torch's own (core ATen) with a few rules more, less every operator that the IR has an
importer for: the IR has them as ops or composites and lowers them better than their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import torch
from torch._decomp import decomposition_table
from torch._ops import OpOverload

from plait.frontend import rules
from plait.ir import op as ops
from plait.ir.ops.recurrent import RECURRENT

# Whole even without an importer: recurrent layers unroll to thousands of nodes, and taking
# attention apart fails on views of transposed tensors (pytorch/pytorch#136543).
ALWAYS_WHOLE: Final = (*RECURRENT, "scaled_dot_product_attention")


@cache
def whole() -> frozenset[OpOverload]:
    """The overloads that stay whole."""
    ops.load_all()
    found = set()
    for target in ops.CAPTURES:
        namespace, name, overload = target.split(".")
        packet = getattr(getattr(torch.ops, namespace), name)
        found.add(getattr(packet, overload))
    for name in ALWAYS_WHOLE:
        packet = getattr(torch.ops.aten, name)
        found.update(getattr(packet, overload) for overload in packet.overloads())
    return frozenset(found)


@cache
def _table() -> dict[Any, Callable[..., Any]]:
    full = dict(torch.export.default_decompositions().items())
    for name in rules.FROM_TORCH:
        packet = getattr(torch.ops.aten, name)
        overloads = [getattr(packet, overload) for overload in packet.overloads()]
        full |= {o: decomposition_table[o] for o in overloads if o in decomposition_table}
    kept = {op: rule for op, rule in full.items() if op not in whole()}
    return kept | rules.RULES


# Torch's rule gives the weights where the operator gives what its gradient needs.
NOT_WITH_GRADIENTS: Final = (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,)


def table(gradients: bool = False) -> dict[Any, Callable[..., Any]]:
    """A fresh copy of the decompositions to apply, for export and for AOTAutograd.

    With `gradients`, those of a graph that has a backward part.
    """
    dropped = NOT_WITH_GRADIENTS if gradients else ()
    return {op: rule for op, rule in _table().items() if op not in dropped}


@cache
def _kept_composites() -> dict[Any, Callable[..., Any]]:
    from torch._export.utils import _collect_all_valid_cia_ops_for_aten_namespace

    def keep(*_: Any, **__: Any) -> Any:
        return NotImplemented

    return {op: keep for op in _collect_all_valid_cia_ops_for_aten_namespace() if op in whole()}


@contextmanager
def keep_whole() -> Iterator[None]:
    """Trace inside with composite operators (attention, linear, lstm, ...) left whole.

    AOTAutograd takes them apart below the reach of a decomposition table, so their composite rule
    is replaced while it traces. Only for graphs without gradients: the kept form has none.
    """
    from torch.export.exported_program import _override_composite_implicit_decomp

    with _override_composite_implicit_decomp(_kept_composites()):
        yield
