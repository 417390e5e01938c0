"""Depthwise convolutions and pools through the whole pipeline against the interpreter."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tvm import tirx
from tvm.sym import Analyzer

from plait.codegen.conv_tiles import WindowShape, WindowTile, choose_window_tile
from plait.codegen.core import AVX2, AVX512, ZEN4, Core, making_for
from plait.codegen.tiles import LINE
from plait.codegen.tvm.image import Windowed
from plait.codegen.tvm.target import cpu_target
from plait.codegen.tvm.window import Columns, Tile, WindowNest
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.types import TensorType
from tests.codegen.graphs import both_cores, check, normal

Pair = tuple[int, ...]


def window(*, stride: Pair, low: Pair, high: Pair, dilation: Pair) -> dict[str, Any]:
    return {"stride": stride, "low": low, "high": high, "dilation": dilation}


def stored_last(b: Builder, shape: Pair) -> Value:
    """An input [N, *D, C] seen as [N, C, *D]."""
    rank = len(shape)
    x = b.input(TensorType(t.f32, (shape[0], *shape[2:], shape[1])))
    return b.transpose(x, (0, rank - 1, *range(1, rank - 1)))


def sample(shape: Pair) -> Any:
    return normal(0, shape[0], *shape[2:], shape[1])


# (data [N, C, *D], window, stride, low, high, dilation)
WINDOWS: list[tuple[Pair, Pair, Pair, Pair, Pair, Pair]] = [
    ((1, 32, 14, 14), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((1, 24, 13, 14), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
    ((1, 16, 7, 7), (7, 7), (1, 1), (3, 3), (3, 3), (1, 1)),
    ((2, 13, 9, 11), (3, 3), (2, 1), (1, 0), (2, 1), (1, 1)),
    ((1, 24, 9, 9), (3, 3), (1, 1), (2, 2), (2, 2), (2, 2)),
    ((1, 20, 1, 33), (1, 3), (1, 2), (0, 1), (0, 1), (1, 1)),
    ((1, 8, 6, 6), (5, 5), (1, 1), (4, 4), (4, 4), (1, 1)),
    ((3, 9, 17, 1), (3, 1), (2, 1), (1, 0), (0, 0), (1, 1)),
    ((1, 8, 6, 6), (1, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((1, 8, 9, 9), (2, 2), (2, 2), (-1, 0), (0, -1), (1, 1)),
    ((2, 12, 40), (5,), (1,), (2,), (2,), (1,)),
    ((1, 16, 30), (3,), (2,), (0,), (1,), (2,)),
    ((1, 40, 7, 7), (7, 7), (1, 1), (0, 0), (0, 0), (1, 1)),
    ((1, 3, 12, 12), (3, 3), (2, 2), (0, 0), (1, 1), (1, 1)),
    # Beyond 8 MB: images are asked for ahead.
    ((3, 56, 122, 113), (3, 3), (2, 1), (1, 1), (0, 1), (1, 1)),
    ((1, 40, 240, 239), (2, 3), (1, 2), (-1, 0), (0, -1), (2, 1)),
]


@both_cores
@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_depthwise(case: tuple[Pair, ...]) -> None:
    shape, size, stride, low, high, dilation = case
    b = Builder()
    x = stored_last(b, shape)
    channels = shape[1]
    w = b.constant(normal(1, channels, 1, *size) / np.float32(math.sqrt(math.prod(size))), "w")
    bias = b.constant(normal(2, channels, *[1] * len(size)), "bias")
    attrs = window(stride=stride, low=low, high=high, dilation=dilation)
    y = b.emit("conv", x, w, groups=channels, **attrs) + bias
    y = b.emit("min", b.emit("relu", y), b.scalar(6.0, t.f32))
    out = b.transpose(y, (0, *range(2, y.rank), 1))
    check(b.finish([out]), [sample(shape)], "depthwise")


@both_cores
@pytest.mark.parametrize("op", ["max_pool", "sum_pool"])
@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_pool(case: tuple[Pair, ...], op: str) -> None:
    """The mean divides by counts that differ from place to place."""
    shape, size, stride, low, high, dilation = case
    b = Builder()
    x = stored_last(b, shape)
    attrs = window(stride=stride, low=low, high=high, dilation=dilation)
    y = b.emit(op, x, window=size, **attrs)
    if op == "sum_pool":
        y = y / b.constant(np.abs(normal(1, *[int(d) for d in y.shape[2:]])) + np.float32(1))
    check(b.finish([y]), [sample(shape)], "pool", exact=op == "max_pool")


@both_cores
def test_max_pool_keeps_nan() -> None:
    shape = (1, 8, 8, 8)
    b = Builder()
    x = stored_last(b, shape)
    attrs = window(stride=(2, 2), low=(1, 1), high=(1, 1), dilation=(1, 1))
    x_value = sample(shape)
    x_value[0, 3, 3, 2] = x_value[0, 5, 0, 1] = np.nan
    x_value[0, 0, 0, 0] = -np.inf
    graph = b.finish([b.emit("max_pool", x, window=(3, 3), **attrs)])
    check(graph, [x_value], "pool", exact=True)


@both_cores
@pytest.mark.parametrize(("rows", "cores"), [(17, []), (65, [AVX512]), (220, [AVX2, AVX512])])
def test_images_are_asked_for_where_the_core_gains_by_it(
    core: Core, rows: int, cores: list[Core]
) -> None:
    """Images of 0.7, 2.7 and 9 MB."""
    b = Builder()
    x = b.input(TensorType(t.f32, (1, 64, rows, 160), (0, 2, 3, 1)))
    attrs = window(stride=(1, 1), low=(1, 1), high=(1, 1), dilation=(1, 1))
    body = b.finish([b.emit("max_pool", x, window=(3, 3), **attrs)])
    tile = f"pool{{mr=2 vectors=1 chunks=1 parallel=0 core={core.name}}}"
    asks = "llvm.prefetch" in cpu_target(2, core).build(body, tile).script()
    assert asks == (core in cores)


@pytest.mark.parametrize("mr", [1, 4])
def test_rows_are_asked_for_as_streams(mr: int) -> None:
    """The tiles of a row, in turn, ask for line after line of the two rows that are new."""
    b = Builder()
    x = b.input(TensorType(t.f32, (1, 64, 40, 32), (0, 2, 3, 1)))
    attrs = window(stride=(2, 2), low=(1, 1), high=(1, 1), dilation=(1, 1))
    body = b.finish([b.emit("max_pool", x, window=(3, 3), **attrs)])
    nest = WindowNest(Windowed.of(body, "max_pool"), WindowTile(mr, 2))
    asked: dict[int, list[int]] = {}
    for j in range(0, 16, mr):
        for c in range(0, 64, 16):
            image, i, first, channel = (tirx.const(k, "int32") for k in (0, 10, j, c))
            tile = Tile(nest, Columns(j, 1, mr, True), image, i, first, channel, 16)
            starts, lines = tile.streams()
            for k, start in enumerate(starts):
                begin = int(Analyzer().simplify(start))
                asked.setdefault(k, []).extend(range(begin, begin + LINE * lines, LINE))
    for k, row in enumerate((21, 20)):
        begin = row * 32 * 64 + AVX2.ahead
        assert asked[k] == list(range(begin, begin + 32 * 64, LINE))


@pytest.mark.parametrize("core", [AVX2, ZEN4], indirect=True, ids=["avx2", "zen4"])
@pytest.mark.parametrize("size", [2, 3])
def test_windows_that_do_not_overlap_ask_for_what_is_near(core: Core, size: int) -> None:
    """Each line is read once, and soon, where the core gains by it."""
    b = Builder()
    x = b.input(TensorType(t.f32, (1, 64, 220, 160), (0, 2, 3, 1)))
    attrs = window(stride=(2, 2), low=(0, 0), high=(0, 0), dilation=(1, 1))
    body = b.finish([b.emit("max_pool", x, window=(size, size), **attrs)])
    nest = WindowNest(Windowed.of(body, "max_pool"), WindowTile(1, 1))
    image, i, first, channel = (tirx.const(k, "int32") for k in (0, 10, 7, 0))
    tile = Tile(nest, Columns(7, 1, 1, True), image, i, first, channel, core.lanes)
    near = core is ZEN4 and size == 2
    start = int(Analyzer().simplify(tile.streams()[0][0]))
    ahead = core.once_ahead if near else core.ahead
    assert start == ((20 + size - 1) * 160 + 14 + size - 2) * 64 + ahead
    assert f", 0, {3 if near else 2}, 1)" in str(nest.build().script())


@both_cores
@pytest.mark.parametrize("channels", [16, 13])
def test_heavy_epilogue(channels: int) -> None:
    shape = (1, channels, 9, 9)
    b = Builder()
    x = stored_last(b, shape)
    w = b.constant(normal(1, channels, 1, 3, 3), "w")
    attrs = window(stride=(1, 1), low=(1, 1), high=(1, 1), dilation=(1, 1))
    y = b.emit("gelu", b.emit("conv", x, w, groups=channels, **attrs), form="none")
    check(b.finish([b.transpose(y, (0, 2, 3, 1))]), [sample(shape)], "depthwise")


def test_integers_are_left_to_the_generic_template() -> None:
    b = Builder()
    x = b.input(TensorType(t.i64, (1, 3, 8, 8)))
    attrs = window(stride=(2, 2), low=(0, 0), high=(0, 0), dilation=(1, 1))
    graph = b.finish([b.emit("max_pool", x, window=(2, 2), **attrs)])
    values = np.random.default_rng(0).integers(-99, 99, (1, 3, 8, 8))
    check(graph, [values], "generic", exact=True)


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        (WindowShape(1, 56, 56, 96, 7, 7, low=(3, 3), high=(3, 3)), WindowTile(8, 1)),
        (WindowShape(1, 7, 7, 960, 3, 3, low=(1, 1), high=(1, 1)), WindowTile(7, 1, 2)),
        (WindowShape(1, 7, 7, 64, 7, 7), WindowTile(1, 4, 1, parallel=False)),
        (WindowShape(1, 14, 14, 24, 3, 3, low=(1, 1), high=(1, 1)), WindowTile(7, 1, 1, False)),
        (WindowShape(1, 112, 112, 64, 3, 3, (2, 2), (1, 1), (1, 1)), WindowTile(2, 4)),  # in L3
        (WindowShape(8, 112, 112, 96, 3, 3, (2, 2), (1, 1), (1, 1)), WindowTile(1, 2)),
    ],
    ids=str,
)
def test_tile(shape: WindowShape, tile: WindowTile) -> None:
    assert choose_window_tile(shape, threads=2) == tile


@pytest.mark.parametrize("images", [1, 8], ids=["from L3", "from memory"])
def test_tiles_are_of_one_column_where_rows_that_are_asked_for_arrive_slower(images: int) -> None:
    shape = WindowShape(images, 112, 112, 96, 3, 3, (2, 2), (1, 1), (1, 1))
    with making_for(AVX512):
        assert choose_window_tile(shape, threads=2).mr == 1
        assert choose_window_tile(replace(shape, h=28, w=28, n=1), threads=2).mr > 1
