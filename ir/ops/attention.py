"""Scaled dot-product attention, kept whole: mask, causal, scale, grouped heads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from plait.ir import types as t
from plait.ir.builder import Builder, Capture, Value
from plait.ir.dims import Dim, equal
from plait.ir.op import Call, Op, captures, register
from plait.ir.ops.contraction import matmul
from plait.ir.ops.shapes import broadcast
from plait.ir.types import TensorType


def _infer(c: Call) -> TensorType:
    q, k, v = c.types[:3]
    c.require(q.rank == k.rank == v.rank and q.rank >= 3, "q, k, v need equal ranks of 3 or more")
    c.require(q.dtype == k.dtype == v.dtype, "q, k and v differ in dtype")
    c.require(q.dtype.is_float, f"dtype {q.dtype} is not a float")
    c.require(q.shape[:-3] == k.shape[:-3] == v.shape[:-3], "batch dimensions differ")
    c.require(equal(q.shape[-1], k.shape[-1]), "q and k differ in their last dimension")
    c.require(equal(k.shape[-2], v.shape[-2]), "k and v differ in length")
    heads, shared = q.shape[-3], k.shape[-3]
    c.require(equal(shared, v.shape[-3]), "k and v differ in heads")
    divides = equal(heads, shared) or (
        isinstance(heads, int) and isinstance(shared, int) and shared > 0 and heads % shared == 0
    )
    c.require(divides, f"{heads} query heads are no multiple of {shared} key heads")
    if len(c.types) == 4:
        scores = (*q.shape[:-1], k.shape[-2])
        mask = c.types[3]
        c.require(mask.dtype in (t.bool_, q.dtype), f"the mask has dtype {mask.dtype}")
        fits = mask.rank <= q.rank and broadcast("attention", [mask.shape, scores]) == scores
        c.require(fits, f"the mask's shape {mask.shape} does not broadcast to {scores}")
    return TensorType(q.dtype, (*q.shape[:-1], v.shape[-1]))


def _repeat_heads(k: Any, heads: int) -> Any:
    return np.repeat(k, heads // k.shape[-3], axis=-3) if k.shape[-3] != heads else k


def _reference(c: Call, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    wide_q, wide_k, wide_v = (x.astype(np.float64) for x in (q, k, v))
    wide_k, wide_v = _repeat_heads(wide_k, q.shape[-3]), _repeat_heads(wide_v, q.shape[-3])
    scores = wide_q @ np.swapaxes(wide_k, -1, -2) * c.scale
    if c.causal:
        rows, columns = scores.shape[-2:]
        scores = np.where(np.tri(rows, columns, dtype=bool), scores, -np.inf)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    with np.errstate(all="ignore"):
        top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        powers = np.exp(scores - np.where(top == -np.inf, 0, top))
        total = powers.sum(axis=-1, keepdims=True)
        weights = np.where(total == 0, 0, powers / total)
    return (weights @ wide_v).astype(q.dtype)


def _expand_heads(b: Builder, k: Value, heads: Dim) -> Value:
    """Repeat each key head for its group of query heads."""
    *batch, shared, length, width = k.shape
    if equal(shared, heads):
        return k
    assert isinstance(heads, int) and isinstance(shared, int)
    split = b.reshape(k, (*batch, shared, 1, length, width))
    shape = (*batch, shared, heads // shared, length, width)
    return b.reshape(b.emit("broadcast_to", split, shape=shape), (*batch, heads, length, width))


def _decompose(b: Builder, c: Call, q: Value, k: Value, v: Value, mask: Value | None = None
               ) -> Value:  # fmt: skip
    """Rows without any key to look at give zeros, as torch does."""
    k, v = _expand_heads(b, k, q.shape[-3]), _expand_heads(b, v, q.shape[-3])
    swap = (*range(k.rank - 2), k.rank - 1, k.rank - 2)
    scores = matmul(b, q * c.scale, b.transpose(k, swap))
    low = b.scalar(-math.inf, q.dtype)
    if c.causal:
        shape = scores.shape[-2:]
        rows = b.emit("iota", shape=shape, axis=0)
        seen = b.emit("ge", rows, b.emit("iota", shape=shape, axis=1))
        scores = b.emit("select", seen, scores, low)
    if mask is not None:
        boolean = mask.dtype == t.bool_
        scores = b.emit("select", mask, scores, low) if boolean else scores + mask
    axis = (scores.rank - 1,)
    top = b.emit("reduce_max", scores, axes=axis, keepdims=True)
    zero = b.scalar(0, q.dtype)
    safe = b.emit("select", b.emit("eq", top, low), zero, top)
    powers = b.emit("exp", scores - safe)
    total = b.emit("reduce_sum", powers, axes=axis, keepdims=True)
    divisor = b.emit("select", b.emit("eq", total, zero), b.scalar(1, q.dtype), total)
    return matmul(b, powers / divisor, v)


register(
    Op("attention", ("q", "k", "v", "mask?"), _infer, _reference, None, _decompose,
       attrs={"scale": 1.0, "causal": False}, traits=frozenset({"composite"}), precision="approx",
       doc="softmax(scale * q @ k^T + mask) @ v for q[*B, H, M, D], k[*B, G, N, D], v[*B, G, N, E] "
       "with H a multiple of G; a bool mask keeps where true, a float one is added; `causal` lets "
       "row i see keys 0..i. Vaswani et al. 2017; tiles as Dao 2023.")
)  # fmt: skip


@captures("aten.scaled_dot_product_attention.default")
def _sdpa(cx: Capture, q: Value, k: Value, v: Value, mask: Value | None = None,
          dropout: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
          enable_gqa: bool = False) -> Value:  # fmt: skip
    if dropout != 0.0:
        raise NotImplementedError("attention with dropout")
    if q.rank < 3 or any(isinstance(d, int) and d == 0 for d in (*q.shape, *k.shape)):
        raise NotImplementedError("attention on rank 2 or on empty tensors")
    width = q.shape[-1]
    if scale is None and not isinstance(width, int):
        raise NotImplementedError("attention of a symbolic width needs a scale")
    factor = scale if scale is not None else 1.0 / math.sqrt(width)  # type: ignore[arg-type]
    k, v = _same_batch(cx, q, k), _same_batch(cx, q, v)
    operands = [q, k, v] if mask is None else [q, k, v, mask]
    return cx.emit("attention", *operands, scale=factor, causal=is_causal)


def _same_batch(cx: Capture, q: Value, k: Value) -> Value:
    """Broadcast the batch dimensions of k or v to those of q."""
    shape = (*q.shape[:-3], *k.shape[-3:])
    if k.shape[-3] == 1 and q.shape[-3] != 1:
        shape = (*q.shape[:-2], *k.shape[-2:])
    return k if k.shape == shape else cx.emit("broadcast_to", k, shape=shape)
