"""Decomposition of what the target does not take, and the choice of polynomials."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plait.fuzz.samples import SAMPLES, Sample
from plait.ir import op as ops
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


def test_random_graphs_keep_their_meaning() -> None:
    for seed, graph in random_graphs(range(20)):
        same_meaning(graph, run("decompose,legalize-math", graph), seed)
