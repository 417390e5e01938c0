"""Tuning: what is measured, what is kept, and that a compilation uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.codegen.cpu import host_core
from plait.codegen.plan import Call
from plait.codegen.tvm.target import cpu_target
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.runtime import tune
from plait.runtime.cache import KernelCache
from plait.runtime.compiler import compile_graph

TARGET = cpu_target(2, host_core())
RNG = np.random.default_rng(0)
W = RNG.standard_normal((48, 40), np.float32)
X = RNG.standard_normal((9, 48), np.float32)


def model() -> Graph:
    """Two products of one shape, another with a residual, and a kernel without a choice."""
    b = Builder("model")
    x = b.input(TensorType(t.f32, (9, 48)), "x")
    first, second, third = (
        b.emit("dot_general", x, b.constant(w, n), lhs_contract=(1,), rhs_contract=(0,))
        for w, n in ((W, "a"), (W + 1, "b"), (W[:, :40:2], "c"))
    )
    part = b.emit("slice", x, start=(0, 0), step=(1, 2), size=(9, 20))
    return b.finish([first, second, third + b.emit("tanh", part), b.emit("softmax", x, axis=1)])


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path)


def test_tasks_are_distinct_kernels_with_a_choice() -> None:
    found = tune.tasks(model(), TARGET)
    assert [(task.body.name, task.calls) for task in found] == [
        ("dot_general", 2),
        ("dot_general", 1),
    ]
    for task in found:
        assert 1 < len(task.candidates) <= tune.KEPT
        assert [c.cycles for c in task.candidates] == sorted(c.cycles for c in task.candidates)


def test_all_candidates_are_raced_and_the_choice_is_kept(cache: KernelCache) -> None:
    todo = tune.tasks(model(), TARGET)
    records = list(tune.tune(todo, TARGET, cache, budget=60))
    assert [r.candidates for r in records] == [len(task.candidates) for task in todo]
    for task, record in zip(todo, records, strict=True):
        assert record.selection in [c.selection for c in task.candidates]
        assert record.seconds <= record.default_seconds
        assert tune.find(cache, task.body, task.constant, TARGET.threads) == record
    assert list(tune.tune(todo, TARGET, cache, budget=60)) == [], "known kernels are passed over"


def test_without_a_budget_nothing_is_measured(cache: KernelCache) -> None:
    assert list(tune.tune(tune.tasks(model(), TARGET), TARGET, cache, budget=0)) == []


def _prefer(cache: KernelCache, task: tune.Task, number: int, **changes: Any) -> str:
    """Keep a record that chooses a candidate; gives its schedule."""
    chosen = task.candidates[number].selection
    fields = {"schedule": chosen.schedule, "pack": dict(chosen.pack), **changes}
    key = tune.record_key(task.body, task.constant, TARGET.threads)
    record = tune.Record(key=key, kernel="", seconds=1.0, default="", default_seconds=2.0,
                         candidates=2, **fields)  # fmt: skip
    tune.keep(cache, record)
    return str(fields["schedule"])


def schedules(cache: KernelCache) -> list[str]:
    module = compile_graph(model(), cache=cache)
    for got, want in zip(module.load(2)(X), interpret(model(), [X]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    return [k.schedule for k in module.kernels]


def test_a_compilation_uses_records(cache: KernelCache) -> None:
    """Also one that has compiled the kernel before, and again without the templates."""
    before = schedules(cache)
    task = tune.tasks(model(), TARGET)[0]
    assert task.candidates[0].selection.schedule in before
    chosen = _prefer(cache, task, -1)
    assert schedules(cache).count(chosen) == before.count(chosen) + 1
    assert compile_graph(model(), cache=cache).built == 0


def test_a_record_that_no_template_offers_is_passed_over(cache: KernelCache) -> None:
    before = schedules(cache)
    _prefer(cache, tune.tasks(model(), TARGET)[0], -1, schedule="gemm{mr=99 nr=8}")
    assert schedules(cache) == before


def test_records_round_trip() -> None:
    record = tune.Record("k", "conv", "conv{mr=6}", {1: ("conv", 16)}, 1.0, "conv{mr=4}", 2.0, 5)
    assert tune.Record.from_json(json.loads(json.dumps(record.to_json()))) == record
    older = {**record.to_json(), "format": tune.FORMAT - 1}
    assert tune.Record.from_json(older) is None  # of kernels that are faster now


def test_the_first_candidate_stays_unless_another_is_faster_beyond_doubt() -> None:
    first = np.array([1.0, 1.1, 1.0, 1.2])
    assert tune.fastest({0: first, 1: first * 0.9}) == 1
    assert tune.fastest({0: first, 1: first * 0.99}) == 0
    assert tune.fastest({0: first, 1: np.array([0.5, 1.3, 1.3, 1.3])}) == 0


def test_the_first_candidate_is_not_the_first_to_run() -> None:
    """It would be alone in finding new memory for its results, and sleeping threads."""
    task = tune.tasks(model(), TARGET)[0]
    steps = tune.Race(task, TARGET).models[0].plan.steps
    last = len(task.candidates) - 1
    symbols = [step.symbol for step in steps if isinstance(step, Call)]
    assert symbols == [f"k_{k}" for k in (last, *range(last + 1))]
    weights = [{a.byte_offset for a in step.args if a.space == "weights"}
               for step in steps if isinstance(step, Call)]  # fmt: skip
    assert weights[0]
    assert not any(weights[0] & others for others in weights[1:]), "they must come from memory"


def test_a_candidate_with_another_result_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tune.tasks(model(), TARGET)[0]
    race = tune.Race(task, TARGET)
    raced = race.models[0]
    run_steps = raced.run_steps

    def spoiled(arrays: Any, around: Any) -> Any:
        seen: list[int] = []
        outputs = run_steps(arrays, lambda k, go: around(k, lambda: (seen.append(k), go())))
        return tuple(out + (seen == [2]) for out in outputs)

    monkeypatch.setattr(raced, "run_steps", spoiled)
    assert sorted(race.run(1)) == [k for k in range(len(task.candidates)) if k != 1]
