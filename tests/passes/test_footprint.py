"""The work and the traffic of a kernel's body."""

from __future__ import annotations

import pytest

from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from plait.passes.footprint import flops, reads


def f32(*shape: int) -> TensorType:
    return TensorType(t.f32, shape)


def test_flops_of_contractions() -> None:
    b = Builder()
    x, w = b.input(f32(5, 7)), b.input(f32(7, 3))
    product = b.emit("dot_general", x, w, lhs_contract=(1,), rhs_contract=(0,))
    assert flops(b.finish([b.emit("tanh", product)])) == 2 * 5 * 7 * 3


def test_flops_of_a_recurrence() -> None:
    b = Builder()
    types = (f32(6, 2, 20), f32(2, 5), f32(2, 5), f32(20, 5))
    outs = b.emit_all("lstm", tuple(map(b.input, types)), {"reverse": False})
    assert flops(b.finish(list(outs))) == 2 * 6 * 2 * 20 * 5
    b = Builder()
    types = (f32(6, 2, 15), f32(2, 5), f32(15, 5), f32(5))
    outs = b.emit_all("gru", tuple(map(b.input, types)), {"reverse": False})
    assert flops(b.finish(list(outs))) == 2 * 6 * 2 * 15 * 5
    b = Builder()
    outs = b.emit_all("rnn_tanh", tuple(map(b.input, (f32(6, 2, 5), f32(2, 5), f32(5, 5)))),
                      {"reverse": False})  # fmt: skip
    assert flops(b.finish(list(outs))) == 2 * 6 * 2 * 5 * 5


def sliced(b: Builder, x: Value) -> Value:
    return b.emit("slice", x, start=(0, 0), step=(1, 1), size=(2, 10))


def sliced_body(*, whole: bool) -> Graph:
    """Two overlapping parts of x[8, 10], 20 elements each; or x itself beside them."""
    b = Builder()
    x = b.input(f32(8, 10))
    view = b.emit("transpose", b.emit("transpose", x, perm=(1, 0)), perm=(1, 0))
    parts = [b.emit("neg", sliced(b, x)), b.emit("neg", sliced(b, view))]
    return b.finish([*parts, b.emit("neg", x)] if whole else parts)


@pytest.mark.parametrize(("whole", "elements"), [(False, 40), (True, 80)])
def test_slices_read_no_more_than_they_take(whole: bool, elements: int) -> None:
    assert reads(sliced_body(whole=whole)) == (4 * elements,)


def test_a_gather_reads_the_rows_it_takes() -> None:
    b = Builder()
    table, where = b.input(f32(1000, 16)), b.input(TensorType(t.i64, (3,)))
    assert reads(b.finish([b.emit("take", table, where, axis=0)])) == (4 * 3 * 16, 8 * 3)


def test_what_is_passed_through_is_read_whole() -> None:
    b = Builder()
    x = b.input(f32(4, 10))
    assert reads(b.finish([x, sliced(b, x)])) == (160,)
