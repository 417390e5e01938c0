"""Type rules and compute definitions on symbols, against the same on ints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.fuzz.generate import Settings, generate
from plait.fuzz.samples import SAMPLES, Sample
from plait.ir import dims
from plait.ir import op as ops
from plait.ir.dims import Dim, symbol
from plait.ir.errors import TypeRuleError
from plait.ir.expr_eval import evaluate
from plait.ir.interp import bind_attrs, bind_type, interpret
from plait.ir.types import TensorType
from plait.ir.verify import verify

# Attributes that hold sizes: these follow when an operand's size becomes a symbol.
SIZES = ("shape", "size", "shapes")


def named(value: Any, names: dict[int, Dim]) -> Any:
    if isinstance(value, tuple):
        return tuple(named(v, names) for v in value)
    return names.get(value, value) if isinstance(value, int) else value


def symbolic(sample: Sample, size: int) -> tuple[tuple[TensorType, ...], dict[str, Any]]:
    """Types and attributes of a sample with every dimension of one size made a symbol."""
    names: dict[int, Dim] = {size: symbol("n", 1, 64)}
    types = tuple(TensorType(ty.dtype, named(ty.shape, names)) for ty in sample.types)
    attrs = {k: named(v, names) if k in SIZES else v for k, v in sample.complete.items()}
    return types, attrs


CASES = [
    pytest.param(s, n, id=f"{s}-{n}")
    for s in SAMPLES
    for n in sorted({d for ty in s.types for d in ty.shape if isinstance(d, int) and d > 1})
    if s.op not in ("kernel", "aten")
]


# Rules that refuse some symbols, and what they say: the rest must take every one.
REFUSALS = {
    "reshape": ("cannot view",),
    "conv": ("a symbolic window", "channels, weights expect"),
    "lstm": ("gates and state differ in width",),
    "gru": ("gates and state differ in width",),
    "rnn_tanh": ("gates and state differ in width",),
    "rnn_relu": ("gates and state differ in width",),
    "attention": ("are no multiple of",),
}


@pytest.mark.parametrize(("sample", "size"), CASES)
def test_the_rule_on_a_symbol_gives_the_result_on_ints(sample: Sample, size: int) -> None:
    """What a rule accepts evaluates to the plain result; few refuse a symbol, and say why."""
    types, given_ = symbolic(sample, size)
    record = ops.get(sample.op)
    attrs = record.complete(given_)
    try:
        found = record.result_types(attrs, types)
    except TypeRuleError as error:
        assert any(reason in str(error) for reason in REFUSALS.get(sample.op, ()))
        return
    sizes = {"n": size}
    want = record.result_types(sample.complete, sample.types)
    assert tuple(bind_type(ty, sizes) for ty in found) == want
    assert bind_attrs(attrs, sizes) == sample.complete
    computes = record.computes(attrs, types)
    if computes is None:
        assert record.computes(sample.complete, sample.types) is None
        return
    results = interpret(sample.graph(), sample.arrays)
    for compute, result in zip(computes, results, strict=True):
        got = evaluate(compute, sample.arrays, sizes)
        assert (got.dtype, got.shape) == (result.dtype, result.shape)
        np.testing.assert_allclose(got, result, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(ops.OPS.keys() - {"kernel", "aten", "constant", "iota"}))
def test_every_rule_takes_a_symbolic_batch(name: str) -> None:
    """Some dimension of a sample of each op can be a symbol, and is one in the result."""
    record = ops.get(name)
    accepted = 0
    for sample in (s for s in SAMPLES if s.op == name):
        for size in {d for ty in sample.types for d in ty.shape if isinstance(d, int)}:
            types, attrs = symbolic(sample, size)
            try:
                found = record.result_types(record.complete(attrs), types)
            except TypeRuleError:
                continue
            accepted += bool(dims.symbols_of(d for ty in found for d in ty.shape))
    assert accepted, f"{name} takes no symbolic dimension"


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_whole_graphs_verify_at_every_size(seed: int, n: int, m: int) -> None:
    graph = generate(seed, Settings(nodes=8))
    sizes = {"n": n, "m": m}
    for node in graph.nodes:
        types = tuple(bind_type(graph.types[v], sizes) for v in node.operands)
        plain = ops.get(node.op).result_types(bind_attrs(node.attrs, sizes), types)
        want = tuple(bind_type(ty, sizes).with_layout(None) for ty in node.types)
        assert tuple(ty.with_layout(None) for ty in plain) == want, node.op
    verify(graph)
