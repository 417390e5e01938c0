"""An op is one declaration: registered here in one call, it works everywhere in the IR."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from plait.fuzz.generate import Settings, generate, random_inputs
from plait.ir import expr as e
from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.builder import Builder, Capture, Value
from plait.ir.errors import TypeRuleError
from plait.ir.expr_eval import evaluate
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.ops.elementwise import elementwise
from plait.ir.text import parse_graph, print_graph
from plait.ir.types import TensorType
from plait.ir.verify import verify


@pytest.fixture
def mish() -> Iterator[ops.Op]:
    """x * tanh(ln(1 + e**x)), declared as an op family would."""
    ops.load_all()
    before = dict(ops.OPS), dict(ops.CAPTURES)
    yield elementwise(
        "mish",
        ("x",),
        lambda c, x: x * e.apply("tanh", e.apply("log1p", e.apply("exp", x))),
        lambda c, x: x * np.tanh(np.log1p(np.exp(x))),
        torch=("aten.mish.default",),
        accepts="f",
        precision="approx",
        doc="x * tanh(ln(1 + e**x)), elementwise; Misra 2019.",
    )
    for table, kept in zip((ops.OPS, ops.CAPTURES), before, strict=True):
        table.clear()
        table.update(kept)  # type: ignore[arg-type]


def graph_of(op: str) -> Graph:
    b = Builder()
    x = b.input(TensorType(t.f32, (2, 3), (1, 0)), "x")
    return b.finish([b.emit(op, x)])


def test_it_runs_prints_and_hashes(mish: ops.Op) -> None:
    graph = graph_of("mish")
    verify(graph)
    x = np.linspace(-3, 3, 6, dtype=np.float32).reshape(2, 3)
    (out,) = interpret(graph, [x])
    np.testing.assert_allclose(out, x * np.tanh(np.log1p(np.exp(x))), rtol=1e-6)
    computes = mish.computes(graph.nodes[0].attrs, graph.input_types)
    assert computes is not None
    np.testing.assert_allclose(evaluate(computes[0], (x,)), out, rtol=1e-6)
    assert "%1 = mish(%0) : float32[2, 3]" in print_graph(graph)
    assert parse_graph(print_graph(graph)) == graph
    assert graph.digest != graph_of("silu").digest


def test_its_type_rule_holds(mish: ops.Op) -> None:
    b = Builder()
    with pytest.raises(TypeRuleError, match="mish: dtype int32 is not accepted"):
        b.emit("mish", b.input(TensorType(t.i32, (2,))))


def test_it_is_captured_from_torch(mish: ops.Op) -> None:
    importer = ops.importer("aten.mish.default")
    assert importer is not None
    b = Builder()
    x = b.input(TensorType(t.f32, (2, 3)))
    out = importer(Capture(b, (x.type,)), x)
    assert isinstance(out, Value) and [n.op for n in b.nodes] == ["mish"]


def test_the_generator_finds_it(mish: ops.Op) -> None:
    """No list of ops has to be told."""
    graphs = [generate(seed, Settings(nodes=12)) for seed in range(40)]
    found = [g for g in graphs if any(n.op == "mish" for n in g.nodes)]
    assert found
    with np.errstate(all="ignore"):
        interpret(found[0], random_inputs(found[0], 0))


def test_a_second_declaration_is_refused(mish: ops.Op) -> None:
    with pytest.raises(ValueError, match="op 'mish' is registered twice"):
        ops.register(mish)
