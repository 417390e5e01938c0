"""Convolutions by minimal filtering against the interpreter, and when they are chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plait.codegen.conv_tiles import ConvShape, WindowShape, conv_tiles
from plait.codegen.core import AVX2, ZEN4, Core, making_for, simd
from plait.codegen.tvm.target import cpu_target
from plait.codegen.winograd import (
    WinogradTile,
    can_filter,
    terms,
    winograd_tiles,
)
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.ir.winograd import POINTS
from plait.passes.context import Context
from plait.passes.packing import FORMS
from plait.passes.pipeline import parse_pipeline
from tests.codegen.graphs import SELECTED, both_cores, call, check, normal
from tests.codegen.test_conv import Case

CASES = [
    Case((1, 32, 28, 28), 32, (3, 3), low=1, template="winograd"),
    # sizes that no tile divides, batches, half a panel of channels, padding of other widths
    Case((2, 32, 19, 22), 40, (3, 3), low=1, template="winograd"),
    Case((1, 40, 23, 30), 24, (3, 3), template="winograd"),
    Case((3, 24, 18, 17), 32, (3, 3), low=(2, 0), high=(1, 3), template="winograd"),
    Case((1, 32, 26, 26), 32, (3, 3), low=(-1, 1), high=(2, -3), template="winograd"),
]


def fitted(case: Case) -> Case:
    """The case with as many vectors of channels whatever their length."""
    n, c, *image = case.x
    return replace(case, x=(n, c // 8 * simd(), *image), oc=case.oc // 8 * simd())


@both_cores
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value(case: Case) -> None:
    """With a bias and a relu."""
    case = fitted(case)
    b = Builder()
    y = case.node(b) + case.bias(b)
    check(b.finish([case.result(b, b.emit("relu", y))]), [case.sample()], "winograd")


@both_cores
def test_epilogue_with_operands_of_all_kinds() -> None:
    """A residual, a row-major factor, a mask; the result goes out row-major."""
    case = fitted(CASES[1])
    n, oc, h, w = case.x[0], case.oc, *case.x[2:]
    b = Builder()
    x, factor, mask = case.data(
        b, TensorType(t.f32, (n, oc, h, w)), TensorType(t.bool_, (oc, 1, w))
    )
    y = case.conv(b, x) * factor
    graph = b.finish([b.emit("select", mask, y, factor)])
    mask_in = np.random.default_rng(0).random((oc, 1, w)) < 0.5
    check(graph, [case.sample(), normal(5, n, oc, h, w), mask_in], "winograd")


@both_cores
def test_heavy_epilogue() -> None:
    case = fitted(CASES[2])
    b = Builder()
    y = b.emit("gelu", case.node(b) + case.bias(b), form="none")
    check(b.finish([case.result(b, y)]), [case.sample()], "winograd")


def _conv_kernel() -> tuple[Graph, Graph, Any, Any]:
    """A graph, its kernel's body before packing, the data, and the weights."""
    case = fitted(Case((2, 16, 13, 11), 40, (3, 3), low=1))
    b = Builder()
    graph = b.finish([case.result(b, case.node(b))])
    lowered = parse_pipeline(SELECTED.removesuffix(",select")).run(graph, Context(cpu_target(1)))
    (kernel,) = (n for n in lowered.nodes if n.op == "kernel")
    return graph, kernel.attrs["body"], case.sample(), case.weight()


def _packed(body: Graph, form: str, block: int, w: Any) -> tuple[Graph, Any]:
    """The body with packed weights, and those."""
    (node,) = (n for n in body.nodes if n.op == "conv")
    packing = FORMS[form](node, body.types[node.operands[1]], block)
    packed = packing.pack(w)
    b = Builder()
    x = b.input(body.input_types[0])
    value = packing.unpack(b, b.input(TensorType(t.f32, packed.shape)), body.input_types[1])
    return b.finish(b.inline(body, [x, value])), packed


