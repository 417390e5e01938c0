"""From a graph to a module: what is compiled, what the cache saves, and what the plan says."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.codegen.plan import Call, Copy, PointerArg
from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.dims import symbol
from plait.ir.errors import (
    PlanError,
    TargetMismatch,
    UnknownName,
    Unsupported,
    UnsupportedOp,
    UnsupportedSymbol,
    UsageError,
)
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.passes.hooks import verify_each
from plait.passes.memory_check import check_plan
from plait.passes.pipeline import DEFAULT_PIPELINE, Event
from plait.runtime.artifact import Artifact
from plait.runtime.cache import OBJECTS, KernelCache
from plait.runtime.compiler import SELECTIONS, Module, code_fingerprint, compile_graph

RNG = np.random.default_rng(0)
W = RNG.standard_normal((24, 24), np.float32)
X = RNG.standard_normal((6, 24), np.float32)


def mlp(layers: int = 3, scale: float = 1.0) -> Graph:
    """Layers of the same shape, with different weights: one kernel, called for each."""
    b = Builder("mlp")
    x = b.input(TensorType(t.f32, (6, 24)), "x")
    with b.at("mlp.py:7"):
        for k in range(layers):
            w = b.constant(W * np.float32(k + scale), f"layers.{k}.weight")
            x = b.emit("tanh", b.emit("dot_general", x, w, lhs_contract=(1,), rhs_contract=(1,)))
    return b.finish([x])


def make(fn: Any, *types: TensorType) -> Graph:
    b = Builder()
    made = fn(b, *map(b.input, types))
    return b.finish([made] if isinstance(made, Value) else made)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> KernelCache:
    return KernelCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def module(cache: KernelCache) -> Module:
    return compile_graph(mlp(), cache=cache, keep_stages=True, hooks=[verify_each])


def test_results(module: Module) -> None:
    (got,) = module.load(threads=2)(X)
    np.testing.assert_allclose(got, interpret(mlp(), [X])[0], rtol=1e-5, atol=1e-5)


def test_equal_kernels_are_compiled_once(module: Module) -> None:
    (kernel,) = module.kernels
    assert (kernel.calls, kernel.loc) == (3, "mlp.py:7")
    assert kernel.schedule.startswith("gemm{") and module.built == 1
    assert len(module.objects) == 2, "the kernel and main"


def test_the_second_compilation_builds_nothing(module: Module, cache: KernelCache) -> None:
    seen: list[tuple[str, int, int]] = []
    again = compile_graph(mlp(), cache=cache, progress=lambda *a: seen.append(a))
    assert (again.built, seen) == (0, [])
    assert again.objects == module.objects and again.plan == module.plan


def test_other_weights_and_more_layers_use_the_same_kernel(cache: KernelCache) -> None:
    compile_graph(mlp(), cache=cache)
    other = compile_graph(mlp(5, 0.5), cache=cache)
    assert other.built == 0
    (got,) = other.load()(X)
    np.testing.assert_allclose(got, interpret(mlp(5, 0.5), [X])[0], rtol=1e-4, atol=1e-5)


def test_a_damaged_entry_is_compiled_anew(module: Module, tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    first = compile_graph(mlp(), cache=cache)
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        path.write_bytes(path.read_bytes()[:-1])
    again = compile_graph(mlp(), cache=cache)
    assert again.built == first.built == 1
    assert again.objects[0] == module.objects[0], "compilation is deterministic"


def test_progress_counts_kernels(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    graph = make(lambda b, x: [b.emit("exp", x), b.emit("reduce_sum", x, axes=(0,))],
                 TensorType(t.f32, (3, 5)))  # fmt: skip
    module = compile_graph(graph, cache=KernelCache(tmp_path), progress=lambda *a: seen.append(a))
    assert seen == [("kernels", k + 1, module.built) for k in range(module.built)]


def test_progress_is_told_one_by_one(tmp_path: Path) -> None:
    """Kernels are compiled by two threads, whose reports must not overlap."""
    told: list[int] = []
    inside = Lock()

    def progress(stage: str, done: int, total: int) -> None:
        assert inside.acquire(blocking=False), "another report is under way"
        time.sleep(0.1)
        told.append(done)
        inside.release()

    types = [TensorType(t.f32, (n,)) for n in (3, 5, 7, 9)]
    graph = make(lambda b, *xs: [b.emit("exp", x) for x in xs], *types)
    module = compile_graph(graph, cache=KernelCache(tmp_path), progress=progress)
    assert told == [1, 2, 3, 4] and module.built == 4


def test_a_selection_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of kernels that are called many times the disk is asked once."""
    get, asked = KernelCache.get, list[str]()

    def counted(cache: KernelCache, key: str, kind: str = OBJECTS) -> bytes | None:
        asked.append(kind)
        return get(cache, key, kind)

    monkeypatch.setattr(KernelCache, "get", counted)
    module = compile_graph(mlp(6), cache=KernelCache(tmp_path))
    assert [k.calls for k in module.kernels] == [6]
    assert asked.count(SELECTIONS) == 1


