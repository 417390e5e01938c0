"""Sources and indexed reads: constant, iota, take (index_select, embedding), gather."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plait.ir import dims
from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.builder import Capture, Value
from plait.ir.dims import equal
from plait.ir.expr import Compute, Expr
from plait.ir.op import REQUIRED, Call, Op, captures, register
from plait.ir.ops.shapes import broadcast, load, normalize_axis
from plait.ir.types import TensorType


def _constant_compute(c: Call) -> Compute:
    """Only a scalar has a compute definition; a larger constant is an operand of its kernel."""
    if c.value.array.ndim:
        raise c.fail("a constant tensor is storage, it has no compute definition")
    return Compute((), e.lit(c.value.array.item(), c.value.type.dtype))


register(
    Op("constant", (), lambda c: c.value.type, lambda c: c.value.array, _constant_compute,
       attrs={"value": REQUIRED}, traits=frozenset({"source"}), doc="A tensor known now.")
)  # fmt: skip


def _iota_infer(c: Call) -> TensorType:
    c.require(0 <= c.axis < len(c.shape), f"axis {c.axis} does not fit rank {len(c.shape)}")
    return TensorType(c.dtype, c.shape)


def _iota_compute(c: Call) -> Compute:
    space = e.axes(*c.shape)
    return Compute(space, e.index(space[c.axis]).cast(c.dtype))


def _iota_reference(c: Call) -> Any:
    count = c.shape[c.axis]
    line = np.arange(count).reshape([count if d == c.axis else 1 for d in range(len(c.shape))])
    return np.broadcast_to(line, c.shape).astype(c.dtype.numpy)


register(
    Op("iota", (), _iota_infer, _iota_reference, _iota_compute,
       attrs={"shape": REQUIRED, "axis": 0, "dtype": t.i64}, traits=frozenset({"source"}),
       doc="0, 1, 2, ... along `axis`.")
)  # fmt: skip


def _take_infer(c: Call) -> TensorType:
    x, where = c.types
    c.require(where.dtype in (t.i64, t.i32), f"indices have dtype {where.dtype}")
    c.require(0 <= c.axis < x.rank, f"axis {c.axis} does not fit rank {x.rank}")
    c.require(not equal(x.shape[c.axis], 0), "an empty dimension has no element to take")
    return TensorType(x.dtype, (*x.shape[: c.axis], *where.shape, *x.shape[c.axis + 1 :]))


def _in_range(position: Expr, n: dims.Dim) -> Expr:
    """An index clamped into its dimension: a kernel must not read outside its operand."""
    wide = position.cast(t.i64)
    wrapped = e.select(wide < 0, wide + e.size(n), wide)
    return e.maximum(e.minimum(wrapped, e.size(n) - 1), 0)


def _take_compute(c: Call) -> Compute:
    x, where = c.types
    space = e.axes(*_take_infer(c).shape)
    at = [e.index(a) for a in space]
    picked = load(1, where, at[c.axis : c.axis + where.rank])
    index = [*at[: c.axis], _in_range(picked, x.shape[c.axis]), *at[c.axis + where.rank :]]
    return Compute(space, load(0, x, index))


def _take_reference(c: Call, x: Any, where: Any) -> Any:
    n = x.shape[c.axis]
    wrapped = np.where(where < 0, where + n, where)
    return np.take(x, np.clip(wrapped, 0, n - 1), axis=c.axis)


register(
    Op("take", ("x", "indices"), _take_infer, _take_reference, _take_compute,
       attrs={"axis": 0}, traits=frozenset({"gather"}),
       doc="x at `indices` along `axis`; the indices' dimensions replace it. Negative indices "
       "count from the end; an index outside is clamped, where torch raises.")
)  # fmt: skip


def _gather_infer(c: Call) -> TensorType:
    x, where = c.types
    c.require(where.rank == x.rank, f"indices have rank {where.rank}, x {x.rank}")
    c.require(0 <= c.axis < x.rank, f"axis {c.axis} does not fit rank {x.rank}")
    c.require(not equal(x.shape[c.axis], 0), "an empty dimension has no element to take")
    for d, (n, full) in enumerate(zip(where.shape, x.shape, strict=True)):
        ok = d == c.axis or equal(n, full) or dims.bounds(n)[1] <= dims.bounds(full)[0]
        c.require(ok, f"dimension {d} of the indices has size {n}, of x {full}")
    c.require(where.dtype in (t.i64, t.i32), f"indices have dtype {where.dtype}")
    return TensorType(x.dtype, where.shape)


def _gather_compute(c: Call) -> Compute:
    x, where = c.types
    space = e.axes(*where.shape)
    at = [e.index(a) for a in space]
    index = [*at]
    index[c.axis] = _in_range(load(1, where, at), x.shape[c.axis])
    return Compute(space, load(0, x, index))


def _gather_reference(c: Call, x: Any, where: Any) -> Any:
    n = x.shape[c.axis]
    wrapped = np.clip(np.where(where < 0, where + n, where), 0, n - 1)
    cut = tuple(slice(None) if d == c.axis else slice(0, w) for d, w in enumerate(where.shape))
    return np.take_along_axis(x[cut], wrapped, axis=c.axis)


register(
    Op("gather", ("x", "indices"), _gather_infer, _gather_reference, _gather_compute,
       attrs={"axis": 0}, traits=frozenset({"gather"}),
       doc="Result[i] is x[i] with the index along `axis` replaced by indices[i].")
)  # fmt: skip


@captures("aten.embedding.default")
def _embedding(cx: Capture, table: Value, ids: Value, *_: Any, **__: Any) -> Value:
    return cx.emit("take", table, ids, axis=0)


@captures("aten.index_select.default")
def _index_select(cx: Capture, x: Value, dim: int, where: Value) -> Value:
    if x.rank == 0:
        raise NotImplementedError("index_select of a scalar")
    flat = cx.b.reshape(where, (where.type.size,))
    return cx.emit("take", x, flat, axis=normalize_axis(dim, x.rank))


@captures("aten.gather.default")
def _gather(cx: Capture, x: Value, dim: int, where: Value, *, sparse_grad: bool = False) -> Value:
    if x.rank == 0 or where.rank == 0:
        raise NotImplementedError("gather of a scalar")
    return cx.emit("gather", x, where, axis=normalize_axis(dim, x.rank))


@captures("aten.index.Tensor")
def _index(cx: Capture, x: Value, indices: Sequence[Value | None]) -> Value:
    """Advanced indexing by integer tensors in adjacent dimensions: one take on a merged axis."""
    chosen = [d for d, i in enumerate(indices) if i is not None]
    tensors = [i for i in indices if i is not None]
    if any(i.dtype == t.bool_ or i.dtype == t.u8 for i in tensors):
        raise NotImplementedError("index by a mask")
    if chosen != list(range(chosen[0], chosen[0] + len(chosen))):
        raise NotImplementedError("index in separated dimensions")
    sizes = [x.shape[d] for d in chosen]
    shape = broadcast("index", [i.shape for i in tensors])
    flat: Value | None = None
    for index, n in zip(tensors, sizes, strict=True):
        wide = cx.b.cast(index, t.i64)
        if not isinstance(n, int):
            raise NotImplementedError("index of a symbolic dimension")
        negative = cx.emit("lt", wide, cx.b.scalar(0, t.i64))
        wrapped = cx.emit("select", negative, wide + n, wide)
        flat = wrapped if flat is None else flat * n + wrapped
    assert flat is not None
    if flat.shape != shape:
        flat = cx.emit("broadcast_to", flat, shape=shape)
    shape = (*x.shape[: chosen[0]], dims.product(sizes), *x.shape[chosen[-1] + 1 :])
    merged = cx.b.reshape(x, shape)
    return cx.emit("take", merged, flat, axis=chosen[0])


@captures("aten.arange.start_step", "aten.arange.start", "aten.arange.default")
def _arange(cx: Capture, *args: Any, **_: Any) -> Value:
    start, step = 0, 1
    if len(args) >= 2:
        start = args[0]
    if len(args) == 3:
        step = args[2]
    line = cx.emit("iota", shape=cx.result[0].shape, axis=0, dtype=cx.dtype)
    if not equal(step, 1):
        line = line * step
    return line if equal(start, 0) else line + start


def _filled(value: Any) -> Callable[..., Value]:
    """Importer of a tensor filled with a number, or with the argument at a position."""

    def run(cx: Capture, *args: Any, **_: Any) -> Value:
        fill: Any = value(args) if callable(value) else value
        if isinstance(fill, Value):
            return cx.emit("broadcast_to", cx.b.cast(fill, cx.dtype), shape=cx.result[0].shape)
        return cx.b.full(cx.result[0].shape, fill, cx.dtype)

    return run


for _name, _value in (("zeros", 0), ("ones", 1)):
    for _form in (_name, f"{_name}_like", f"new_{_name}"):
        captures(f"aten.{_form}.default")(_filled(_value))
captures("aten.full.default", "aten.full_like.default")(_filled(lambda args: args[1]))
captures("aten.new_full.default")(_filled(lambda args: args[2]))
captures("aten.scalar_tensor.default")(_filled(lambda args: args[0]))
