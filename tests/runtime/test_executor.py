"""The compiled model as a callable: results, refusals, threads, steps."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.ir.errors import ArtifactError, InputMismatch, UsageError
from plait.runtime import executor
from plait.runtime.artifact import Artifact, TargetCode
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library

SHAPE = (4, 256)


@pytest.fixture(scope="module")
def model(small_artifact: Path) -> CompiledModel:
    return Artifact.open(small_artifact).load(threads=2)


def reference(model: CompiledModel, x: Any) -> Any:
    scale = model_weights(model)
    return (x + np.float32(1)) * scale.reshape(SHAPE) + np.float32(2)


def model_weights(model: CompiledModel) -> Any:
    (spec,) = [w for w in model.plan.weights if w.name == "w"]
    raw = model._weights[spec.byte_offset : spec.byte_offset + spec.nbytes]
    return raw.view(np.float32)


def sample(seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(SHAPE, np.float32)


def test_results(model: CompiledModel) -> None:
    x = sample()
    out, same = model(x)
    np.testing.assert_allclose(out, reference(model, x), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(same, x.reshape(-1))
    by_name = model.run({"x": x})
    assert list(by_name) == ["out", "same"]
    np.testing.assert_array_equal(by_name["out"], out)


def test_results_are_new_each_time(model: CompiledModel) -> None:
    first, _ = model(sample(0))
    kept = first.copy()
    model(sample(1))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(SHAPE),
        lambda x: np.frombuffer(b"x" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(SHAPE),
        lambda x: x[::-1].copy()[::-1],
    ],
    ids=["fortran", "strided", "read-only", "misaligned", "reversed"],
)
def test_any_array_of_the_right_type(model: CompiledModel, change: Callable[[Any], Any]) -> None:
    x = sample()
    np.testing.assert_array_equal(model(change(x))[0], model(x)[0])


def test_refusals_name_the_input(model: CompiledModel) -> None:
    want = r"input 'x': expected float32\[4, 256\], got "
    with pytest.raises(InputMismatch, match=want + r"float64\[4, 256\]"):
        model(sample().astype(np.float64))
    with pytest.raises(InputMismatch, match=want + r"float32\[256, 4\]"):
        model(sample().T)
    with pytest.raises(InputMismatch, match=want + r"float32\[1024\]"):
        model(sample().reshape(-1))
    with pytest.raises(InputMismatch, match=want + r"float64\[\]"):
        model(1.0)  # type: ignore[arg-type]
    with pytest.raises(InputMismatch, match=want + "nothing"):
        model.run({})
    with pytest.raises(InputMismatch, match=r"input 'z': expected one of \['x'\]"):
        model.run({"x": sample(), "z": sample()})
    with pytest.raises(UsageError, match=r"small: expected 1 inputs \(x\), got 2"):
        model(sample(), sample())


def test_outputs_given_by_the_caller(model: CompiledModel) -> None:
    x = sample()
    outputs = [np.empty(SHAPE, np.float32), np.empty(1024, np.float32)]
    model.run_into([x], outputs)
    np.testing.assert_array_equal(outputs[0], model(x)[0])
    with pytest.raises(UsageError, match="output 'out': expected a dense, writable array"):
        model.run_into([x], [np.empty((4, 512), np.float32)[:, ::2], outputs[1]])
    with pytest.raises(UsageError, match="expected 2 outputs, got 1"):
        model.run_into([x], outputs[:1])
    with pytest.raises(UsageError, match=r"output 'out': expected float32\[4, 256\], got float64"):
        model.run_into([x], [np.empty(SHAPE), outputs[1]])


@pytest.mark.parametrize("threads", [1, 2])
def test_many_python_threads(small_artifact: Path, threads: int) -> None:
    model = Artifact.open(small_artifact).load(threads=threads)
    failures: list[int] = []

    def work(seed: int) -> None:
        x = sample(seed)
        want = reference(model, x)
        for _ in range(200):
            out, same = model(x)
            if not (np.allclose(out, want, rtol=1e-6, atol=1e-6) and (same == x.ravel()).all()):
                failures.append(seed)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert failures == []


def test_two_models_with_different_thread_counts_take_turns(small_artifact: Path) -> None:
    artifact = Artifact.open(small_artifact)
    models = [artifact.load(threads=n) for n in (1, 2, 1, 4)]
    x = sample()
    for _ in range(3):
        results = [m(x)[0] for m in models]
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


def test_the_caller_keeps_its_cpus(model: CompiledModel) -> None:
    before = os.sched_getaffinity(0)
    model(sample())
    assert os.sched_getaffinity(0) == before


def test_plain_arrays_take_the_native_check(
    model: CompiledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert executor.arrays_lie_as_expected()
    want = model(sample())

    def not_taken(*_: Any) -> None:
        raise AssertionError("a plain array took the slow path")

    monkeypatch.setattr(CompiledModel, "run_into", not_taken)
    for got, expected in zip(model(sample()), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(AssertionError, match="slow path"):
        model(sample().T.copy().T)


def test_arrays_that_lie_otherwise_go_through_dlpack(
    small_artifact: Path, model: CompiledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "arrays_lie_as_expected", lambda: False)
    other = Artifact.open(small_artifact).load(threads=2)
    monkeypatch.setattr(other, "_check", None)
    for got, expected in zip(other(sample()), model(sample()), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_kernel_without_memory_is_an_error(
    model: CompiledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_run", lambda *_: -1)
    with pytest.raises(MemoryError, match="scratch"):
        model(sample())
    monkeypatch.setattr(model, "_main", lambda *_: -1)
    with pytest.raises(MemoryError, match="scratch"):
        model.run_into([sample()], [np.empty(t.shape, t.numpy) for t in model.outputs])


def test_step_by_step(model: CompiledModel) -> None:
    seen: list[int] = []

    def around(i: int, go: Callable[[], object]) -> None:
        seen.append(i)
        go()

    x = sample()
    out, same = model.run_steps([x], around)
    assert seen == list(range(len(model.plan.steps)))
    np.testing.assert_array_equal(out, model(x)[0])
    np.testing.assert_array_equal(same, x.reshape(-1))
    model.release_memory()
    np.testing.assert_array_equal(out, model(x)[0])


def test_bad_construction(model: CompiledModel) -> None:
    with pytest.raises(UsageError, match="threads=0: expected a number of threads, at least 1"):
        CompiledModel(model.plan, model._library, model._weights, threads=0)
    with pytest.raises(UsageError, match="bytes of weights, got 8"):
        CompiledModel(model.plan, model._library, np.zeros(8, np.uint8))


def test_a_library_without_the_symbol(small_code: TargetCode) -> None:
    library = Library(small_code.objects, small_code.pool)
    with pytest.raises(ArtifactError, match="no_such_main: cannot be linked"):
        library.function("no_such_main")


def test_objects_that_lack_a_kernel_are_refused(small_code: TargetCode) -> None:
    for wrong in (small_code.objects[-1], b"not an object"):
        with pytest.raises(ArtifactError, match="cannot be linked"):
            Library([wrong], small_code.pool)
