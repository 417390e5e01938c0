"""Outputs that hang on rounding are told from those that do not."""

from __future__ import annotations

import numpy as np

from plait.fuzz.generate import Settings, generate, random_inputs
from plait.fuzz.oracle import settled
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.interp import interpret
from plait.ir.types import TensorType


def test_a_sum_that_cancels_is_not_settled() -> None:
    b = Builder()
    x = b.input(TensorType(t.f64, (4, 4)))
    centred = x - b.emit("reduce_sum", x, axes=(1,), keepdims=True) * 0.25
    graph = b.finish([b.emit("reduce_sum", centred, axes=(1,), keepdims=True), centred])
    data = np.random.default_rng(0).standard_normal((4, 4))
    assert settled(graph, [data], interpret(graph, [data])) == [False, True]


def test_whole_numbers_are_rounded_for_certain() -> None:
    b = Builder()
    x = b.input(TensorType(t.f32, (4,)))
    graph = b.finish([b.emit("floor", x), b.emit("ceil", x)])
    data = np.array([-3, -2, 2, 3], np.float32)
    assert settled(graph, [data], interpret(graph, [data])) == [True, True]


def test_most_outputs_of_random_graphs_are_settled() -> None:
    graphs = [generate(seed, Settings(symbols=(), layouts=False)) for seed in range(40)]
    found = list[bool]()
    for seed, graph in enumerate(graphs):
        inputs = random_inputs(graph, seed)
        with np.errstate(all="ignore"):
            found += settled(graph, inputs, interpret(graph, inputs))
    assert sum(found) > 0.95 * len(found) > 0
