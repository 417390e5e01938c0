"""Pooling over windows of the spatial dimensions of [N, C, *D]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from plait.ir import expr as e
from plait.ir.builder import Capture, Value
from plait.ir.expr import Compute, Expr
from plait.ir.op import REQUIRED, Call, Op, captures, register
from plait.ir.ops.contraction import (
    require_window,
    spread,
    window_size,
    window_slices,
    windowed_index,
)
from plait.ir.ops.reduction import mean
from plait.ir.ops.shapes import all_of, load, pad_or_crop, widen
from plait.ir.types import TensorType


def _infer(c: Call) -> TensorType:
    (x,) = c.types
    rank = x.rank - 2
    c.require(rank >= 1, f"needs [N, C, *D], got rank {x.rank}")
    for name in ("window", "stride", "low", "high", "dilation"):
        c.require(len(c.attrs[name]) == rank, f"{name} {c.attrs[name]} needs {rank} entries")
    require_window(c, c.window)
    spatial = tuple(
        window_size(x.shape[2 + d], c.low[d], c.high[d], c.window[d], c.stride[d], c.dilation[d])
        for d in range(rank)
    )
    return TensorType(x.dtype, (*x.shape[:2], *spatial))


def _windows(c: Call) -> tuple[tuple[e.Axis, ...], list[e.Axis], list[Expr], Expr | None]:
    """Result axes, window axes, the element's spatial index and the test that it is inside."""
    (x,) = c.types
    space = e.axes(*_infer(c).shape)
    over = [e.Axis(f"k{d}", n) for d, n in enumerate(c.window)]
    where: list[Expr] = [e.index(space[0]), e.index(space[1])]
    tests: list[Expr] = []
    for d, axis in enumerate(over):
        position, inside = windowed_index(e.index(space[2 + d]), e.index(axis), c.stride[d],
                                          c.dilation[d], c.low[d], c.high[d],
                                          x.shape[2 + d])  # fmt: skip
        where.append(position)
        tests += inside
    return space, over, where, all_of(tests)


def _compute(c: Call) -> Compute:
    kind = "max" if c.op.name == "max_pool" else "sum"
    space, over, where, inside = _windows(c)
    element = load(0, c.types[0], where)
    if inside is not None:
        element = e.guard(inside, element, e.identity(kind, element.dtype))
    return Compute(space, e.reduce(kind, over, element))


def _reference(c: Call, x: Any) -> Any:
    kind = "max" if c.op.name == "max_pool" else "sum"
    fill = e.identity(kind, c.types[0].dtype)
    padded = pad_or_crop(x, (0, 0, *c.low), (0, 0, *c.high), fill)
    out_shape = _infer(c).static("reference")
    parts = []
    for k in np.ndindex(*c.window):
        cut = window_slices(k, c.dilation, c.stride, out_shape[2:])
        parts.append(padded[(slice(None), slice(None), *cut)])
    stacked = np.stack(parts)
    if kind == "max":
        return stacked.max(axis=0)
    return widen(stacked).sum(axis=0).astype(x.dtype)


for _name, _doc in (
    ("max_pool", "largest element of each window; padding counts as -inf, NaN wins"),
    ("sum_pool", "sum of each window; padding counts as 0"),
):
    register(
        Op(_name, ("x",), _infer, _reference, _compute,
           attrs={"window": REQUIRED, "stride": REQUIRED, "low": REQUIRED, "high": REQUIRED,
                  "dilation": REQUIRED},
           traits=frozenset({"reduction", "window"}),
           precision="exact" if _name == "max_pool" else "sum", doc=f"{_doc}, for x[N, C, *D].")
    )  # fmt: skip


