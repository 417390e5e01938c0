"""What tests of passes share: short graphs, a target without code, random graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from plait.codegen.target import Target, Template, single
from plait.fuzz.generate import Settings, generate
from plait.fuzz.generate import random_inputs as inputs_for
from plait.ir import types as t
from plait.ir.agreement import compare
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import DType, TensorType
from plait.ir.verify import verify
from plait.passes.context import Context
from plait.passes.pipeline import parse_pipeline
from plait.passes.select import Selection

Make = Callable[..., Value | Sequence[Value]]
Operand = tuple[int, ...] | TensorType

ANY = Template(
    "any", single(lambda body, constant, threads: Selection("any")), lambda body, schedule: None
)
TARGET = Target(
    name="plain",
    channels_last=True,
    approximates=frozenset({"exp", "tanh"}),
    composites={"attention": lambda types: True},
    load=lambda: (ANY,),
)


def build(make: Make, *operands: Operand) -> Graph:
    """The graph of `make(builder, *inputs)`; a bare shape stands for float32."""
    b = Builder()
    made = make(b, *[b.input(o if isinstance(o, TensorType) else typed(o)) for o in operands])
    return b.finish([made] if isinstance(made, Value) else made)


def typed(shape: tuple[int, ...], dtype: DType = t.f32) -> TensorType:
    return TensorType(dtype, shape)


def run(pipeline: str, graph: Graph, target: Target | None = TARGET) -> Graph:
    return parse_pipeline(pipeline).run(graph, Context(target))


def ops_of(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def bodies(graph: Graph) -> list[list[str]]:
    """The ops of every kernel's body, constants left out."""
    found = (n.attrs["body"] for n in graph.nodes if n.op == "kernel")
    return [[n.op for n in body.nodes if n.op != "constant"] for body in found]


def same_meaning(before: Graph, after: Graph, seed: int = 0) -> None:
    """Both graphs give the same on random arguments, special floats among them."""
    verify(after)
    inputs = inputs_for(before, seed)
    with np.errstate(all="ignore"):
        pairs = zip(interpret(before, inputs), interpret(after, inputs), strict=True)
        for k, (want, got) in enumerate(pairs):
            verdict = compare(got, want)
            assert verdict.agrees, f"output {k} {verdict.reason}"


def random_graphs(seeds: Sequence[int], nodes: int = 10) -> Iterator[tuple[int, Graph]]:
    """Static random graphs without kernels, by seed."""
    for seed in seeds:
        yield seed, generate(seed, Settings(nodes=nodes, kernels=False, symbols=()))
