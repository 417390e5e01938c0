"""Recurrent layers as kernels against their references in float64."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plait.codegen.core import AVX2, Core
from plait.codegen.tvm.target import cpu_target
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.passes.packing import GatePanels
from plait.runtime import tune
from plait.runtime.cache import KernelCache
from plait.runtime.compiler import Module, compile_graph
from tests.codegen.graphs import both_cores

Array = NDArray[Any]


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


KINDS = {"lstm": (4, 2), "gru": (3, 1), "rnn_tanh": (1, 1), "rnn_relu": (1, 1)}  # gates, states


def weights(op: str, units: int) -> Array:
    return random(9, KINDS[op][0] * units, units) / np.sqrt(np.float32(units))


def layer(
    steps: int, batch: int, units: int, op: str = "lstm", reverse: bool = False,
    constant: bool = True, results: tuple[int, ...] | None = None,
) -> tuple[Graph, list[Array]]:  # fmt: skip
    """A graph of one layer that gives some of its results (None: all), and inputs."""
    b = Builder(op)
    gates, states = KINDS[op]
    inputs = [random(0, steps, batch, gates * units)]
    inputs += [random(k, batch, units) for k in range(1, states + 1)]
    w = weights(op, units)
    inputs += [random(8, units)] if op == "gru" else []
    inputs += [] if constant else [w]
    operands = [b.input(TensorType(t.f32, x.shape)) for x in inputs]
    if constant:
        operands.insert(states + 1, b.constant(w, "w"))
    elif op == "gru":
        operands[2:] = reversed(operands[2:])
    made = b.emit_all(op, operands, {"reverse": reverse})
    return b.finish([made[k] for k in results or range(states + 1)]), inputs


def check(graph: Graph, inputs: list[Array]) -> Module:
    module = compile_graph(graph)
    assert [k.schedule.partition("{")[0] for k in module.kernels] == ["recurrent"]
    want = interpret(graph, inputs)
    one, two = (module.load(threads)(*inputs) for threads in (1, 2))
    for got, other, right in zip(one, two, want, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=3e-6)
        np.testing.assert_array_equal(got, other)
    return module


@both_cores
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("steps", "batch", "units"),
    [(5, 1, 8), (1, 1, 32), (4, 2, 13), (3, 3, 5), (7, 1, 27), (2, 7, 24), (6, 4, 16)],
)
@pytest.mark.parametrize("op", KINDS)
def test_sizes(op: str, steps: int, batch: int, units: int, reverse: bool) -> None:
    check(*layer(steps, batch, units, op, reverse))


@both_cores
@pytest.mark.parametrize(("op", "batch", "units"),
                         [("lstm", 1, 116), ("lstm", 2, 100), ("gru", 1, 140), ("gru", 3, 100),
                          ("rnn_tanh", 1, 230), ("rnn_relu", 5, 103)])  # fmt: skip
def test_threads_share_a_step(op: str, batch: int, units: int) -> None:
    module = check(*layer(12, batch, units, op))
    assert "parts=2" in module.kernels[0].schedule


@pytest.mark.parametrize(("op", "batch", "parts"), [("lstm", 8, 2), ("gru", 7, 2), ("lstm", 10, 3)])
def test_threads_have_rows_of_their_own(op: str, batch: int, parts: int) -> None:
    """Also where the last has fewer; they give what one thread gives with all rows."""
    graph, inputs = layer(5, batch, 100, op)
    module = compile_graph(graph, threads=parts)
    rows = -(-batch // parts)
    assert f"parts={parts} rows={rows}}}" in module.kernels[0].schedule
    want = compile_graph(graph, threads=1).load(1)(*inputs)
    for threads in (1, 2):
        for got, right in zip(module.load(threads)(*inputs), want, strict=True):
            np.testing.assert_array_equal(got, right)


def test_columns_beyond_the_last_unit_are_not_computed() -> None:
    """40 units in chunks of 24: a panel has 24 columns, then 16."""
    graph, _ = layer(2, 4, 40, constant=False)
    (body,) = (k.body for k in compile_graph(graph, threads=1).kernels)
    tile = "recurrent{mr=4 nr=24 packed=0 parts=1 rows=4}"
    script = cpu_target(1, AVX2).build(body, tile).script()
    sizes = re.findall(r"acc\w* = T.alloc_buffer\(\((\d+),", script)
    assert sizes == 4 * [str(4 * 24)] + 4 * [str(4 * 16)]


@pytest.mark.parametrize("rows", [8, 4])
def test_threads_that_share_a_step_take_its_chunks_forth_and_back(rows: int) -> None:
    graph, _ = layer(2, 8, 64, constant=False)
    (body,) = (k.body for k in compile_graph(graph, threads=1).kernels)
    tile = f"recurrent{{mr=4 nr=16 packed=0 parts=2 rows={rows}}}"
    script = cpu_target(2, AVX2).build(body, tile).script()
    assert ("T.Select(step % 2 == 0" in script) == (rows == 8)


@both_cores
@pytest.mark.parametrize(("batch", "lines"), [(1, 0), (2, 2 * 4)])
def test_shares_of_the_input_are_asked_for_where_there_are_several(
    core: Core, batch: int, lines: int
) -> None:
    """A line for each row and gate of a chunk."""
    graph, _ = layer(2, batch, 64, constant=False)
    (body,) = (k.body for k in compile_graph(graph, threads=1).kernels)
    tile = f"recurrent{{mr={batch} nr=16 packed=0 parts=1 rows={batch} core={core.name}}}"
    script = cpu_target(1, core).build(body, tile).script()
    assert script.count("llvm.prefetch") * batch == lines


@pytest.mark.parametrize(("op", "nr"), [("lstm", 16), ("gru", 24)])
def test_rows_apart_choose_chunks_of_one_vector(op: str, nr: int) -> None:
    """As measured: each chunk's formulas begin behind the products of the next."""
    module = compile_graph(layer(2, 8, 256, op)[0], cpu="x86-64-v3")
    assert module.kernels[0].schedule == f"recurrent{{mr=4 nr={nr} packed=1 parts=2 rows=4}}"