def _high(cx: Capture, x: Value, window: tuple[int, ...], stride: tuple[int, ...],
          low: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:  # fmt: skip
    """Padding after each dimension that gives the size torch gives (ceil_mode included)."""
    sizes = x.type.static("pooling")[2:]
    outs = cx.result[0].static("pooling")[-len(sizes) :]
    return tuple(
        (out - 1) * s + g * (w - 1) + 1 - n - lo
        for out, n, w, s, lo, g in zip(outs, sizes, window, stride, low, dilation, strict=True)
    )


def _batched(cx: Capture, x: Value, rank: int) -> Value:
    return x if x.rank == rank + 2 else cx.b.reshape(x, (1, *x.shape))


def _pool(cx: Capture, op: str, x: Value, rank: int, kernel: Any, stride: Any, padding: Any,
          dilation: Any = 1) -> Value:  # fmt: skip
    data = _batched(cx, x, rank)
    window = spread(kernel, rank)
    steps = spread(stride, rank) if stride not in (None, [], ()) else window
    low, gaps = spread(padding, rank), spread(dilation, rank)
    high = _high(cx, data, window, steps, low, gaps)
    return cx.emit(op, data, window=window, stride=steps, low=low, high=high, dilation=gaps)


def _max_pool(rank: int) -> Callable[..., Value]:
    def run(cx: Capture, x: Value, kernel: Any, stride: Any = None, padding: Any = 0,
            dilation: Any = 1, ceil_mode: bool = False) -> Value:  # fmt: skip
        out = _pool(cx, "max_pool", x, rank, kernel, stride, padding, dilation)
        return cx.b.reshape(out, cx.result[0].shape)

    return run


def _avg_pool(rank: int) -> Callable[..., Value]:
    def run(cx: Capture, x: Value, kernel: Any, stride: Any = None, padding: Any = 0,
            ceil_mode: bool = False, count_include_pad: bool = True, divisor: Any = None
            ) -> Value:  # fmt: skip
        window = spread(kernel, rank)
        low = spread(padding, rank)
        total = _pool(cx, "sum_pool", x, rank, kernel, stride, padding)
        steps = spread(stride, rank) if stride not in (None, [], ()) else window
        sizes = _batched(cx, x, rank).type.static("pooling")[2:]
        counts = _window_counts(total.type.static("pooling")[2:], sizes, window, steps, low,
                                count_include_pad)  # fmt: skip
        if divisor is not None:
            counts = np.full_like(counts, divisor)
        if counts.size and (counts == counts.flat[0]).all():
            return cx.b.reshape(total / float(counts.flat[0]), cx.result[0].shape)
        scale = cx.b.constant(counts.astype(x.dtype.numpy))
        return cx.b.reshape(total / scale, cx.result[0].shape)

    return run


def _window_counts(outs: Any, sizes: Any, window: Any, stride: Any, low: Any, padded: bool) -> Any:
    """Elements by which torch divides each window's sum."""
    counts: Any = np.ones((1,) * len(outs))
    for d, (out, n) in enumerate(zip(outs, sizes, strict=True)):
        begin = np.arange(out) * stride[d] - low[d]
        end = np.minimum(begin + window[d], n + low[d])
        if not padded:
            begin, end = np.maximum(begin, 0), np.minimum(end, n)
        counts = counts * (end - begin).reshape([-1 if k == d else 1 for k in range(len(outs))])
    return counts


def _adaptive_avg(rank: int) -> Callable[..., Value]:
    def run(cx: Capture, x: Value, output: Any) -> Value:
        data = _batched(cx, x, rank)
        sizes = data.type.static("pooling")[2:]
        outs = cx.result[0].static("pooling")[-rank:]
        if all(n == 1 for n in outs):
            axes = tuple(range(2, 2 + rank))
            return cx.b.reshape(mean(cx.b, data, axes, keepdims=True), cx.result[0].shape)
        if any(o == 0 or n % o for n, o in zip(sizes, outs, strict=True)):
            raise NotImplementedError("adaptive pooling to a size that does not divide")
        window = tuple(n // o for n, o in zip(sizes, outs, strict=True))
        total = cx.emit("sum_pool", data, window=window, stride=window, low=(0,) * rank,
                        high=(0,) * rank, dilation=(1,) * rank)  # fmt: skip
        return cx.b.reshape(total / float(np.prod(window)), cx.result[0].shape)

    return run


for _rank in (1, 2, 3):
    captures(f"aten.max_pool{_rank}d.default")(_max_pool(_rank))
    captures(f"aten.avg_pool{_rank}d.default")(_avg_pool(_rank))
    captures(f"aten.adaptive_avg_pool{_rank}d.default")(_adaptive_avg(_rank))
captures("aten._adaptive_avg_pool2d.default")(_adaptive_avg(2))
