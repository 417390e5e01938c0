"""The CPU target: TVM's templates, in the order in which they are tried."""

from __future__ import annotations

from functools import cache
from typing import Any

from plait.codegen.schedule import Schedule
from plait.codegen.target import Target, Template
from plait.codegen.tvm import attention, lstm
from plait.codegen.tvm.conv import CONV
from plait.codegen.tvm.generic import build_generic
from plait.codegen.tvm.loopnest import build_nest
from plait.codegen.tvm.narrow import NARROW
from plait.codegen.tvm.product import GEMM
from plait.codegen.tvm.window import DEPTHWISE, POOL
from plait.ir.graph import Graph
from plait.passes.fuse import ANCHORS
from plait.passes.select import Selection

# Functions whose code in TVM is a scalar call of the C library.
APPROXIMATED = frozenset({"exp", "log", "tanh", "erf", "sigmoid", "sin", "cos", "gelu", "silu"})


def _has_anchor(body: Graph) -> bool:
    return any(n.op in ANCHORS for n in body.nodes)


def _choose_generic(body: Graph, constant: tuple[bool, ...], threads: int) -> Selection | None:
    single = ("dot_general", "conv", "max_pool", "sum_pool", "cumsum")
    fits = any(n.op in single for n in body.nodes)
    return Selection("generic") if fits else None


def _choose_loops(body: Graph, constant: tuple[bool, ...], threads: int) -> Selection | None:
    return None if _has_anchor(body) else Selection("loops")


def _build_generic(body: Graph, schedule: Schedule) -> Any:
    return build_generic(body)


def _build_loops(body: Graph, schedule: Schedule) -> Any:
    return build_nest(body)


GENERIC = Template("generic", _choose_generic, _build_generic)
LOOPS = Template("loops", _choose_loops, _build_loops)


@cache
def cpu_target(threads: int = 2) -> Target:
    """The target for CPUs with AVX2; the instruction set itself is chosen when code is made."""
    return Target(
        name="cpu",
        channels_last=True,
        approximates=APPROXIMATED,
        composites={"attention": attention.takes, "lstm": lstm.takes},
        templates=(
            attention.ATTENTION,
            lstm.LSTM,
            GEMM,
            DEPTHWISE,
            NARROW,
            CONV,
            POOL,
            GENERIC,
            LOOPS,
        ),
        threads=threads,
    )
