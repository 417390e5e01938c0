"""Movement: ops whose elements are elements of their operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.builder import Capture, Value
from plait.ir.dims import Dim, equal, product
from plait.ir.expr import Compute, Expr
from plait.ir.op import REQUIRED, Call, Op, captures, register
from plait.ir.ops.shapes import all_of, broadcast_load, load, normalize_axis, pad_or_crop
from plait.ir.types import TensorType

_MOVEMENT = frozenset({"movement"})


def _flat(index: Sequence[Expr], shape: Sequence[Dim]) -> Expr:
    """Row-major position of an index."""
    position: Expr = e.lit(0, t.i64)
    for i, n in zip(index, shape, strict=True):
        position = position * e.size(n) + i
    return position


def _unflat(position: Expr, shape: Sequence[Dim]) -> list[Expr]:
    """Index of a row-major position."""
    where: list[Expr] = []
    for n in reversed(shape):
        where.append(position % e.size(n))
        position = position // e.size(n)
    return where[::-1]


def _reshape_infer(c: Call) -> TensorType:
    (x,) = c.types
    c.require(equal(product(c.shape), x.size), f"cannot view {x.shape} as {c.shape}")
    return TensorType(x.dtype, c.shape)


def reshape_groups(old: Sequence[Dim], new: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions of `old` and `new` with equal sizes, in order."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [], []
        if i < len(old):
            left, i = [i], i + 1
        if j < len(new):
            right, j = [j], j + 1
        while not equal(product(old[k] for k in left), product(new[k] for k in right)):
            a, b = product(old[k] for k in left), product(new[k] for k in right)
            grow_left = isinstance(a, int) and isinstance(b, int) and a < b and i < len(old)
            if grow_left or (j >= len(new) and i < len(old)):
                left, i = [*left, i], i + 1
            elif j < len(new):
                right, j = [*right, j], j + 1
            else:
                left, i = [*left, *range(i, len(old))], len(old)
                break
        groups.append((left, right))
    return groups


def _reshape_compute(c: Call) -> Compute:
    """Index arithmetic per group of dimensions, so that untouched ones stay plain."""
    (x,) = c.types
    space = e.axes(*c.shape)
    at = [e.index(a) for a in space]
    where: list[Expr] = []
    for left, right in reshape_groups(x.shape, c.shape):
        if len(left) == 1 and len(right) == 1:
            where.append(at[right[0]])
        else:
            flat = _flat([at[k] for k in right], [c.shape[k] for k in right])
            where += _unflat(flat, [x.shape[k] for k in left])
    return Compute(space, load(0, x, where))


register(
    Op("reshape", ("x",), _reshape_infer, lambda c, x: x.reshape(c.shape),
       _reshape_compute, attrs={"shape": REQUIRED}, traits=_MOVEMENT,
       doc="x with another shape; row-major order of the logical elements is kept.")
)  # fmt: skip


def _transpose_infer(c: Call) -> TensorType:
    (x,) = c.types
    c.require(sorted(c.perm) == list(range(x.rank)), f"{c.perm} does not permute {x.rank} dims")
    return TensorType(x.dtype, tuple(x.shape[p] for p in c.perm))


def _transpose_compute(c: Call) -> Compute:
    space = e.axes(*_transpose_infer(c).shape)
    where: list[Expr] = [e.index(space[c.perm.index(d)]) for d in range(c.types[0].rank)]
    return Compute(space, load(0, c.types[0], where))


register(
    Op("transpose", ("x",), _transpose_infer, lambda c, x: np.transpose(x, c.perm),
       _transpose_compute, attrs={"perm": REQUIRED}, traits=_MOVEMENT,
       doc="Dimension d of the result is dimension perm[d] of x.")
)  # fmt: skip


def _broadcast_infer(c: Call) -> TensorType:
    (x,) = c.types
    tail = c.shape[len(c.shape) - x.rank :]
    fits = len(c.shape) >= x.rank and all(
        equal(a, 1) or equal(a, b) for a, b in zip(x.shape, tail, strict=True)
    )
    c.require(fits, f"cannot broadcast {x.shape} to {c.shape}")
    return TensorType(x.dtype, c.shape)


def _broadcast_compute(c: Call) -> Compute:
    space = e.axes(*c.shape)
    return Compute(space, broadcast_load(0, c.types[0], [e.index(a) for a in space]))


register(
    Op("broadcast_to", ("x",), _broadcast_infer, lambda c, x: np.broadcast_to(x, c.shape),
       _broadcast_compute, attrs={"shape": REQUIRED}, traits=_MOVEMENT,
       doc="x repeated along size-1 and new leading dimensions.")
)  # fmt: skip


def _slice_infer(c: Call) -> TensorType:
    (x,) = c.types
    c.require(len(c.start) == len(c.step) == len(c.size) == x.rank, f"needs {x.rank} triples")
    for s, p, n, full in zip(c.start, c.step, c.size, x.shape, strict=True):
        c.require(p >= 1, f"step {p} is not positive")
        c.require(s >= 0, f"start {s} is negative")
        free = not isinstance(full, int) or not isinstance(n, int) or n == 0
        c.require(
            free or s + (n - 1) * p < full,
            f"start {s}, step {p}, size {n} leave a dimension of {full}",
        )
    return TensorType(x.dtype, c.size)


def _slice_compute(c: Call) -> Compute:
    space = e.axes(*c.size)
    where = [e.index(a) * p + s for a, s, p in zip(space, c.start, c.step, strict=True)]
    return Compute(space, load(0, c.types[0], where))


def _slice_reference(c: Call, x: Any) -> Any:
    spans = zip(c.start, c.step, c.size, strict=True)
    return x[tuple(slice(s, s + (n - 1) * p + 1 if n else s, p) for s, p, n in spans)]


register(
    Op("slice", ("x",), _slice_infer, _slice_reference, _slice_compute,
       attrs={"start": REQUIRED, "step": REQUIRED, "size": REQUIRED}, traits=_MOVEMENT,
       doc="Element i of the result is x[start + i * step] in every dimension.")
)  # fmt: skip


def slice_axis(cx: Capture, x: Value, axis: int, start: Any, size: Dim, step: int = 1) -> Value:
    """Slice one dimension."""
    starts, steps, sizes = [0] * x.rank, [1] * x.rank, list(x.shape)
    starts[axis], steps[axis], sizes[axis] = start, step, size
    return cx.emit("slice", x, start=starts, step=steps, size=sizes)


def _pad_infer(c: Call) -> TensorType:
    x = c.types[0]
    c.require(len(c.low) == len(c.high) == x.rank, f"needs {x.rank} pairs")
    c.require(x.dtype == c.types[1].dtype, "the value's dtype differs from x's")
    c.require(c.types[1].rank == 0, "the value must be a scalar")
    return TensorType(
        x.dtype, tuple(n + lo + hi for n, lo, hi in zip(x.shape, c.low, c.high, strict=True))
    )


def _pad_compute(c: Call) -> Compute:
    x = c.types[0]
    space = e.axes(*_pad_infer(c).shape)
    where: list[Expr] = []
    tests: list[Expr] = []
    for a, lo, hi, n in zip(space, c.low, c.high, x.shape, strict=True):
        i = e.index(a) - lo if lo else e.index(a)
        where.append(i)
        tests += ([i >= 0] if lo > 0 else []) + ([i < e.size(n)] if hi > 0 else [])
    inside = all_of(tests)
    element = load(0, x, where)
    value = load(1, c.types[1], ())
    return Compute(space, element if inside is None else e.guard(inside, element, value))


register(
    Op("pad", ("x", "value"), _pad_infer, lambda c, x, v: pad_or_crop(x, c.low, c.high, v),
       _pad_compute,
       attrs={"low": REQUIRED, "high": REQUIRED}, traits=_MOVEMENT,
       doc="x with `low` elements of `value` before and `high` after; negative amounts crop.")
)  # fmt: skip


def _concat_infer(c: Call) -> TensorType:
    first = c.types[0]
    c.require(0 <= c.axis < first.rank, f"axis {c.axis} does not fit rank {first.rank}")
    total: Dim = 0
    for ty in c.types:
        c.require(ty.rank == first.rank and ty.dtype == first.dtype, "operands differ in kind")
        c.require(
            all(equal(a, b) for d, (a, b) in enumerate(zip(ty.shape, first.shape, strict=True))
                if d != c.axis),
            f"shapes {ty.shape} and {first.shape} differ beside dimension {c.axis}",
        )  # fmt: skip
        total = total + ty.shape[c.axis]
    return TensorType(first.dtype, (*first.shape[: c.axis], total, *first.shape[c.axis + 1 :]))


def _concat_compute(c: Call) -> Compute:
    space = e.axes(*_concat_infer(c).shape)
    at = [e.index(a) for a in space]
    ends: list[Dim] = []
    for ty in c.types:
        ends.append((ends[-1] if ends else 0) + ty.shape[c.axis])
    body: Expr | None = None
    for k in reversed(range(len(c.types))):
        begin = ends[k] - c.types[k].shape[c.axis]
        where = [*at]
        if not equal(begin, 0):
            where[c.axis] = at[c.axis] - e.size(begin)
        piece = load(k, c.types[k], where)
        body = piece if body is None else e.guard(at[c.axis] < e.size(ends[k]), piece, body)
    assert body is not None
    return Compute(space, body)


register(
    Op("concat", ("x", "*more"), _concat_infer, lambda c, *xs: np.concatenate(xs, axis=c.axis),
       _concat_compute, attrs={"axis": REQUIRED}, traits=_MOVEMENT,
       doc="Operands one after another along `axis`.")
)  # fmt: skip


def _reverse_infer(c: Call) -> TensorType:
    (x,) = c.types
    c.require(all(0 <= a < x.rank for a in c.axes), f"axes {c.axes} do not fit rank {x.rank}")
    return x.with_layout(None)


def _reverse_compute(c: Call) -> Compute:
    (x,) = c.types
    space = e.axes(*x.shape)
    where = [
        e.size(n - 1) - e.index(a) if d in c.axes else e.index(a)
        for d, (a, n) in enumerate(zip(space, x.shape, strict=True))
    ]
    return Compute(space, load(0, x, where))


register(
    Op("reverse", ("x",), _reverse_infer,
       lambda c, x: np.flip(x, c.axes), _reverse_compute,
       attrs={"axes": REQUIRED}, traits=_MOVEMENT, doc="x backwards along `axes`.")
)  # fmt: skip


@captures("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default",
          "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.unsqueeze.default",
          "aten.flatten.using_ints", "aten._reshape_copy.default", "aten.view_copy.default",
          "aten.unflatten.int")  # fmt: skip
def _view(cx: Capture, x: Value, *_: Any, **__: Any) -> Value:
    return cx.b.reshape(x, cx.result[0].shape)


@captures("aten.permute.default")
def _permute(cx: Capture, x: Value, dims: Sequence[int]) -> Value:
    return cx.b.transpose(x, [normalize_axis(d, x.rank) for d in dims])


@captures("aten.transpose.int")
def _transpose(cx: Capture, x: Value, a: int, b: int) -> Value:
    perm = list(range(x.rank))
    if x.rank:
        i, j = normalize_axis(a, x.rank), normalize_axis(b, x.rank)
        perm[i], perm[j] = perm[j], perm[i]
    return cx.b.transpose(x, perm)


@captures("aten.t.default", "aten.numpy_T.default")
def _t(cx: Capture, x: Value) -> Value:
    return cx.b.transpose(x, tuple(range(x.rank))[::-1])


@captures("aten.expand.default", "aten.broadcast_to.default", "aten.expand_as.default")
def _expand(cx: Capture, x: Value, *_: Any, **__: Any) -> Value:
    shape = cx.result[0].shape
    return x if shape == x.shape else cx.emit("broadcast_to", x, shape=shape)


@captures("aten.slice.Tensor", "aten.narrow.default")
def _slice(cx: Capture, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
           ) -> Value:  # fmt: skip
    axis = normalize_axis(dim, x.rank)
    full = x.shape[axis]
    begin = 0 if start is None else start
    if isinstance(begin, int) and begin < 0:
        begin = begin + full
    if isinstance(begin, int) and isinstance(full, int):
        begin = min(max(begin, 0), full)
    if not isinstance(begin, int):
        raise NotImplementedError("slice from a symbolic start")
    size = cx.result[0].shape[axis]
    return x if size == full and step == 1 else slice_axis(cx, x, axis, begin, size, step)


@captures("aten.select.int")
def _select_int(cx: Capture, x: Value, dim: int, index: int) -> Value:
    axis = normalize_axis(dim, x.rank)
    start = index + x.shape[axis] if index < 0 else index
    if not isinstance(start, int):
        raise NotImplementedError("select counted from a symbolic end")
    return cx.b.reshape(slice_axis(cx, x, axis, start, 1), cx.result[0].shape)


@captures("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default",
          "aten.unbind.int")  # fmt: skip
def _split(cx: Capture, x: Value, *args: Any, **_: Any) -> tuple[Value, ...]:
    """Pieces along a dimension, with the sizes torch gives the results."""
    unbind = len(cx.result) > 0 and cx.result[0].rank < x.rank
    dim = (args[0] if args else 0) if unbind else (args[1] if len(args) > 1 else 0)
    axis, at, pieces = normalize_axis(dim, x.rank), 0, []
    for ty in cx.result:
        size: Dim = 1 if unbind else ty.shape[axis]
        if not isinstance(size, int):
            raise NotImplementedError("split into symbolic sizes")
        pieces.append(cx.b.reshape(slice_axis(cx, x, axis, at, size), ty.shape))
        at += size
    return tuple(pieces)


@captures("aten.cat.default", "aten.concat.default")
def _cat(cx: Capture, tensors: Sequence[Value], dim: int = 0) -> Value:
    rank = cx.result[0].rank
    kept = [v for v in tensors if not (v.rank == 1 and equal(v.shape[0], 0) and rank != 1)]
    cast = [cx.b.cast(v, cx.dtype) for v in kept]
    if len(cast) == 1:
        return cast[0]
    return cx.emit("concat", *cast, axis=normalize_axis(dim, rank))


@captures("aten.stack.default")
def _stack(cx: Capture, tensors: Sequence[Value], dim: int = 0) -> Value:
    axis = normalize_axis(dim, cx.result[0].rank)
    parts = [cx.b.cast(v, cx.dtype) for v in tensors]
    wide = [cx.b.reshape(v, (*v.shape[:axis], 1, *v.shape[axis:])) for v in parts]
    return wide[0] if len(wide) == 1 else cx.emit("concat", *wide, axis=axis)


@captures("aten.constant_pad_nd.default")
def _constant_pad(cx: Capture, x: Value, pad: Sequence[int], value: Any = 0) -> Value:
    low, high = [0] * x.rank, [0] * x.rank
    for k in range(len(pad) // 2):
        low[x.rank - 1 - k], high[x.rank - 1 - k] = pad[2 * k], pad[2 * k + 1]
    return cx.emit("pad", x, cx.b.scalar(value, x.dtype), low=low, high=high)


@captures("aten.flip.default")
def _flip(cx: Capture, x: Value, dims: Sequence[int]) -> Value:
    return cx.emit("reverse", x, axes=sorted({normalize_axis(d, x.rank) for d in dims}))


@captures("aten.repeat.default")
def _repeat(cx: Capture, x: Value, repeats: Sequence[int]) -> Value:
    """Tile: broadcast over a new dimension before each, then merge."""
    lead = [1] * (len(repeats) - x.rank)
    shape = [*lead, *x.shape]
    split = [n for d in shape for n in (1, d)]
    wide = [n for r, d in zip(repeats, shape, strict=True) for n in (r, d)]
    spread = cx.emit("broadcast_to", cx.b.reshape(x, split), shape=tuple(wide))
    return cx.b.reshape(spread, cx.result[0].shape)


__all__ = ["reshape_groups", "slice_axis"]
