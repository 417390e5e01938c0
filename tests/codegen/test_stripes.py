"""Joined kernels: blocks cut in every way, against the interpreter; and which are joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.codegen.core import AVX2, Core, core
from plait.codegen.schedule import Schedule
from plait.codegen.stripes import WORKSPACE_BYTES, Chain, Cut, chain_of
from plait.codegen.tvm.target import cpu_target
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph, Node
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.passes.context import Context
from plait.passes.memory_check import check_plan
from plait.passes.pipeline import DEFAULT_PIPELINE, parse_pipeline
from plait.passes.stripe import Block, Link
from plait.runtime.compiler import compile_graph
from tests.codegen.graphs import both_cores, call, normal, templates

SELECTED = DEFAULT_PIPELINE.partition(",stripe")[0]


@dataclass(frozen=True)
class Bottleneck:
    """Expand, a window over each channel, project, and the sum with the input where it fits."""

    n: int
    h: int
    w: int
    channels: tuple[int, int, int]
    k: int
    stride: int = 1
    low: int = 1
    high: int = 1
    expands: bool = True
    projects: bool = True

    def graph(self) -> Graph:
        inputs, wide, outputs = self.channels
        b = Builder()
        x = b.input(TensorType(t.f32, (self.n, self.h, self.w, inputs)))
        start = y = b.transpose(x, (0, 3, 1, 2))
        if self.expands:
            y = clipped(b, points(b, y, wide, 1))
        w = b.constant(normal(2, wide, 1, self.k, self.k) / np.float32(self.k), "window")
        y = b.emit("conv", y, w, stride=(self.stride,) * 2, low=(self.low,) * 2,
                   high=(self.high,) * 2, dilation=(1, 1), groups=wide)  # fmt: skip
        y = clipped(b, y + b.constant(normal(3, wide, 1, 1), "shift"))
        if self.projects:
            y = points(b, y, outputs, 4)
            y = y + start if y.shape == start.shape else y
        return b.finish([b.transpose(y, (0, 2, 3, 1))])


def points(b: Builder, x: Value, channels: int, seed: int) -> Value:
    inputs = x.type.static("test")[1]
    w = normal(seed, channels, inputs, 1, 1) / np.float32(math.sqrt(inputs))
    y = b.emit("conv", x, b.constant(w, f"w{seed}"), stride=(1, 1), low=(0, 0), high=(0, 0),
               dilation=(1, 1), groups=1)  # fmt: skip
    return y + b.constant(normal(seed, channels, 1, 1), f"b{seed}")


def clipped(b: Builder, x: Value) -> Value:
    return b.emit("relu", x)


def block(n: int, h: int, w: int, channels: int) -> Graph:
    """A window, a norm over channels, two products around a gelu, the sum with the input."""
    b = Builder()
    x = b.input(TensorType(t.f32, (n, h, w, channels)))
    start = b.transpose(x, (0, 3, 1, 2))
    window = b.constant(normal(1, channels, 1, 7, 7) / np.float32(7), "window")
    y = b.emit("conv", start, window, stride=(1, 1), low=(3, 3), high=(3, 3), dilation=(1, 1),
               groups=channels)  # fmt: skip
    y = b.transpose(y, (0, 2, 3, 1))
    y = b.emit("layer_norm", y, b.constant(normal(2, channels), "scale"),
               b.constant(normal(3, channels), "shift"), dims=1, eps=1e-6)  # fmt: skip
    for seed, size in ((4, 4 * channels), (5, channels)):
        inputs = y.type.static("test")[-1]
        matrix = normal(seed, inputs, size) / np.float32(math.sqrt(inputs))
        y = b.emit(
            "dot_general", y, b.constant(matrix, f"w{seed}"), lhs_contract=(3,), rhs_contract=(0,)
        )
        y = b.emit("gelu", y) if seed == 4 else y
    return b.finish([b.transpose(start + b.transpose(y, (0, 3, 1, 2)), (0, 2, 3, 1))])


def joined(graph: Graph, cut: Cut | None = None) -> tuple[Graph, list[Node]]:
    """The selected graph with each whole chain joined, and the joined kernels."""

    def join(links: Sequence[Link], threads: int) -> list[Block]:
        given = cut or Cut(1, 1)
        text = str(Schedule.make("stripes", rows=given.rows, bands=given.bands, parallel=1))
        return [Block(0, len(links) - 1, text)]

    context = Context(replace(cpu_target(core=core()), join=join))
    found = parse_pipeline(SELECTED + ",stripe").run(graph, context)
    return found, [n for n in found.nodes if n.attrs.get("schedule", "").startswith("stripes")]


def constant(graph: Graph, v: int) -> Any:
    node = graph.producer(v)
    return node.attrs["value"].array if node is not None and node.op == "constant" else None


def compare(graph: Graph, cut: Cut, x: Any) -> None:
    """The one joined kernel, cut in this way, gives what the graph means."""
    found, kernels = joined(graph, cut)
    (node,) = kernels
    operands = [x if (c := constant(found, v)) is None else c for v in node.operands]
    got = call(node.attrs["body"], node.attrs["schedule"], operands)
    (want,) = interpret(graph, [x])
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=3e-5, atol=3e-5)


BOTTLENECKS = [
    (Bottleneck(1, 8, 9, (8, 24, 8), 3), [Cut(1, 1), Cut(2, 1), Cut(2, 2), Cut(4, 2), Cut(8, 1)]),
    (Bottleneck(2, 12, 8, (8, 16, 24), 3, 2), [Cut(1, 1), Cut(2, 3), Cut(3, 1), Cut(6, 1)]),
    (Bottleneck(1, 12, 8, (16, 32, 8), 3, 2, 0, 1), [Cut(1, 2), Cut(3, 2)]),
    (Bottleneck(3, 7, 7, (8, 16, 8), 5, 1, 2, 2), [Cut(1, 1), Cut(7, 1), Cut(1, 3)]),
    (Bottleneck(1, 10, 6, (8, 16, 8), 5, 2, 2, 2), [Cut(1, 1), Cut(5, 1)]),
    (Bottleneck(1, 6, 6, (8, 40, 8), 7, 1, 3, 3), [Cut(1, 2), Cut(3, 1)]),
    (Bottleneck(2, 8, 8, (16, 16, 24), 3, expands=False), [Cut(2, 4), Cut(4, 2)]),
    (Bottleneck(1, 8, 8, (8, 24, 24), 3, projects=False), [Cut(2, 2), Cut(8, 1)]),
    (Bottleneck(1, 8, 8, (8, 24, 8), 3, 1, 0, 0), [Cut(2, 1), Cut(3, 2)]),
]  # fmt: skip


@both_cores
@pytest.mark.parametrize(
    ("case", "cut"), [(case, cut) for case, cuts in BOTTLENECKS for cut in cuts], ids=str
)
def test_a_bottleneck_cut_into_stripes(case: Bottleneck, cut: Cut) -> None:
    compare(case.graph(), cut, normal(0, case.n, case.h, case.w, case.channels[0]))


@both_cores
@pytest.mark.parametrize("cut", [Cut(1, 6), Cut(2, 3), Cut(6, 1)], ids=str)
@pytest.mark.parametrize("n", [1, 2])
def test_a_window_a_norm_and_two_products(n: int, cut: Cut) -> None:
    compare(block(n, 6, 5, 16), cut, normal(0, n, 6, 5, 16))


@both_cores
@pytest.mark.parametrize("lead", [(12,), (3, 4), (2, 1, 3, 2)], ids=str)
def test_two_products_of_any_rank(lead: tuple[int, ...]) -> None:
    b = Builder()
    y = b.input(TensorType(t.f32, (*lead, 16)))
    for seed, (inputs, size) in enumerate(((16, 32), (32, 8))):
        array = normal(seed, inputs, size) / np.float32(math.sqrt(inputs))
        y = b.emit("dot_general", y, b.constant(array, f"w{seed}"), lhs_contract=(len(lead),),
                   rhs_contract=(0,))  # fmt: skip
        y = b.emit("gelu", y + b.constant(normal(seed, size), f"b{seed}"))
    graph = b.finish([y])
    for cut in (Cut(4, 3), Cut(12, 1)):
        compare(graph, cut, normal(0, *lead, 16))


@both_cores
def test_a_gate_for_each_channel_of_each_image_and_a_product() -> None:
    b = Builder()
    x = b.input(TensorType(t.f32, (2, 4, 4, 16)))
    gate = b.constant(normal(1, 2, 16, 1, 1), "gate")
    y = points(b, b.transpose(x, (0, 3, 1, 2)) * gate, 24, 2)
    graph = b.finish([b.transpose(y, (0, 2, 3, 1))])
    for cut in (Cut(4, 8), Cut(16, 2), Cut(32, 1)):
        compare(graph, cut, normal(0, 2, 4, 4, 16))


@both_cores
@pytest.mark.parametrize(("size", "far"), [(400, True), (300, False)])
def test_results_in_memory_and_what_is_added_to_them_are_asked_for(
    core: Core, size: int, far: bool
) -> None:
    """Results of 10.2 and 5.8 MB; what lies in scratch is not asked for."""
    case = Bottleneck(1, size, size, (16, 32, 16), 3)
    _, (node,) = joined(case.graph(), Cut(1, 1))
    script = cpu_target(1, core).build(node.attrs["body"], node.attrs["schedule"]).script()
    assert (script.count("1, 3, 1)") > 0) == (far and core == AVX2)
    assert script.count("1, 3, 1)") == script.count("0, 2, 1)")


def test_the_kernel_as_text(golden: Callable[[str, str], None]) -> None:
    """A change here is a change of generated code: read it, then accept it with `make golden`."""
    _, (node,) = joined(Bottleneck(1, 6, 8, (8, 16, 8), 3).graph(), Cut(2, 1))
    func = cpu_target().build(node.attrs["body"], node.attrs["schedule"])
    golden("bottleneck.py.txt", f"# {node.attrs['schedule']}\n{func.script()}")


def test_no_band_of_a_cut_is_empty() -> None:
    _, (node,) = joined(Bottleneck(1, 5, 4, (8, 16, 8), 3).graph())
    chain = chain_of(node.attrs["body"])
    for threads in (1, 2, 3, 4, 8):
        for cut in chain.cuts(threads):
            stripes, each = chain.shares(cut)
            assert stripes * cut.rows == 5 and (cut.bands - 1) * each < stripes <= cut.bands * each


@pytest.mark.parametrize(
    ("cut", "fault"), [(Cut(1, 4), "has empty bands"), (Cut(2, 1), "leaves rows out")], ids=str
)
def test_a_cut_that_does_not_fit_is_no_kernel(cut: Cut, fault: str) -> None:
    _, (node,) = joined(Bottleneck(1, 5, 4, (8, 16, 8), 3).graph(), cut)
    with pytest.raises(AssertionError, match=fault):
        cpu_target().build(node.attrs["body"], node.attrs["schedule"])


def test_the_joined_body_means_what_its_kernels_meant() -> None:
    graph = Bottleneck(1, 8, 8, (8, 24, 8), 3).graph()
    found, kernels = joined(graph)
    assert [n.op for n in kernels[0].attrs["body"].nodes] == ["kernel"] * 3
    x = normal(0, 1, 8, 8, 8)
    (want,), (got,) = interpret(graph, [x]), interpret(found, [x])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def large() -> Graph:
    """A block whose expanded tensor is 4.8 MB, that of MobileNetV2 at 112 x 112."""
    return Bottleneck(1, 112, 112, (16, 96, 24), 3, 2, 0, 1).graph()


def test_a_large_block_is_joined_and_its_scratch_is_small() -> None:
    module = compile_graph(large())
    assert templates(module) == ["stripes"]
    check_plan(module.graph, module.memory)
    (node,) = (n for n in module.graph.nodes if n.op == "kernel")
    schedule = Schedule.parse(node.attrs["schedule"])
    chain: Chain = chain_of(node.attrs["body"])
    scratch = chain.scratch(Cut(schedule.number("rows"), schedule.number("bands")))
    assert 4 * sum(scratch) <= WORKSPACE_BYTES < 4 * 112 * 112 * 96


def test_threads_do_not_change_a_bit() -> None:
    module, x = compile_graph(large()), normal(0, 1, 112, 112, 16)
    one, two = (module.load(threads=n)(x)[0] for n in (1, 2))
    np.testing.assert_array_equal(one, two)
    plain = compile_graph(large(), pipeline=DEFAULT_PIPELINE.replace("stripe,", ""))
    np.testing.assert_allclose(one, plain.load(threads=2)(x)[0], rtol=1e-5, atol=1e-5)


def test_a_small_block_stays_as_it_is() -> None:
    module = compile_graph(Bottleneck(1, 7, 7, (160, 960, 160), 3).graph())
    assert "stripes" not in templates(module)


def test_a_result_with_two_readers_is_made_whole() -> None:
    b = Builder()
    x = b.input(TensorType(t.f32, (1, 112, 112, 16)))
    wide = clipped(b, points(b, b.transpose(x, (0, 3, 1, 2)), 96, 1))
    narrow = points(b, wide, 24, 2)
    graph = b.finish([b.transpose(v, (0, 2, 3, 1)) for v in (wide, narrow)])
    assert "stripes" not in templates(compile_graph(graph))
