"""The formulas of recurrent cells as TIR: from the gates of a hidden unit to its new state.

A gate is a ratio whose terms come from one power e**x, and products of gates share a division: half
the arithmetic of separate calls of sigmoid and tanh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from plait.codegen.tvm.loops import put
from plait.codegen.tvm.lower import lower
from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.approx import clamp, horner
from plait.ir.expr import Expr

PrimExpr = Any
Stmt = Any

# (2**u - 1) / u on |u| <= 1/2: a weighted minimax fit, relative error 1.3e-8.
_POWER = (6.931471825e-1, 2.402264923e-1, 5.550367385e-2, 9.618305601e-3, 1.338742208e-3,
          1.538462820e-4)  # fmt: skip
_ROUND = 1.5 * 2.0**23 + 127  # x + _ROUND is x rounded to an integer, its low bits n + 127
_LOG2E = 1.4426950408889634
SIGMOID_BOUNDS = -88.5, 87.0  # where e**-x, made of bits, becomes infinite, and 1 + e**-x is 1
TANH_BOUNDS = -9.5, 9.5  # beyond them tanh is -1 or 1


def power_parts(x: Expr, factor: float, bounds: tuple[float, float]) -> tuple[Expr, Expr, Expr]:
    """p, r and q with e**(factor x) = p (1 + r q), for x held to `bounds`; NaN stays NaN."""
    held = clamp(x, *bounds)
    rounded = e.fma(held, factor * _LOG2E, _ROUND)
    rest = e.fma(held, factor * _LOG2E, -(rounded - _ROUND))
    return (rounded.bitcast(t.i32) << 23).bitcast(t.f32), rest, horner(rest, _POWER)


def sigmoid_below(x: Expr) -> Expr:
    """1 + e**-x, by which sigmoid divides; relative error 2e-7, infinite for x below -88.4."""
    power, rest, value = power_parts(x, -1.0, SIGMOID_BOUNDS)
    return e.fma(e.fma(value, rest, 1.0), power, 1.0)


def tanh_ratio(x: Expr) -> tuple[Expr, Expr]:
    """e**2x - 1 and e**2x + 1, whose ratio is tanh; relative error 3e-7, also near zero."""
    power, rest, value = power_parts(x, 2.0, TANH_BOUNDS)
    top = e.fma(power * rest, value, power - 1.0)
    return top, top + 2.0


@dataclass(frozen=True)
class Unit:
    """Where a unit of a row has its numbers, as buffer and index.

    gates: the recurrent products with what they started from; inputs: the input's share of a gate;
    old, new: the hidden state before and after; carried: the other state, renewed in place.
    """

    gates: Sequence[tuple[Any, PrimExpr]]
    inputs: Callable[[int], PrimExpr]
    old: tuple[Any, PrimExpr]
    new: tuple[Any, PrimExpr]
    carried: Sequence[tuple[Any, PrimExpr]]

    def value(self, formula: Expr, inputs: Sequence[int] = ()) -> PrimExpr:
        """A formula of the gates, the old hidden state, the carried state and input shares."""
        kept = [buffer[at] for buffer, at in (*self.gates, self.old, *self.carried)]
        given = [*kept, *map(self.inputs, inputs)]
        return lower(formula, lambda k, _: given[k], {})


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent layer.

    weights, bias: numbers of the operands with the recurrent weights and with what is added to the
    recurrent share of the gates in `apart`; to all others the input's share is added.
    states: how many states there are, the hidden one first.
    phases: what a step computes, each for many units before the next, since a unit alone is one
    long chain of operations.
    """

    gates: int
    states: int
    weights: int
    phases: tuple[Callable[[Unit], Stmt], ...]
    bias: int = -1
    apart: tuple[int, ...] = ()


def _loads(count: int) -> list[Expr]:
    return [e.Load(k, (), t.f32) for k in range(count)]


def _lstm_cell(unit: Unit) -> Stmt:
    """c' = sigmoid(f) c + sigmoid(i) tanh(g)."""
    i, f, g, _, _, c = _loads(6)
    top, bottom = tanh_ratio(g)
    value = c / sigmoid_below(f) + top / (bottom * sigmoid_below(i))
    return put(*unit.carried[0], unit.value(value))


def _lstm_hidden(unit: Unit) -> Stmt:
    """h' = sigmoid(o) tanh(c')."""
    _, _, _, o, _, c = _loads(6)
    top, bottom = tanh_ratio(c)
    return put(*unit.new, unit.value(top / (bottom * sigmoid_below(o))))


def _gru_candidate(unit: Unit) -> Stmt:
    """x + sigmoid(r) (w h + b), of which the candidate n is the tanh."""
    r, _, product, _, x = _loads(5)
    value = x + product / sigmoid_below(r)
    return put(*unit.gates[2], unit.value(value, inputs=(2,)))


def _gru_hidden(unit: Unit) -> Stmt:
    """h' = n + sigmoid(z) (h - n)."""
    _, z, candidate, h = _loads(4)
    top, bottom = tanh_ratio(candidate)
    n = top / bottom
    return put(*unit.new, unit.value(n + (h - n) / sigmoid_below(z)))


def _rnn_tanh_hidden(unit: Unit) -> Stmt:
    """h' = tanh(g)."""
    top, bottom = tanh_ratio(_loads(1)[0])
    return put(*unit.new, unit.value(top / bottom))


def _rnn_relu_hidden(unit: Unit) -> Stmt:
    """h' = max(g, 0), and NaN for NaN."""
    g = _loads(1)[0]
    return put(*unit.new, unit.value(e.select(g < 0.0, e.lit(0.0, t.f32), g)))


CELLS: Final[Mapping[str, Cell]] = {
    "lstm": Cell(gates=4, states=2, weights=3, phases=(_lstm_cell, _lstm_hidden)),
    "gru": Cell(gates=3, states=1, weights=2, phases=(_gru_candidate, _gru_hidden), bias=3,
                apart=(2,)),
    "rnn_tanh": Cell(gates=1, states=1, weights=2, phases=(_rnn_tanh_hidden,)),
    "rnn_relu": Cell(gates=1, states=1, weights=2, phases=(_rnn_relu_hidden,)),
}  # fmt: skip
