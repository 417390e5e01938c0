"""Attention taken whole, against its reference in float64: masks, views, any sizes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plait.codegen.tvm.target import cpu_target
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import DType, TensorType
from plait.runtime.compiler import Module, compile_graph
from tests.codegen.graphs import both_cores

Array = NDArray[Any]


def random(graph: Graph, seed: int = 0) -> list[Array]:
    """Inputs of a graph; bool ones are true for two elements of three."""
    rng = np.random.default_rng(seed)
    shapes = [(i.type.dtype, i.type.static("test")) for i in graph.inputs]
    return [
        rng.random(s) < 0.67 if d == t.bool_ else rng.standard_normal(s, np.float32)
        for d, s in shapes
    ]


def plain(
    q: Sequence[int],
    k: Sequence[int],
    width: int | None = None,
    mask: tuple[DType, Sequence[int]] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Graph:
    """q[*B, H, M, D] against k[*B, G, N, D] and v[*B, G, N, width]."""
    b = Builder("attention")
    v = (*k[:-1], width or k[-1])
    operands = [b.input(TensorType(t.f32, tuple(s))) for s in (q, k, v)]
    if mask is not None:
        operands.append(b.input(TensorType(mask[0], tuple(mask[1]))))
    factor = scale if scale is not None else q[-1] ** -0.5
    return b.finish([b.emit("attention", *operands, scale=factor, causal=causal)])


def check(graph: Graph, inputs: list[Array] | None = None) -> tuple[Module, Array]:
    """Compiled results agree with the reference, and are the same on one and two threads."""
    module = compile_graph(graph)
    assert [k.schedule.partition("{")[0] for k in module.kernels] == ["attention"]
    inputs = random(graph) if inputs is None else inputs
    want = interpret(graph, inputs)[0]
    got = module.load(1)(*inputs)[0]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=3e-6)
    np.testing.assert_array_equal(module.load(2)(*inputs)[0], got)
    return module, got


@both_cores
@pytest.mark.parametrize(
    ("q", "k", "width"),
    [
        ((1, 2, 16, 32), (1, 2, 16, 32), None),
        ((3, 13, 7), (3, 19, 7), 5),
        ((2, 3, 33, 20), (2, 3, 47, 20), 29),
        ((1, 1, 1, 2, 9), (1, 1, 1, 3, 9), 1),
        ((2, 6, 17, 8), (2, 2, 31, 8), 72),
        ((1, 3, 50, 64), (1, 3, 197, 64), None),
        ((1, 2, 72, 16), (1, 2, 400, 16), 68),
    ],
)  # fmt: skip
def test_sizes(q: Sequence[int], k: Sequence[int], width: int | None) -> None:
    check(plain(q, k, width))


@both_cores
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 2, 21, 23), (21, 23), (2, 1, 1, 23), (1, 2, 21, 1)])
def test_float_masks(shape: Sequence[int], causal: bool) -> None:
    check(plain((2, 2, 21, 16), (2, 2, 23, 16), None, (t.f32, shape), causal))


@both_cores
@pytest.mark.parametrize("shape", [(2, 2, 21, 23), (2, 1, 1, 23), (21, 23), (1,)])
def test_bool_masks(shape: Sequence[int]) -> None:
    check(plain((2, 2, 21, 16), (2, 2, 23, 16), None, (t.bool_, shape)))


@both_cores
@pytest.mark.parametrize("rows", [1, 6, 40])
def test_hidden_rows_are_zero(rows: int) -> None:
    graph = plain((1, 2, rows, 8), (1, 2, 400, 8), None, (t.bool_, (rows, 400)))
    inputs = random(graph)
    inputs[3][0] = False
    inputs[3][-1, :300] = False
    _, got = check(graph, inputs)
    if rows > 1:
        assert not got[:, :, 0].any() and got[:, :, -1].any()


@both_cores
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [9, 400])
@pytest.mark.parametrize("rows", [1, 6, 40])
def test_rows_of_the_lowest_floats_are_means(rows: int, keys: int, causal: bool) -> None:
    """Masks of padded batches hold them instead of minus infinity."""
    graph = plain((1, 2, rows, 8), (1, 2, keys, 8), None, (t.f32, (rows, keys)), causal)
    inputs = random(graph)
    inputs[3][:, : keys // 2] = np.finfo(np.float32).min
    inputs[3][::3] = np.finfo(np.float32).min
    inputs[3][1:2] = -np.inf
    _, got = check(graph, inputs)
    assert got[:, :, 0].any()


@pytest.mark.parametrize("rows", [1, 6, 40])
def test_the_highest_floats_are_finite_masks(rows: int) -> None:
    graph = plain((1, 2, rows, 8), (1, 2, 9, 8), None, (t.f32, (rows, 9)))
    inputs = random(graph)
    inputs[3][:, 2:4] = np.finfo(np.float32).max
    _, got = check(graph, inputs)
    assert np.isfinite(got).all()


@both_cores
@pytest.mark.parametrize(
    ("rows", "keys"), [(64, 64), (37, 91), (91, 37), (700, 700)]
)  # fmt: skip
def test_causal(rows: int, keys: int) -> None:
    check(plain((1, 2, rows, 12), (1, 2, keys, 12), causal=True))


@both_cores
def test_long_keys_go_block_by_block() -> None:
    graph = plain((1, 2, 20, 24), (1, 2, 1000, 24), 40, scale=1.7)
    inputs = random(graph)
    inputs[1][:, :, 500:] *= 3  # the maximum rises after the first blocks
    module, _ = check(graph, inputs)
    assert "block=125" in module.kernels[0].schedule


@both_cores
@pytest.mark.parametrize("causal", [False, True])
def test_groups_of_heads_share_copied_keys(causal: bool) -> None:
    module, _ = check(plain((1, 4, 200, 64), (1, 2, 700, 64), 40, causal=causal))
    assert "copy=1" in module.kernels[0].schedule


@both_cores
def test_large_scores_do_not_overflow() -> None:
    graph = plain((1, 1, 20, 16), (1, 1, 600, 16), scale=60.0)
    inputs = random(graph)
    want = interpret(graph, inputs)[0]
    got = compile_graph(graph).load(1)(*inputs)[0]
    # A score of 1000 is known to 1e-4, so are the weights.
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-3)


@both_cores
@pytest.mark.parametrize("keys", [1, 8, 1003])
def test_a_single_row(keys: int) -> None:
    check(plain((2, 6, 1, 21), (2, 3, keys, 21), 19, (t.f32, (keys,))))
    check(plain((2, 6, 1, 64), (2, 6, keys, 64), 72))


def test_a_causal_single_row_sees_the_first_key() -> None:
    check(plain((2, 1, 16), (2, 30, 16), causal=True))


@both_cores
@pytest.mark.parametrize("length", [17, 70])
def test_views_of_one_projection(length: int) -> None:
    """q, k and v are slices of one product; the result is written as [batch, length, heads]."""
    b = Builder("attention")
    batch, heads, depth = 2, 3, 16
    x = b.input(TensorType(t.f32, (batch, length, 3 * heads * depth)))
    split = b.transpose(b.reshape(x, (batch, length, 3, heads, depth)), (2, 0, 3, 1, 4))

    def part(i: int) -> Value:
        size = (1, batch, heads, length, depth)
        one = b.emit("slice", split, start=(i, 0, 0, 0, 0), step=(1,) * 5, size=size)
        return b.reshape(one, size[1:])

    found = b.emit("attention", part(0), part(1), part(2), scale=0.25, causal=False)
    merged = b.reshape(b.transpose(found, (0, 2, 1, 3)), (batch, length, heads * depth))
    check(b.finish([merged]))


def test_what_is_taken() -> None:
    f32 = TensorType(t.f32, (1, 2, 3, 4))
    f64 = TensorType(t.f64, (1, 2, 3, 4))
    empty = TensorType(t.f32, (1, 2, 0, 4))
    assert cpu_target().takes("attention", (f32, f32, f32))
    assert not cpu_target().takes("attention", (f64, f64, f64))
    assert not cpu_target().takes("attention", (f32, empty, empty))


GUARDED = """
import ctypes, mmap, sys
import numpy as np
import plait

