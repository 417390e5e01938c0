"""Batch norms disappear into the convolution before them, where that is exact and free."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plait.ir.builder import Builder, Value
from tests.passes.graphs import build, ops_of, run, same_meaning

RNG = np.random.default_rng(0)
IMAGE = (2, 3, 5, 4)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape, np.float32)


def conv(b: Builder, x: Value, w: Any = None) -> Value:
    weights = b.constant(normal(6, 3, 2, 2), "w") if w is None else w
    return b.emit("conv", x, weights, stride=(1, 1), low=(1, 0), high=(0, 0), dilation=(1, 1),
                  groups=1)  # fmt: skip


def norm(b: Builder, x: Value, affine: int = 2) -> Value:
    vectors = [normal(6), np.abs(normal(6)), normal(6), normal(6)][: 2 + affine]
    return b.emit("batch_norm", x, *[b.constant(v) for v in vectors], eps=1e-3)


@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("bias", [None, (6, 1, 1), ()])
def test_folds(affine: int, bias: tuple[int, ...] | None) -> None:
    def make(b: Builder, x: Value) -> Value:
        y = conv(b, x)
        if bias is not None:
            y = b.emit("add", y, b.constant(normal(*bias)))
        return norm(b, y, affine)

    before = build(make, IMAGE)
    after = run("fold-batch-norm", before)
    assert ops_of(after) == ["constant", "conv", "constant", "add"]
    assert after.nodes[0].attrs["value"].name == "w", "the weights keep their name"
    same_meaning(before, after)


def test_bias_on_the_left() -> None:
    before = build(
        lambda b, x: norm(b, b.emit("add", b.constant(normal(6, 1, 1)), conv(b, x))), IMAGE
    )
    after = run("fold-batch-norm", before)
    assert "batch_norm" not in ops_of(after)
    same_meaning(before, after)


def _shared(b: Builder, x: Value) -> list[Value]:
    y = conv(b, x)
    return [norm(b, y), y]


def _wide_bias(b: Builder, x: Value) -> Value:
    return norm(b, conv(b, x) + b.constant(normal(6, 5, 3)))


def _live_statistics(b: Builder, x: Value, mean: Value) -> Value:
    return b.emit("batch_norm", conv(b, x), mean, b.constant(np.ones(6, np.float32)), eps=1e-3)


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (_shared, (IMAGE,)),
        (_wide_bias, (IMAGE,)),
        (_live_statistics, (IMAGE, (6,))),
        (lambda b, x, w: norm(b, conv(b, x, w)), (IMAGE, (6, 3, 2, 2))),
        (lambda b, x: norm(b, b.emit("exp", x)), ((2, 6, 4),)),
    ],
)
def test_leaves_alone(make: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
    before = build(make, *shapes)
    assert run("fold-batch-norm", before) == before


def test_a_chain_of_two() -> None:
    before = build(lambda b, x: norm(b, norm(b, conv(b, x))), IMAGE)
    after = run("fold-batch-norm", before)
    assert "batch_norm" not in ops_of(after)
    same_meaning(before, after)
