"""TVM's templates, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plait.codegen.schedule import Schedule
from plait.codegen.target import Template, single
from plait.codegen.tvm.attention import ATTENTION
from plait.codegen.tvm.conv import CONV
from plait.codegen.tvm.generic import build_generic
from plait.codegen.tvm.loopnest import build_nest
from plait.codegen.tvm.narrow import NARROW
from plait.codegen.tvm.product import GEMM
from plait.codegen.tvm.recurrent import RECURRENT
from plait.codegen.tvm.stripes import STRIPES
from plait.codegen.tvm.window import DEPTHWISE, POOL
from plait.codegen.tvm.winograd import WINOGRAD
from plait.ir import op as ops
from plait.ir.graph import Graph
from plait.passes.fuse import anchors
from plait.passes.select import Selection


def _choose_generic(body: Graph, constant: tuple[bool, ...], threads: int) -> Selection | None:
    fits = any(not ops.has_trait(body.nodes[k].op, "composite") for k in anchors(body))
    return Selection("generic") if fits else None


def _choose_loops(body: Graph, constant: tuple[bool, ...], threads: int) -> Selection | None:
    return None if anchors(body) else Selection("loops")


def _build_generic(body: Graph, schedule: Schedule) -> Any:
    return build_generic(body)


def _build_loops(body: Graph, schedule: Schedule, pitch: Sequence[int] = ()) -> Any:
    return build_nest(body, pitch)


GENERIC = Template("generic", single(_choose_generic), _build_generic)
LOOPS = Template("loops", single(_choose_loops), _build_loops)

TEMPLATES = (
    STRIPES,
    ATTENTION,
    RECURRENT,
    GEMM,
    DEPTHWISE,
    NARROW,
    WINOGRAD,
    CONV,
    POOL,
    GENERIC,
    LOOPS,
)
