"""Splitting a graph at the operators that torch runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from plait.frontend.program import Program, interpreted
from plait.frontend.segments import HostCall, Segment, split
from plait.frontend.tensors import stride_order
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType


def host(b: Builder, target: str, *operands: Value, draw: int | None = None) -> Value:
    """An ``aten`` node with one result of its first operand's type."""
    arguments: dict[str, Any] = {"args": [{"$": k} for k in range(len(operands))], "kwargs": {}}
    if draw is not None:
        arguments["draw"] = draw
    ty = operands[0].type
    attrs = {
        "target": target,
        "arguments": json.dumps(arguments),
        "dtypes": (ty.dtype.name,),
        "shapes": (ty.shape,),
    }
    return b.emit_all("aten", operands, attrs)[0]


def kinds(graph: Graph) -> str:
    return "".join("h" if isinstance(step, HostCall) else "s" for step in split(graph))


def test_independent_work_shares_a_segment() -> None:
    b = Builder()
    x = b.input(TensorType(t.f32, (3,)), "x")
    sorted_ = host(b, "aten.sinc.default", x * 2.0)
    other = b.emit("exp", x)
    graph = b.finish([sorted_ + other, b.emit("relu", other)])
    assert kinds(graph) == "shs"
    before, _, after = split(graph)
    assert isinstance(before, Segment) and isinstance(after, Segment)
    assert [n.op for n in before.graph.nodes] == ["constant", "mul", "exp", "relu"]


def test_host_calls_in_a_row_need_no_segment_between() -> None:
    b = Builder()
    x = b.input(TensorType(t.f32, (3,)), "x")
    y = host(b, "aten.sinc.default", host(b, "aten.sinc.default", x))
    assert kinds(b.finish([y])) == "hh"


def test_random_calls_keep_their_order() -> None:
    b = Builder()
    x = b.input(TensorType(t.f32, (3,)), "x")
    first = host(b, "aten.rand_like.default", x * 2.0, draw=1)
    second = host(b, "aten.rand_like.default", x, draw=2)
    steps = split(b.finish([second, first]))
    drawn = [s.node.attrs["arguments"] for s in steps if isinstance(s, HostCall)]
    assert [json.loads(a)["draw"] for a in drawn] == [1, 2]


@pytest.mark.parametrize("seed", range(8))
def test_split_graphs_compute_what_the_whole_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    b = Builder()
    values = [b.input(TensorType(t.f32, (4,)), name) for name in "xy"]
    values.append(b.constant(rng.standard_normal(4).astype(np.float32)))
    for _ in range(14):
        x, y = (values[k] for k in rng.integers(len(values), size=2))
        match rng.integers(4):
            case 0:
                values.append(host(b, "aten.sinc.default", x))
            case 1:
                values.append(host(b, "aten.hypot.default", x, y))
            case 2:
                values.append(b.emit("tanh", x))
            case _:
                values.append(b.emit("max", x, y))
    outputs = [values[k] for k in rng.integers(len(values), size=4)]
    graph = b.finish([*outputs, values[0], values[2], outputs[0]])
    arrays = [rng.standard_normal(4).astype(np.float32) for _ in range(2)]
    found = Program(graph, interpreted)([torch.from_numpy(a) for a in arrays])
    for got, want in zip(found, interpret(graph, arrays), strict=True):
        np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize(
    ("shape", "strides", "order"),
    [
        ((2, 3, 4), (12, 4, 1), (0, 1, 2)),
        ((2, 3, 4, 5), (60, 1, 15, 3), (0, 2, 3, 1)),
        ((3, 4), (1, 3), (1, 0)),
        ((1, 4), (99, 1), (0, 1)),
        ((4, 1), (1, 7), (0, 1)),
        ((3, 4), (0, 1), None),
        ((3, 4), (8, 1), None),
        ((0, 4), (4, 1), (0, 1)),
        ((), (), ()),
    ],
)
def test_stride_order(
    shape: tuple[int, ...], strides: tuple[int, ...], order: tuple[int, ...] | None
) -> None:
    assert stride_order(shape, strides) == order