@pytest.mark.parametrize("op", KINDS)
def test_no_more_threads_than_chunks(op: str) -> None:
    module = check(*layer(2, 800, 8, op))
    assert "parts=1" in module.kernels[0].schedule


def test_an_infinite_state_behind_a_closed_gate() -> None:
    """The gate is 0, and 0 times infinity no number."""
    graph, inputs = layer(1, 1, 8)
    gates, _, cell = inputs
    gates.reshape(4, 8)[1] = -np.inf
    cell[0, ::3] = np.inf
    check(graph, inputs)


@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_gates_that_are_almost_closed(op: str) -> None:
    """Where e**-x is no float the gate is 0; at no place is it anything else."""
    graph, inputs = layer(1, 1, 120, op)
    inputs[0].reshape(KINDS[op][0], 120)[1] = np.linspace(-92, -80, 120, dtype=np.float32)
    check(graph, inputs)


@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_more_parts_than_threads(op: str) -> None:
    """A thread does all parts of a step that nobody else does."""
    graph, inputs = layer(12, 2, 104, op)
    module = compile_graph(graph, threads=3)
    assert "parts=3" in module.kernels[0].schedule
    want = compile_graph(graph, threads=1).load(1)(*inputs)
    for threads in (1, 2, 3):
        for got, right in zip(module.load(threads)(*inputs), want, strict=True):
            np.testing.assert_array_equal(got, right)


@both_cores
@pytest.mark.parametrize("op", KINDS)
@pytest.mark.parametrize(("batch", "units"), [(1, 20), (2, 16), (1, 120)])
def test_weights_that_are_an_input(batch: int, units: int, op: str) -> None:
    module = check(*layer(4, batch, units, op, constant=False))
    assert "packed=0" in module.kernels[0].schedule


