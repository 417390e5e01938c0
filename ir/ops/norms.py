"""Composites kept whole: softmax and the normalisations, each with its decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.ir.builder import Builder, Capture, Value
from plait.ir.dims import equal
from plait.ir.op import REQUIRED, Call, Op, captures, register
from plait.ir.ops.reduction import mean, reduce, variance
from plait.ir.ops.shapes import normalize_axis
from plait.ir.types import TensorType

_COMPOSITE = frozenset({"composite"})


def _same(c: Call) -> TensorType:
    c.require(c.types[0].dtype.is_float, f"dtype {c.types[0].dtype} is not a float")
    for ty in c.types[1:]:
        c.require(ty.dtype == c.types[0].dtype, f"dtypes {c.types[0].dtype} and {ty.dtype} differ")
    return c.types[0].with_layout(None)


def _softmax_infer(c: Call) -> TensorType:
    c.require(0 <= c.axis < c.types[0].rank, f"axis {c.axis} does not fit rank {c.types[0].rank}")
    return _same(c)


def _softmax_ref(c: Call, x: Any) -> Any:
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        shifted = wide - wide.max(axis=c.axis, keepdims=True, initial=-np.inf)
        total = np.exp(shifted).sum(axis=c.axis, keepdims=True)
        out = shifted - np.log(total) if c.op.name == "log_softmax" else np.exp(shifted) / total
    return out.astype(x.dtype)


def _softmax_decompose(b: Builder, c: Call, x: Value) -> Value:
    shifted = x - reduce(b, "max", x, (c.axis,), keepdims=True)
    powers = b.emit("exp", shifted)
    total = reduce(b, "sum", powers, (c.axis,), keepdims=True)
    if c.op.name == "log_softmax":
        return shifted - b.emit("log", total)
    return powers * (1.0 / total)  # the total is at least 1, and a division for each row is few


for _name, _doc in (
    ("softmax", "exp(x - max) / sum(exp(x - max)) along `axis`"),
    ("log_softmax", "x - max - ln sum(exp(x - max)) along `axis`"),
):
    register(
        Op(_name, ("x",), _softmax_infer, _softmax_ref, None, _softmax_decompose,
           attrs={"axis": REQUIRED}, traits=_COMPOSITE, precision="approx", doc=f"{_doc}.")
    )  # fmt: skip


def _import_softmax(op: str) -> Any:
    def run(cx: Capture, x: Value, dim: int, *_: Any, **__: Any) -> Value:
        if x.rank == 0:
            raise NotImplementedError("softmax of a scalar")
        return cx.emit(op, cx.b.cast(x, cx.dtype), axis=normalize_axis(dim, x.rank))

    return run


captures("aten.softmax.int", "aten._softmax.default")(_import_softmax("softmax"))
captures("aten.log_softmax.int", "aten._log_softmax.default")(_import_softmax("log_softmax"))


def _affine(b: Builder, x: Value, scale: Value | None, shift: Value | None) -> Value:
    out = x if scale is None else x * scale
    return out if shift is None else out + shift


def _normalized(c: Call) -> tuple[int, ...]:
    """The trailing dimensions over which a layer norm's statistics run."""
    return tuple(range(c.types[0].rank - c.dims, c.types[0].rank))


def _layer_norm_infer(c: Call) -> TensorType:
    x = c.types[0]
    c.require(1 <= c.dims <= x.rank, f"cannot normalise {c.dims} dimensions of rank {x.rank}")
    for ty in c.types[1:]:
        fits = ty.rank == c.dims and all(
            equal(a, b) for a, b in zip(ty.shape, x.shape[x.rank - c.dims :], strict=True)
        )
        c.require(fits, f"weights of shape {ty.shape} do not fit the last {c.dims} of {x.shape}")
    return _same(c)


def _layer_norm_ref(c: Call, x: Any, *affine: Any) -> Any:
    wide, axes = x.astype(np.float64), _normalized(c)
    center = wide.mean(axis=axes, keepdims=True)
    out = (wide - center) / np.sqrt(wide.var(axis=axes, keepdims=True) + c.eps)
    return _apply_affine(out, affine).astype(x.dtype)


