"""The CPU target.  Importing it imports no TVM: the templates do, when one is needed."""

from __future__ import annotations

from functools import cache

from plait.codegen.core import AVX2, Core
from plait.codegen.stripes import blocks
from plait.codegen.target import Target, Template
from plait.ir import types as t
from plait.ir.dims import is_static
from plait.ir.ops.recurrent import RECURRENT
from plait.ir.types import TensorType

# Functions whose code in TVM is a scalar call of the C library.
APPROXIMATED = frozenset({
    "exp", "expm1", "log", "log1p", "tanh", "erf", "sigmoid", "sin", "cos", "gelu", "silu",
})  # fmt: skip


def _plain(types: tuple[TensorType, ...], masks: tuple[TensorType, ...] = ()) -> bool:
    """Float32 (masks: or bool) with static dimensions, none of them empty."""
    dtypes = all(ty.dtype == t.f32 for ty in types)
    dtypes = dtypes and all(ty.dtype in (t.f32, t.bool_) for ty in masks)
    both = (*types, *masks)
    return dtypes and all(is_static(ty.shape) and 0 not in ty.shape for ty in both)


def _takes_attention(types: tuple[TensorType, ...]) -> bool:
    return _plain(types[:3], types[3:])


def _load() -> tuple[Template, ...]:
    from plait.codegen.tvm.templates import TEMPLATES

    return TEMPLATES


@cache
def cpu_target(threads: int = 2, core: Core = AVX2) -> Target:
    """The target for CPUs with vectors like those of `core`; the instruction set itself is chosen
    when code is made."""
    return Target(
        name="cpu",
        channels_last=True,
        approximates=APPROXIMATED,
        composites={"attention": _takes_attention, **dict.fromkeys(RECURRENT, _plain)},
        load=_load,
        threads=threads,
        join=blocks,
        core=core,
    )
