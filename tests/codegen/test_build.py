"""Object code through TVM: what is exported, what is refused, and the targets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.compilation_pipeline import PIPELINE_MAP

from plait.codegen.cpu import host_features
from plait.codegen.plan import Call, Code, Copy, ModulePlan, PointerArg, TensorSpec
from plait.codegen.tvm.build import (
    KernelJob,
    assembly,
    compile_kernel,
    compile_many,
    host_target,
    named_target,
)
from plait.codegen.tvm.main_func import compile_main
from plait.codegen.tvm.pointers import over_pointers
from plait.codegen.tvm.pool import pool_object
from plait.codegen.tvm.target import cpu_target
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.errors import CompileFailure, UnknownName
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library


def double(n: int = 64) -> Any:
    @T.prim_func(s_tir=True)
    def func(a: T.handle, b: T.handle) -> T.int32:
        A = T.decl_buffer((n,), "float32", data=a)
        B = T.decl_buffer((n,), "float32", data=b)
        for i in T.parallel(n // 8):
            for j in T.vectorized(8):
                B[i * 8 + j] = A[i * 8 + j] * T.float32(2)
        return 0

    return func


X, Y = PointerArg("input"), PointerArg("output")


def test_one_kernel_called_from_many_places() -> None:
    data = compile_kernel(double(), "k_double", host_target())
    a, b = PointerArg("arena", 0, 0), PointerArg("arena", 0, 256)
    plan = ModulePlan(
        "chain",
        (TensorSpec("x", "float32", (64,)),),
        (TensorSpec("y", "float32", (64,)),),
        tuple(Call("k_double", pair) for pair in ((X, a), (a, b), (b, a), (a, Y))),
        arena_bytes=512,
    )
    model = CompiledModel(
        plan, Library([data, compile_main(plan, host_target())], pool_object(host_target()))
    )
    x = np.arange(64, dtype=np.float32)
    np.testing.assert_array_equal(model(x)[0], 16 * x)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", ()),
        ("float64", (0, 3)),
        ("bool", (5,)),
        ("int64", (2, 1, 3)),
        ("uint8", (7,)),
        ("float16", (3,)),
        ("bfloat16", (3, 2)),
    ],
)
def test_main_takes_every_dtype_and_rank(dtype: str, shape: tuple[int, ...]) -> None:
    spec = TensorSpec("x", dtype, shape)
    plan = ModulePlan(
        f"copy {spec}", (spec,), (TensorSpec("y", dtype, shape),), (Copy(Y, X, spec.nbytes),)
    )
    model = CompiledModel(
        plan, Library([compile_main(plan, host_target())], pool_object(host_target()))
    )
    x = np.ones(shape, spec.numpy)
    (y,) = model(x)
    assert y.dtype == x.dtype and y.shape == shape
    np.testing.assert_array_equal(x, y)


def test_compiling_on_two_threads() -> None:
    names: set[str] = set()
    both = threading.Barrier(2, timeout=60)

    def done(job: KernelJob, code: Code) -> None:
        names.add(threading.current_thread().name)
        both.wait()  # one thread alone would never pass

    jobs = [KernelJob(f"k_{i}", lambda i=i: double(64 * (i + 1))) for i in range(4)]
    objects = compile_many(jobs, host_target(), done=done)
    assert list(objects) == [j.symbol for j in jobs]
    assert all(code.data.startswith(b"\x7fELF") for code in objects.values())
    assert len(names) == 2 and all(name.startswith("compile") for name in names)


def test_a_kernel_compiles_to_the_same_bytes() -> None:
    first, second = (compile_kernel(double(), "k_same", host_target()) for _ in range(2))
    assert first == second


def pool_of_images() -> Graph:
    """Windows with borders, whose last columns and channels fill no tile."""
    b = Builder()
    x = b.input(TensorType(t.f32, (2, 21, 9, 11), (0, 2, 3, 1)))
    around, steps = {"low": (1, 1), "high": (1, 1), "dilation": (1, 1)}, {"stride": (2, 2)}
    return b.finish([b.emit("max_pool", x, window=(3, 3), **steps, **around)])


def product_and_gelu() -> Graph:
    b = Builder()
    x, w = (b.input(TensorType(t.f32, shape)) for shape in ((37, 40), (40, 50)))
    y = b.emit("dot_general", x, w, lhs_contract=(1,), rhs_contract=(0,))
    return b.finish([b.emit("gelu", y, form="none")])


def sums_of_rows() -> Graph:
    b = Builder()
    x = b.input(TensorType(t.f32, (6, 29)))
    return b.finish([b.emit("reduce_sum", b.emit("exp", x), axes=(1,), keepdims=True)])


@pytest.mark.parametrize("make", [pool_of_images, product_and_gelu, sums_of_rows])
def test_passes_that_are_left_out_change_nothing(
    make: Callable[[], Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    body, target = make(), cpu_target()
    func = over_pointers(target.build(body, target.select(body, (False,) * 2).schedule))
    lean = compile_kernel(func, "k_flat", host_target())
    whole, _, device = tirx.get_tir_pipeline("default")
    _, finish, _ = tirx.get_tir_pipeline("plait")
    monkeypatch.setitem(PIPELINE_MAP, "plait", lambda: (whole, finish, device))
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        assert compile_kernel(func, "k_flat", host_target()) == lean


def test_a_refused_kernel_is_named_with_its_script() -> None:
    @T.prim_func(s_tir=True)
    def broken(a: T.handle) -> T.int32:
        A = T.decl_buffer((8,), "float32", data=a)
        for i in T.parallel(2):
            for j in T.parallel(4):
                A[i * 4 + j] = T.float32(0)
        return 0

    with pytest.raises(CompileFailure, match="kernel k_broken: ") as caught:
        compile_many([KernelJob("k_broken", lambda: broken)], host_target())
    assert "def k_broken" in caught.value.__notes__[0]


def test_targets() -> None:
    assert set(host_target().features) <= host_features()
    assert named_target("native") == host_target()
    v3 = named_target("x86-64-v3")
    assert {"avx2", "fma", "bmi2", "f16c"} <= set(v3.features)
    assert "avx512f" not in v3.features
    with pytest.raises(UnknownName, match="znver3"):
        named_target("znver33")


def test_a_lacking_feature_is_not_used() -> None:
    assert "ymm" in assembly(double(), "k_asm", named_target("x86-64-v3"))
    assert "ymm" not in assembly(double(), "k_asm", named_target("x86-64-v2"))


def test_a_template_that_fails_is_a_failure_of_its_kernel() -> None:
    def make() -> object:
        raise KeyError("axis")

    with pytest.raises(CompileFailure, match="kernel k_odd: KeyError: 'axis'"):
        compile_many([KernelJob("k_odd", make)], host_target())
