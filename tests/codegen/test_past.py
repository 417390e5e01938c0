"""Results that go past the caches: what they are, and which do so."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.codegen.core import ZEN4, Core
from plait.codegen.plan import aligned_empty
from plait.codegen.schedule import Schedule
from plait.codegen.tvm.build import assembly, named_target
from plait.codegen.tvm.loopnest import build_nest
from plait.codegen.tvm.parts import in_parts, parts_of
from plait.codegen.tvm.pointers import over_pointers
from plait.codegen.tvm.target import cpu_target
from plait.codegen.tvm.window import build as build_window
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from tests.codegen.graphs import Array, loaded, normal, only_kernel

SMALL = replace(ZEN4, past_bytes=1000)
POOL = Schedule.parse("pool{mr=2 vectors=2 chunks=1 parallel=0 core=zen4}")
only_small = pytest.mark.parametrize("core", [SMALL], indirect=True, ids=["small caches"])


def relu(*shape: int) -> Graph:
    b = Builder()
    return b.finish([b.emit("relu", b.input(TensorType(t.f32, shape)))])


def centred(rows: int, length: int) -> Graph:
    b = Builder()
    x = b.input(TensorType(t.f32, (rows, length)))
    return b.finish([x - b.emit("reduce_max", x, axes=(1,), keepdims=True)])


def softmax(rows: int, length: int) -> Graph:
    b = Builder()
    y = b.input(TensorType(t.f32, (rows, length)))
    y = b.emit("exp", y - b.emit("reduce_max", y, axes=(1,), keepdims=True))
    return b.finish([y / b.emit("reduce_sum", y, axes=(1,), keepdims=True)])


def max_pool(size: int, channels: int) -> Graph:
    """The body of a kernel over images whose channels are innermost, with a border."""
    b = Builder()
    x = b.transpose(b.input(TensorType(t.f32, (2, size, size, channels))), (0, 3, 1, 2))
    y = b.emit("max_pool", x, window=(3, 3), stride=(2, 2), low=(1, 1), high=(1, 1),
               dilation=(1, 1))  # fmt: skip
    _, kernel = only_kernel(b.finish([b.transpose(y, (0, 2, 3, 1))]), ZEN4)
    body: Graph = kernel.attrs["body"]
    return body


def _in_memory(x: Array, type: TensorType) -> Array:
    """The elements in the order in which they lie."""
    return np.ascontiguousarray(x.transpose(type.order)).reshape(-1)


def goes_past(func: object) -> bool:
    text = assembly(over_pointers(func), "k_past", named_target("znver4"))
    assert ("sfence" in text) == ("vmovnt" in text)
    return "vmovnt" in text


@only_small
@pytest.mark.parametrize("offset", [0, 4, 32])
@pytest.mark.parametrize("make", [partial(relu, 30, 100), partial(relu, 5000),
                                  partial(centred, 40, 72), partial(max_pool, 9, 40)])  # fmt: skip
def test_results_past_the_caches_are_what_they_are_wherever_they_lie(
    make: partial[Graph], offset: int
) -> None:
    """Vectors at any place of a line, and what is left of a row."""
    graph = make()
    (x,) = (normal(0, *i.type.static("test")) for i in graph.inputs)
    func = build_window(graph, POOL) if make.func is max_pool else build_nest(graph)
    assert goes_past(func)
    (want,), (made,) = interpret(graph, [x]), graph.output_types
    memory = aligned_empty(want.nbytes + offset)
    result = memory[offset : offset + want.nbytes].view(np.float32)
    loaded(func, graph).run_into([_in_memory(x, graph.inputs[0].type)], [result])
    np.testing.assert_allclose(result, _in_memory(want, made), rtol=1e-6)


@only_small
def test_each_part_of_a_kernel_ends_with_a_fence() -> None:
    func = over_pointers(in_parts(build_nest(relu(300, 512)), 8))
    assert parts_of(func) == 8
    assert func.script().count("sfence") == 1


@only_small
def test_what_holds_the_powers_of_a_softmax_first_stays_in_the_caches() -> None:
    assert not goes_past(build_nest(softmax(40, 64)))


@only_small
def test_what_later_phases_read_again_stays_in_the_caches() -> None:
    b = Builder()
    x, y = (b.input(TensorType(t.f32, (40, 64))) for _ in range(2))
    total = x * y
    graph = b.finish([total, total - b.emit("reduce_max", total, axes=(1,), keepdims=True)])
    stores = build_nest(graph).script().split('"plait.past_caches", 1)')[1:]
    assert stores and all(text.strip().startswith("y1[") for text in stores)


@pytest.mark.parametrize("core", [SMALL, ZEN4, replace(SMALL, past_bytes=0)], indirect=True)
def test_results_that_the_caches_hold_stay_there(core: Core) -> None:
    assert goes_past(build_nest(relu(30, 100))) == (core == SMALL)
    assert not goes_past(build_nest(relu(2, 100)))


@pytest.mark.parametrize(("size", "past"), [(180, False), (190, True)])
def test_pools_of_many_large_images_go_past_the_caches(size: int, past: bool) -> None:
    """Results of 16.2 and 18.1 million bytes."""
    func = cpu_target(1, ZEN4).build(max_pool(size, 250), str(POOL))
    assert ("past_caches" in func.script()) == past
