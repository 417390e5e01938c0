"""Chains of kernels: which are found, and what joining leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from plait.codegen.reference import reference_target
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Attrs, Graph, Node
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.ir.verify import verify
from plait.passes.context import Context
from plait.passes.stripe import Block, Link, Stripe, chains

ROW = TensorType(t.f32, (4, 6))


def kernel(b: Builder, op: str, *operands: Value, name: str = "k") -> Value:
    """A kernel of one elementwise op."""
    inner = Builder(name)
    y = inner.emit(op, *(inner.input(v.type) for v in operands))
    body = inner.finish([y])
    attrs = Attrs(body=body, schedule="any", pitch=())
    (made,) = b.add(Node("kernel", tuple(v.id for v in operands), attrs, body.output_types))
    return made


def joining(graph: Graph, first: int, last: int) -> Graph:
    def join(links: Sequence[Link], threads: int) -> list[Block]:
        return [Block(first, last, "joined")]

    found = Stripe().apply(graph, Context(replace(reference_target(), join=join)))
    verify(found, "selected")
    return found


def line() -> Graph:
    """Three kernels in a row, the last of which also reads an input; a view between two."""
    b = Builder()
    x, other = b.input(ROW), b.input(TensorType(t.f32, (24,)))
    y = kernel(b, "exp", kernel(b, "neg", x))
    return b.finish([kernel(b, "add", b.reshape(y, (24,)), other)])


def test_a_chain_goes_through_views() -> None:
    (chain,) = chains(line())
    assert [link.node.attrs["body"].nodes[0].op for link in chain] == ["neg", "exp", "add"]
    assert [link.entry for link in chain] == [-1, 0, 0]
    assert [len(link.views) for link in chain] == [0, 0, 1]


def test_two_readers_and_outputs_end_a_chain() -> None:
    b = Builder()
    y = kernel(b, "neg", b.input(ROW))
    z = kernel(b, "add", kernel(b, "exp", y), y)
    graph = b.finish([z, kernel(b, "exp", z)])
    (chain,) = chains(graph)
    assert [link.node.attrs["body"].nodes[0].op for link in chain] == ["exp", "add"]


def test_the_larger_of_two_results_leads_on() -> None:
    b = Builder()
    x, y = b.input(TensorType(t.f32, (1, 6))), b.input(ROW)
    small, wide = kernel(b, "neg", x), kernel(b, "exp", y)
    (chain,) = chains(b.finish([kernel(b, "add", small, wide)]))
    assert [link.node.attrs["body"].nodes[0].op for link in chain] == ["exp", "add"]
    assert chain[1].entry == 1


def test_joining_keeps_the_meaning() -> None:
    graph = line()
    inputs = [np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6), np.ones(24, np.float32)]
    want = interpret(graph, inputs)
    for first, last, left in ((0, 2, 1), (0, 1, 2), (1, 2, 2)):
        found = joining(graph, first, last)
        assert sum(n.op == "kernel" for n in found.nodes) == left
        np.testing.assert_array_equal(interpret(found, inputs), want)


def test_no_blocks_no_change() -> None:
    graph = line()
    assert Stripe().apply(graph, Context(reference_target())) is graph