def _apply_affine(x: Any, affine: Sequence[Any]) -> Any:
    out = x * affine[0] if affine else x
    return out + affine[1] if len(affine) > 1 else out


def _layer_norm_decompose(b: Builder, c: Call, x: Value, *affine: Value) -> Value:
    var, center = variance(b, x, _normalized(c), 0, keepdims=True)
    out = (x - center) * b.emit("rsqrt", var + c.eps)
    return _affine(b, out, *(*affine, None, None)[:2])


register(
    Op("layer_norm", ("x", "scale?", "shift?"), _layer_norm_infer, _layer_norm_ref, None,
       _layer_norm_decompose, attrs={"dims": REQUIRED, "eps": 1e-5}, traits=_COMPOSITE,
       precision="approx",
       doc="(x - mean) / sqrt(var + eps) * scale + shift over the last `dims` dimensions; Ba, "
       "Kiros and Hinton 2016.")
)  # fmt: skip


def _rms_norm_ref(c: Call, x: Any, *affine: Any) -> Any:
    wide = x.astype(np.float64)
    square = (wide * wide).mean(axis=_normalized(c), keepdims=True)
    return _apply_affine(wide / np.sqrt(square + c.eps), affine).astype(x.dtype)


def _rms_norm_decompose(b: Builder, c: Call, x: Value, *affine: Value) -> Value:
    square = mean(b, x * x, _normalized(c), keepdims=True)
    return _affine(b, x * b.emit("rsqrt", square + c.eps), affine[0] if affine else None, None)


register(
    Op("rms_norm", ("x", "scale?"), _layer_norm_infer, _rms_norm_ref, None, _rms_norm_decompose,
       attrs={"dims": REQUIRED, "eps": REQUIRED}, traits=_COMPOSITE, precision="approx",
       doc="x / sqrt(mean(x**2) + eps) * scale over the last `dims` dimensions; Zhang and "
       "Sennrich 2019.")
)  # fmt: skip


def _given(*values: Value | None) -> list[Value]:
    """Optional trailing operands: stops at the first that is missing."""
    found: list[Value] = []
    for v in values:
        if v is None:
            break
        found.append(v)
    return found


@captures("aten.layer_norm.default")
def _layer_norm(cx: Capture, x: Value, shape: Sequence[int], weight: Value | None = None,
                bias: Value | None = None, eps: float = 1e-5, *_: Any) -> Value:  # fmt: skip
    scale = weight
    if weight is None and bias is not None:
        scale = cx.b.full(bias.shape, 1, x.dtype)
    return cx.emit("layer_norm", x, *_given(scale, bias), dims=len(shape), eps=eps)


@captures("aten.rms_norm.default")
def _rms_norm(cx: Capture, x: Value, shape: Sequence[int], weight: Value | None = None,
              eps: float | None = None) -> Value:  # fmt: skip
    smallest = float(np.finfo(x.dtype.numpy).eps) if eps is None else eps
    return cx.emit("rms_norm", x, *_given(weight), dims=len(shape), eps=smallest)


def _channel(b: Builder, value: Value, rank: int) -> Value:
    """A per-channel vector shaped to broadcast over [N, C, *D]."""
    return b.reshape(value, (*value.shape, *([1] * (rank - 2))))


def _wide_channel(value: Any, rank: int) -> Any:
    return value.astype(np.float64).reshape(-1, *([1] * (rank - 2)))


def _batch_norm_infer(c: Call) -> TensorType:
    x = c.types[0]
    c.require(x.rank >= 2, f"needs [N, C, *D], got rank {x.rank}")
    for ty in c.types[1:]:
        c.require(ty.rank == 1 and equal(ty.shape[0], x.shape[1]),
                  f"a vector of shape {ty.shape} does not fit {x.shape[1]} channels")  # fmt: skip
    return _same(c)


def _batch_norm_ref(c: Call, x: Any, mean_: Any, var: Any, *affine: Any) -> Any:
    center, spread = _wide_channel(mean_, x.ndim), _wide_channel(var, x.ndim)
    out = (x.astype(np.float64) - center) / np.sqrt(spread + c.eps)
    return _apply_affine(out, [_wide_channel(a, x.ndim) for a in affine]).astype(x.dtype)


