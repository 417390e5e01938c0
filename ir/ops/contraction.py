"""Contractions: generalised matrix product and N-d convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.ir import expr as e
from plait.ir.builder import Builder, Capture, Value
from plait.ir.dims import Dim, equal
from plait.ir.expr import Compute, Expr
from plait.ir.op import REQUIRED, Call, Op, captures, register
from plait.ir.ops.shapes import all_of, load, pad_or_crop, widen
from plait.ir.types import TensorType


def free_dims(rank: int, batch: Sequence[int], contract: Sequence[int]) -> list[int]:
    """Dimensions of an operand that are neither batch nor contracted."""
    return [d for d in range(rank) if d not in batch and d not in contract]


def _dot_infer(c: Call) -> TensorType:
    lhs, rhs = c.types
    c.require(lhs.dtype == rhs.dtype, f"operands have dtypes {lhs.dtype} and {rhs.dtype}")
    for name in ("batch", "contract"):
        left, right = c.attrs[f"lhs_{name}"], c.attrs[f"rhs_{name}"]
        c.require(len(left) == len(right), f"{name} dimensions {left} and {right} differ in number")
        fits = all(0 <= a < lhs.rank for a in left) and all(0 <= a < rhs.rank for a in right)
        c.require(fits, f"{name} dimensions {left} and {right} do not fit {lhs} and {rhs}")
        for a, b in zip(left, right, strict=True):
            c.require(
                equal(lhs.shape[a], rhs.shape[b]),
                f"{name} dimension {a} of lhs has size {lhs.shape[a]}, "
                f"dimension {b} of rhs {rhs.shape[b]}",
            )
    for used in ((*c.lhs_batch, *c.lhs_contract), (*c.rhs_batch, *c.rhs_contract)):
        c.require(len(set(used)) == len(used), f"dimensions {used} occur twice")
    shape = [lhs.shape[d] for d in c.lhs_batch]
    shape += [lhs.shape[d] for d in free_dims(lhs.rank, c.lhs_batch, c.lhs_contract)]
    shape += [rhs.shape[d] for d in free_dims(rhs.rank, c.rhs_batch, c.rhs_contract)]
    return TensorType(lhs.dtype, tuple(shape))


def _dot_compute(c: Call) -> Compute:
    lhs, rhs = c.types
    space = e.axes(*_dot_infer(c).shape)
    at = iter([e.index(a) for a in space])
    over = [e.Axis(f"k{n}", lhs.shape[d]) for n, d in enumerate(c.lhs_contract)]
    left: dict[int, Expr] = dict(zip(c.lhs_contract, map(e.index, over), strict=True))
    right: dict[int, Expr] = dict(zip(c.rhs_contract, map(e.index, over), strict=True))
    for a, b in zip(c.lhs_batch, c.rhs_batch, strict=True):
        left[a] = right[b] = next(at)
    for d in free_dims(lhs.rank, c.lhs_batch, c.lhs_contract):
        left[d] = next(at)
    for d in free_dims(rhs.rank, c.rhs_batch, c.rhs_contract):
        right[d] = next(at)
    a = load(0, lhs, [left[d] for d in range(lhs.rank)])
    b = load(1, rhs, [right[d] for d in range(rhs.rank)])
    return Compute(space, e.reduce("sum", over, a * b))


def _dot_reference(c: Call, lhs: Any, rhs: Any) -> Any:
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left: dict[int, str] = {}
    right: dict[int, str] = {}
    for name in ("batch", "contract"):
        for a, b in zip(c.attrs[f"lhs_{name}"], c.attrs[f"rhs_{name}"], strict=True):
            left[a] = right[b] = next(letters)
    out = [left[d] for d in c.lhs_batch]
    for rank, names, dims in ((lhs.ndim, left, c.lhs_contract), (rhs.ndim, right, c.rhs_contract)):
        batch = c.lhs_batch if names is left else c.rhs_batch
        for d in free_dims(rank, batch, dims):
            names[d] = next(letters)
            out.append(names[d])
    spec = "".join(left[d] for d in range(lhs.ndim)) + ","
    spec += "".join(right[d] for d in range(rhs.ndim)) + "->" + "".join(out)
    return np.einsum(spec, widen(lhs), widen(rhs), optimize=True).astype(lhs.dtype)


register(
    Op("dot_general", ("lhs", "rhs"), _dot_infer, _dot_reference, _dot_compute,
       attrs={"lhs_batch": (), "rhs_batch": (), "lhs_contract": REQUIRED, "rhs_contract": REQUIRED},
       traits=frozenset({"contraction"}), precision="sum",
       doc="Sum of products over the contracted dimensions; the result has the batch dimensions, "
       "then lhs's free ones, then rhs's.")
)  # fmt: skip


def matmul(b: Builder, lhs: Value, rhs: Value) -> Value:
    """Matrices in the last two dimensions, all others equal batch dimensions."""
    batch = tuple(range(lhs.rank - 2))
    return b.emit("dot_general", lhs, rhs, lhs_batch=batch, rhs_batch=batch,
                  lhs_contract=(lhs.rank - 1,), rhs_contract=(rhs.rank - 2,))  # fmt: skip


@captures("aten.mm.default", "aten.bmm.default")
def _matmul(cx: Capture, a: Value, b: Value) -> Value:
    return matmul(cx.b, a, b)


@captures("aten.mv.default", "aten.dot.default")
def _mv(cx: Capture, a: Value, b: Value) -> Value:
    return cx.emit("dot_general", a, b, lhs_contract=(a.rank - 1,), rhs_contract=(0,))


def _scaled(value: Value, factor: Any) -> Value:
    return value if factor == 1 else value * factor


@captures("aten.addmm.default", "aten.baddbmm.default")
def _addmm(cx: Capture, bias: Value, a: Value, b: Value, *, beta: Any = 1, alpha: Any = 1) -> Value:
    product = _scaled(matmul(cx.b, a, b), alpha)
    return product if beta == 0 else product + _scaled(bias, beta)


@captures("aten.linear.default")
def _linear(cx: Capture, x: Value, w: Value, bias: Value | None = None) -> Value:
    """x[..., K] @ w[N, K] (or w[K]) + bias."""
    out = cx.emit("dot_general", x, w, lhs_contract=(x.rank - 1,), rhs_contract=(w.rank - 1,))
    return out if bias is None else out + bias


def window_size(n: Dim, low: int, high: int, window: int, stride: int, dilation: int) -> Dim:
    """Positions of a dilated window in a padded dimension of size `n`."""
    span = dilation * (window - 1) + 1
    return (n + (low + high - span)) // stride + 1


def require_window(c: Call, window: Sequence[int]) -> None:
    """Windows, strides and dilations are at least 1."""
    for name, values in (("window", window), ("stride", c.stride), ("dilation", c.dilation)):
        c.require(all(n >= 1 for n in values), f"{name} {tuple(values)} is not positive")


def _conv_infer(c: Call) -> TensorType:
    x, w = c.types
    rank = x.rank - 2
    c.require(x.dtype == w.dtype, f"data and weights have dtypes {x.dtype} and {w.dtype}")
    c.require(rank >= 1 and w.rank == x.rank, f"ranks {x.rank} and {w.rank} do not fit")
    for name in ("stride", "low", "high", "dilation"):
        c.require(len(c.attrs[name]) == rank, f"{name} {c.attrs[name]} needs {rank} entries")
    require_window(c, [n for n in w.shape[2:] if isinstance(n, int)])
    c.require(c.groups >= 1, f"cannot form {c.groups} groups")
    c.require(
        equal(x.shape[1], w.shape[1] * c.groups),
        f"data has {x.shape[1]} channels, weights expect {w.shape[1]} in each of {c.groups} groups",
    )
    features = w.shape[0]
    c.require(not isinstance(features, int) or features % c.groups == 0,
              f"{features} output channels do not divide into {c.groups} groups")  # fmt: skip
    spatial = []
    for d in range(rank):
        window = w.shape[2 + d]
        c.require(isinstance(window, int), "a symbolic window is not supported")
        assert isinstance(window, int)
        spatial.append(window_size(x.shape[2 + d], c.low[d], c.high[d], window, c.stride[d],
                                   c.dilation[d]))  # fmt: skip
    return TensorType(x.dtype, (x.shape[0], w.shape[0], *spatial))


def windowed_index(
    at: Expr, k: Expr, stride: int, dilation: int, low: int, high: int, n: Dim
) -> tuple[Expr, list[Expr]]:
    """Position in the unpadded dimension, and the tests that it lies inside."""
    where = at * stride + k * dilation - low if low else at * stride + k * dilation
    tests = ([where >= 0] if low > 0 else []) + ([where < e.size(n)] if high > 0 else [])
    return where, tests


def _conv_compute(c: Call) -> Compute:
    x, w = c.types
    rank = x.rank - 2
    space = e.axes(*_conv_infer(c).shape)
    at = [e.index(a) for a in space]
    channel = e.Axis("c", w.shape[1])
    over = [e.Axis(f"k{d}", w.shape[2 + d]) for d in range(rank)]
    ic = e.index(channel)
    if c.groups > 1:
        ic = at[1] // e.size(w.shape[0] // c.groups) * e.size(w.shape[1]) + ic
    where: list[Expr] = []
    tests: list[Expr] = []
    for d in range(rank):
        position, inside = windowed_index(at[2 + d], e.index(over[d]), c.stride[d], c.dilation[d],
                                          c.low[d], c.high[d], x.shape[2 + d])  # fmt: skip
        where.append(position)
        tests += inside
    element = load(0, x, [at[0], ic, *where])
    inside_all = all_of(tests)
    if inside_all is not None:
        element = e.guard(inside_all, element, 0)
    weight = load(1, w, [at[1], e.index(channel), *map(e.index, over)])
    return Compute(space, e.reduce("sum", [channel, *over], element * weight))


def window_slices(
    at: Sequence[int], dilation: Sequence[int], stride: Sequence[int], out: Sequence[int]
) -> tuple[slice, ...]:
    """The padded elements that position `at` of a window meets, one for each result."""
    spans = zip(at, dilation, stride, out, strict=True)
    return tuple(slice(k * g, k * g + (n - 1) * s + 1 if n else k * g, s) for k, g, s, n in spans)


def _conv_reference(c: Call, x: Any, w: Any) -> Any:
    """Sum over kernel positions of shifted slices, in float64."""
    padded = pad_or_crop(widen(x), (0, 0, *c.low), (0, 0, *c.high), 0)
    n, oc = x.shape[0], w.shape[0]
    out_shape = _conv_infer(c).static("reference")[2:]
    grouped = padded.reshape(n, c.groups, w.shape[1], *padded.shape[2:])
    weights = widen(w).reshape(c.groups, oc // c.groups, *w.shape[1:])
    out = np.zeros((n, c.groups, oc // c.groups, *out_shape), weights.dtype)
    for k in np.ndindex(*w.shape[2:]):
        cut = window_slices(k, c.dilation, c.stride, out_shape)
        piece = grouped[(slice(None),) * 3 + cut]
        piece = piece.reshape(*piece.shape[:3], int(np.prod(out_shape)))
        tap = weights[(slice(None),) * 3 + k]
        out += np.einsum("ngip,goi->ngop", piece, tap, optimize=True).reshape(out.shape)
    return out.reshape(n, oc, *out_shape).astype(x.dtype)


register(
    Op("conv", ("x", "w"), _conv_infer, _conv_reference, _conv_compute,
       attrs={"stride": REQUIRED, "low": REQUIRED, "high": REQUIRED, "dilation": REQUIRED,
              "groups": 1},
       traits=frozenset({"contraction"}), precision="sum",
       doc="N-d cross-correlation of x[N, C, *D] with w[O, C/groups, *K]; zeros `low` before and "
       "`high` after each spatial dimension.")
)  # fmt: skip


def spread(values: Any, rank: int) -> tuple[int, ...]:
    """One number for all spatial dimensions, or one each."""
    listed = [values] if isinstance(values, int) else list(values)
    return tuple(listed * rank if len(listed) == 1 else listed)


def _emit_conv(cx: Capture, x: Value, w: Value, bias: Value | None, stride: Any,
               low: tuple[int, ...], high: tuple[int, ...], dilation: Any, groups: int
               ) -> Value:  # fmt: skip
    """A convolution of x with or without a batch dimension, and its bias."""
    rank = w.rank - 2
    data = x if x.rank == w.rank else cx.b.reshape(x, (1, *x.shape))
    out = cx.emit("conv", data, w, stride=spread(stride, rank), low=low, high=high,
                  dilation=spread(dilation, rank), groups=groups)  # fmt: skip
    if bias is not None:
        out = out + cx.b.reshape(bias, (*bias.shape, *([1] * rank)))
    return cx.b.reshape(out, cx.result[0].shape)


@captures("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def _conv(cx: Capture, x: Value, w: Value, bias: Value | None = None, stride: Any = 1,
          padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Value:  # fmt: skip
    pads = spread(padding, w.rank - 2)
    return _emit_conv(cx, x, w, bias, stride, pads, pads, dilation, groups)


@captures("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def _conv_same(cx: Capture, x: Value, w: Value, bias: Value | None = None, stride: Any = 1,
               padding: str = "valid", dilation: Any = 1, groups: int = 1) -> Value:  # fmt: skip
    gaps, kernel = spread(dilation, w.rank - 2), w.type.static("conv")[2:]
    total = [g * (k - 1) if padding == "same" else 0 for g, k in zip(gaps, kernel, strict=True)]
    low, high = tuple(p // 2 for p in total), tuple(p - p // 2 for p in total)
    return _emit_conv(cx, x, w, bias, stride, low, high, dilation, groups)


@captures("aten.convolution.default")
def _convolution(cx: Capture, x: Value, w: Value, bias: Value | None, stride: Any, padding: Any,
                 dilation: Any, transposed: bool, output_padding: Any, groups: int
                 ) -> Value:  # fmt: skip
    if transposed:
        raise NotImplementedError("transposed convolution")
    return _conv(cx, x, w, bias, stride, padding, dilation, groups)
