"""Recurrent composites: one direction of one layer of an LSTM, a GRU or a plain recurrence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np

from plait.ir.builder import Builder, Capture, Value
from plait.ir.dims import equal
from plait.ir.op import Call, Op, captures, register
from plait.ir.types import TensorType

RECURRENT: Final = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _check(c: Call, count: int, w: TensorType) -> TensorType:
    """Refuse what is not a layer with `count` gates and weights `w`; gives the type of a state."""
    gates, h = c.types[:2]
    c.require(gates.rank == 3, f"gates have rank {gates.rank}, expected [T, B, {count}H]")
    c.require(h.rank == 2, f"the state has rank {h.rank}, expected [B, H]")
    c.require(all(ty.dtype == h.dtype for ty in c.types), "operands differ in dtype")
    c.require(h.dtype.is_float, f"dtype {h.dtype} is not a float")
    c.require(not equal(gates.shape[0], 0), "a sequence needs a step")
    c.require(equal(gates.shape[1], h.shape[0]), "gates and state differ in batch")
    c.require(equal(gates.shape[2], count * h.shape[1]), "gates and state differ in width")
    square = (count * h.shape[1], h.shape[1])
    c.require(w.shape == square, f"recurrent weights have shape {w.shape}")
    return TensorType(h.dtype, h.shape)


def _outputs(state: TensorType, gates: TensorType) -> TensorType:
    return TensorType(state.dtype, (gates.shape[0], *state.shape))


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _infer_lstm(c: Call) -> tuple[TensorType, TensorType, TensorType]:
    state = _check(c, 4, c.types[3])
    c.require(c.types[1].shape == c.types[2].shape, "hidden and cell state differ in shape")
    return _outputs(state, c.types[0]), state, state


def _infer_gru(c: Call) -> tuple[TensorType, TensorType]:
    state, bias = _check(c, 3, c.types[2]), c.types[3]
    c.require(bias.shape == state.shape[1:], f"the candidate's bias has shape {bias.shape}")
    return _outputs(state, c.types[0]), state


def _infer_rnn(c: Call) -> tuple[TensorType, TensorType]:
    state = _check(c, 1, c.types[2])
    return _outputs(state, c.types[0]), state


def _run(c: Call, gates: Any, states: list[Any], step: Callable[..., list[Any]]) -> Any:
    """`step(input share, *states)` over time in float64; outputs and last states."""
    states = [s.astype(np.float64) for s in states]
    out = np.zeros((gates.shape[0], *states[0].shape), np.float64)
    times = range(gates.shape[0])
    with np.errstate(over="ignore", invalid="ignore"):
        for time in reversed(times) if c.reverse else times:
            states = step(gates[time], *states)
            out[time] = states[0]
    return tuple(x.astype(gates.dtype) for x in (out, *states))


def _lstm_reference(c: Call, gates: Any, h: Any, cell: Any, w: Any) -> Any:
    wide = w.astype(np.float64)

    def step(x: Any, h: Any, cell: Any) -> list[Any]:
        i, f, g, o = np.split(x + h @ wide.T, 4, axis=-1)
        cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
        return [_sigmoid(o) * np.tanh(cell), cell]

    return _run(c, gates, [h, cell], step)


def _gru_reference(c: Call, gates: Any, h: Any, w: Any, b: Any) -> Any:
    wide = w.astype(np.float64)

    def step(x: Any, h: Any) -> list[Any]:
        (xr, xz, xn), (hr, hz, hn) = (np.split(v, 3, axis=-1) for v in (x, h @ wide.T))
        n = np.tanh(xn + _sigmoid(xr + hr) * (hn + b))
        z = _sigmoid(xz + hz)
        return [(1 - z) * n + z * h]

    return _run(c, gates, [h], step)


def _rnn_reference(c: Call, gates: Any, h: Any, w: Any) -> Any:
    wide = w.astype(np.float64)
    function = np.tanh if c.op.name == "rnn_tanh" else lambda x: np.maximum(x, 0)
    return _run(c, gates, [h], lambda x, h: [function(x + h @ wide.T)])


def _unroll(b: Builder, c: Call, gates: Value, w: Value, states: Sequence[Value],
            step: Callable[..., Sequence[Value]]) -> tuple[Value, ...]:  # fmt: skip
    """`step(input share, recurrent share, *states)` written out for each time."""
    steps, batch, wide = gates.type.static("a recurrent layer")
    outs: list[Value] = []
    for time in reversed(range(steps)) if c.reverse else range(steps):
        row = b.emit("slice", gates, start=(time, 0, 0), step=(1, 1, 1), size=(1, batch, wide))
        share = b.emit("dot_general", states[0], w, lhs_contract=(1,), rhs_contract=(1,))
        states = step(b.reshape(row, (batch, wide)), share, *states)
        outs.append(b.reshape(states[0], (1, *states[0].shape)))
    if c.reverse:
        outs.reverse()
    return (outs[0] if len(outs) == 1 else b.emit("concat", *outs, axis=0)), *states


def _split(b: Builder, x: Value, count: int) -> list[Value]:
    """Equal parts of the columns."""
    rows, wide = x.type.static("a recurrent layer")
    size = (rows, wide // count)
    return [
        b.emit("slice", x, start=(0, n * size[1]), step=(1, 1), size=size) for n in range(count)
    ]


def _decompose_lstm(b: Builder, c: Call, gates: Value, h: Value, cell: Value, w: Value
                    ) -> tuple[Value, ...]:  # fmt: skip
    def step(x: Value, share: Value, h: Value, cell: Value) -> tuple[Value, Value]:
        i, f, g, o = _split(b, x + share, 4)
        keep = b.emit("sigmoid", f) * cell
        cell = keep + b.emit("sigmoid", i) * b.emit("tanh", g)
        return b.emit("sigmoid", o) * b.emit("tanh", cell), cell

    return _unroll(b, c, gates, w, (h, cell), step)


def _decompose_gru(b: Builder, c: Call, gates: Value, h: Value, w: Value, bias: Value
                   ) -> tuple[Value, ...]:  # fmt: skip
    def step(x: Value, share: Value, h: Value) -> tuple[Value]:
        (xr, xz, xn), (hr, hz, hn) = _split(b, x, 3), _split(b, share, 3)
        n = b.emit("tanh", xn + b.emit("sigmoid", xr + hr) * (hn + bias))
        return (n + b.emit("sigmoid", xz + hz) * (h - n),)

    return _unroll(b, c, gates, w, (h,), step)


def _decompose_rnn(b: Builder, c: Call, gates: Value, h: Value, w: Value) -> tuple[Value, ...]:
    function = c.op.name.removeprefix("rnn_")
    return _unroll(b, c, gates, w, (h,), lambda x, share, h: (b.emit(function, x + share),))


register(
    Op("lstm", ("gates", "h", "c", "w"), _infer_lstm, _lstm_reference, None, _decompose_lstm,
       attrs={"reverse": False}, traits=frozenset({"composite"}), precision="approx",
       doc="One direction of an LSTM layer. gates[T, B, 4H] holds the input's share of the gates "
       "i, f, g, o with all biases; h, c[B, H] the state; w[4H, H] the recurrent weights. Gives "
       "outputs[T, B, H] and the last h and c; `reverse` runs from the last step. Hochreiter and "
       "Schmidhuber 1997.")
)  # fmt: skip
register(
    Op("gru", ("gates", "h", "w", "b"), _infer_gru, _gru_reference, None, _decompose_gru,
       attrs={"reverse": False}, traits=frozenset({"composite"}), precision="approx",
       doc="One direction of a GRU layer. gates[T, B, 3H] holds the input's share of the gates "
       "r, z, n with all biases but one: b[H] is added to n's recurrent share, which r scales. "
       "h[B, H] is the state, w[3H, H] the recurrent weights. Gives outputs[T, B, H] and the last "
       "h; `reverse` runs from the last step. Cho et al. 2014.")
)  # fmt: skip
for _name, _function in (("rnn_tanh", "tanh"), ("rnn_relu", "relu")):
    register(
        Op(_name, ("gates", "h", "w"), _infer_rnn, _rnn_reference, None, _decompose_rnn,
           attrs={"reverse": False}, traits=frozenset({"composite"}), precision="approx",
           doc="One direction of a plain recurrent layer. gates[T, B, H] holds the input's share "
           f"with all biases, h[B, H] the state, w[H, H] the recurrent weights: h = {_function}"
           "(gates + h wᵀ) at each step. Gives outputs[T, B, H] and the last h; `reverse` runs "
           "from the last step. Elman 1990.")
    )  # fmt: skip


Weights: TypeAlias = Sequence[Value]


def _summed(op: str, cx: Capture, data: Value, states: list[Value], weights: Weights,
            reverse: bool) -> Sequence[Value]:  # fmt: skip
    """A layer whose biases, if it has any, all add to the input's share of its gates."""
    gates = cx.emit("dot_general", data, weights[0], lhs_contract=(2,), rhs_contract=(1,))
    if len(weights) > 2:
        gates = gates + (weights[2] + weights[3])
    return cx.b.emit_all(op, (gates, *states, weights[1]), {"reverse": reverse})


