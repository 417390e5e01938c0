"""Decomposition of what the target does not take, and the choice of polynomials."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plait.fuzz.samples import SAMPLES, Sample
from plait.ir import op as ops
from plait.ir.builder import Builder, Value
from plait.passes.context import Context
from plait.passes.pipeline import parse_pipeline
from tests.passes.graphs import TARGET, build, ops_of, random_graphs, run, same_meaning

ops.load_all()
COMPOSITES = [s for s in SAMPLES if ops.get(s.op).decompose is not None]


@pytest.mark.parametrize("sample", COMPOSITES, ids=str)
def test_composites_become_primitives(sample: Sample) -> None:
    before = sample.graph()
    after = run("decompose", before, replace(TARGET, composites={}))
    assert all(ops.get(n.op).decompose is None for n in after.nodes)
    same_meaning(before, after)


def test_what_the_target_takes_stays() -> None:
    attention = next(s for s in SAMPLES if s.op == "attention").graph()
    assert run("decompose", attention) == attention
    picky = replace(TARGET, composites={"attention": lambda types: types[0].shape[-1] > 8})
    assert "attention" not in ops_of(run("decompose", attention, picky))


def test_what_fired_is_counted() -> None:
    context = Context(replace(TARGET, composites={}))
    graph = build(lambda b, x: b.emit("softmax", b.emit("softmax", x, axis=0), axis=1), (2, 3))
    parse_pipeline("decompose").run(graph, context)
    assert context.fired == {"decompose-softmax": 2}


def test_polynomials_of_the_slow_functions_alone() -> None:
    graph = build(lambda b, x: [b.emit(f, x) for f in ("exp", "log", "tanh", "neg")], (3, 4))
    after = run("legalize-math", graph)
    chosen = {n.op: n.attrs.get("approx") for n in after.nodes}
    assert chosen == {"exp": "poly", "log": "", "tanh": "poly", "neg": None}
    same_meaning(graph, after)
    assert run("legalize-math", after) == after


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_powers_below_a_maximum_take_the_cheaper_form(op: str) -> None:
    graph = run("decompose", build(lambda b, x: b.emit(op, x, axis=1), (3, 4)))
    after = run("legalize-math", graph)
    assert [n.attrs["approx"] for n in after.nodes if n.op == "exp"] == ["decay"]
    same_meaning(graph, after)


def test_powers_below_another_maximum_do_not() -> None:
    """What is subtracted must be the maximum of the very same numbers, at their places."""

    def other(b: Builder, x: Value, y: Value) -> list[Value]:
        highest = b.emit("reduce_max", y, axes=(1,), keepdims=True)
        turned = b.emit("reduce_max", x, axes=(1,), keepdims=False)  # [3], along the other axis
        return [b.emit("exp", d) for d in (x - highest, highest - x, x - turned)]

    after = run("legalize-math", build(other, (3, 3), (3, 3)))
    assert [n.attrs["approx"] for n in after.nodes if n.op == "exp"] == ["poly"] * 3


def test_random_graphs_keep_their_meaning() -> None:
    for seed, graph in random_graphs(range(20)):
        same_meaning(graph, run("decompose,legalize-math", graph), seed)
