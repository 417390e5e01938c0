"""Attention that is written out becomes one operation, where that is the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.ops.contraction import matmul
from tests.passes.graphs import build, ops_of, run, same_meaning, typed

RNG = np.random.default_rng(0)
B, H, M, N, D, E = 2, 3, 5, 7, 4, 6
LOWEST = float(np.finfo(np.float32).min)
Change = Callable[[Builder, Value], Value]
SEEN = RNG.random((H, M, N)) < 0.5
SEEN[..., 2] = True


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape, np.float32)


def attention(*changes: Change, heads: int = H) -> Any:
    """A graph of q[B, H, M, D], k[B, H, N, D], v[B, H, N, E] whose scores are changed so."""

    def make(b: Builder, q: Value, k: Value, v: Value) -> Value:
        scores = matmul(b, q, b.transpose(k, (0, 1, 3, 2)))
        for change in changes:
            scores = change(b, scores)
        weights = b.emit("softmax", scores, axis=scores.rank - 1)
        return matmul(b, b.reshape(weights, (B, heads, M, N)), v)

    return build(make, (B, heads, M, D), (B, heads, N, D), (B, heads, N, E))


def scaled(factor: float) -> Change:
    return lambda b, s: s * factor


def added(mask: Any) -> Change:
    return lambda b, s: s + b.constant(mask)


def chosen(seen: Any, low: float, swapped: bool = False) -> Change:
    """Scores where `seen`, elsewhere a low number."""

    def change(b: Builder, s: Value) -> Value:
        low_ = b.scalar(low, s.dtype)
        return (
            b.emit("select", b.constant(~seen), low_, s)
            if swapped
            else b.emit("select", b.constant(seen), s, low_)
        )

    return change


def reshaped(*shape: int) -> Change:
    return lambda b, s: b.reshape(s, shape)


def check(graph: Any, raised: bool = True) -> Any:
    after = run("canonicalize,raise-attention", graph)
    assert ("attention" in ops_of(after)) == raised
    assert ("softmax" in ops_of(after)) != raised
    same_meaning(graph, after)
    return after


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [scaled(0.5)],
        [lambda b, s: b.emit("div", s, b.scalar(2.0, s.dtype))],
        [scaled(0.5), added(normal(H, M, N))],
        [added(normal(1, H, M, N)), scaled(0.5)],
        [added(normal(M, N)), scaled(0.5), added(normal(N)), scaled(3.0)],
        [added(normal(B, 1, 1, N))],
        [scaled(0.5), chosen(SEEN, -math.inf)],
        [chosen(SEEN, LOWEST, swapped=True)],
        [added(normal(M, N)), chosen(np.ones((M, N), bool), LOWEST)],
        [chosen(SEEN[:1], -math.inf), chosen(SEEN, -1e9)],
        [added(np.where(SEEN, np.float32(0), np.float32(-np.inf)))],
        [reshaped(B * H, M, N), scaled(0.5), added(normal(1, 1, N)), reshaped(B, H, M, N)],
        [lambda b, s: s + 2.0, scaled(-1e14)],
        [added(np.where(SEEN, np.float32(0), np.float32(np.inf))), scaled(-1.0)],
        # The lowest number hides whole rows alike, with whatever is added or taken times.
        [added(np.full((M, N), LOWEST, np.float32)), added(normal(H, M, N))],
        [added(np.full((M, N), LOWEST, np.float32)), scaled(0.9)],
        [added(normal(H, M, N)), reshaped(B, 1, H, M, N), added(normal(B, 1, 1, M, N)),
         reshaped(B, H, M, N)],
    ],
)  # fmt: skip
def test_raised(changes: list[Change]) -> None:
    check(attention(*changes))


def test_the_future_hidden_is_causal() -> None:
    future = np.tri(M, N, dtype=bool)
    after = run("canonicalize,raise-attention,canonicalize", attention(chosen(future, -math.inf)))
    (whole,) = (n for n in after.nodes if n.op == "attention")
    assert whole.attrs["causal"] and len(whole.operands) == 3


def _row_hidden() -> Any:
    seen = SEEN.copy()
    seen[0, 1] = False
    return seen


@pytest.mark.parametrize(
    "changes",
    [
        # Where nothing is seen the written softmax is NaN.
        [chosen(_row_hidden(), -math.inf)],
        [added(np.where(_row_hidden(), np.float32(0), np.float32(-np.inf)))],
        # Scores may be as low as that themselves.
        [chosen(SEEN, -100.0)],
        [chosen(SEEN, -1e9), scaled(1e-3)],
        # What is added does not hide a score that is NaN.
        [chosen(SEEN, -math.inf), added(normal(H, M, N))],
        [added(np.full((M, N), np.nan, np.float32))],
        # Where infinity is added, or scaled the other way, or numbers overflow, rows are hidden.
        [added(np.full((M, N), np.inf, np.float32)), scaled(-1.0)],
        [added(np.full((M, N), LOWEST, np.float32)), scaled(2.0)],
        [added(np.full((M, N), LOWEST, np.float32)), added(np.full((H, M, N), -1e38, np.float32))],
        # What is so large may cancel with what is so low, and the score has been rounded before.
        [added(np.full((M, N), 1e9, np.float32)), added(np.full((H, M, N), -1e9, np.float32))],
        [added(np.full((M, N), np.inf, np.float32))],
        # The kernel takes all that is so low for the same.
        [added(np.linspace(-3e38, -2.5e38, N, dtype=np.float32))],
        [chosen(SEEN, math.nan)],
        # Numbers that kernels cannot hold, or scores that overflow with them.
        [scaled(3e38)],
        [scaled(1e10), scaled(1e10)],
        [scaled(1e-20)],
        [lambda b, s: b.emit("tanh", s)],
        [lambda b, s: b.emit("div", s, b.scalar(0.0, s.dtype))],
        [scaled(0.5), lambda b, s: s * b.constant(normal(M, N))],
        # Masks of some batches, in a shape that is cut otherwise.
        [reshaped(B * H, M, N), added(normal(B * H, M, N)), reshaped(B, H, M, N)],
        [reshaped(B, H, N, M)],
    ],
)
def test_left_alone(changes: list[Change]) -> None:
    graph = attention(*changes)
    after = run("canonicalize,raise-attention", graph)
    assert "attention" not in ops_of(after)


def raised_with(mask: Callable[[Builder, Value, Value], Value], given: Any) -> bool:
    """Whether attention is raised whose mask is made of an input and of the queries."""

    def make(b: Builder, q: Value, k: Value, v: Value, given: Value) -> Value:
        scores = matmul(b, q, b.transpose(k, (0, 2, 1))) + mask(b, given, q)
        return matmul(b, b.emit("softmax", scores, axis=2), v)

    graph = build(make, (H, M, D), (H, N, D), (H, N, E), given)
    after = run("canonicalize,raise-attention", graph)
    same_meaning(graph, after)
    return "attention" in ops_of(after)


def test_masks_of_constants_that_are_not_folded() -> None:
    """Tables of positions, of which large ones are looked up in each call."""

    def make(b: Builder, q: Value, k: Value, v: Value) -> Value:
        table, at = b.constant(normal(4, N)), b.constant(RNG.integers(0, 4, (M,)))
        positions = b.emit("sigmoid", b.emit("take", table, at, axis=0)) * 16.0
        scores = matmul(b, q, b.transpose(k, (0, 2, 1))) + positions
        return matmul(b, b.emit("softmax", scores, axis=2), v)

    graph = build(make, (H, M, D), (H, N, D), (H, N, E))
    after = run("canonicalize{fold=false},raise-attention", graph)
    assert "attention" in ops_of(after) and "take" in ops_of(after)
    same_meaning(graph, after)


def choice(b: Builder, flags: Value, yes: float, no: float) -> Value:
    return b.emit("select", flags, b.scalar(yes, t.f32), b.scalar(no, t.f32))


@pytest.mark.parametrize("low", [-100.0, LOWEST])
def test_masks_of_numbers_that_flags_choose(low: float) -> None:
    flags = typed((1, N), t.bool_)
    assert raised_with(lambda b, x, _: choice(b, x, low, 0.0), flags)
    assert raised_with(lambda b, x, _: b.reshape(choice(b, x, 0.0, low), (1, 1, N)), flags)
    columns = typed((N, 1), t.bool_)
    assert raised_with(lambda b, x, _: b.transpose(choice(b, x, 0.0, low), (1, 0)), columns)
    # As models write it: numbers from flags, a choice again, and with positions.
    assert raised_with(lambda b, x, _: (1.0 - b.emit("cast", x, dtype=t.f32)) * low, flags)
    assert raised_with(lambda b, x, _: b.emit("select", x, b.scalar(low, t.f32),
                                              b.emit("cast", x, dtype=t.f32)), flags)  # fmt: skip
    positions = normal(H, M, N)
    assert raised_with(lambda b, x, _: b.constant(positions) + choice(b, x, low, 0.0), flags)


@pytest.mark.parametrize(
    ("mask", "given"),
    [
        (lambda b, x, _: x, typed((M, N))),
        # An input may hide rows through a product, too.
        (lambda b, x, q: matmul(b, q, x), typed((H, D, N))),
        # Whole numbers are not only 0 and 1, and two choices may overflow together.
        (lambda b, x, _: (1.0 - b.emit("cast", x, dtype=t.f32)) * LOWEST, typed((N,), t.i64)),
        (lambda b, x, _: choice(b, x, LOWEST, 0.0) * 2.0, typed((N,), t.bool_)),
        (lambda b, x, _: choice(b, x, -3e38, 0.0) * 2.0 * 0.25, typed((M, N), t.bool_)),
        (lambda b, x, _: choice(b, x, LOWEST, 0.0) + choice(b, x, LOWEST, 1.0),
         typed((N,), t.bool_)),
        (lambda b, x, _: choice(b, x, -math.inf, 0.0), typed((M, N), t.bool_)),
        (lambda b, x, _: choice(b, x, math.nan, 0.0), typed((M, N), t.bool_)),
        (lambda b, x, _: choice(b, x, -3e38, -2.5e38), typed((M, N), t.bool_)),
    ],
)  # fmt: skip
def test_masks_that_stay_written_out(mask: Any, given: Any) -> None:
    assert not raised_with(mask, given)


def test_two_masks_may_hide_a_row_together() -> None:
    left, right = (np.where(np.arange(N) < 3, *pair).astype(np.float32)
                   for pair in ((0.0, -np.inf), (-np.inf, 0.0)))  # fmt: skip
    after = run("canonicalize{fold=false},raise-attention", attention(added(left), added(right)))
    assert "attention" not in ops_of(after)


@pytest.mark.parametrize(
    ("v", "contract"), [((H, N), 1), ((H, N, 2, 3), 1), ((H, 2, N, 3), 2), ((H, 2, 3, N), 3)]
)
def test_values_that_are_no_matrices(v: tuple[int, ...], contract: int) -> None:
    def make(b: Builder, q: Value, k: Value, v: Value) -> Value:
        weights = b.emit("softmax", matmul(b, q, b.transpose(k, (0, 2, 1))), axis=2)
        return b.emit("dot_general", weights, v, lhs_batch=(0,), rhs_batch=(0,), lhs_contract=(2,),
                      rhs_contract=(contract,))  # fmt: skip

    graph = build(make, (H, M, D), (H, N, D), v)
    assert "attention" not in ops_of(run("canonicalize,raise-attention", graph))


def test_layers_one_after_another() -> None:
    """Numbers of values shift as layers are replaced."""

    def make(b: Builder, x: Value) -> Value:
        for _ in range(3):
            scores = matmul(b, x, b.transpose(x, (0, 2, 1))) * 0.25
            x = matmul(b, b.emit("softmax", scores, axis=2), x)
        return x

    graph = build(make, (H, N, D))
    after = run("canonicalize,raise-attention", graph)
    assert ops_of(after).count("attention") == 3
    same_meaning(graph, after)


def test_scores_that_others_read_stay() -> None:
    def make(b: Builder, q: Value, k: Value, v: Value) -> list[Value]:
        weights = b.emit("softmax", matmul(b, q, b.transpose(k, (0, 2, 1))), axis=2)
        return [matmul(b, weights, v), weights]

    graph = build(make, (H, M, D), (H, N, D), (H, N, E))
    assert "attention" not in ops_of(run("canonicalize,raise-attention", graph))


def test_operands_that_lie_the_other_way() -> None:
    """Keys as columns, values as rows of what is contracted last."""

    def make(b: Builder, q: Value, k: Value, v: Value) -> Value:
        scores = b.emit("dot_general", q, k, lhs_batch=(0,), rhs_batch=(0,), lhs_contract=(2,),
                        rhs_contract=(1,))  # fmt: skip
        weights = b.emit("softmax", scores, axis=2)
        return b.emit("dot_general", weights, v, lhs_batch=(0,), rhs_batch=(0,), lhs_contract=(2,),
                      rhs_contract=(2,))  # fmt: skip

    check(build(make, (H, M, D), (H, D, N), (H, E, N)))
