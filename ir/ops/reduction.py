"""Reductions over chosen dimensions, and what is built from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.builder import Builder, Capture, Value
from plait.ir.dims import Dim, equal, product
from plait.ir.errors import UnsupportedSymbol
from plait.ir.expr import Compute
from plait.ir.op import REQUIRED, Call, Op, captures, register
from plait.ir.ops.shapes import load, normalize_axes, normalize_axis, widen
from plait.ir.types import TensorType

_NUMPY = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


def _kept(c: Call) -> list[int]:
    return [d for d in range(c.types[0].rank) if d not in c.axes]


def _infer(c: Call) -> TensorType:
    (x,) = c.types
    c.require(list(c.axes) == sorted(set(c.axes)), f"axes {c.axes} are not sorted and distinct")
    c.require(all(0 <= a < x.rank for a in c.axes), f"axes {c.axes} do not fit rank {x.rank}")
    if c.keepdims:
        shape: list[Dim] = [1 if d in c.axes else n for d, n in enumerate(x.shape)]
    else:
        shape = [x.shape[d] for d in _kept(c)]
    return TensorType(x.dtype, tuple(shape))


def _compute(c: Call) -> Compute:
    (x,) = c.types
    space = e.axes(*_infer(c).shape)
    over = {d: e.Axis(f"r{d}", x.shape[d]) for d in c.axes}
    outer = dict(zip(range(x.rank) if c.keepdims else _kept(c), space, strict=True))
    where = [e.index(over[d] if d in over else outer[d]) for d in range(x.rank)]
    element = load(0, x, where)
    return Compute(space, e.reduce(c.op.name.removeprefix("reduce_"), list(over.values()), element))


def _reference(c: Call, x: Any) -> Any:
    kind = c.op.name.removeprefix("reduce_")
    wide = widen(x) if kind in ("sum", "prod") else x
    with np.errstate(all="ignore"):
        out = _NUMPY[kind].reduce(
            wide, axis=c.axes, keepdims=c.keepdims, initial=e.identity(kind, c.types[0].dtype)
        )
    return np.asarray(out).astype(x.dtype)


for _kind in ("sum", "prod", "max", "min"):
    register(
        Op(
            f"reduce_{_kind}", ("x",), _infer, _reference, _compute,
            attrs={"axes": REQUIRED, "keepdims": False},
            traits=frozenset({"reduction"}),
            precision="sum" if _kind in ("sum", "prod") else "exact",
            doc=f"{_kind} of x over the dimensions `axes`; an empty one gives the neutral element. "
            "NaN propagates.",
        )
    )  # fmt: skip


def reduce(b: Builder, kind: str, x: Value, axes: Sequence[int], keepdims: bool = False) -> Value:
    """Emit a reduction; no axes means no change."""
    return b.emit(f"reduce_{kind}", x, axes=tuple(axes), keepdims=keepdims) if axes else x


def mean(b: Builder, x: Value, axes: Sequence[int], keepdims: bool = False) -> Value:
    """Sum divided by a static count; `UnsupportedSymbol` for a symbolic one."""
    total = reduce(b, "sum", x, axes, keepdims)
    count = product(x.shape[a] for a in axes)
    if not isinstance(count, int):
        raise UnsupportedSymbol(stage="a mean", dim=str(count))
    return total / float(count) if count else total * float("nan")


def _summed(cx: Capture, x: Value) -> Value:
    return cx.b.cast(x, cx.dtype)


@captures("aten.sum.default", "aten.sum.dim_IntList")
def _sum(cx: Capture, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return reduce(cx.b, "sum", _summed(cx, x), normalize_axes(dim, x.rank), keepdim)


@captures("aten.prod.default", "aten.prod.dim_int")
def _prod(cx: Capture, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return reduce(cx.b, "prod", _summed(cx, x), normalize_axes(dim, x.rank), keepdim)


@captures("aten.mean.default", "aten.mean.dim")
def _mean(cx: Capture, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return mean(cx.b, _summed(cx, x), normalize_axes(dim, x.rank), keepdim)


@captures("aten.amax.default", "aten.max.default")
def _amax(cx: Capture, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return reduce(cx.b, "max", x, normalize_axes(dim, x.rank), keepdim)


@captures("aten.amin.default", "aten.min.default")
def _amin(cx: Capture, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return reduce(cx.b, "min", x, normalize_axes(dim, x.rank), keepdim)


@captures("aten.any.default", "aten.any.dim", "aten.any.dims")
def _any(cx: Capture, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return reduce(cx.b, "max", cx.b.cast(x, t.bool_), normalize_axes(dim, x.rank), keepdim)


@captures("aten.all.default", "aten.all.dim", "aten.all.dims")
def _all(cx: Capture, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return reduce(cx.b, "min", cx.b.cast(x, t.bool_), normalize_axes(dim, x.rank), keepdim)


def variance(
    b: Builder, x: Value, axes: Sequence[int], correction: float, keepdims: bool
) -> tuple[Value, Value]:
    """Two-pass variance and the mean (kept dimensions), as torch computes them."""
    center = mean(b, x, axes, keepdims=True)
    deviation = x - center
    count = product(x.shape[a] for a in axes)
    if not isinstance(count, int):
        raise UnsupportedSymbol(stage="a variance", dim=str(count))
    squares = reduce(b, "sum", deviation * deviation, axes, keepdims)
    scale = 1.0 / (count - correction) if count > correction else float("inf")
    return squares * scale, center


@captures("aten.var.correction")
def _var(cx: Capture, x: Value, dim: Any = None, *, correction: Any = 1, keepdim: bool = False
         ) -> Value:  # fmt: skip
    amount = 1 if correction is None else correction
    return variance(cx.b, x, normalize_axes(dim, x.rank), amount, keepdim)[0]


@captures("aten.var_mean.correction")
def _var_mean(cx: Capture, x: Value, dim: Any = None, *, correction: Any = 1, keepdim: bool = False
              ) -> tuple[Value, Value]:  # fmt: skip
    axes = normalize_axes(dim, x.rank)
    amount = 1 if correction is None else correction
    var, center = variance(cx.b, x, axes, amount, keepdim)
    return var, cx.b.reshape(center, cx.result[1].shape)


def _arg_infer(c: Call) -> TensorType:
    (x,) = c.types
    c.require(0 <= c.axis < x.rank, f"axis {c.axis} does not fit rank {x.rank}")
    c.require(not equal(x.shape[c.axis], 0), "an empty dimension has no extreme element")
    shape = tuple(n for d, n in enumerate(x.shape) if d != c.axis)
    return TensorType(t.i64, shape)


def _arg_reference(c: Call, x: Any) -> Any:
    return (np.argmax if c.op.name == "argmax" else np.argmin)(x, axis=c.axis).astype(np.int64)


def _arg_decompose(b: Builder, c: Call, x: Value) -> Value:
    """First position of the extreme value: smallest index among those that equal it (or NaN)."""
    kind = c.op.name.removeprefix("arg")
    best = reduce(b, kind, x, (c.axis,), keepdims=True)
    hit = b.emit("eq", x, best)
    if x.dtype.is_float:
        hit = b.emit("or", hit, b.emit("isnan", x))
    count = x.shape[c.axis]
    shape = [count if d == c.axis else 1 for d in range(x.rank)]
    places = b.reshape(b.emit("iota", shape=(count,), axis=0, dtype=t.i64), shape)
    far = b.scalar(2**62, t.i64)
    return reduce(b, "min", b.emit("select", hit, places, far), (c.axis,))


for _kind in ("argmax", "argmin"):
    register(
        Op(_kind, ("x",), _arg_infer, _arg_reference, None, _arg_decompose,
           attrs={"axis": REQUIRED}, traits=frozenset({"composite"}),
           doc=f"{_kind} of x along `axis`: the first index; NaN counts as the extreme.")
    )  # fmt: skip


def _arg(cx: Capture, op: str, x: Value, dim: int | None, keepdim: bool) -> Value:
    if dim is None:
        flat = cx.b.reshape(x, (product(x.shape),))
        return cx.b.reshape(cx.emit(op, flat, axis=0), cx.result[0].shape)
    if x.rank == 0:
        return cx.b.scalar(0, t.i64)
    found = cx.emit(op, x, axis=normalize_axis(dim, x.rank))
    return cx.b.reshape(found, cx.result[0].shape)


@captures("aten.argmax.default")
def _argmax(cx: Capture, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _arg(cx, "argmax", x, dim, keepdim)


@captures("aten.argmin.default")
def _argmin(cx: Capture, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _arg(cx, "argmin", x, dim, keepdim)


def _cumsum_infer(c: Call) -> TensorType:
    (x,) = c.types
    c.require(0 <= c.axis < x.rank, f"axis {c.axis} does not fit rank {x.rank}")
    c.require(x.dtype.kind in "fiu", f"dtype {x.dtype} is not accepted")
    return x.with_layout(None)


def _cumsum_compute(c: Call) -> Compute:
    """Element i sums the elements up to i: quadratic, so meant for short dimensions."""
    (x,) = c.types
    space = e.axes(*x.shape)
    over = e.Axis("k", x.shape[c.axis])
    where = [e.index(over) if d == c.axis else e.index(a) for d, a in enumerate(space)]
    before = e.index(over) <= e.index(space[c.axis])
    return Compute(space, e.reduce("sum", [over], e.guard(before, load(0, x, where), 0)))


def _cumsum_reference(c: Call, x: Any) -> Any:
    wide = widen(x)
    return np.cumsum(wide, axis=c.axis, dtype=wide.dtype).astype(x.dtype)


register(
    Op("cumsum", ("x",), _cumsum_infer, _cumsum_reference, _cumsum_compute,
       attrs={"axis": REQUIRED}, traits=frozenset({"scan"}), precision="sum",
       doc="Running sums of x along `axis`.")
)  # fmt: skip

# Running sums longer than this stay with torch: the compute definition is quadratic.
LONGEST_SCAN = 1024


@captures("aten.cumsum.default")
def _cumsum(cx: Capture, x: Value, dim: int, **_: Any) -> Value:
    axis = normalize_axis(dim, x.rank)
    if x.rank == 0:
        return cx.b.cast(x, cx.dtype)
    length = x.shape[axis]
    if not isinstance(length, int) or length > LONGEST_SCAN:
        raise NotImplementedError("a long running sum")
    return cx.emit("cumsum", cx.b.cast(x, cx.dtype), axis=axis)
