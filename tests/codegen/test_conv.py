"""Convolutions through the whole pipeline against the interpreter, and the choice of tiles."""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.codegen.conv_tiles import (
    ConvShape,
    ConvTile,
    WindowShape,
    choose_conv_tile,
    conv_cycles,
    cuts_rows,
    rows_are_regular,
    rows_worth_cutting,
)
from plait.codegen.core import AVX2, AVX512, ZEN4, Core, core
from plait.codegen.schedule import Schedule
from plait.codegen.tiles import WAYS
from plait.codegen.tvm.target import cpu_target
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from plait.runtime.compiler import compile_graph
from tests.codegen.graphs import both_cores, call, check, normal, only_kernel


@dataclass(frozen=True)
class Case:
    """A convolution of x[N, C, *D] to `oc` channels, and the template that must take it."""

    x: tuple[int, ...]
    oc: int
    window: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    low: int | tuple[int, ...] = 0
    high: int | tuple[int, ...] | None = None
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    template: str = "conv"
    last: bool = True

    def spread(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * len(self.window)

    def data(self, b: Builder, *more: TensorType) -> tuple[Value, ...]:
        """An input stored channels-last if `last`, seen as [N, C, *D], and further inputs."""
        stored = self.x if not self.last else (self.x[0], *self.x[2:], self.x[1])
        x, *others = (b.input(ty) for ty in (TensorType(t.f32, stored), *more))
        rank = len(self.x)
        seen = b.transpose(x, (0, rank - 1, *range(1, rank - 1))) if self.last else x
        return (seen, *others)

    def node(self, b: Builder) -> Value:
        """The convolution of the graph's only input."""
        (x,) = self.data(b)
        return self.conv(b, x)

    def sample(self) -> Any:
        shape = self.x if not self.last else (self.x[0], *self.x[2:], self.x[1])
        return normal(0, *shape)

    def weight(self) -> Any:
        shape = (self.oc, self.x[1] // self.groups, *self.window)
        return normal(1, *shape) / np.float32(math.sqrt(math.prod(shape[1:])))

    def conv(self, b: Builder, x: Value, weight: Value | None = None) -> Value:
        high = self.low if self.high is None else self.high
        return b.emit(
            "conv", x, b.constant(self.weight(), "w") if weight is None else weight,
            stride=self.spread(self.stride), low=self.spread(self.low), high=self.spread(high),
            dilation=self.spread(self.dilation), groups=self.groups,
        )  # fmt: skip

    def result(self, b: Builder, y: Value) -> Value:
        """The result stored channels-last if `last`."""
        return b.transpose(y, (0, *range(2, y.rank), 1)) if self.last else y

    def bias(self, b: Builder) -> Value:
        return b.constant(normal(2, self.oc, *[1] * len(self.window)), "bias")

    def __str__(self) -> str:
        return f"{self.x}-{self.oc}-{self.window}-s{self.stride}-g{self.groups}"


CASES = [
    # residual networks: 3x3, pointwise, strided shortcut, the stem from a row-major image
    Case((1, 20, 14, 14), 32, (3, 3), low=1),
    Case((1, 16, 9, 11), 48, (1, 1)),
    Case((1, 24, 14, 14), 32, (1, 1), stride=2),
    Case((1, 3, 30, 30), 16, (7, 7), stride=2, low=3, last=False),
    Case((1, 3, 30, 30), 16, (3, 3), stride=2, low=0, high=1),
    Case((2, 3, 16, 16), 24, (4, 4), stride=4, last=False),
    Case((2, 4, 6, 5), 16, (1, 1), last=False),
    # batches, ragged tiles and channels, asymmetric padding, cropping, dilation
    Case((2, 12, 7, 5), 20, (3, 3), low=1),
    Case((3, 5, 7, 7), 10, (3, 3)),
    Case((1, 9, 13, 10), 17, (3, 5), stride=(1, 2), low=(1, 2), high=(0, 3), dilation=(2, 1)),
    Case((1, 8, 9, 9), 16, (3, 3), low=(-1, -2), high=(-1, 0)),
    Case((1, 8, 9, 9), 20, (3, 3), low=(-1, 1), high=(2, -1)),
    Case((1, 16, 12, 12), 8, (3, 3), low=4, high=4, dilation=4),
    # groups: whole panels, half a vector, an odd size, several panels with a rest
    Case((1, 32, 6, 6), 64, (3, 3), low=1, groups=2),
    Case((1, 16, 8, 8), 16, (3, 3), low=1, groups=4),
    Case((1, 12, 6, 6), 30, (3, 3), low=1, groups=3),
    Case((2, 4, 5, 5), 84, (3, 3), low=1, groups=2),
    Case((1, 8, 6, 6), 16, (3, 3), low=1, groups=8, template="generic"),
    # the small networks of face detection
    Case((1, 3, 20, 17), 10, (3, 3), last=False),
    Case((1, 10, 9, 7), 16, (3, 3)),
    Case((1, 32, 5, 4), 2, (1, 1), template="narrow"),
    # one column; kernel rows that meet padding alone
    Case((1, 8, 16, 1), 32, (64, 1), low=(31, 0), high=(32, 0)),
    Case((1, 8, 17, 1), 32, (64, 1), low=(31, 0), high=(32, 0)),
    Case((1, 1, 64, 1), 16, (32, 1), stride=(4, 1), low=(14, 0)),
    Case((2, 8, 12, 1), 16, (9, 1), low=(4, 0)),
    # sequences
    Case((1, 12, 33), 20, (3,), low=1),
    Case((2, 1, 50), 24, (10,), stride=5),
    Case((1, 16, 20), 16, (4,), low=2, high=1, groups=2),
    # few outputs
    Case((1, 16, 10, 10), 1, (3, 3), low=1, template="narrow"),
    Case((2, 16, 9, 7), 3, (3, 2), stride=(2, 1), low=(0, 1), high=(2, 1), template="narrow"),
    Case((1, 48, 21), 4, (3,), low=1, template="narrow"),
    Case((1, 3, 8, 8), 3, (3, 3), low=1, last=False),
]


@both_cores
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value(case: Case) -> None:
    """With a bias and a relu."""
    b = Builder()
    y = case.node(b) + case.bias(b)
    graph = b.finish([case.result(b, b.emit("relu", y))])
    check(graph, [case.sample()], case.template)


BASIC = Case((1, 16, 9, 9), 24, (3, 3), low=1)
RAGGED = Case((1, 8, 7, 5), 13, (3, 3), low=1)
NARROW = Case((1, 16, 9, 9), 3, (3, 3), low=1, template="narrow")


@both_cores
@pytest.mark.parametrize("case", [BASIC, RAGGED, NARROW], ids=str)
def test_epilogue_with_operands_of_all_kinds(case: Case) -> None:
    """A residual, a row-major factor, integers, a mask; the result goes out row-major."""
    b = Builder()
    n, oc, h, w = case.x[0], case.oc, *case.x[2:]  # a window of 3 and padding of 1 keep the size
    types = (TensorType(t.f32, (n, oc, h, w)), TensorType(t.i64, (n, 1, h, 1)),
             TensorType(t.bool_, (oc, 1, w)))  # fmt: skip
    x, factor, whole, mask = case.data(b, *types)
    y = b.emit("relu", case.conv(b, x) * factor + b.cast(whole, t.f32))
    graph = b.finish([b.emit("select", mask, y, factor)])
    rng = np.random.default_rng(0)
    inputs = [case.sample(), normal(5, n, oc, h, w), rng.integers(-9, 9, (n, 1, h, 1)),
              rng.random((oc, 1, w)) < 0.5]  # fmt: skip
    check(graph, inputs, case.template)


@both_cores
@pytest.mark.parametrize("case", [BASIC, RAGGED, NARROW], ids=str)
def test_heavy_epilogue(case: Case) -> None:
    b = Builder()
    y = case.node(b) + case.bias(b)
    y = b.emit("gelu", y, form="none")
    check(b.finish([case.result(b, y)]), [case.sample()], case.template)


@both_cores
def test_written_in_place_of_an_operand() -> None:
    """A residual block: the plan puts the sum where the shortcut was."""
    case = Case((1, 24, 10, 10), 24, (3, 3), low=1)
    b = Builder()
    shortcut = b.emit("relu", case.node(b))
    y = b.emit("relu", case.conv(b, case.conv(b, shortcut)) + shortcut)
    module = check(b.finish([case.result(b, case.conv(b, y))]), [case.sample()], "conv")
    graph, storage = module.graph, module.memory.storage
    kernels = [(graph.results(k)[0], n.operands) for k, n in enumerate(graph.nodes)
               if n.op == "kernel"]  # fmt: skip
    assert any(storage[out] in [storage[v] for v in operands] for out, operands in kernels)


def kernel(graph: Graph, images: dict[int, Any]) -> tuple[Graph, int, list[Any]]:
    """The body of a graph's only kernel, the width of its panels, and its inputs: images by their
    channels, and packed constants."""
    lowered, node = only_kernel(graph, core())
    inputs = []
    for v in node.operands:
        made = lowered.producer(v)
        constant = made is not None and made.op == "constant"
        channels = lowered.types[v].static("test")[1]
        inputs.append(made.attrs["value"].array if made and constant else images[channels])
    return node.attrs["body"], Schedule.parse(node.attrs["schedule"]).number("nr"), inputs


@both_cores
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("order", ["oc", "pos"])
def test_positions_of_another_tile_are_not_written(k: int, order: str) -> None:
    """The last tile of 6 rows ends with position 77, so it begins with one of the tile before:
    over the shortcut, that would be added to it twice."""
    case = Case((1, 16, 11, 7), 40, (k, k), low=k // 2)
    b = Builder()
    x, stored = case.data(b, TensorType(t.f32, (1, 11, 7, 40)))
    y = case.conv(b, x) + b.transpose(stored, (0, 3, 1, 2))
    images = {16: case.sample(), 40: normal(3, 1, 11, 7, 40)}
    body, nr, inputs = kernel(b.finish([case.result(b, y)]), images)
    schedule = f"conv{{mr=6 nr={nr} order={order} parallel=1 blocks=1}}"
    over = next(k for k, x in enumerate(inputs) if x is images[40])
    wanted = call(body, schedule, inputs)
    np.testing.assert_array_equal(call(body, schedule, inputs, over), wanted)


def test_weights_that_are_not_constant() -> None:
    """Nothing is packed ahead of time; the generic template reads them where they are."""
    b = Builder()
    x, weight = BASIC.data(b, TensorType(t.f32, BASIC.weight().shape))
    graph = b.finish([BASIC.result(b, BASIC.conv(b, x, weight))])
    check(graph, [BASIC.sample(), BASIC.weight()], "generic")


def test_other_types_are_left_to_the_generic_template() -> None:
    b = Builder()
    x = b.input(TensorType(t.f64, (1, 8, 6, 6)))
    w = b.constant(normal(1, 16, 8, 3, 3).astype(np.float64))
    y = b.emit("conv", x, w, stride=(1, 1), low=(0, 0), high=(0, 0), dilation=(1, 1))
    check(b.finish([y]), [normal(0, 1, 8, 6, 6).astype(np.float64)], "generic")


def test_volumes_are_left_to_the_generic_template() -> None:
    case = Case((1, 4, 5, 5, 4), 8, (3, 3, 3), low=1, template="generic", last=False)
    b = Builder()
    check(b.finish([case.node(b)]), [case.sample()], "generic")


def test_the_padded_copy_is_freed() -> None:
    """A run takes 4 MB of scratch, and gives it back."""
    case = Case((1, 64, 120, 120), 1, (3, 3), low=1, template="narrow")
    b = Builder()
    model = compile_graph(b.finish([case.result(b, case.node(b))])).load(threads=1)
    inputs = [case.sample()]
    model(*inputs)
    before = _resident_bytes()
    for _ in range(50):
        model(*inputs)
    assert _resident_bytes() - before < 50 * 1024 * 1024


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize(
    ("x", "tiles"),
    [
        ((1, 16, 11, 7), ((6, "oc", 0, 1), (4, "pos", 1, 1), (1, "oc", 1, 1), (5, "pos", 0, 1))),
        ((1, 16, 1, 3), ((2, "oc", 0, 1), (3, "pos", 0, 1), (6, "oc", 0, 1), (6, "pos", 1, 1))),
        # Blocks of 7 and 6 tiles, of 5, 5 and 3, of one each, and none for the last of six.
        ((1, 16, 11, 7), ((6, "oc", 0, 1), (6, "oc", 0, 2), (6, "oc", 1, 3), (6, "oc", 1, 13))),
        ((2, 16, 11, 7), ((4, "pos", 0, 1), (4, "oc", 1, 6), (5, "oc", 0, 9), (6, "oc", 1, 4))),
    ],
)
def test_any_tile_and_order_has_the_same_bits(
    x: tuple[int, ...], tiles: tuple[tuple[int, str, int, int], ...]
) -> None:
    """Also tiles of more rows than there are positions."""
    case = Case(x, 40, (3, 3), low=1)
    b = Builder()
    graph = b.finish([case.result(b, case.node(b) + case.bias(b))])
    body, nr, inputs = kernel(graph, {16: case.sample()})
    results = [
        call(body, f"conv{{mr={mr} nr={nr} order={order} parallel={p} blocks={n}}}", inputs)
        for mr, order, p, n in tiles
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def shape(h: int, c: int, oc: int, k: int, groups: int = 1) -> ConvShape:
    pad = (k - 1) // 2
    return ConvShape(WindowShape(1, h, h, c, k, k, low=(pad, pad), high=(pad, pad)), oc, groups)


@pytest.mark.parametrize(
    ("conv", "tile"),
    [
        (shape(56, 64, 64, 3), ConvTile(6, 16, "oc", blocks=4)),
        (shape(7, 512, 512, 3), ConvTile(5, 16, "oc")),  # 49 positions are 10 tiles of 5
        (shape(56, 256, 64, 1), ConvTile(6, 16, "pos")),
        (shape(56, 96, 24, 1), ConvTile(4, 24, "oc")),
        (shape(28, 256, 256, 3, groups=32), ConvTile(7, 8, "pos")),
        (shape(2, 8, 16, 1), ConvTile(4, 16, "oc", parallel=False)),
        # a shortcut whose tiles ask for the next one's pixels, and one of too many weights for that
        (ConvShape(WindowShape(1, 56, 56, 256, 1, 1, (2, 2)), 512), ConvTile(6, 16, "pos")),
        (
            ConvShape(WindowShape(1, 28, 28, 512, 1, 1, (2, 2)), 1024),
            ConvTile(6, 16, "oc", blocks=2),
        ),
        # images of 0.8, 0.8 and 3.1 MiB: weights of 1 and 2.3 MiB pass by again, 9 MiB do not
        (shape(14, 1024, 256, 1), ConvTile(6, 16, "oc", blocks=4)),
        (
            ConvShape(WindowShape(1, 28, 28, 256, 3, 3, (2, 2), (1, 1), (1, 1)), 256),
            ConvTile(6, 16, "oc", blocks=4),
        ),
        (
            ConvShape(WindowShape(8, 14, 14, 512, 3, 3, (2, 2), (1, 1), (1, 1)), 512),
            ConvTile(6, 16, "oc"),
        ),
    ],
    ids=str,
)
def test_tile(conv: ConvShape, tile: ConvTile) -> None:
    assert choose_conv_tile(conv, threads=2) == tile


@both_cores
def test_rows_of_few_channels_lie_at_fixed_distances(core: Core) -> None:
    """An address for each of them would cost more than their few terms."""
    window = WindowShape(1, 224, 224, 3, 7, 7, (2, 2), (3, 3), (3, 3))
    assert rows_are_regular(window, choose_conv_tile(ConvShape(window, 64), threads=2).mr)


def test_windows_that_meet_only_padding_are_estimated() -> None:
    """All taps of two rows, three apart, miss an image of one."""
    shape = ConvShape(WindowShape(3, 1, 1, 64, 2, 1, low=(2, 0), high=(2, 0), dilation=(3, 1)), 64)
    assert shape.window.oh == 2
    assert choose_conv_tile(shape, threads=2).mr > 0


@pytest.mark.parametrize("length", [8, 16, 32])
def test_tiles_of_several_sequences_skip_padding_that_is_most_of_a_window(length: int) -> None:
    """CREPE's windows of 64 over short sequences: a tile that spans two skips nothing."""
    shape = ConvShape(WindowShape(4, length, 1, 128, 64, 1, low=(31, 0), high=(32, 0)), 256)
    assert cuts_rows(shape, choose_conv_tile(shape, threads=2).mr)
    assert not cuts_rows(shape, 5)


@pytest.mark.parametrize("core", [ZEN4], indirect=True, ids=["Zen 4"])
@pytest.mark.parametrize("images", [4, 32])
def test_pixels_that_fall_into_one_set_of_l1_are_no_more_than_its_ways(
    core: Core, images: int
) -> None:
    """CREPE's largest convolution: tiles of 14 pixels, 4 KB apart, took twice as long as of 8."""
    shape = ConvShape(WindowShape(images, 128, 1, 1024, 64, 1, low=(31, 0), high=(32, 0)), 128)
    assert choose_conv_tile(shape, threads=2).mr <= WAYS
    apart = replace(shape, window=replace(shape.window, c=1040))
    assert conv_cycles(shape, 14, 16, 1) > 1.8 * conv_cycles(apart, 14, 16, 1)


@pytest.mark.parametrize("core", [AVX512], indirect=True, ids=["16 lanes"])
def test_panels_of_deep_sums_stay_in_the_second_level_cache(core: Core) -> None:
    """Also those of two vectors: a tile one vector wide loads more than it multiplies."""
    window = WindowShape(1, 14, 14, 512, 3, 3, (2, 2), (1, 1), (1, 1))
    tile = choose_conv_tile(ConvShape(window, 512), threads=2)
    assert tile.nr == 32 and 4 * ConvShape(window, 512).taps * tile.nr <= core.held_bytes


def test_images_beyond_the_cache_are_passed_over_once() -> None:
    """Rather all weights by each tile of positions, unless there are few positions for many."""
    orders = {}
    for n, size, inputs, outputs in ((8, 28, 128, 512), (1, 14, 256, 1024)):
        shape = ConvShape(WindowShape(n, size, size, inputs, 1, 1), outputs)
        orders[n] = choose_conv_tile(shape, threads=2).order
    assert orders == {8: "pos", 1: "oc"}


def test_rows_are_cut_where_padding_is_much_of_the_window() -> None:
    tall = WindowShape(1, 16, 1, 128, 64, 1, low=(31, 0), high=(32, 0))
    assert rows_worth_cutting(ConvShape(tall, 128))
    assert not rows_worth_cutting(ConvShape(WindowShape(1, 16, 16, 128, 3, 3), 128))


def test_sizes() -> None:
    conv = ConvShape(WindowShape(2, 10, 9, 8, 3, 3, (2, 1), (1, 0), (0, -1), (1, 2)), 16, 2)
    assert (conv.window.oh, conv.window.ow, conv.window.positions) == (5, 4, 40)
    assert (conv.inputs, conv.outputs, conv.taps, conv.flops) == (4, 8, 36, 2 * 40 * 16 * 36)
    assert conv.window.turned.turned == conv.window


def lowered_kernel(graph: Graph, core: Core) -> tuple[Graph, str]:
    """Body and schedule of a graph's only kernel."""
    _, kernel = only_kernel(graph, core)
    return kernel.attrs["body"], kernel.attrs["schedule"]


@both_cores
@pytest.mark.parametrize(("size", "far"), [(24, True), (8, False)])
def test_lines_of_results_are_asked_for_where_they_come_from_the_last_level_cache(
    core: Core, size: int, far: bool
) -> None:
    case = Case((1, 64, size, size), 256, (1, 1))
    b = Builder()
    graph = b.finish([case.result(b, case.node(b))])
    script = cpu_target(1, core).build(*lowered_kernel(graph, core)).script()
    assert ("llvm.prefetch" in script) == (far and core == AVX512)


@both_cores
@pytest.mark.parametrize(
    ("case", "asks"),
    [
        (Case((1, 40, 85, 85), 40, (1, 1)), True),
        (Case((1, 40, 85, 85), 40, (1, 1), stride=2), True),
        (Case((2, 48, 62, 62), 40, (1, 1), groups=2), True),
        (Case((1, 40, 80, 80), 40, (1, 1)), False),  # 0.98 MiB
        (Case((1, 40, 85, 85), 40, (3, 3)), False),
        (Case((1, 4, 270, 270), 40, (1, 1), last=False), False),
        (Case((1, 1024, 20, 20), 40, (1, 1)), False),  # two tiles would share sets of L1
    ],
    ids=str,
)
def test_pixels_of_the_next_tile_are_asked_for_where_they_come_from_beyond_l2(
    core: Core, case: Case, asks: bool
) -> None:
    """By tiles that all panels pass over before the next one, which have the same bits."""
    b = Builder()
    graph = b.finish([case.result(b, case.node(b))])
    body, _ = lowered_kernel(graph, core)
    tile = f"mr=4 nr={2 * core.lanes} parallel=0 blocks=1 core={core.name}"
    scripts = [cpu_target(1, core).build(body, f"conv{{{tile} order={order}}}").script()
               for order in ("oc", "pos")]  # fmt: skip
    reads = ["0, 2, 1)" in script for script in scripts]  # what is asked for to be read
    assert reads == [False, asks and core == AVX2]


@pytest.mark.parametrize(
    "case",
    [
        Case((1, 40, 85, 83), 40, (1, 1)),
        Case((1, 40, 85, 85), 24, (1, 1), stride=2),
        Case((2, 48, 62, 61), 40, (1, 1), groups=2),
    ],
    ids=str,
)
def test_tiles_that_ask_for_pixels_have_the_same_bits(case: Case) -> None:
    b = Builder()
    graph = b.finish([case.result(b, case.node(b) + case.bias(b))])
    body, nr, inputs = kernel(graph, {case.x[1]: case.sample()})
    asking, waiting = (
        call(body, f"conv{{mr={mr} nr={nr} order={order} parallel={p} blocks=1}}", inputs)
        for mr, order, p in ((6, "pos", 1), (5, "oc", 0))
    )
    np.testing.assert_array_equal(asking, waiting)
    check(graph, [case.sample()], "conv")


@both_cores
@pytest.mark.parametrize(("size", "far"), [(320, True), (280, False)])
def test_what_is_added_to_results_in_memory_is_asked_for(core: Core, size: int, far: bool) -> None:
    """Results of 9.8 and 7.5 MB, and the lines of a tile in them and in the residual."""
    case = Case((1, 8, size, size), 24, (1, 1))
    b = Builder()
    x, stored = case.data(b, TensorType(t.f32, (1, size, size, 24)))
    y = case.conv(b, x) + b.transpose(stored, (0, 3, 1, 2))
    graph = b.finish([case.result(b, y)])
    body, schedule = lowered_kernel(graph, core)
    script = cpu_target(1, core).build(body, schedule).script()
    rows = Schedule.parse(schedule).number("mr")
    asked = rows + (2 if far else 0)  # pixels of the next tile are asked for in any case
    assert script.count("llvm.prefetch") == (asked if core == AVX2 else 0)
    assert (f"for m in T.unroll({rows}):\n" in script.partition("llvm.prefetch")[0]) or not far
    check(graph, [case.sample(), normal(3, 1, size, size, 24)], "conv")
