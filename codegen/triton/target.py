"""The CUDA target: Triton's templates behind the same record as the CPU's."""

from __future__ import annotations

from functools import cache

from plait.codegen.collapse import collapse, loop_space
from plait.codegen.schedule import Schedule
from plait.codegen.target import Target, Template, single
from plait.codegen.triton.loops import (
    TritonKernel,
    build_elementwise,
    build_rows,
    check_static,
    elementwise_block,
    is_reduction,
    rows_block,
)
from plait.codegen.triton.lower import POLYNOMIAL
from plait.ir.errors import Unsupported
from plait.ir.graph import Graph
from plait.passes.fuse import anchors
from plait.passes.select import Selection


def _reduces(body: Graph) -> bool:
    """Whether a loop-nest body has reductions; `Unsupported` for a body with an anchor."""
    for k in anchors(body):
        raise Unsupported(
            f"target cuda has no template for {body.nodes[k].op!r} yet: it compiles elementwise "
            "kernels and row reductions"
        )
    check_static(body)
    return any(map(is_reduction, body.nodes))


def _choose_elementwise(body: Graph, constant: tuple[bool, ...], threads: int) -> Selection | None:
    if _reduces(body):
        return None
    block, warps = elementwise_block(loop_space(collapse(body)))
    return Selection(str(Schedule.make("elementwise", block=block, warps=warps)))


def _choose_rows(body: Graph, constant: tuple[bool, ...], threads: int) -> Selection | None:
    if not _reduces(body):
        return None
    block, warps = rows_block(loop_space(collapse(body)))
    return Selection(str(Schedule.make("rows", block=block, warps=warps)))


def _build_elementwise(body: Graph, schedule: Schedule) -> TritonKernel:
    return build_elementwise(body, schedule.number("block"), schedule.number("warps"))


def _build_rows(body: Graph, schedule: Schedule) -> TritonKernel:
    return build_rows(body, schedule.number("block"), schedule.number("warps"))


ELEMENTWISE = Template("elementwise", single(_choose_elementwise), _build_elementwise)
ROWS = Template("rows", single(_choose_rows), _build_rows)


@cache
def cuda_target() -> Target:
    """The target for NVIDIA GPUs; the compute capability is chosen when code is made."""
    return Target(
        name="cuda",
        channels_last=False,
        approximates=POLYNOMIAL,
        composites={},
        load=lambda: (ELEMENTWISE, ROWS),
        threads=1,
    )