@both_cores
@pytest.mark.parametrize("results", [(0,), (1,), (2,), (2, 0), (1, 2)])
def test_some_of_the_results(results: tuple[int, ...]) -> None:
    check(*layer(3, 2, 9, results=results))


def test_a_long_sequence_stays_accurate() -> None:
    check(*layer(200, 1, 24))


@both_cores
@pytest.mark.parametrize("op", KINDS)
def test_saturated_gates(op: str) -> None:
    graph, inputs = layer(3, 1, 8, op)
    inputs[0] *= 100
    check(graph, inputs)


@pytest.mark.parametrize("op", KINDS)
def test_infinite_gates_and_gates_that_are_no_numbers(op: str) -> None:
    """They reach the unit that they belong to, and from there all others in the next step."""
    graph, inputs = layer(1, 1, 8, op)
    inputs[0][0, 0, ::5] = np.nan
    inputs[0][0, 0, 1::5] = np.inf
    inputs[0][0, 0, 2::5] = -np.inf
    check(graph, inputs)


@pytest.mark.parametrize("op", KINDS)
def test_small_states_keep_their_digits(op: str) -> None:
    graph, inputs = layer(2, 1, 8, op)
    small = [x * np.float32(1e-6) for x in inputs]
    got = compile_graph(graph).load(1)(*small)
    for ours, right in zip(got, interpret(graph, small), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-5)


@pytest.mark.parametrize("op", KINDS)
def test_every_tile_gives_the_same_bits(op: str, tmp_path: Path) -> None:
    graph, inputs = layer(3, 5, 104, op)  # so many that threads share them, in both ways
    cache = KernelCache(tmp_path)
    (task,) = tune.tasks(graph, cpu_target())
    assert {"rows=3}", "rows=5}"} == {c.selection.schedule.split()[-1] for c in task.candidates}
    found = []
    for candidate in task.candidates:
        chosen = candidate.selection
        key = tune.record_key(task.body, task.constant, 2)
        tune.keep(cache, tune.Record(key=key, kernel="", schedule=chosen.schedule,
                                     pack=dict(chosen.pack), seconds=1.0, default="",
                                     default_seconds=2.0, candidates=2))  # fmt: skip
        module = compile_graph(graph, cache=cache)
        assert [k.schedule for k in module.kernels] == [chosen.schedule]
        found.append(module.load(2)(*inputs))
    for results in found[1:]:
        for got, want in zip(results, found[0], strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("op", "block", "lanes", "shape"),
    [("lstm", 8, 8, (2, 4, 13, 8)), ("lstm", 16, 8, (2, 2, 13, 16)),
     ("lstm", 24, 8, (1, 4, 13, 24)), ("gru", 8, 8, (2, 3, 13, 8)), ("gru", 16, 8, (1, 3, 13, 16)),
     ("gru", 24, 8, (2, 1, 13, 24)), ("lstm", 16, 16, (1, 4, 13, 16)),
     ("gru", 48, 16, (1, 1, 13, 48))],
)  # fmt: skip
def test_panels_are_recovered(op: str, block: int, lanes: int, shape: tuple[int, ...]) -> None:
    w = weights(op, 13)
    b = Builder()
    form = GatePanels(KINDS[op][0], block, lanes)
    packed = form.pack(w)
    assert packed.shape == shape
    value = form.unpack(b, b.constant(packed, "w"), TensorType(t.f32, w.shape))
    np.testing.assert_array_equal(interpret(b.finish([value]), [])[0], w)


def test_what_is_taken() -> None:
    good = tuple(TensorType(t.f32, s) for s in ((2, 1, 16), (1, 4), (1, 4), (16, 4)))
    assert cpu_target().takes("lstm", good)
    assert cpu_target().takes("gru", good)
    assert not cpu_target().takes("lstm", tuple(ty.with_dtype(t.f64) for ty in good))