model = plait.load(sys.argv[1], threads=1)
page = mmap.PAGESIZE
protect = ctypes.CDLL(None).mprotect
inputs, kept = [], []
for number, spec in enumerate(model.inputs):
    size = -(-spec.nbytes // page) * page
    area = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert protect(ctypes.c_void_p(start + size), page, 0) == 0
    bytes_ = np.frombuffer(area, np.uint8)[size - spec.nbytes : size]
    array = bytes_.view(spec.numpy).reshape(spec.shape)
    array[...] = np.random.default_rng(number).random(spec.shape) < 0.5
    inputs.append(array)
    kept.append(area)
(out,) = model(*inputs)
assert np.isfinite(out).all()
"""


@pytest.mark.parametrize("dtype", [t.bool_, t.f32])
@pytest.mark.parametrize("keys", [9, 129, 135])
def test_a_single_row_reads_nothing_past_its_inputs(
    keys: int, dtype: DType, tmp_path: Path
) -> None:
    """Each input ends where a page ends behind which lies none."""
    b = Builder("guarded")
    q, k, v = (b.input(TensorType(t.f32, (1, 4, n, 4)), name)
               for n, name in ((1, "q"), (keys, "k"), (keys, "v")))  # fmt: skip
    mask = b.input(TensorType(dtype, (1, 1, 1, keys)), "mask")
    module = compile_graph(b.finish([b.emit("attention", q, k, v, mask, scale=0.5)]))
    assert any("decode" in kernel.schedule for kernel in module.kernels)
    module.save(tmp_path / "guarded.plait")
    command = [sys.executable, "-c", GUARDED, str(tmp_path / "guarded.plait")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
