"""Steps that share threads: which do, that results stay, that a failure stops what follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from tvm import tirx
from tvm.ir import StringImm

from plait.codegen.plan import Call, Code, Copy, ModulePlan, PointerArg, TensorSpec
from plait.codegen.tvm.build import compile_kernel, host_target
from plait.codegen.tvm.loops import along, loop, put, sequence
from plait.codegen.tvm.main_func import compile_main
from plait.codegen.tvm.parts import PARTS, in_parts, parts_of
from plait.codegen.tvm.pointers import over_pointers
from plait.codegen.tvm.pool import pool_object
from plait.codegen.tvm.sharing import parts_for
from plait.codegen.tvm.steps import regions
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.types import TensorType
from plait.passes import footprint
from plait.runtime.compiler import compile_graph
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library

X, Y = PointerArg("input"), PointerArg("output")


def steps(parts: str) -> list[Call | Copy]:
    """Calls of kernels in these numbers of parts; `c` is a copy."""
    return [Copy(Y, X, 4) if p == "c" else Call("k", (), "", int(p)) for p in parts]


@pytest.mark.parametrize(
    ("parts", "shared"),
    [
        ("", []),
        ("2", ["2"]),
        ("22", ["22"]),
        ("2112", ["2112"]),
        ("1221", ["1", "22", "1"]),
        ("2011", ["2", "0", "1", "1"]),
        ("22c22", ["22", "c", "22"]),
        ("2111", ["2", "1", "1", "1"]),
        ("22922", ["22", "9", "22"]),
    ],
)
def test_regions_begin_and_end_with_kernels_of_several_parts(parts: str, shared: list[str]) -> None:
    found = list(regions(steps(parts), 2))
    assert [parts[first:last] for first, last in found] == shared


def doubling(rows: int) -> Any:
    x, y = (tirx.decl_buffer((rows * 8,), "float32", name=name) for name in "xy")

    def row(i: Any) -> Any:
        return along(8, lambda j: put(y, i * 8 + j, x[i * 8 + j] * tirx.const(2, "float32")))

    body = loop(rows, row, tirx.ForKind.PARALLEL)
    return tirx.PrimFunc([x, y], body).with_attr("s_tir", True)


def model_of(func: Any, calls: int, size: int, threads: int) -> CompiledModel:
    """A model that calls a kernel of one operand, from x to y, then within y."""
    parts = int(func.attrs[PARTS]) if PARTS in func.attrs else 0
    chain = [Call("k_parts", (Y if k else X, Y), "", parts) for k in range(calls)]
    given, made = (TensorSpec(name, "float32", (size,)) for name in "xy")
    plan = ModulePlan(f"parts{size}", (given,), (made,), tuple(chain), threads=2)
    kernel = compile_kernel(over_pointers(func), "k_parts", host_target())
    library = Library([kernel, compile_main(plan, host_target())], pool_object(host_target()))
    return CompiledModel(plan, library, threads=threads)


def one_step(_: int, go: Callable[[], object]) -> None:
    go()


@pytest.mark.parametrize("rows", [2, 5, 23])
@pytest.mark.parametrize("most", [2, 3, 32])
def test_parts_cover_the_loop_once(rows: int, most: int) -> None:
    func = in_parts(doubling(rows), most)
    assert func.attrs[PARTS] == min(rows, most)
    x = np.arange(rows * 8, dtype=np.float32)
    for threads in (1, 2):
        model = model_of(func, 3, rows * 8, threads)
        (found,) = model(x)
        np.testing.assert_array_equal(found, 8 * x)
        step_by_step = model.run_steps([x], one_step)
        np.testing.assert_array_equal(step_by_step[0], 8 * x)


@pytest.mark.parametrize("parts", [2, 7])
def test_each_part_is_done_once_in_many_runs(parts: int) -> None:
    rows = 64
    model = model_of(in_parts(doubling(rows), parts), 20, rows * 8, 2)
    x = np.ones(rows * 8, np.float32)
    for _ in range(2000):
        (found,) = model(x)
        assert found.min() == found.max() == 2.0**20


def test_what_is_no_single_loop_stays_whole() -> None:
    func = doubling(16)
    twice = tirx.PrimFunc(func.params, tirx.SeqStmt([func.body, func.body]), attrs=func.attrs)
    assert PARTS not in in_parts(twice, 2).attrs
    assert PARTS not in in_parts(doubling(16), 1).attrs


def reversing(rows: int) -> Any:
    """A kernel of one part, each of whose results needs two that other parts have made."""
    size = rows * 8
    x, y = (tirx.decl_buffer((size,), "float32", name=name) for name in "xy")
    half = tirx.const(0.5, "float32")
    body = loop(size, lambda i: put(y, i, half * x[i] + half * x[size - 1 - i]))
    return tirx.PrimFunc([x, y], body).with_attr("s_tir", True)


@pytest.mark.parametrize("most", [3, 7])
def test_kernels_of_one_part_wait_for_those_of_several(most: int) -> None:
    rows = 23
    funcs = {"k_two": in_parts(doubling(rows), most), "k_one": in_parts(reversing(rows), 3)}
    middle = PointerArg("arena")
    calls = [Call("k_two", (X, Y), "", most)]
    for ones in (1, 2, 0, 1, 3):
        calls += [Call("k_one", (Y, middle), "", 1), Call("k_one", (middle, Y), "", 1)] * ones
        calls += [Call("k_two", (Y, Y), "", most)]
    specs = [TensorSpec(name, "float32", (rows * 8,)) for name in "xy"]
    plan = ModulePlan("mixed", (specs[0],), (specs[1],), tuple(calls), 4 * rows * 8, threads=3)
    objects = [compile_kernel(over_pointers(f), s, host_target()) for s, f in funcs.items()]
    library = Library([*objects, compile_main(plan, host_target())], pool_object(host_target()))
    x = np.random.default_rng(0).standard_normal(rows * 8, np.float32)
    mean = (x + x[::-1]) / 2
    for threads in (1, 2, 3, 4):
        model = CompiledModel(plan, library, threads=threads)
        for _ in range(200):
            np.testing.assert_array_equal(model(x)[0], 64 * mean)
        np.testing.assert_array_equal(model.run_steps([x], one_step)[0], 64 * mean)


def test_parts_of_very_long_loops() -> None:
    rows = 17_100_001  # 127 times so many is beyond an int32
    x, y = (tirx.decl_buffer((rows,), "float32", name=name) for name in "xy")
    body = loop(rows, lambda i: put(y, i, x[i]), tirx.ForKind.PARALLEL)
    func = in_parts(tirx.PrimFunc([x, y], body).with_attr("s_tir", True), 128)
    data = np.arange(rows, dtype=np.float32)
    np.testing.assert_array_equal(model_of(func, 1, rows, 2)(data)[0], data)


@pytest.mark.parametrize("then", [0, 1, 2, 5])
@pytest.mark.parametrize("rows", [2, 5])
def test_nothing_follows_a_failed_kernel(rows: int, then: int) -> None:
    x, y = (tirx.decl_buffer((16,), "float32", name=name) for name in "xy")

    def part(i: Any) -> Any:
        refuse = tirx.AssertStmt(i == 0, StringImm("ValueError"), [StringImm("no")])
        return sequence([refuse, put(y, 0, x[0])])

    failing = loop(rows, part, tirx.ForKind.PARALLEL)
    row = loop(5, lambda i: put(y, 8 + i, x[i]), tirx.ForKind.PARALLEL if then != 1 else None)
    bodies = {"k_failing": (failing, rows), "k_next": (row, max(then, 1))}
    objects, calls = list[bytes](), list[Call]()
    for symbol, (body, most) in bodies.items():
        func = in_parts(tirx.PrimFunc([x, y], body).with_attr("s_tir", True), most)
        objects.append(compile_kernel(over_pointers(func), symbol, host_target()))
        calls.append(Call(symbol, (X, Y), "", parts_of(func)))
    assert [call.parts for call in calls] == [rows, then]
    given, made = (TensorSpec(name, "float32", (16,)) for name in "xy")
    plan = ModulePlan("failing", (given,), (made,), (calls[0], calls[1], calls[0]), threads=2)
    model = CompiledModel(
        plan,
        Library([*objects, compile_main(plan, host_target())], pool_object(host_target())),
        threads=2,
    )
    result = np.zeros(16, np.float32)
    for _ in range(50):
        with pytest.raises(MemoryError, match="failing"):
            model.run_into([np.ones(16, np.float32)], [result])
        assert not result[8:].any()


def test_small_kernels_of_a_model_share_threads() -> None:
    b = Builder()
    x = b.input(TensorType(t.f32, (32, 256)))
    weights = [b.constant(np.full((256, 256), 1 / 256, np.float32), f"w{k}") for k in range(2)]
    y = x
    for w in weights:
        y = b.emit("dot_general", y, w, lhs_contract=(1,), rhs_contract=(0,))
        y = b.emit("softmax", b.emit("tanh", y), axis=1)
    module = compile_graph(b.finish([y]), threads=2)
    shared = [s.parts for s in module.plan.steps if isinstance(s, Call)]
    assert shared == [2] * len(shared)
    assert list(regions(module.plan.steps, 2)) == [(0, len(shared))]
    data = np.random.default_rng(0).standard_normal((32, 256), np.float32)
    two, one = module.load(2)(data), module.load(1)(data)
    np.testing.assert_array_equal(two[0], one[0])


def test_threads_take_the_parts_of_large_kernels_as_they_go() -> None:
    b = Builder()
    x = b.input(TensorType(t.f32, (1024, 1024)))
    graph = b.finish([b.emit("tanh", x) + 1.0])
    assert not footprint.small(graph)
    module = compile_graph(graph, threads=2)
    (parts,) = (s.parts for s in module.plan.steps if isinstance(s, Call))
    assert 2 < parts <= parts_for(2)
    data = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    np.testing.assert_array_equal(module.load(2)(data)[0], module.load(1)(data)[0])


def test_a_thread_that_is_held_up_leaves_its_parts_to_others() -> None:
    x, y = (tirx.decl_buffer((32,), "float32", name=name) for name in "xy")

    def part(i: Any) -> Any:
        sleep = tirx.Evaluate(tirx.call_extern("int32", "usleep", tirx.IntImm("int32", 300_000)))
        thread = tirx.Cast("float32", tirx.call_extern("int32", "gettid"))
        return sequence([tirx.IfThenElse(i == 0, sleep, None), put(y, i, thread)])

    body = loop(32, part, tirx.ForKind.PARALLEL)
    func = in_parts(tirx.PrimFunc([x, y], body).with_attr("s_tir", True), 32)
    (threads,) = model_of(func, 1, 32, 2)(np.zeros(32, np.float32))
    assert set(threads[1:]) == {threads[-1]} != {threads[0]}


def test_code_survives_the_cache() -> None:
    code = Code(b"\x7fELF\n\n", 12)
    assert Code.from_bytes(code.to_bytes()) == code