@pytest.mark.parametrize("file", ["new.py", "new.ll"])
@pytest.mark.parametrize("package", ["codegen", "ir", "passes"])
def test_the_fingerprint_covers_what_decides_code(
    package: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = code_fingerprint.__wrapped__()
    assert made == code_fingerprint()
    module = import_module(f"plait.{package}")
    shutil.copytree(module.__path__[0], tmp_path / package)
    monkeypatch.setattr(module, "__path__", [str(tmp_path / package)])
    assert code_fingerprint.__wrapped__() == made, "where it lies does not matter"
    (tmp_path / package / file).write_text("ANSWER = 42\n")
    assert code_fingerprint.__wrapped__() != made


def test_the_plan(module: Module) -> None:
    plan = module.plan
    assert [(s.name, s.dtype, s.shape) for s in plan.inputs] == [("x", "float32", (6, 24))]
    assert [s.name for s in plan.outputs] == ["output0"]
    calls = [s for s in plan.steps if isinstance(s, Call)]
    assert len(calls) == len(plan.steps) == 3
    assert calls[0].args[0] == PointerArg("input", 0) and calls[-1].args[-1] == PointerArg("output")
    assert calls[0].args[-1].space == "arena" == calls[1].args[0].space
    assert {w.name.partition("#")[0] for w in plan.weights} == {
        f"layers.{k}.weight" for k in range(3)
    }
    assert plan.arena_bytes == module.memory.size


def test_the_memory_plan_is_valid(module: Module) -> None:
    check_plan(module.graph, module.memory)


def test_stages_and_seconds(module: Module) -> None:
    assert module.stages["imported"] == str(mlp())
    assert module.stages["lowered"] == str(module.graph)
    assert {"passes", "kernels", "weights", "main", "total", "pass.fuse"} <= set(module.seconds)
    assert compile_graph(mlp()).stages == {}


def test_an_artifact_gives_the_same(module: Module, tmp_path: Path) -> None:
    path = tmp_path / "mlp.plait"
    module.save(path, {"x": X}, {"output0": interpret(mlp(), [X])[0]})
    (got,) = Artifact.open(path).load()(X)
    np.testing.assert_array_equal(got, module.load()(X)[0])


def test_outputs_that_no_kernel_writes() -> None:
    """An input, a constant, and one value twice reach the caller through copies."""
    ones = np.ones(3, np.float32)

    def fn(b: Builder, x: Value) -> list[Value]:
        y = b.emit("exp", x)
        return [x, b.constant(ones, "ones"), y, y]

    module = compile_graph(
        make(fn, TensorType(t.f32, (5,))), output_names=["same", "one", "exp", "again"]
    )
    assert sum(isinstance(s, Copy) for s in module.plan.steps) == 3
    x = np.arange(5, dtype=np.float32)
    found = module.load().run({"input0": x})
    assert list(found) == ["same", "one", "exp", "again"]
    np.testing.assert_array_equal(found["same"], x)
    np.testing.assert_array_equal(found["one"], ones)
    np.testing.assert_allclose(found["exp"], np.exp(x), rtol=1e-6)
    np.testing.assert_array_equal(found["again"], found["exp"])


def test_equal_weights_are_stored_once_and_names_stay_apart() -> None:
    def fn(b: Builder, x: Value) -> Value:
        first, other = b.constant(np.ones(5, np.float32), "w"), b.constant(X[0, :5], "w")
        return (x + first) * other + b.constant(np.ones(5, np.float32), "w.copy")

    module = compile_graph(make(fn, TensorType(t.f32, (3, 5))))
    assert [w.name for w in module.plan.weights] == ["w", "w.1"]
    x = X[:3, :5].copy()
    np.testing.assert_allclose(module.load()(x)[0], (x + 1) * X[0, :5] + 1, rtol=1e-5)


def test_views_of_inputs_reach_kernels_without_copies() -> None:
    graph = make(lambda b, x: b.emit("exp", b.transpose(b.reshape(x, (4, 3)), (1, 0))),
                 TensorType(t.f32, (12,)))  # fmt: skip
    module = compile_graph(graph)
    assert [type(s) for s in module.plan.steps] == [Call]
    x = np.arange(12, dtype=np.float32) / 9
    np.testing.assert_allclose(module.load()(x)[0], np.exp(x.reshape(4, 3).T), rtol=1e-6)


def test_every_pass_is_seen_by_hooks() -> None:
    events: list[Event] = []
    compile_graph(mlp(1), hooks=[events.append])
    assert [e.applied.name for e in events] == DEFAULT_PIPELINE.split(",")


# Refusals


def test_a_fallback_has_no_lowering() -> None:
    call = {"target": "aten.bernoulli.default", "arguments": "{}", "dtypes": ("float32",),
            "shapes": ((3,),)}  # fmt: skip
    b = Builder()
    x = b.input(TensorType(t.f32, (3,)))
    with b.at("drop.py:9"):
        y = b.emit("aten", x, **call)
    with pytest.raises(UnsupportedOp, match=r"aten.bernoulli.default.*drop\.py:9") as e:
        compile_graph(b.finish([y]))
    assert e.value.exit_code == 3


@pytest.mark.parametrize("fn", [
    lambda b, x: x + x,
    lambda b, x: b.emit("relu", x),
    lambda b, x: b.emit("isnan", x),
    lambda b, x: b.emit("softmax", x, axis=0),
    lambda b, x: b.emit("reduce_max", x, axes=(0,)),
])  # fmt: skip
def test_arithmetic_in_bfloat16_is_refused(fn: Any) -> None:
    with pytest.raises(Unsupported, match="in bfloat16, for which the CPU has no code: cast"):
        compile_graph(make(fn, TensorType(t.bf16, (4,))))


def test_bfloat16_is_moved_and_cast() -> None:
    """To the nearest, ties to even, NaN and infinities kept."""
    import ml_dtypes

    def fn(b: Builder, x: Value, at: Value) -> list[Value]:
        y = b.emit("cast", x, dtype=t.bf16)
        taken = b.emit("take", b.transpose(b.reshape(y, (2, 4)), (1, 0)), at)
        return [y, taken, b.emit("cast", y, dtype=t.f32)]

    x = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, np.nan, np.inf, -0.0, 1e-40], np.float32)
    at = np.array([3, 0], np.int64)
    module = compile_graph(make(fn, TensorType(t.f32, (8,)), TensorType(t.i64, (2,))))
    with np.errstate(over="ignore"):
        want = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    y, taken, back = module.load()(x, at)
    for got, expected in ((y, want), (taken, want.reshape(2, 4).T[at])):
        wide = got.view(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(wide, expected)
    np.testing.assert_array_equal(back, want)


def test_symbolic_sizes_are_refused() -> None:
    x = TensorType(t.f32, (symbol("n", 1, 8), 4))
    with pytest.raises(UnsupportedSymbol, match="needs a static size, but dimension 'n'"):
        compile_graph(make(lambda b, x: b.emit("exp", x), x))


def test_a_pipeline_without_a_plan() -> None:
    with pytest.raises(PlanError, match="it lacks `allocate`"):
        compile_graph(mlp(1), pipeline="canonicalize,layout,fuse,select")


def test_arguments_are_row_major() -> None:
    x = TensorType(t.f32, (3, 5), (1, 0))
    with pytest.raises(PlanError, match=r"input 0 is float32\[3, 5\]\{1, 0\}, but"):
        compile_graph(make(lambda b, x: b.emit("exp", x), x))


def test_an_unknown_cpu() -> None:
    with pytest.raises(UnknownName, match="did you mean 'znver3'"):
        compile_graph(mlp(1), cpu="znver33")


def test_weights_are_those_of_the_time_of_compiling(tmp_path: Path) -> None:
    b = Builder("sum")
    given = np.arange(4, dtype=np.float32)
    graph = b.finish([b.input(TensorType(t.f32, (4,))) + b.constant(given, "w")])
    module = compile_graph(graph)
    given += 1
    path = tmp_path / "sum.plait"
    module.save(path)
    zeros = np.zeros(4, np.float32)
    for model in (module.load(), Artifact.open(path).load()):
        assert model(zeros)[0].tolist() == [0, 1, 2, 3]
    assert not module.weights["w"].flags.writeable


def test_constants_of_the_callers_graph_stay_where_they_are() -> None:
    """A graph that is compiled again has the weights that the model has then, all of them."""
    b = Builder("layer")
    w, bias = np.ones((16, 64), np.float32), np.zeros(64, np.float32)
    x = b.input(TensorType(t.f32, (4, 16)))
    y = b.emit("dot_general", x, b.constant(w, "w"), lhs_contract=(1,), rhs_contract=(0,))
    graph = b.finish([y + b.constant(bias, "bias")])
    first = compile_graph(graph)
    held = [n.attrs["value"].array for n in graph.nodes if n.op == "constant"]
    assert any(array is w for array in held) and any(array is bias for array in held)
    w *= 2
    bias += 1
    ones = np.ones((4, 16), np.float32)
    assert (first.load()(ones)[0] == 16).all()
    assert (compile_graph(graph).load()(ones)[0] == 33).all()


@pytest.mark.parametrize("threads", [0, -1, 1.5])
def test_no_number_of_threads(threads: Any, cache: KernelCache) -> None:
    with pytest.raises(UsageError, match=f"threads={threads}: expected"):
        compile_graph(mlp(), threads=threads, cache=cache)


def test_code_for_another_cpu_is_not_run(cache: KernelCache) -> None:
    module = compile_graph(mlp(1), cache=cache)
    other = replace(module.target, mcpu="future", features=("avx2", "avx9000"))
    with pytest.raises(TargetMismatch, match=r"mlp: built for x86_64-future, .* lacks avx9000"):
        replace(module, target=other).load()


def test_unnamed_inputs_get_names_that_others_do_not_have(cache: KernelCache) -> None:
    b = Builder("named")
    x = b.input(TensorType(t.f32, (4,)), "input1")
    y = b.input(TensorType(t.f32, (4,)))
    plan = compile_graph(b.finish([x + y]), cache=cache).plan
    assert [spec.name for spec in plan.inputs] == ["input1", "input1_2"]


@pytest.mark.parametrize("like", ["cumsum", "sum_pool"])
def test_a_new_op_with_sums_of_its_own(
    like: str, cache: KernelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traits say all that fusion, layout and the templates need to know of it."""
    monkeypatch.setitem(ops.OPS, "new", replace(ops.get(like), name="new"))
    attrs: dict[str, Any] = {"axis": 1}
    if like == "sum_pool":
        plain = {"window": (2, 2), "stride": (1, 1), "low": (0, 0), "high": (0, 0)}
        attrs = {**plain, "dilation": (1, 1)}
    graph = make(lambda b, x: b.emit("new", x, **attrs) * 2, TensorType(t.f32, (2, 3, 4, 5)))
    x = RNG.standard_normal((2, 3, 4, 5), np.float32)
    (got,) = compile_graph(graph, cache=cache, hooks=[verify_each]).load()(x)
    np.testing.assert_allclose(got, interpret(graph, [x])[0], rtol=1e-5, atol=1e-6)
