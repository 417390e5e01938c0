"""Ops of the lower levels: `kernel`, which holds a fused body, and `relayout`."""

from __future__ import annotations

from typing import Any

from plait.ir import expr as e
from plait.ir.expr import Compute
from plait.ir.op import REQUIRED, Call, Op, register
from plait.ir.ops.shapes import load
from plait.ir.types import TensorType


def _kernel_infer(c: Call) -> tuple[TensorType, ...]:
    inputs = c.body.input_types
    c.require(len(inputs) == len(c.types), f"the body has {len(inputs)} inputs")
    for k, (want, got) in enumerate(zip(inputs, c.types, strict=True)):
        c.require(want == got, f"operand {k} has type {got}, the body expects {want}")
    return tuple(c.body.output_types)


def _kernel_reference(c: Call, *arrays: Any) -> Any:
    from plait.ir.interp import interpret

    found = interpret(c.body, arrays)
    return found[0] if len(found) == 1 else tuple(found)


register(
    Op("kernel", ("*x",), _kernel_infer, _kernel_reference,
       attrs={"body": REQUIRED, "schedule": "", "pitch": ()}, traits=frozenset({"kernel"}),
       doc="A subgraph compiled as one kernel. `body` is its meaning; `schedule` the text of its "
       "template and tile sizes, empty before selection. `pitch` gives for each operand, "
       "then each result, how many elements its rows lie apart in memory: 0 for dense, nothing "
       "where all are.")
)  # fmt: skip


def _copy_infer(c: Call) -> TensorType:
    (x,) = c.types
    fits = c.layout is None or sorted(c.layout) == list(range(x.rank))
    c.require(fits, f"layout {c.layout} does not permute {x.rank} dimensions")
    return x.with_layout(c.layout)


def _copy_compute(c: Call) -> Compute:
    space = e.axes(*c.types[0].shape)
    return Compute(space, load(0, c.types[0], [e.index(a) for a in space]))


register(
    Op("relayout", ("x",), _copy_infer, lambda c, x: x, _copy_compute,
       attrs={"layout": None}, traits=frozenset({"layout"}),
       doc="The same tensor in another physical order.")
)  # fmt: skip
