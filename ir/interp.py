"""The reference interpreter: runs a graph of any level with numpy, kernel bodies included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.ir import op as ops
from plait.ir.dims import SymDim, as_symbol, evaluate, symbols_of
from plait.ir.errors import InputMismatch, PlaitError
from plait.ir.graph import Attrs, Graph, Input, Node
from plait.ir.types import TensorType


def interpret(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """Outputs of `graph` on numpy arrays, each contiguous with its logical shape.

    A float64 graph is computed in float64; float32 sums accumulate in float64 and round once.
    Raises `InputMismatch` on a wrong argument.
    """
    sizes = bind_sizes(graph, inputs)
    last = _last_uses(graph)
    env: dict[int, Any] = {k: np.asarray(a) for k, a in enumerate(inputs)}
    for k, node in enumerate(graph.nodes):
        results = run_node(node, [graph.types[v] for v in node.operands],
                           [env[v] for v in node.operands], sizes)  # fmt: skip
        env.update(zip(graph.results(k), results, strict=True))
        for v in (*node.operands, *graph.results(k)):
            if last[v] <= k:
                env.pop(v, None)
    return [np.ascontiguousarray(env[v]).reshape(np.shape(env[v])) for v in graph.outputs]


def _last_uses(graph: Graph) -> list[int]:
    last = [-1] * len(graph.types)
    for k, node in enumerate(graph.nodes):
        for v in (*node.operands, *graph.results(k)):
            last[v] = k
    for v in graph.outputs:
        last[v] = len(graph.nodes)
    return last


def run_node(
    node: Node, types: Sequence[TensorType], arrays: Sequence[Any], sizes: dict[str, int]
) -> tuple[Any, ...]:
    """Results of one node by its numpy reference; checks their dtypes and shapes."""
    record = ops.get(node.op)
    attrs = bind_attrs(node.attrs, sizes) if sizes else node.attrs
    bound = tuple(bind_type(ty, sizes) for ty in types) if sizes else tuple(types)
    found = record.reference(record.call(attrs, bound), *arrays)
    results = found if isinstance(found, tuple) else (found,)
    for ty, array in zip(node.types, results, strict=True):
        want = tuple(evaluate(d, sizes) for d in ty.shape)
        if tuple(np.shape(array)) != want or np.asarray(array).dtype != ty.dtype.numpy:
            got = f"{np.asarray(array).dtype}{list(np.shape(array))}"
            raise PlaitError(f"reference of {node.op} gave {got}, its type rule says {ty}")
    return tuple(results)


def bind_sizes(graph: Graph, inputs: Sequence[Any]) -> dict[str, int]:
    """Check the arguments against the input types; gives the size of every symbol."""
    if len(inputs) != len(graph.inputs):
        raise InputMismatch(name=graph.name, expected=f"{len(graph.inputs)} inputs",
                            got=len(inputs))  # fmt: skip
    sizes: dict[str, int] = {}
    for _ in range(2):  # the second time checks sizes computed from symbols bound later
        for k, (want, array) in enumerate(zip(graph.inputs, inputs, strict=True)):
            bind_one(want.type, want.name or f"input {k}", np.asarray(array), sizes)
    return sizes


def bind_one(want: TensorType, name: str, array: Any, sizes: dict[str, int]) -> None:
    """Check one argument and record the sizes of the symbols it fixes."""
    expected = str(want)
    got = f"{array.dtype}{list(array.shape)}"
    if array.dtype != want.dtype.numpy or array.ndim != want.rank:
        raise InputMismatch(name=name, expected=expected, got=got)
    for dim, n in zip(want.shape, array.shape, strict=True):
        plain = as_symbol(dim)
        if plain is not None:
            fits = plain.low <= n <= plain.high and sizes.setdefault(plain.name, n) == n
        else:
            known = symbols_of([dim]).keys() <= sizes.keys()
            fits = not known or evaluate(dim, sizes) == n
        if not fits:
            raise InputMismatch(name=name, expected=expected, got=got)


def bind_type(type: TensorType, sizes: dict[str, int]) -> TensorType:
    return TensorType(type.dtype, tuple(evaluate(d, sizes) for d in type.shape), type.layout)


def bind_graph(graph: Graph, sizes: dict[str, int]) -> Graph:
    """A copy of a graph with every symbol replaced by its size."""
    inputs = tuple(Input(bind_type(i.type, sizes), i.name) for i in graph.inputs)
    nodes = tuple(
        Node(
            n.op, n.operands, bind_attrs(n.attrs, sizes),
            tuple(bind_type(ty, sizes) for ty in n.types), n.loc,
        )
        for n in graph.nodes
    )  # fmt: skip
    return Graph(inputs, nodes, graph.outputs, graph.name)


def bind_attrs(attrs: Attrs, sizes: dict[str, int]) -> Attrs:
    def bind(value: Any) -> Any:
        if isinstance(value, SymDim):
            return evaluate(value, sizes)
        if isinstance(value, Graph):
            return bind_graph(value, sizes)
        return tuple(bind(v) for v in value) if isinstance(value, tuple) else value

    return Attrs({k: bind(v) for k, v in attrs.items()})
