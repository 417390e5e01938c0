"""Profiles: what steps are said to do, what is made of times, and what a trace holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.codegen.plan import Call
from plait.ir.errors import ArtifactError, PlanError
from plait.runtime.artifact import Artifact, Contents, TargetCode, write_artifact
from plait.runtime.ceilings import Ceilings
from plait.runtime.profile import (
    Profile,
    Step,
    artifact_steps,
    describe_steps,
    profile_artifact,
    profile_module,
)
from plait.runtime.trace import trace
from tests.profiled import LOOP_BYTES, PRODUCT_BYTES, PRODUCT_FLOPS, profiled_inputs

CEILINGS = Ceilings(1e9, 1e9, 1)


def known_profile() -> Profile:
    """Two rounds of four steps, at times that are easy to reckon with."""
    product = Step("dot", "k_1", 3000, 100, "gemm{mr=4}", ("f",), ("g",), "m.py:1")
    loop = Step("add", "k_2", 0, 2000, "loops", ("f",), ("f",))
    steps = (product, loop, replace(product, location="m.py:2"), Step("copy", "", 0, 500))
    seconds = np.array([[10e-6, 30e-6, 20e-6, 1e-6], [12e-6, 36e-6, 22e-6, 3e-6]])
    starts = np.cumsum(seconds, axis=1) - seconds + np.array([[100e-6], [300e-6]])
    runs = np.array([0.0, 200e-6]), np.array([60e-6, 64e-6])
    return Profile("known", 1, steps, CEILINGS, *runs, starts, seconds)


def test_rows_are_sorted_and_reckoned() -> None:
    rows = known_profile().rows()
    assert [(row.name, row.steps) for row in rows] == [
        ("add", (1,)), ("dot", (2,)), ("dot", (0,)), ("copy", (3,)),
    ]  # fmt: skip
    add, dot = rows[:2]
    assert add.seconds == pytest.approx(33e-6) and dot.seconds == pytest.approx(21e-6)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert add.share == pytest.approx(33 / 67)
    assert dot.flops_per_second == pytest.approx(3000 / 21e-6)
    assert add.bytes_per_second == pytest.approx(2000 / 33e-6)
    # The one is bound by arithmetic, 3 µs, the other by traffic, 2 µs.
    assert dot.roofline == pytest.approx(3 / 21) and add.roofline == pytest.approx(2 / 33)


def test_calls_of_one_kernel_are_grouped() -> None:
    rows = known_profile().rows(group=True)
    assert [(row.name, row.steps) for row in rows] == [
        ("add", (1,)), ("dot", (0, 2)), ("copy", (3,)),
    ]  # fmt: skip
    dot = rows[1]
    assert dot.seconds == pytest.approx(32e-6) and dot.flops == 6000 and dot.nbytes == 200
    assert dot.roofline == pytest.approx(6 / 32)
    assert dot.locations == ("m.py:1", "m.py:2")


def check_steps(steps: tuple[Step, ...]) -> None:
    """Those of `profiled_module`, in the order of its plan."""
    products = [step for step in steps if step.flops]
    (loop,) = (step for step in steps if not step.flops)
    assert [step.location for step in products] == ["model.py:1", "model.py:2"]
    for step in products:
        assert (step.name, step.flops, step.nbytes) == ("dot_general", PRODUCT_FLOPS, PRODUCT_BYTES)
        assert step.schedule.startswith("gemm{") and step.results == ("float32[8, 64]",)
    assert (loop.name, loop.nbytes, loop.location) == ("add", LOOP_BYTES, "model.py:9")
    assert loop.operands == loop.results == ("float32[4096]",)


def test_a_module_in_memory(profiled_module: Any) -> None:
    inputs = profiled_inputs()
    arrays = [inputs[spec.name] for spec in profiled_module.plan.inputs]
    result = profile_module(profiled_module, arrays, threads=1, rounds=3, ceilings=CEILINGS)
    check_steps(result.steps)
    assert result.step_seconds.shape == result.step_starts.shape == (3, 3)
    assert (result.step_seconds > 0).all() and (result.run_seconds > 0).all()
    ends = result.step_starts + result.step_seconds
    assert (result.step_starts[:, 1:] >= ends[:, :-1]).all(), "one step after the other"
    assert (result.run_starts + result.run_seconds <= result.step_starts[:, 0]).all()
    assert (result.run_starts[1:] >= ends[:-1, -1]).all()


def test_an_artifact_says_the_same(
    profiled_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plait.runtime.profile.measure_ceilings", lambda threads: CEILINGS)
    artifact = Artifact.open(profiled_artifact)
    said: list[str] = []
    result = profile_artifact(
        artifact,
        lambda model: [artifact.samples()[0][spec.name] for spec in model.inputs],
        threads=1,
        rounds=2,
        progress=said.append,
    )
    check_steps(result.steps)
    assert said == ["measuring the machine", "warming up", "warming up",
                    "round 1 of 2", "round 2 of 2"]  # fmt: skip


def test_memory_that_is_given_twice_is_read_once(profiled_module: Any) -> None:
    plan = profiled_module.plan
    steps = [
        replace(step, args=(step.args[0], step.args[0], *step.args[2:]))
        if isinstance(step, Call) and step.label == "dot_general" else step
        for step in plan.steps
    ]  # fmt: skip
    found = describe_steps(profiled_module.graph, replace(plan, steps=tuple(steps)))
    less = 4 * 8 * 64
    assert {step.nbytes for step in found if step.flops} == {PRODUCT_BYTES - less}


def test_a_graph_of_another_plan_is_refused(profiled_module: Any) -> None:
    graph, plan = profiled_module.graph, profiled_module.plan
    first, *rest = plan.steps
    for steps in (rest, [first, first, *rest], [replace(first, label="tanh"), *rest]):
        with pytest.raises(PlanError, match="does not call"):
            describe_steps(graph, replace(plan, steps=tuple(steps)))


def test_artifacts_whose_graph_is_of_no_use(
    profiled_module: Any, small_contents: Contents, tmp_path: Path
) -> None:
    module, path = profiled_module, tmp_path / "model.plait"
    code = (TargetCode(module.target, module.plan, module.objects, module.pool),)
    for stages, message in [
        ({}, r"holds no stage 'lowered'.*compile it again"),
        ({"lowered": "graph @m() {"}, r"its stage 'lowered' cannot be used: line 1"),
        ({"lowered": "graph @m() { return }"}, r"its stage 'lowered' cannot be used: the plan"),
    ]:
        write_artifact(path, Contents("m", code, module.weights, ir=stages))
        with pytest.raises(ArtifactError, match=message) as caught:
            artifact_steps(Artifact.open(path))
        assert caught.value.exit_code == 5


def test_the_trace_nests_steps_in_rounds() -> None:
    document = trace(known_profile())
    events = document["traceEvents"]
    names = {event["name"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"process_name": "plait: known", "thread_name": "runs"}
    complete = [event for event in events if event["ph"] == "X"]
    assert len(complete) == 2 * (2 + 4)
    run, outer, *steps = complete[:6]
    assert (run["ts"], run["dur"]) == (0, 60) and (outer["ts"], outer["dur"]) == (100, 61)
    assert [(e["name"], e["cat"], e["ts"], e["dur"]) for e in steps] == [
        ("dot", "kernel", 100, 10), ("add", "kernel", 110, 30),
        ("dot", "kernel", 140, 20), ("copy", "copy", 160, 1),
    ]  # fmt: skip
    assert steps[0]["args"] == {
        "step": 0, "symbol": "k_1", "schedule": "gemm{mr=4}", "operands": ["f"],
        "results": ["g"], "flops": 3000, "bytes": 100, "location": "m.py:1",
    }  # fmt: skip
    assert complete[6]["ts"] == 200 and complete[7]["ts"] == 300
