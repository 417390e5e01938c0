"""Recurrent composites: one direction of one LSTM layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.ir.builder import Builder, Capture, Value
from plait.ir.dims import equal
from plait.ir.op import Call, Op, captures, register
from plait.ir.types import TensorType


def _infer(c: Call) -> tuple[TensorType, TensorType, TensorType]:
    gates, h, cell, w = c.types
    c.require(gates.rank == 3, f"gates have rank {gates.rank}, expected [T, B, 4H]")
    c.require(h.rank == 2, f"the state has rank {h.rank}, expected [B, H]")
    c.require(all(ty.dtype == h.dtype for ty in c.types), "operands differ in dtype")
    c.require(h.dtype.is_float, f"dtype {h.dtype} is not a float")
    c.require(not equal(gates.shape[0], 0), "a sequence needs a step")
    c.require(equal(gates.shape[1], h.shape[0]), "gates and state differ in batch")
    c.require(equal(gates.shape[2], 4 * h.shape[1]), "gates and state differ in width")
    c.require(w.shape == (4 * h.shape[1], h.shape[1]), f"recurrent weights have shape {w.shape}")
    c.require(h.shape == cell.shape, "hidden and cell state differ in shape")
    state = TensorType(h.dtype, h.shape)
    return TensorType(h.dtype, (gates.shape[0], *h.shape)), state, state


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _reference(c: Call, gates: Any, h: Any, cell: Any, w: Any) -> Any:
    wide_h, wide_c, wide_w = (x.astype(np.float64) for x in (h, cell, w))
    steps = range(gates.shape[0])
    out = np.zeros((gates.shape[0], *h.shape), np.float64)
    with np.errstate(over="ignore"):
        for step in reversed(steps) if c.reverse else steps:
            i, f, g, o = np.split(gates[step] + wide_h @ wide_w.T, 4, axis=-1)
            wide_c = _sigmoid(f) * wide_c + _sigmoid(i) * np.tanh(g)
            wide_h = _sigmoid(o) * np.tanh(wide_c)
            out[step] = wide_h
    return tuple(x.astype(h.dtype) for x in (out, wide_h, wide_c))


def _decompose(b: Builder, c: Call, gates: Value, h: Value, cell: Value, w: Value
               ) -> tuple[Value, ...]:  # fmt: skip
    """Unrolled over time."""
    (steps, batch, wide) = gates.type.static("lstm")
    hidden = wide // 4
    outs: list[Value] = []
    for step in reversed(range(steps)) if c.reverse else range(steps):
        row = b.emit("slice", gates, start=(step, 0, 0), step=(1, 1, 1), size=(1, batch, wide))
        mixed = b.reshape(row, (batch, wide)) + b.emit(
            "dot_general", h, w, lhs_contract=(1,), rhs_contract=(1,)
        )
        i, f, g, o = (
            b.emit("slice", mixed, start=(0, n * hidden), step=(1, 1), size=(batch, hidden))
            for n in range(4)
        )
        keep = b.emit("sigmoid", f) * cell
        cell = keep + b.emit("sigmoid", i) * b.emit("tanh", g)
        h = b.emit("sigmoid", o) * b.emit("tanh", cell)
        outs.append(b.reshape(h, (1, batch, hidden)))
    if c.reverse:
        outs.reverse()
    stacked = outs[0] if len(outs) == 1 else b.emit("concat", *outs, axis=0)
    return stacked, h, cell


register(
    Op("lstm", ("gates", "h", "c", "w"), _infer, _reference, None, _decompose,
       attrs={"reverse": False}, traits=frozenset({"composite"}), precision="approx",
       doc="One direction of an LSTM layer. gates[T, B, 4H] holds the input's share of the gates "
       "i, f, g, o with all biases; h, c[B, H] the state; w[4H, H] the recurrent weights. Gives "
       "outputs[T, B, H] and the last h and c; `reverse` runs from the last step. Hochreiter and "
       "Schmidhuber 1997.")
)  # fmt: skip


@captures("aten.lstm.input")
def _lstm(cx: Capture, x: Value, state: Sequence[Value], params: Sequence[Value], has_biases: bool,
          layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool
          ) -> tuple[Value, Value, Value]:  # fmt: skip
    """Each layer: one product for the input's share of all steps, then the recurrence."""
    directions = 2 if bidirectional else 1
    width = 4 if has_biases else 2
    if (train and dropout) or len(params) != layers * directions * width:
        raise NotImplementedError("lstm with dropout or projections")
    if any(n == 0 for n in x.type.static("lstm")):
        raise NotImplementedError("lstm on an empty tensor")
    b = cx.b
    data = b.transpose(x, (1, 0, 2)) if batch_first else x
    hs, cs = [], []
    for layer in range(layers):
        outs = []
        for d in range(directions):
            at = layer * directions + d
            weights = params[at * width : (at + 1) * width]
            gates = cx.emit("dot_general", data, weights[0], lhs_contract=(2,), rhs_contract=(1,))
            if has_biases:
                gates = gates + (weights[2] + weights[3])
            h, c = (_row(cx, s, at) for s in state)
            out, h, c = b.emit_all("lstm", (gates, h, c, weights[1]), {"reverse": d == 1})
            outs.append(out)
            hs.append(h)
            cs.append(c)
        data = outs[0] if directions == 1 else cx.emit("concat", *outs, axis=2)
    result = b.transpose(data, (1, 0, 2)) if batch_first else data
    return result, _stack(cx, hs), _stack(cx, cs)


def _row(cx: Capture, state: Value, at: int) -> Value:
    _, batch, hidden = state.shape
    picked = cx.emit("slice", state, start=(at, 0, 0), step=(1, 1, 1), size=(1, batch, hidden))
    return cx.b.reshape(picked, (batch, hidden))


def _stack(cx: Capture, rows: list[Value]) -> Value:
    wide = [cx.b.reshape(r, (1, *r.shape)) for r in rows]
    return wide[0] if len(wide) == 1 else cx.emit("concat", *wide, axis=0)
