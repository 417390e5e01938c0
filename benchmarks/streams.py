"""Speed of kernels that are bound by memory, on arrays larger than the caches.

    python -m benchmarks.streams [NAME ...] [--threads 1 2] [--seconds S] [--bars]

Prints GB/s for each number of threads, the best of many runs, float32, and beside it what numpy
copies at with as many threads, in turns with them.  Bytes are those of the arguments and results,
each counted once, as a copy's are.  A copy fetches the lines that it writes to, so a kernel which
reads more than it writes, or whose results go past the caches, has it easier.  NAME selects kernels
that contain it.  With `--bars` each is held to 85 % of the copy; the exit code is 1 if one is
missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.kernels import TURNS, normal, repeated
from benchmarks.measuring import best
from benchmarks.report import options, report
from plait.codegen.plan import aligned_empty
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from plait.runtime.ceilings import copied_bytes_per_second
from plait.runtime.compiler import compile_graph

BAR = 85.0  # percent of the copy
ITEM_BYTES = 4
Make = Callable[..., Value]


def chain(b: Builder, x: Value, y: Value) -> Value:
    """A dozen cheap operations on two tensors and a row."""
    row = b.constant(normal(1024), "row")
    for _ in range(3):
        x = b.emit("relu", x * row + y) - y
    return x


def softmax(b: Builder, x: Value) -> Value:
    return b.emit("softmax", x, axis=1)


def layer_norm(b: Builder, x: Value) -> Value:
    affine = (b.constant(normal(*x.type.static("benchmark")[1:]), name) for name in ("w", "b"))
    return b.emit("layer_norm", x, *affine, dims=1, eps=1e-5)


def residual_norm(b: Builder, x: Value, y: Value) -> Value:
    """What stands between the halves of a transformer's layer: a sum and its norm."""
    return layer_norm(b, x + y)


def pool(op: str, window: int, stride: int) -> Make:
    """Windows over images whose channels are innermost."""

    def make(b: Builder, x: Value) -> Value:
        low = ((window - 1) // 2,) * 2
        y = b.emit(op, b.transpose(x, (0, 3, 1, 2)), window=(window,) * 2, stride=(stride,) * 2,
                   low=low, high=low, dilation=(1, 1))  # fmt: skip
        return b.transpose(y, (0, 2, 3, 1))

    return make


def global_mean(b: Builder, x: Value) -> Value:
    return b.emit("reduce_sum", x, axes=(1, 2)) * (1 / 196)


KERNELS: dict[str, tuple[Make, tuple[tuple[int, ...], ...]]] = {
    "relu": (lambda b, x: b.emit("relu", x), ((4096, 4096),)),
    "chain": (chain, ((8192, 1024), (8192, 1024))),
    "softmax 768": (softmax, ((16384, 768),)),
    "softmax 128": (softmax, ((98304, 128),)),
    "layer norm 768": (layer_norm, ((16384, 768),)),
    "layer norm 96": (layer_norm, ((131072, 96),)),
    "residual norm": (residual_norm, ((8192, 768), (8192, 768))),
    "max pool 3x3 stride 2": (pool("max_pool", 3, 2), ((8, 112, 112, 192),)),
    "max pool 2x2 stride 2": (pool("max_pool", 2, 2), ((8, 112, 112, 192),)),
    "sum pool 3x3 stride 1": (pool("sum_pool", 3, 1), ((8, 112, 112, 96),)),
    "global mean": (global_mean, ((128, 14, 14, 768),)),
    "concat": (lambda b, x, y: b.emit("concat", x, y, axis=1), ((16384, 256), (16384, 512))),
}


def graph_of(name: str) -> Graph:
    """The kernel as a graph of its arguments."""
    make, shapes = KERNELS[name]
    b = Builder()
    inputs = [b.input(TensorType(t.f32, shape)) for shape in shapes]
    return b.finish([make(b, *inputs)])


def traffic(graph: Graph) -> int:
    """Bytes of the arguments and results."""
    types = [*(i.type for i in graph.inputs), *graph.output_types]
    return ITEM_BYTES * sum(math.prod(type.static("benchmark")) for type in types)


def aligned(array: Any) -> Any:
    """A copy that lies as the tensors of an arena do, and torch's: no vector crosses a line."""
    copy = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def runner(graph: Graph, threads: int) -> Callable[[], object]:
    """Runs the compiled graph, results into arrays that have been written before."""
    model = compile_graph(graph, threads=threads).load(threads)
    inputs = [aligned(normal(*i.type.static("benchmark"))) for i in graph.inputs]
    outputs = [aligned(np.zeros(type.static("benchmark"), np.float32))
               for type in graph.output_types]  # fmt: skip
    return lambda: model.run_into(inputs, outputs)


def in_turns(graph: Graph, threads: int, seconds: float) -> tuple[float, float]:
    """Bytes a second of a graph and of a copy: they take turns, so that neighbours slow both."""
    run, shortest, copy = runner(graph, threads), math.inf, 0.0
    for _ in range(TURNS):
        copy = max(copy, copied_bytes_per_second(threads))
        for _ in repeated(seconds / TURNS):
            shortest = min(shortest, best(run, rounds=1))
    return traffic(graph) / shortest, copy


def main(arguments: Sequence[str] | None = None) -> None:
    bar = "hold kernels to 85 %% of the copy"
    given, names = options("benchmarks.streams", __doc__, KERNELS, bar, arguments)
    head = "".join(f"{n} thread{'s' * (n > 1)}, copy".rjust(20) for n in given.threads)
    print(f"{'GB/s':26}{head}")
    held = True
    for name in names:
        graph, shares = graph_of(name), dict[int, float]()
        print(f"{name:26}", end="", flush=True)
        for n in given.threads:
            speed, copy = in_turns(graph, n, given.seconds)
            shares[n] = 100 * speed / copy
            print(f"{f'{speed / 1e9:.1f}, {copy / 1e9:.1f}':>20}", end="", flush=True)
        print()
        if given.bars:
            told = [report(f"{name}: of the copy, {n} threads", share, BAR, "%", "at least")
                    for n, share in shares.items()]  # fmt: skip
            held &= all(told)
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