def _gated(op: str, cx: Capture, data: Value, states: list[Value], weights: Weights,
           reverse: bool) -> Sequence[Value]:  # fmt: skip
    """A GRU's layer: the last gate's recurrent bias stays apart."""
    units = states[0].shape[1]

    def part(first: int, count: int) -> Value:
        start, size = (first * units,), (count * units,)
        return cx.emit("slice", weights[3], start=start, step=(1,), size=size)

    gates = cx.emit("dot_general", data, weights[0], lhs_contract=(2,), rhs_contract=(1,))
    last = cx.b.full((units,), 0.0, data.dtype)
    if len(weights) > 2:
        gates = gates + (weights[2] + cx.emit("concat", part(0, 2), last, axis=0))
        last = part(2, 1)
    return cx.b.emit_all(op, (gates, *states, weights[1], last), {"reverse": reverse})


def _capture(op: str, layer: Callable[..., Sequence[Value]], cx: Capture, x: Value,
             state: Value | Sequence[Value], params: Weights, has_biases: bool, layers: int,
             dropout: float, train: bool, bidirectional: bool, batch_first: bool
             ) -> tuple[Value, ...]:  # fmt: skip
    width = 4 if has_biases else 2
    drops = train and dropout > 0 and layers > 1  # torch does so between layers alone
    if drops or len(params) != layers * (1 + bidirectional) * width:
        raise NotImplementedError(f"{op} with dropout or projections")
    states = [state] if isinstance(state, Value) else state
    made = partial(layer, op, cx)
    return _stack(cx, x, states, params, layers, bidirectional, batch_first, made)