def _batch_norm_decompose(b: Builder, c: Call, x: Value, center: Value, var: Value, *affine: Value
                          ) -> Value:  # fmt: skip
    """One multiplication and one addition per element; the vectors fold when constant."""
    scale = b.emit("rsqrt", var + c.eps)
    if affine:
        scale = scale * affine[0]
    shift = -(center * scale)
    if len(affine) > 1:
        shift = shift + affine[1]
    return x * _channel(b, scale, x.rank) + _channel(b, shift, x.rank)


register(
    Op("batch_norm", ("x", "mean", "var", "scale?", "shift?"), _batch_norm_infer, _batch_norm_ref,
       None, _batch_norm_decompose, attrs={"eps": REQUIRED}, traits=_COMPOSITE,
       precision="approx",
       doc="(x - mean) / sqrt(var + eps) * scale + shift per channel with given statistics; "
       "Ioffe and Szegedy 2015.")
)  # fmt: skip


@captures("aten._native_batch_norm_legit_no_training.default")
def _batch_norm(cx: Capture, x: Value, weight: Value | None, bias: Value | None, center: Value,
                var: Value, momentum: float, eps: float) -> tuple[Value, Value, Value]:  # fmt: skip
    scale = weight
    if weight is None and bias is not None:
        scale = cx.b.full(bias.shape, 1, x.dtype)
    out = cx.emit("batch_norm", x, center, var, *_given(scale, bias), eps=eps)
    empty = cx.b.constant(np.zeros((0,), x.dtype.numpy))
    return out, empty, empty


def _group_norm_infer(c: Call) -> TensorType:
    c.require(c.types[0].rank >= 2, f"needs [N, C, *D], got rank {c.types[0].rank}")
    c.require(c.groups >= 1, f"cannot form {c.groups} groups")
    channels = c.types[0].shape[1]
    c.require(not isinstance(channels, int) or channels % c.groups == 0,
              f"{channels} channels do not divide into {c.groups} groups")  # fmt: skip
    return _batch_norm_infer(c)


def _group_norm_ref(c: Call, x: Any, *affine: Any) -> Any:
    grouped = x.astype(np.float64).reshape(x.shape[0], c.groups, -1)
    center = grouped.mean(axis=2, keepdims=True)
    out = (grouped - center) / np.sqrt(grouped.var(axis=2, keepdims=True) + c.eps)
    wide = [_wide_channel(a, x.ndim) for a in affine]
    return _apply_affine(out.reshape(x.shape), wide).astype(x.dtype)


def _group_norm_decompose(b: Builder, c: Call, x: Value, *affine: Value) -> Value:
    n, channels, *spatial = x.shape
    grouped = b.reshape(x, (n, c.groups, channels // c.groups, *spatial))
    var, center = variance(b, grouped, tuple(range(2, grouped.rank)), 0, keepdims=True)
    out = b.reshape((grouped - center) * b.emit("rsqrt", var + c.eps), x.shape)
    shaped = [_channel(b, a, x.rank) for a in affine]
    return _affine(b, out, *(*shaped, None, None)[:2])


register(
    Op("group_norm", ("x", "scale?", "shift?"), _group_norm_infer, _group_norm_ref, None,
       _group_norm_decompose, attrs={"groups": REQUIRED, "eps": 1e-5}, traits=_COMPOSITE,
       precision="approx",
       doc="Layer norm over the channels of each group and all spatial dimensions, then a "
       "per-channel scale and shift; Wu and He 2018.")
)  # fmt: skip


@captures("aten.group_norm.default")
def _group_norm(cx: Capture, x: Value, groups: int, weight: Value | None = None,
                bias: Value | None = None, eps: float = 1e-5, *_: Any) -> Value:  # fmt: skip
    scale = weight
    if weight is None and bias is not None:
        scale = cx.b.full(bias.shape, 1, x.dtype)
    return cx.emit("group_norm", x, *_given(scale, bias), groups=groups, eps=eps)
