"""Checking kernels one by one: each runs on the interpreter's values and is compared with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.codegen.plan import Call, ModulePlan, PointerArg, TensorSpec
from plait.ir.agreement import compare
from plait.ir.graph import Graph
from plait.ir.interp import run_node
from plait.ir.types import TensorType
from plait.runtime.compiler import Module
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library


@dataclass(frozen=True)
class Finding:
    """A kernel's largest error, relative to the largest magnitude of the result."""

    node: int
    symbol: str
    schedule: str
    error: float


def physical(array: Any, type: TensorType) -> Any:
    """The array's elements in memory order, as a flat array."""
    return np.ascontiguousarray(np.transpose(array, type.order)).reshape(-1)


def logical(flat: Any, type: TensorType) -> Any:
    """The inverse of `physical`; an empty tensor may come with an element of padding."""
    shape = type.static("kernel check")
    wide = flat[: math.prod(shape)].reshape([shape[d] for d in type.order])
    return np.transpose(wide, np.argsort(type.order)) if type.rank else wide


def check_kernels(module: Module, inputs: Sequence[Any]) -> Iterator[Finding]:
    """Run every kernel of a module in order on reference values; each symbol once."""
    graph: Graph = module.graph
    objects = dict(zip((k.symbol for k in module.kernels), module.objects, strict=False))
    schedules = {k.symbol: k.schedule for k in module.kernels}
    calls = [s for s in module.plan.steps if isinstance(s, Call)]
    symbols = iter(calls)
    values: dict[int, Any] = {k: np.asarray(a) for k, a in enumerate(inputs)}
    seen: set[str] = set()
    for k, node in enumerate(graph.nodes):
        types = [graph.types[v] for v in node.operands]
        results = run_node(node, types, [values[v] for v in node.operands], {})
        values.update(zip(graph.results(k), results, strict=True))
        if node.op != "kernel":
            continue
        symbol = next(symbols).symbol
        if symbol in seen:
            continue
        seen.add(symbol)
        arrays = [physical(values[v], graph.types[v]) for v in node.operands]
        found = _run_alone(symbol, objects[symbol], arrays, node.types, module.target)
        verdicts = [
            compare(logical(got, ty), np.asarray(want))
            for got, want, ty in zip(found, results, node.types, strict=True)
        ]
        error = max((v.relative for v in verdicts), default=0.0)
        yield Finding(k, symbol, schedules[symbol], error)


def _run_alone(
    symbol: str, code: bytes, arrays: Sequence[Any], types: Sequence[TensorType], machine: Any
) -> tuple[Any, ...]:
    from plait.codegen.tvm.main_func import compile_main

    def spec(name: str, dtype: str, size: int) -> TensorSpec:
        return TensorSpec(name, dtype, (max(1, size),))

    ins = tuple(spec(f"x{i}", a.dtype.name, a.size) for i, a in enumerate(arrays))
    outs = tuple(
        spec(f"y{i}", ty.dtype.name, math.prod(ty.static("kernel check")))
        for i, ty in enumerate(types)
    )
    args = [PointerArg("input", i) for i in range(len(ins))]
    args += [PointerArg("output", i) for i in range(len(outs))]
    plan = ModulePlan(f"check_{symbol}", ins, outs, (Call(symbol, tuple(args)),))
    model = CompiledModel(plan, Library([code, compile_main(plan, machine)]))
    padded = [a if a.size else np.zeros(1, a.dtype) for a in arrays]
    return model(*padded)
