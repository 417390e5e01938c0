"""Speed of the kernels of products and convolutions, on the shapes of well-known networks.

    python -m benchmarks.kernels [NAME ...] [--threads 1 2] [--seconds S] [--bars]

Prints GFLOP/s for each number of threads: the best of many runs of the kernel alone, float32, with
a bias and a relu fused in; data is channels-last and warm.  NAME selects shapes that contain it.

With `--bars` large products and convolutions are held to the machine's peak, that of multiply-adds
in registers, measured in turns with each: one thread to 90 % of it, two to 1.8 times one, filtered
convolutions to more than the peak.  The exit code is 1 if one is missed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.report import options, report
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from plait.runtime.ceilings import flops_per_second
from plait.runtime.compiler import compile_graph

MANY_CHANNELS = 64
TURNS = 5  # of what is compared


class Shape(Protocol):
    """Something whose kernel is measured."""

    @property
    def flops(self) -> int: ...

    def graph(self) -> Graph: ...


def normal(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def finish(b: Builder, y: Value, bias: Value) -> Value:
    return b.emit("relu", y + bias)


@dataclass(frozen=True)
class Conv:
    """A convolution of square [size, size, c] images with a [k, k] window, padded to keep size."""

    size: int
    c: int
    oc: int
    k: int
    stride: int = 1
    groups: int = 1

    @property
    def low(self) -> int:
        return (self.k - 1) // 2 if self.stride < self.k else 0

    @property
    def dense(self) -> bool:
        """Whether the inner loop runs over many channels, as the bars are meant for."""
        return self.groups == 1 and min(self.c, self.oc) >= MANY_CHANNELS

    @property
    def out(self) -> int:
        return (self.size + 2 * self.low - self.k) // self.stride + 1

    @property
    def flops(self) -> int:
        return 2 * self.out**2 * self.oc * self.k**2 * self.c // self.groups

    def graph(self) -> Graph:
        b = Builder()
        x = b.input(TensorType(t.f32, (1, self.size, self.size, self.c)))
        w = b.constant(normal(self.oc, self.c // self.groups, self.k, self.k), "w")
        pads = (self.low, self.low)
        y = b.emit("conv", b.transpose(x, (0, 3, 1, 2)), w, stride=(self.stride,) * 2, low=pads,
                   high=pads, dilation=(1, 1), groups=self.groups)  # fmt: skip
        y = finish(b, y, b.constant(normal(self.oc, 1, 1), "bias"))
        return b.finish([b.transpose(y, (0, 2, 3, 1))])


@dataclass(frozen=True)
class Gemm:
    """A product of [m, k] by constant [k, n]."""

    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k

    def graph(self) -> Graph:
        b = Builder()
        x = b.input(TensorType(t.f32, (self.m, self.k)))
        w = b.constant(normal(self.k, self.n), "w")
        y = b.emit("dot_general", x, w, lhs_contract=(1,), rhs_contract=(0,))
        return b.finish([finish(b, y, b.constant(normal(self.n), "bias"))])


SHAPES: dict[str, Shape] = {
    "resnet stem": Conv(224, 3, 64, 7, 2),
    "resnet 56 3x3": Conv(56, 64, 64, 3),
    "resnet 28 3x3": Conv(28, 128, 128, 3),
    "resnet 14 3x3": Conv(14, 256, 256, 3),
    "resnet 7 3x3": Conv(7, 512, 512, 3),
    "resnet 28 3x3 stride 2": Conv(56, 128, 128, 3, 2),
    "resnet 56 1x1 out": Conv(56, 64, 256, 1),
    "resnet 56 1x1 in": Conv(56, 256, 64, 1),
    "resnet 14 1x1": Conv(14, 1024, 256, 1),
    "resnet 28 shortcut": Conv(56, 256, 512, 1, 2),
    "resnext 28 grouped": Conv(28, 256, 256, 3, groups=32),
    "mobilenet stem": Conv(224, 3, 32, 3, 2),
    "mobilenet 112 1x1": Conv(112, 16, 96, 1),
    "mobilenet 14 1x1": Conv(14, 64, 384, 1),
    "mobilenet 112 depthwise": Conv(112, 32, 32, 3, groups=32),
    "mobilenet 14 depthwise": Conv(14, 384, 384, 3, groups=384),
    "convnext patches": Conv(224, 3, 96, 4, 4),
    "convnext depthwise": Conv(56, 96, 96, 7, groups=96),
    "vit patches": Conv(224, 3, 384, 16, 16),
    "one output": Conv(160, 64, 1, 3),
    "bert projection": Gemm(128, 768, 768),
    "bert feed-forward in": Gemm(128, 3072, 768),
    "bert feed-forward out": Gemm(128, 768, 3072),
    "minilm projection": Gemm(64, 384, 384),
    "vit projection": Gemm(197, 384, 384),
    "classifier": Gemm(1, 1000, 2048),
}


def repeated(seconds: float) -> Iterator[None]:
    """Again and again, for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield


class Timed:
    """A graph's kernels for a number of threads, with the best time of each step's runs."""

    def __init__(self, graph: Graph, threads: int) -> None:
        self.module = compile_graph(graph, threads=threads)
        self.model = self.module.load(threads)
        self.inputs = [normal(*i.type.static("benchmark")) for i in graph.inputs]
        self.best = [math.inf] * len(self.module.plan.steps)

    def run(self, seconds: float) -> None:
        """Run the graph again and again for so long."""
        for _ in repeated(seconds):
            self.model.run_steps(self.inputs, self._around)

    def _around(self, step: int, go: Callable[[], object]) -> None:
        begin = time.perf_counter()
        go()
        self.best[step] = min(self.best[step], time.perf_counter() - begin)

    @property
    def main(self) -> tuple[str, float]:
        """The schedule of the graph's main kernel, and its best time in seconds."""
        slowest = max(range(len(self.best)), key=lambda k: self.best[k])
        return self.module.kernels[slowest].schedule, self.best[slowest]


def in_turns(
    graph: Graph, threads: Sequence[int], seconds: float, peak: bool
) -> tuple[dict[int, Timed], float]:
    """The kernels by numbers of threads, run for so many seconds each, and, if asked for, the
    floating-point operations a second at the peak.

    They take turns, so that neighbours who slow the machine for a while slow all of them.
    """
    timed = {n: Timed(graph, n) for n in threads}
    best = 0.0
    for _ in range(TURNS):
        if peak:
            best = max(best, flops_per_second(1))
        for each in timed.values():
            each.run(seconds / TURNS)
    return timed, best


LARGE_FLOPS = 20e6  # what takes less is bound by its start and its end
ONE_THREAD, SECOND_THREAD = 90.0, 1.8  # percent of the peak; times one thread


def bars(name: str, shape: Shape, schedule: str, speeds: Mapping[int, float], peak: float) -> bool:
    """Hold a kernel's GFLOP/s, by threads, to the peak of one thread; whether all bars hold."""
    percent = 100 * speeds[1] / peak
    if shape.flops < LARGE_FLOPS or (isinstance(shape, Conv) and not shape.dense):
        return True
    if schedule.startswith("winograd"):
        return report(f"{name}: effective, of the peak", percent, 100, "%", "at least")
    gain = speeds[2] / speeds[1]
    alone = report(f"{name}: of the peak", percent, ONE_THREAD, "%", "at least")
    return report(f"{name}: by a second thread", gain, SECOND_THREAD, "x", "at least") and alone


def main(arguments: Sequence[str] | None = None) -> None:
    bar = "hold large kernels to the peak, of one and of two threads"
    given, names = options("benchmarks.kernels", __doc__, SHAPES, bar, arguments)
    if given.bars and not {1, 2} <= set(given.threads):
        raise SystemExit("--bars compares one thread with two: leave --threads out")
    held = True
    head = "".join(f"{f'{n} thread' + 's' * (n > 1):>12}" for n in given.threads)
    print(f"{'GFLOP/s':26}{head}  schedule")
    for name in names:
        shape = SHAPES[name]
        timed, peak = in_turns(shape.graph(), given.threads, given.seconds, given.bars)
        rates = {n: shape.flops / each.main[1] / 1e9 for n, each in timed.items()}
        told = "".join(f"{rate:12.1f}" for rate in rates.values())
        print(f"{name:26}{told}  {timed[given.threads[-1]].main[0]}", flush=True)
        if given.bars:
            held &= bars(name, shape, timed[1].main[0], rates, peak / 1e9)
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
