"""Properties of generated graphs: text form, digest, interpreter, binding of sizes."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.fuzz.generate import Settings, generate, random_inputs
from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.dims import symbol
from plait.ir.errors import ParseError, UnsupportedSymbol
from plait.ir.expr_eval import evaluate
from plait.ir.graph import Attrs, Blob, Graph, Input, Node
from plait.ir.interp import bind_graph, bind_sizes, interpret, run_node
from plait.ir.text import blob_table, parse_graph, parse_outline, print_graph
from plait.ir.types import TensorType
from plait.ir.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
seeds = st.integers(0, 2**32 - 1)


def reordered(graph: Graph, random: Random) -> Graph:
    """The same nodes in another topological order."""
    number = {v: v for v in range(len(graph.inputs))}
    waiting, nodes = list(range(len(graph.nodes))), []
    while waiting:
        ready = [k for k in waiting if all(v in number for v in graph.nodes[k].operands)]
        k = random.choice(ready)
        waiting.remove(k)
        node = graph.nodes[k]
        at = len(graph.inputs) + sum(len(n.types) for n in nodes)
        nodes.append(replace(node, operands=tuple(number[v] for v in node.operands)))
        number |= {v: at + r for r, v in enumerate(graph.results(k))}
    return replace(graph, nodes=tuple(nodes), outputs=tuple(number[v] for v in graph.outputs))


def commuted(graph: Graph) -> Graph:
    """Operands of commutative ops swapped."""
    nodes = (
        replace(n, operands=n.operands[::-1]) if ops.is_commutative(n.op) else n
        for n in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


def renamed(graph: Graph) -> Graph:
    """All names and locations changed, bodies included."""

    def attr(value: Any) -> Any:
        if isinstance(value, Blob):
            return Blob(value.array.copy(), value.name + "z")
        return renamed(value) if isinstance(value, Graph) else value

    nodes = tuple(
        replace(n, loc=n.loc + "z", attrs=Attrs({k: attr(v) for k, v in n.attrs.items()}))
        for n in graph.nodes
    )
    inputs = tuple(Input(i.type, i.name + "z") for i in graph.inputs)
    return Graph(inputs, nodes, graph.outputs, graph.name + "z")


def without_layouts(graph: Graph) -> Graph:
    """Row-major everywhere, where the op does not state the layout."""
    nodes = tuple(replace(n, types=tuple(ty.with_layout(None) for ty in n.types))
                  for n in graph.nodes)  # fmt: skip
    return Graph(tuple(Input(i.type.with_layout(None)) for i in graph.inputs), nodes, graph.outputs)


def assert_same(got: list[Any], want: list[Any]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_the_text_form_is_faithful(seed: int) -> None:
    graph = generate(seed)
    text = print_graph(graph)
    again = parse_graph(text, blob_table(graph))
    assert again == graph and hash(again) == hash(graph)
    assert print_graph(again) == text
    assert again.digest == graph.digest


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_the_digest_sees_through_names_and_order(seed: int) -> None:
    graph, random = generate(seed), Random(seed)
    for other in (renamed(graph), reordered(graph, random), commuted(graph)):
        verify(other)
        assert other.digest == graph.digest
    dead = Node("iota", (), ops.get("iota").complete({"shape": (3,)}), (TensorType(t.i64, (3,)),))
    assert replace(graph, nodes=(*graph.nodes, dead)).digest == graph.digest


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_the_digest_sees_every_change(seed: int) -> None:
    graph = replace(generate(seed), name="main")
    digests = {graph.digest}
    changed = [replace(graph, outputs=(*graph.outputs, graph.outputs[0]))]
    live = set(graph.outputs)
    for k in reversed(range(len(graph.nodes))):
        node = graph.nodes[k]
        if live.isdisjoint(graph.results(k)):
            continue
        live |= set(node.operands)
        for name, value in node.attrs.items():
            if isinstance(value, bool | int | float):
                nodes = list(graph.nodes)
                nodes[k] = node.with_attrs(**{name: not value if value is True else value + 1})
                changed.append(replace(graph, nodes=tuple(nodes)))
    digests |= {g.digest for g in changed}
    assert len(digests) == 1 + len(changed)


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_the_interpreter_runs_and_ignores_order_and_layout(seed: int) -> None:
    graph = generate(seed)
    verify(graph)
    inputs = random_inputs(graph, seed)
    outputs = interpret(graph, inputs)
    assert_same(interpret(reordered(graph, Random(seed)), inputs), outputs)
    assert_same(interpret(without_layouts(graph), inputs), outputs)
    static = bind_graph(graph, bind_sizes(graph, inputs))
    verify(static)
    assert_same(interpret(static, inputs), outputs)


@pytest.mark.parametrize("seed", range(60))
def test_compute_definitions_hold_on_symbolic_sizes(seed: int) -> None:
    graph = generate(seed, Settings(kernels=False, layouts=False))
    inputs = random_inputs(graph, seed)
    sizes = bind_sizes(graph, inputs)
    values = list(inputs)
    for node in graph.nodes:
        types = tuple(graph.types[v] for v in node.operands)
        arrays = tuple(values[v] for v in node.operands)
        results = run_node(node, types, arrays, sizes)
        values += results
        computes = None if node.op == "constant" else ops.get(node.op).computes(node.attrs, types)
        for compute, want in zip(computes or (), results, strict=False):
            got = evaluate(compute, arrays, sizes)
            assert (got.dtype, got.shape) == (want.dtype, np.shape(want))
            loose: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5} if want.dtype.kind == "f" else {}
            np.testing.assert_allclose(got, want, **loose, err_msg=node.op)


def test_generation_is_repeatable_and_reaches_every_op() -> None:
    graphs = [generate(seed, Settings(nodes=16, host=True)) for seed in range(150)]
    assert [g.digest for g in graphs[:20]] == [
        generate(seed, Settings(nodes=16, host=True)).digest for seed in range(20)
    ]
    met = {n.op for g in graphs for n in g.nodes}
    bodies = [n.attrs["body"] for g in graphs for n in g.nodes if n.op == "kernel"]
    assert sorted(ops.OPS.keys() - met) == []
    assert any(b.nodes for b in bodies)
    types = [ty for g in graphs for ty in g.types]
    assert any(ty.layout for ty in types) and any(not isinstance(ty.size, int) for ty in types)


SPECIAL_TEXT = """
sym n in [2, 9]
graph @"a name" (%0 "x": float32[n, 2]{1, 0}, %1: bool[]) {
  %2 = constant() {value = dense<float32[3]: -0.0, inf, 1.5e-30>} : float32[3]
  %3, %4 = kernel(%0) {body = graph @b(%0: float32[n, 2]{1, 0}) {
    %1 = reverse(%0) {axes = [0]} : float32[n, 2]
    return %1, %0
  }, pitch=[], schedule = "t=4 \\"q\\""} : float32[n, 2], float32[n, 2]{1, 0} loc("m.py:3 \\u00e9")
  return %3, %4, %2, %2
}
"""


def test_the_parser_reads_what_people_write() -> None:
    graph = parse_graph(SPECIAL_TEXT)
    verify(graph)
    assert graph.name == "a name" and graph.nodes[1].loc == "m.py:3 é"
    assert graph.nodes[1].attrs["schedule"] == 't=4 "q"'
    assert np.signbit(graph.nodes[0].attrs["value"].array[0])
    assert parse_graph(print_graph(graph)) == graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("bool[]", "boolean[]"), r"line 3, column 51: 'boolean' is not a dtype; known: float64"),
        (("%1: bool", "%0: bool"), r"line 3, column \d+: %0 is defined twice"),
        (("return %3", "return %9"), r"line 9, column \d+: '%9' is used before its definition"),
        (("[n, 2]{1", "[k, 2]{1"), r"line 3, column \d+: 'k' is not a declared symbol"),
        (("-0.0, inf, ", ""), r"line 4, column \d+: 1 elements do not fill float32\[3\]"),
        (("schedule =", "schedule"), r"expected =, found"),
        (("%2, %2\n}", "%2, %2\n"), r"line 11, column 1: expected }, found 'the end'"),
        (("[0]", "[#]"), r"unexpected character '#'"),
    ],
)  # fmt: skip
def test_parse_errors_name_the_place(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_graph(SPECIAL_TEXT.replace(*change, 1))


@given(seeds, st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_text_is_parsed_or_refused(seed: int, data: st.DataObject) -> None:
    text = print_graph(generate(seed, Settings(nodes=4)))
    begin = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(begin, min(begin + 4, len(text))))
    insert = data.draw(st.text('%0123456789.,:<>[]{}()/"\\\\ nmxe-', max_size=2))
    with contextlib.suppress(ParseError, UnsupportedSymbol):
        parse_graph(text[:begin] + insert + text[end:])


def test_large_constants_come_from_the_table() -> None:
    blob = Blob(np.arange(40, dtype=np.float32), "weights")
    attrs = ops.get("constant").complete({"value": blob})
    graph = Graph((), (Node("constant", (), attrs, (blob.type,)),), (0,))
    text = print_graph(graph)
    assert f'blob<float32[40], "weights", {blob.digest}>' in text
    again = parse_graph(text, blob_table(graph))
    assert again == graph and again.nodes[0].attrs["value"].name == "weights"
    with pytest.raises(ParseError, match=f"the array with digest {blob.digest[:12]} was not given"):
        parse_graph(text)


def test_an_outline_needs_no_arrays() -> None:
    blob = Blob(np.ones((1 << 10, 1 << 10), np.float32), "weights")
    attrs = ops.get("constant").complete({"value": blob})
    text = print_graph(Graph((), (Node("constant", (), attrs, (blob.type,)),), (0,)))
    huge = text.replace("[1024, 1024]", f"[{1 << 20}, {1 << 20}]")
    for written in (text, huge):  # 4 MiB, and 4 TiB that nobody has
        graph = parse_outline(written)
        verify(graph)
        assert print_graph(graph) == written
    found = graph.nodes[0].attrs["value"]
    assert found.digest == blob.digest
    assert found.array.strides == (0, 0)
    other = Blob.stand_in(blob.type, "weights", "0" * 64)
    assert other == Blob.stand_in(blob.type, "weights", "0" * 64)
    assert other != Blob.stand_in(blob.type, "weights", blob.digest)


@pytest.mark.parametrize("dtype", [d for d in t.DTYPES.values() if d != t.bf16], ids=str)
def test_constants_of_every_dtype_survive_the_text_form(dtype: t.DType) -> None:
    for values in ([], [0, 1, 1], [np.nan, -0.0, np.inf] if dtype.kind in "fc" else [1]):
        with np.errstate(invalid="ignore"):
            blob = Blob(np.array(values).astype(dtype.numpy))
        attrs = ops.get("constant").complete({"value": blob})
        graph = Graph((), (Node("constant", (), attrs, (blob.type,)),), (0,))
        assert parse_graph(print_graph(graph)) == graph


def test_attributes_compare_and_hash_by_value() -> None:
    nan = float("nan")
    assert Attrs(a=nan, b=(nan, 1.0)) == Attrs(a=-nan * 0, b=(nan * 1, 1.0))
    assert hash(Attrs(b=(nan, 1.0))) == hash(Attrs(b=(nan * 1, 1.0)))
    assert Attrs(a=1) != Attrs(a=1.0) and Attrs(a=1) != Attrs(a=True)
    assert Attrs(a=[1, (2, np.int64(3))]) == Attrs(a=(1, (2, 3)))
    assert Attrs(a=0.0) != Attrs(a=-0.0)


def test_the_digest_holds_the_range_of_a_symbol() -> None:
    small, large = (
        Graph((Input(TensorType(t.f32, (symbol("n", 1, high),))),), (), (0,)) for high in (8, 9)
    )
    assert small != large and small.digest != large.digest
