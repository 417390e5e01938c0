"""Every rule of canonicalisation: what it makes of a graph, and what it leaves alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.dims import symbol
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from plait.passes.canonicalize import (
    FOLD_ELEMENTS,
    IDENTITIES,
    Canonicalize,
    broadcast_rule,
    fold_rule,
    simplify,
)
from plait.passes.context import Context
from plait.passes.reshapes import reshape_rules
from plait.passes.rewrite import apply_rules
from tests.passes.graphs import Make, Operand, build, ops_of, random_graphs, same_meaning, typed

RULES = {r.name: r for r in (*IDENTITIES, broadcast_rule(), *reshape_rules(), fold_rule())}
X = (2, 3, 4)
BOOL, INT, HALF = (typed((4,), ty) for ty in (t.bool_, t.i64, t.f16))


@dataclass(frozen=True)
class Case:
    """A rule, a graph before it, and the graph after it (None: it does not fire)."""

    rule: str
    operands: tuple[Operand, ...]
    before: Make
    after: Make | None

    def __str__(self) -> str:
        return self.rule if self.after else f"{self.rule}-not"


def _emit(op: str, **attrs: Any) -> Any:
    """`emit(op, *operands)` with attributes, as a function of the builder."""
    return lambda b, *xs: b.emit(op, *xs, **attrs)


def _slice(b: Builder, x: Value, start: Any, step: Any, size: Any) -> Value:
    return b.emit("slice", x, start=start, step=step, size=size)


def _dot(b: Builder, x: Value, w: Value) -> Value:
    return b.emit("dot_general", x, w, lhs_contract=(x.rank - 1,), rhs_contract=(0,))


def _conv(b: Builder, x: Value, w: Value, low: Any = (0, 0), high: Any = (0, 0)) -> Value:
    return b.emit("conv", x, w, stride=(1, 1), low=low, high=high, dilation=(1, 1), groups=1)


def _pad(b: Builder, x: Value, low: Any, high: Any, value: float = 0.0) -> Value:
    return b.emit("pad", x, b.scalar(value, x.dtype), low=low, high=high)


def _attend(b: Builder, q: Value, *mask: Any, causal: bool = False) -> Value:
    return b.emit("attention", q, q, q, *map(b.constant, mask), scale=0.5, causal=causal)


def _sum(b: Builder, x: Value, axes: tuple[int, ...], keepdims: bool = False) -> Value:
    return b.emit("reduce_sum", x, axes=axes, keepdims=keepdims)


def _select(b: Builder, known: bool, x: Value, y: Value) -> Value:
    return b.emit("select", b.constant(np.full((1, 4), known)), x, y)


def _logic(b: Builder, op: str, x: Value, known: bool) -> Value:
    return b.emit(op, x, b.scalar(known, t.bool_))


CUT = ((0, 1, 0), (1, 1, 2), (2, 2, 2))
Q = (1, 2, 3, 4)
TRIANGLE = np.tri(3, 3, dtype=bool)
HIDDEN = np.where(TRIANGLE, np.float32(0), np.float32(-np.inf))

CASES = [
    Case("drop-identity", (X,), lambda b, x: x + b.emit("reshape", x, shape=X),
         lambda b, x: x + x),
    Case("drop-identity", (X,), _emit("transpose", perm=(0, 1, 2)), lambda b, x: x),
    Case("drop-identity", (X,), _emit("broadcast_to", shape=X), lambda b, x: x),
    Case("drop-identity", (X,), _emit("cast", dtype=t.f32), lambda b, x: x),
    Case("drop-identity", (X,), _emit("relayout", layout=(2, 0, 1)), None),
    Case("drop-identity", ((3, 3),), _emit("transpose", perm=(1, 0)), None),
    Case("merge-reshapes", (X,), lambda b, x: b.reshape(b.reshape(x, (6, 4)), (24,)),
         lambda b, x: b.reshape(x, (24,))),
    Case("merge-transposes", (X,), lambda b, x: b.transpose(b.transpose(x, (1, 2, 0)), (0, 2, 1)),
         lambda b, x: b.transpose(x, (1, 0, 2))),
    Case("transpose-as-reshape", ((2, 1, 4),), _emit("transpose", perm=(1, 0, 2)),
         lambda b, x: b.reshape(x, (1, 2, 4))),
    Case("transpose-as-reshape", (X,), _emit("transpose", perm=(1, 0, 2)), None),
    Case("merge-slices", ((2, 9, 9),),
         lambda b, x: _slice(b, _slice(b, x, (0, 1, 2), (1, 2, 3), (2, 4, 2)), *CUT[:2], (2, 3, 1)),
         lambda b, x: _slice(b, x, (0, 3, 2), (1, 2, 6), (2, 3, 1))),
    Case("merge-broadcasts", ((4,),),
         lambda b, x: b.emit("broadcast_to", b.emit("broadcast_to", x, shape=(3, 4)), shape=X),
         _emit("broadcast_to", shape=X)),
    Case("drop-broadcast", (X, (4,)),
         lambda b, x, y: x * b.emit("broadcast_to", y, shape=X), lambda b, x, y: x * y),
    Case("drop-broadcast", ((4,),),
         lambda b, x: b.emit("neg", b.emit("broadcast_to", x, shape=X)), None),
    Case("merge-casts", (INT,), lambda b, x: b.cast(b.cast(x, t.f64), t.f32), None),
    Case("merge-casts", (X,), lambda b, x: b.cast(b.cast(x, t.f64), t.i64),
         lambda b, x: b.cast(x, t.i64)),
    Case("merge-casts", (BOOL,), lambda b, x: b.cast(b.cast(x, t.i64), t.f32),
         lambda b, x: b.cast(x, t.f32)),
    Case("merge-casts", (INT,), lambda b, x: b.cast(b.cast(x, t.i8), t.f32), None),
    Case("merge-casts", (X,), lambda b, x: b.cast(b.cast(x, t.f64), t.bool_), None),
    Case("add-zero", (X,), lambda b, x: b.emit("exp", x + -0.0), _emit("exp")),
    Case("add-zero", (X,), lambda b, x: b.emit("exp", -0.0 + x), _emit("exp")),
    Case("add-zero", (X,), lambda b, x: b.emit("exp", x + 0.0), None),
    Case("add-zero", (INT,), lambda b, x: b.emit("neg", x + 0), _emit("neg")),
    Case("add-zero", ((4,),), lambda b, x: b.emit("add", x, b.constant(np.zeros(X, np.float32))),
         None),
    Case("mul-one", (X,), lambda b, x: b.emit("exp", x * 1.0), _emit("exp")),
    Case("mul-one", (X,), lambda b, x: x * 2.0, None),
    Case("right-unit", (X,), lambda b, x: b.emit("exp", x - 0.0), _emit("exp")),
    Case("right-unit", (X,), lambda b, x: b.emit("exp", x / 1.0), _emit("exp")),
    Case("right-unit", (X,), lambda b, x: 0.0 - x, None),
    Case("right-unit", (X,), lambda b, x: b.emit("exp", x - -0.0), None),
    Case("div-by-power-of-two", (X,), lambda b, x: x / 8.0, lambda b, x: x * 0.125),
    Case("div-by-power-of-two", (X,), lambda b, x: x / -0.25, lambda b, x: x * -4.0),
    Case("div-by-power-of-two", ((4,),),
         lambda b, x: b.emit("div", x, b.constant(np.full((2, 4), 8, np.float32))), None),
    Case("div-by-power-of-two", (HALF,), lambda b, x: x / 2.0**-20, None),
    Case("div-by-power-of-two", (X,), lambda b, x: x / 3.0, None),
    Case("div-by-power-of-two", (X,), lambda b, x: x / 0.0, None),
    Case("div-by-power-of-two", (X,), lambda b, x: x / float("inf"), None),
    Case("merge-scalars", (INT,), lambda b, x: (x + 3) + 4, lambda b, x: x + 7),
    Case("merge-scalars", (INT,), lambda b, x: (x * 3) * -4, lambda b, x: x * -12),
    Case("merge-scalars", (X,), lambda b, x: (x + 3.0) + 4.0, None),
    Case("reduce-nothing", (X,), lambda b, x: b.emit("exp", _sum(b, x, ())), _emit("exp")),
    Case("keep-reduced-dims", (X,), lambda b, x: _sum(b, x, (0, 2)),
         lambda b, x: b.reshape(_sum(b, x, (0, 2), True), (3,))),
    Case("keep-reduced-dims", (X,), lambda b, x: _sum(b, x, (0, 2), True), None),
    Case("keep-reduced-dims", (X,), lambda b, x: _sum(b, x, ()), None),
    Case("lift-reshape-of-lhs", (X, (4, 5)), lambda b, x, w: _dot(b, b.reshape(x, (6, 4)), w),
         lambda b, x, w: b.reshape(_dot(b, x, w), (6, 5))),
    Case("lift-reshape-of-lhs", (X, (12, 5)), lambda b, x, w: _dot(b, b.reshape(x, (2, 12)), w),
         None),
    Case("lift-reshape-of-lhs", ((3, 4), (4, 5)),
         lambda b, x, w: _dot(b, b.reshape(x, (1, 3, 4)), w),
         lambda b, x, w: b.reshape(_dot(b, x, w), (1, 3, 5))),
    Case("lift-reshape-of-lhs", ((6, 4), (4, 5)),
         lambda b, x, w: _dot(b, b.reshape(x, (2, 3, 4)), w), None),
    Case("sink-reshape-below-reduction", (X,),
         lambda b, x: _sum(b, b.reshape(x, (6, 4)), (1,), True),
         lambda b, x: b.reshape(_sum(b, x, (2,), True), (6, 1))),
    Case("sink-reshape-below-reduction", (X,),
         lambda b, x: _sum(b, b.reshape(x, (2, 12)), (0,), True),
         lambda b, x: b.reshape(_sum(b, x, (0,), True), (1, 12))),
    Case("sink-reshape-below-reduction", (X,),
         lambda b, x: _sum(b, b.reshape(x, (6, 4)), (0,), True), None),
    Case("sink-reshape-below-reduction", ((2, 3, 2),),
         lambda b, x: _sum(b, b.reshape(x, (3, 2, 2)), (0,), True), None),
    Case("sink-reshape-below-reduction", ((0, 3, 3),),
         lambda b, x: _sum(b, b.reshape(x, (0, 1, 3, 3)), (2, 3), True), None),
    Case("drop-leading-ones", ((1, 1, 4), (2, 3, 4)), lambda b, x, y: b.reshape(x, (1, 4)) + y,
         lambda b, x, y: x + y),
    Case("drop-leading-ones", ((4,), (2, 3, 4)), lambda b, x, y: b.reshape(x, (1, 1, 4)) + y,
         lambda b, x, y: x + y),
    Case("drop-leading-ones", ((4,), (2, 4, 3)), lambda b, x, y: b.reshape(x, (4, 1)) + y, None),
    Case("least-rank", ((1, 1, 3, 4), (1, 3, 4)), lambda b, x, y: x + y,
         lambda b, x, y: b.reshape(b.reshape(x, (1, 3, 4)) + y, (1, 1, 3, 4))),
    Case("least-rank", ((1, 3, 4), (3, 1)), lambda b, x, y: x + y, None),
    Case("least-rank", ((1, 3, 4),),
         lambda b, x: x + b.constant(np.ones((3, 4), np.float32)), None),
    Case("sink-transpose", (X, (4, 5)), lambda b, x, w: b.transpose(_dot(b, x, w), (1, 0, 2)) * 2,
         lambda b, x, w: b.transpose(_dot(b, x, w) * 2, (1, 0, 2))),
    Case("sink-transpose", (X, (4, 5)),
         lambda b, x, w: b.emit("exp", b.transpose(b.reshape(_dot(b, x, w) * 2, (6, 5)), (1, 0))),
         lambda b, x, w: b.transpose(b.emit("exp", b.reshape(_dot(b, x, w) * 2, (6, 5))), (1, 0))),
    Case("sink-transpose", (X, X, (4, 5)),
         lambda b, x, y, w: b.transpose(_dot(b, x, w), (1, 0, 2)) + b.transpose(
             _dot(b, y, w), (1, 0, 2)),
         lambda b, x, y, w: b.transpose(_dot(b, x, w) + _dot(b, y, w), (1, 0, 2))),
    Case("sink-transpose", (X,), lambda b, x: b.transpose(x * 3, (1, 0, 2)) * 2, None),
    Case("sink-transpose", (X, (4, 5), (5,)),
         lambda b, x, w, y: b.transpose(_dot(b, x, w), (1, 0, 2)) + y, None),
    Case("sink-transpose", ((3, 3), (3, 3)), lambda b, x, y: b.transpose(x, (1, 0)) + y, None),
    Case("sink-reshape", (X, (4,)), lambda b, x, y: b.reshape(x, (6, 4)) + y,
         lambda b, x, y: b.reshape(x + y, (6, 4))),
    Case("sink-reshape", (X, X), lambda b, x, y: b.reshape(x, (24,)) + b.reshape(y, (24,)),
         lambda b, x, y: b.reshape(x + y, (24,))),
    Case("sink-reshape", (X, (6, 1)), lambda b, x, y: b.reshape(x, (6, 4)) + y, None),
    Case("sink-reshape", ((1, 2, 3), (2, 3)), lambda b, x, y: b.reshape(x, (2, 3)) + y, None),
    Case("sink-reshape", (X, (4, 6)), lambda b, x, y: b.reshape(x, (24,)) + b.reshape(y, (24,)),
         None),
    Case("select-known", ((4,), (2, 4)), lambda b, x, y: _select(b, True, x, y),
         lambda b, x, y: b.emit("broadcast_to", x, shape=(2, 4))),
    Case("select-known", ((4,), (2, 4)), lambda b, x, y: _select(b, False, x, y),
         lambda b, x, y: b.emit("broadcast_to", y, shape=(2, 4))),
    Case("logic-unit", (BOOL,), lambda b, x: b.emit("not", _logic(b, "and", x, True)),
         _emit("not")),
    Case("logic-unit", (BOOL,), lambda b, x: b.emit("not", _logic(b, "or", x, False)),
         _emit("not")),
    Case("logic-unit", (BOOL,), lambda b, x: _logic(b, "or", x, True), None),
    Case("logic-unit", (INT,), lambda b, x: b.emit("and", x, b.scalar(1, t.i64)), None),
    Case("drop-full-mask", (Q,), lambda b, q: _attend(b, q, np.ones((3, 3), bool)), _attend),
    Case("drop-full-mask", (Q,), lambda b, q: _attend(b, q, np.zeros((1, 3), np.float32)), _attend),
    Case("drop-full-mask", (Q,), lambda b, q: _attend(b, q, TRIANGLE),
         lambda b, q: _attend(b, q, causal=True)),
    Case("drop-full-mask", (Q,), lambda b, q: _attend(b, q, HIDDEN), None),
    Case("drop-full-mask", (Q,), lambda b, q: _attend(b, q, TRIANGLE.T.copy()), None),
    Case("drop-full-mask", (Q,), lambda b, q: _attend(b, q, TRIANGLE, causal=True), None),
    Case("drop-full-mask", (Q,), lambda b, q: _attend(b, q, np.ones(3, np.float32)), None),
    Case("pad-into-conv", ((1, 2, 4, 5), (3, 2, 2, 2)),
         lambda b, x, w: _conv(b, _pad(b, x, (0, 0, 1, 2), (0, 0, 0, 3)), w, (1, 0), (0, 1)),
         lambda b, x, w: _conv(b, x, w, (2, 2), (0, 4))),
    Case("pad-into-conv", ((1, 2, 4, 5), (3, 2, 2, 2)),
         lambda b, x, w: _conv(b, _pad(b, x, (0, 0, 1, 2), (0, 0, 0, 3), 1.0), w), None),
    Case("pad-into-conv", ((1, 1, 4, 5), (3, 2, 2, 2)),
         lambda b, x, w: _conv(b, _pad(b, x, (0, 1, 0, 0), (0,) * 4), w), None),
    Case("take-of-iota", (X,), lambda b, x: b.emit("take", x, b.constant([1, 2]), axis=1),
         lambda b, x: _slice(b, x, (0, 1, 0), (1, 1, 1), (2, 2, 4))),
    Case("take-of-iota", (X,), lambda b, x: b.emit("take", x, b.constant([1, 1]), axis=1), None),
    Case("take-of-iota", (X,), lambda b, x: b.emit("take", x, b.constant([-1, 0]), axis=1), None),
    Case("fold-constants", (X,),
         lambda b, x: x + b.emit("neg", b.constant(np.ones(4, np.float32), "w")),
         lambda b, x: x + b.constant(-np.ones(4, np.float32), "w")),
    Case("fold-constants", (X,),
         lambda b, x: x * b.full((FOLD_ELEMENTS, *X), 1, t.f32), None),
]  # fmt: skip


def alone(graph: Graph, name: str, context: Context) -> Graph:
    return apply_rules(graph, [RULES[name]], context)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    before = build(case.before, *case.operands)
    wanted = before if case.after is None else build(case.after, *case.operands)
    context = Context()
    found = alone(before, case.rule, context)
    neutral = apply_rules(wanted, [], Context())
    assert str(found) == str(neutral)
    assert found == neutral
    assert set(context.fired) == ({case.rule} if case.after else set())
    same_meaning(before, found)


def test_every_rule_has_a_case() -> None:
    assert {c.rule for c in CASES if c.after} == set(RULES)


def test_rules_state_what_they_do() -> None:
    for name, known in RULES.items():
        assert known.ops and (
            "canonicalize.py:" in known.source or "reshapes.py:" in known.source
        ), name


def test_symbolic_sizes_are_left_alone() -> None:
    n = symbol("n", 1, 8)
    x = TensorType(t.f32, (n, 4))
    graph = build(lambda b, x: b.emit("take", x, b.constant([0, 1]), axis=1) + -0.0, x)
    assert ops_of(simplify(graph)) == ["constant", "take"]


def test_rules_work_together() -> None:
    """Identities uncover each other: nothing is left of a long way round."""

    def make(b: Builder, x: Value) -> Value:
        y = b.transpose(b.reshape(b.transpose(x, (1, 0)), (4, 3)), (1, 0))
        return (y * (b.scalar(3, t.f32) - b.scalar(2, t.f32))) / 1.0 + -0.0

    assert simplify(build(make, (3, 4))).nodes == ()


def test_without_folding() -> None:
    graph = build(lambda b, x: x + b.emit("neg", b.constant(np.ones(4, np.float32))), X)
    assert ops_of(Canonicalize(fold=False).apply(graph, Context())) == ["constant", "neg", "add"]


def test_random_graphs_keep_their_meaning() -> None:
    for seed, graph in random_graphs(range(40)):
        found = simplify(graph)
        assert len(found.nodes) <= len(graph.nodes) + len(graph.outputs), seed
        assert simplify(found) == found, seed
        same_meaning(graph, found, seed)


def test_products_of_constants_are_folded_also_if_they_are_large() -> None:
    """A mask made of positions would be computed anew in each run."""
    b = Builder()
    x = b.input(typed((300, 300)))
    left, right = (b.constant(np.ones(shape, np.float32)) for shape in ((300, 2), (2, 300)))
    product = b.emit("dot_general", left, right, lhs_contract=(1,), rhs_contract=(0,))
    after = Canonicalize().apply(b.finish([x + b.emit("sigmoid", product)]), Context())
    assert ops_of(after) == ["constant", "add"]
