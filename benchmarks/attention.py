"""Speed of the attention and LSTM kernels against torch's, both on the same threads.

`python -m benchmarks.attention [--threads 2] [--rounds 15]` times both in turns and prints medians,
and the ratio with its 95 % interval. A call of a compiled kernel writes into arrays that are kept,
torch's allocates its results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from plait.runtime.bench import compare
from plait.runtime.compiler import compile_graph

# batch, heads, query rows, keys, depth
ATTENTION = (
    (1, 12, 32, 32, 32), (1, 12, 64, 64, 64), (1, 12, 128, 128, 64), (1, 6, 197, 197, 64),
    (1, 4, 1024, 1024, 64), (1, 12, 1, 1024, 64), (8, 12, 32, 32, 32),
)  # fmt: skip
LSTM = ((50, 1, 64), (50, 1, 128), (50, 1, 256), (50, 2, 256), (50, 8, 256))  # steps, batch, units


@dataclass(frozen=True)
class Case:
    """A kernel and torch's way of doing the same; `work` counts floating-point operations."""

    name: str
    graph: Graph
    inputs: list[np.ndarray]
    torch: Callable[[], object]
    work: float


def attention_cases() -> Iterator[Case]:
    for batch, heads, rows, keys, depth in ATTENTION:
        b = Builder("attention")
        shapes = [(batch, heads, n, depth) for n in (rows, keys, keys)]
        operands = [b.input(TensorType(t.f32, s)) for s in shapes]
        graph = b.finish([b.emit("attention", *operands, scale=depth**-0.5, causal=False)])
        inputs = [torch.randn(s) for s in shapes]

        def reference(inputs: list[torch.Tensor] = inputs) -> object:
            q, k, v = inputs
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

        work = 4.0 * batch * heads * rows * keys * depth
        name = f"attention {batch}x{heads}x{rows}x{depth}, {keys} keys"
        yield Case(name, graph, [x.numpy() for x in inputs], reference, work)


def lstm_cases() -> Iterator[Case]:
    """The recurrence alone; torch's layer has few inputs, so that theirs is next to nothing."""
    for steps, batch, units in LSTM:
        b = Builder("lstm")
        module = torch.nn.LSTM(8, units)
        w = dict(module.named_parameters())["weight_hh_l0"].detach().numpy()
        shapes = [(steps, batch, 4 * units), (batch, units), (batch, units)]
        operands = [b.input(TensorType(t.f32, s)) for s in shapes]
        graph = b.finish(b.emit_all("lstm", [*operands, b.constant(w, "w")], {"reverse": False}))
        x = torch.randn(steps, batch, 8)

        def reference(module: torch.nn.LSTM = module, x: torch.Tensor = x) -> object:
            return module(x)

        inputs = [np.random.default_rng(0).standard_normal(s, np.float32) for s in shapes]
        work = 8.0 * steps * batch * units * units
        yield Case(f"lstm {steps} steps, {batch}x{units}", graph, inputs, reference, work)


def measure(case: Case, threads: int, rounds: int) -> str:
    """A line of the table."""
    model = compile_graph(case.graph).load(threads)
    outputs = list(model(*case.inputs))
    calls = {"plait": lambda: model.run_into(case.inputs, outputs), "torch": case.torch}
    with torch.no_grad():
        timing = compare(calls, rounds=rounds)
    ours, theirs = timing.median("plait"), timing.median("torch")
    ratio, low, high = timing.speedup("plait", "torch")
    mine = f"{ours * 1e6:9.1f} us {case.work / ours * 1e-9:7.1f} GFLOP/s"
    speedup = f"{ratio:5.2f}x ({low:.2f}-{high:.2f})"
    return f"{case.name:42} {mine}   torch {theirs * 1e6:9.1f} us   {speedup}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for case in (*attention_cases(), *lstm_cases()):
        print(measure(case, options.threads, options.rounds), flush=True)


if __name__ == "__main__":
    main()