for _op in RECURRENT:
    captures(f"aten.{_op}.input")(partial(_capture, _op, _gated if _op == "gru" else _summed))


def _stack(cx: Capture, x: Value, state: Sequence[Value], params: Sequence[Value], layers: int,
           bidirectional: bool, batch_first: bool, layer: Callable[..., Sequence[Value]]
           ) -> tuple[Value, ...]:  # fmt: skip
    """All layers: each is one product for the input's share of all steps, then the recurrence.

    `layer(data, states, weights, reverse)` gives outputs and last states of one direction.
    """
    if any(n == 0 for n in x.type.static("a recurrent layer")):
        raise NotImplementedError("a recurrent layer on an empty tensor")
    directions = 2 if bidirectional else 1
    width = len(params) // (layers * directions)
    b = cx.b
    data = b.transpose(x, (1, 0, 2)) if batch_first else x
    last: list[list[Value]] = []
    for number in range(layers):
        outs = []
        for d in range(directions):
            at = number * directions + d
            weights = params[at * width : (at + 1) * width]
            out, *states = layer(data, [_row(cx, s, at) for s in state], weights, d == 1)
            outs.append(out)
            last.append(states)
        data = outs[0] if directions == 1 else cx.emit("concat", *outs, axis=2)
    result = b.transpose(data, (1, 0, 2)) if batch_first else data
    return result, *(_joined(cx, rows) for rows in zip(*last, strict=True))


def _row(cx: Capture, state: Value, at: int) -> Value:
    _, batch, hidden = state.shape
    picked = cx.emit("slice", state, start=(at, 0, 0), step=(1, 1, 1), size=(1, batch, hidden))
    return cx.b.reshape(picked, (batch, hidden))


def _joined(cx: Capture, rows: Sequence[Value]) -> Value:
    wide = [cx.b.reshape(r, (1, *r.shape)) for r in rows]
    return wide[0] if len(wide) == 1 else cx.emit("concat", *wide, axis=0)
