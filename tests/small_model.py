"""A small model compiled once: out = (x + 1) * w, then + 1 twice more, through the arena."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.codegen.plan import (
    Call,
    Copy,
    ModulePlan,
    PointerArg,
    TensorSpec,
    align,
    place_weights,
)
from plait.runtime.artifact import Contents, TargetCode, write_artifact

N = 1024
STEP = align(N * 4)


def arena(slot: int) -> PointerArg:
    return PointerArg("arena", 0, slot * STEP)


def small_plan() -> ModulePlan:
    x, out, w = PointerArg("input", 0), PointerArg("output", 0), PointerArg("weights", 0, 64)
    return ModulePlan(
        name="small",
        inputs=(TensorSpec("x", "float32", (4, N // 4)),),
        outputs=(
            TensorSpec("out", "float32", (4, N // 4)),
            TensorSpec("same", "float32", (N,)),
        ),
        steps=(
            Call("k_0123456789abcdef", (x, arena(0)), "add one"),
            Call("k_fedcba9876543210", (arena(0), w, arena(1)), "scale"),
            Call("k_0123456789abcdef", (arena(1), arena(0)), "add one"),
            Call("k_0123456789abcdef", (arena(0), out), "add one"),
            Copy(PointerArg("output", 1), x, N * 4),
        ),
        arena_bytes=2 * STEP,
        weights=place_weights(
            [TensorSpec("bias", "float64", (3,)), TensorSpec("w", "float32", (N,))]
        ),
    )


def expected(x: Any) -> Any:
    return (x + np.float32(1)) * small_weights()["w"].reshape(x.shape) + np.float32(2)


def small_weights() -> dict[str, Any]:
    return {
        "bias": np.array([1.0, 2.0, 3.0]),
        "w": np.random.default_rng(0).standard_normal(N, np.float32),
    }


def small_kernels() -> dict[str, Any]:
    """The PrimFuncs, by symbol; both loop in parallel."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def add_one(a: T.handle, b: T.handle) -> T.int32:
        A = T.decl_buffer((N,), "float32", data=a)
        B = T.decl_buffer((N,), "float32", data=b)
        for i in T.parallel(N // 16):
            for j in T.vectorized(16):
                B[i * 16 + j] = A[i * 16 + j] + T.float32(1)
        return 0

    @T.prim_func(s_tir=True)
    def scale(a: T.handle, w: T.handle, b: T.handle) -> T.int32:
        A = T.decl_buffer((N,), "float32", data=a)
        W = T.decl_buffer((N,), "float32", data=w)
        B = T.decl_buffer((N,), "float32", data=b)
        for i in T.parallel(N // 16):
            for j in T.vectorized(16):
                B[i * 16 + j] = A[i * 16 + j] * W[i * 16 + j]
        return 0

    return {"k_0123456789abcdef": add_one, "k_fedcba9876543210": scale}


@pytest.fixture(scope="session")
def small_code() -> TargetCode:
    """The model's plan and objects, for the CPU at hand."""
    from plait.codegen.tvm.build import KernelJob, compile_many, host_target
    from plait.codegen.tvm.main_func import compile_main
    from plait.codegen.tvm.pool import pool_object

    target = host_target()
    jobs = [KernelJob(name, lambda f=func: f) for name, func in small_kernels().items()]
    objects = [code.data for code in compile_many(jobs, target).values()]
    plan = small_plan()
    objects.append(compile_main(plan, target))
    return TargetCode(target, plan, tuple(objects), pool_object(target))


@pytest.fixture(scope="session")
def small_contents(small_code: TargetCode) -> Contents:
    x = np.random.default_rng(1).standard_normal((4, N // 4), np.float32)
    return Contents(
        name="small",
        code=(small_code,),
        weights=small_weights(),
        samples_in={"x": x},
        samples_out={"out": expected(x), "same": x.reshape(-1)},
        ir={"import": "graph small() {}\n", "fuse": "graph small() { }\n"},
    )


@pytest.fixture(scope="session")
def small_artifact(small_contents: Contents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "small.plait"
    write_artifact(path, small_contents)
    return path