@both_cores
@pytest.mark.parametrize("m", sorted(POINTS))
def test_any_cut_has_the_same_bits(m: int) -> None:
    graph, body, x, w = _conv_kernel()
    results = []
    for mr, vectors, group, block, order, parts in (
        (5, 2, 3, 15, "pos", 1), (5, 2, 1, 40, "oc", 2), (4, 3, 2, 8, "oc", 1),
        (6, 2, 2, 24, "pos", 3), (2, 4, 8, 48, "pos", 2),
    ):  # fmt: skip
        nr = vectors * simd()
        schedule = f"winograd{{m={m} mr={mr} nr={nr} group={group} block={block} "
        schedule += f"order={order} parts={parts}}}"
        packed_body, packed = _packed(body, f"winograd{m}", nr, w)
        results.append(call(packed_body, schedule, [x, packed]))
    (want,) = interpret(graph, [x])
    np.testing.assert_allclose(results[0], want.reshape(-1), rtol=1e-5, atol=1e-5)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("m", sorted(POINTS))
def test_a_packed_body_means_the_same_up_to_rounding(m: int) -> None:
    _, body, x, w = _conv_kernel()
    packed_body, packed = _packed(body, f"winograd{m}", 16, w)
    (want,) = interpret(body, [x.transpose(0, 3, 1, 2), w])
    (got,) = interpret(packed_body, [x.transpose(0, 3, 1, 2), packed])
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


def test_terms_without_a_multiplication_come_first() -> None:
    assert terms([0.5, -1.0, 0.0, 1.0]) == [(1.0, 3), (-1.0, 1), (0.5, 0)]


def shape(size: int, c: int, oc: int, **window: Any) -> ConvShape:
    given = {"low": (1, 1), "high": (1, 1), **window}
    return ConvShape(WindowShape(1, size, size, c, 3, 3, **given), oc)


def test_what_can_be_filtered() -> None:
    assert can_filter(shape(14, 64, 64))
    assert not can_filter(shape(14, 64, 64, stride=(2, 2)))
    assert not can_filter(shape(14, 64, 64, dilation=(2, 2)))
    assert not can_filter(shape(14, 3, 64))
    assert not can_filter(ConvShape(WindowShape(1, 14, 14, 64, 5, 5), 64))
    assert not can_filter(ConvShape(WindowShape(1, 14, 14, 64, 3, 3), 64, groups=2))


@both_cores
@pytest.mark.parametrize(
    ("conv", "m"), [(shape(56, 64, 64), 4), (shape(14, 256, 256), 4), (shape(7, 512, 512), 2)]
)
def test_tile(core: Core, conv: ConvShape, m: int) -> None:
    """Small images waste less in small tiles, and wide layers have many transformed weights."""
    cycles, tile = winograd_tiles(conv, threads=2)[0]
    assert tile.m == m
    assert tile.block % tile.rows == 0
    assert cycles > 0


@pytest.mark.parametrize("conv", [shape(112, 128, 128), shape(56, 256, 256)])
def test_blocks_are_of_data_that_the_last_level_cache_keeps(conv: ConvShape) -> None:
    """All tiles at once would be 15 and 7 MB."""
    tile = winograd_tiles(conv, threads=2)[0][1]
    assert 4 * tile.planes * conv.inputs * tile.block <= AVX2.kept_bytes


@both_cores
@pytest.mark.parametrize("conv", [shape(7, 512, 512), shape(14, 256, 256)])
def test_many_channels_are_filtered(core: Core, conv: ConvShape) -> None:
    assert winograd_tiles(conv, threads=2)[0][0] < conv_tiles(conv, threads=2)[0][0]


@pytest.mark.parametrize("kept", [10 << 20, 32 << 20])
def test_blocks_are_what_the_last_level_cache_keeps(kept: int) -> None:
    """Data of a block of many large images: as much as fits, and no more."""
    conv = shape(224, 64, 64)
    with making_for(replace(ZEN4, kept_bytes=kept)):
        tile = winograd_tiles(conv, threads=2)[0][1]
    held = 4 * tile.planes * conv.inputs * tile.block
    assert held <= kept
    assert (held > 10 << 20) == (kept > 10 << 20)


def test_a_small_convolution_runs_on_one_thread() -> None:
    assert not winograd_tiles(shape(4, 8, 8), threads=2)[0][1].parallel


def test_sizes() -> None:
    tile = WinogradTile(4, 5, 16, 3, 105)
    assert (tile.size, tile.planes, tile.rows) == (6, 36, 15)
