"""Accuracy and speed of `plait.ir.approx` against TVM's own functions, which call libm.

`python -m benchmarks.math [name ...]` prints, per function, the largest error over a sample of all
float32 values in units of the last place, and nanoseconds per element on one thread, on data that
stays in the cache.  `--exhaustive` takes every float32 value (about a minute a function).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from plait.ir import approx
from plait.ir import types as t
from plait.ir.expr import Apply, Expr, Load, apply, walk

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

CHUNK = 1 << 16  # elements per kernel call: 256 KiB in, 256 KiB out
_TINY = 2.0**-14  # below, the series of `Exact` are better than 2**-40


@dataclass(frozen=True)
class Exact:
    """The float64 truth of a function: `whole` everywhere, `series` near 0 where it is cheaper.

    `mirror` says f(-x) = mirror * f(x), so that an exhaustive check may leave out negative x.
    """

    whole: Callable[[F64], F64]
    series: Callable[[F64], F64] | None = None
    mirror: int = 0


def _erf(x: F64) -> F64:
    if np.abs(x).min() > 6:
        return np.sign(x)
    result: F64 = torch.special.erf(torch.from_numpy(x)).numpy()
    return result


def _sigmoid(x: F64) -> F64:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1.0) / (1.0 + small)


EXACT: dict[str, Exact] = {
    "exp": Exact(np.exp, lambda x: 1 + x * (1 + x / 2)),
    "expm1": Exact(np.expm1, lambda x: x * (1 + x * (0.5 + x / 6))),
    "log": Exact(np.log),
    "log1p": Exact(np.log1p, lambda x: x + x * x * (x / 3 - 0.5)),
    "tanh": Exact(np.tanh, lambda x: x - x * x * x / 3, -1),
    "erf": Exact(_erf, lambda x: (x - x * x * x / 3) * 1.1283791670955126, -1),
    "sigmoid": Exact(_sigmoid, lambda x: 0.5 + x / 4),
    "sin": Exact(np.sin, lambda x: x - x * x * x / 6, -1),
    "cos": Exact(np.cos, lambda x: 1 - x * x / 2, 1),
    "rsqrt": Exact(lambda x: 1 / np.sqrt(x)),
}


def exact(name: str, x: F32) -> F64:
    """The function's value in float64."""
    rule = EXACT[name]
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        small = rule.series is not None and np.abs(wide).max(initial=0) < _TINY
        return rule.series(wide) if small and rule.series else rule.whole(wide)


def ulp_errors(got: F32, want: F64) -> F64:
    """Distances in units of the last place of the float32 binade of `want`.

    Infinite where one side is NaN and the other is not, or where a zero has the wrong sign.
    The units of denormal results are 2**-149; beyond the largest float32 lies 2**128, as infinity.
    """
    size = np.abs(want)
    if size.min() >= 2.0**-126 and size.max() < 2.0**127 and np.isfinite(got).all():
        return np.abs(got - want) / _unit(want)
    with np.errstate(all="ignore"):
        near = np.clip(want, -(2.0**128), 2.0**128)
        wide = np.clip(got.astype(np.float64), -(2.0**128), 2.0**128)
        bounded = np.clip(np.abs(near), 2.0**-126, 2.0**127)
        errors = np.abs(wide - near) / _unit(bounded)
    both = np.isnan(wide) & np.isnan(near)
    errors = np.where(both, 0.0, np.where(np.isnan(errors), np.inf, errors))
    wrong_zero = (wide == 0) & (np.signbit(wide) != np.signbit(near))
    return np.where(wrong_zero, np.inf, errors)


def _unit(x: F64) -> F64:
    """The unit in the last place of float32 in the binade of each (normal) value."""
    unit: F64 = ((x.view(np.int64) & (0x7FF << 52)) - (23 << 52)).view(np.float64)
    return unit


def all_floats(mirror: int = 0) -> Iterator[F32]:
    """Every float32 in chunks of equal sign and nearly equal size, NaNs included.

    The negative half is left out for a function that mirrors.
    """
    for start in range(0, 2**31 if mirror else 2**32, CHUNK):
        yield np.arange(start, start + CHUNK, dtype=np.uint32).view(np.float32)


def sample(count: int = 1 << 20, seed: int = 0) -> F32:
    """Floats with uniformly drawn bits, others of common sizes, and the special ones."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, count // 2, dtype=np.uint32).view(np.float32)
    sizes = rng.normal(size=count // 2) * 2.0 ** rng.integers(-4, 7, count // 2)
    # Ends of ranges, where an approximation changes its formula.
    edges = [0.0, 1.0, 2.0**-126, 2.0**-149, 3.4028235e38, np.inf, np.nan, 0.55, 0.95, 3.93, 9.5,
             17.32868, 18.0, 88.72283, 103.97208, 2.0**24, 2.0**50, 2.0**77, 2.0**102]  # fmt: skip
    special = np.array(edges, np.float32)
    with np.errstate(over="ignore"):
        around = [np.nextafter(special, np.float32(side)) for side in (-np.inf, np.inf)]
    positive = np.concatenate([special, *around])
    return np.concatenate([bits, sizes.astype(np.float32), positive, -positive])


def compiled(rule: Callable[[Expr], Expr], lanes: int = 8) -> Any:
    """A TVM module with an elementwise kernel of `CHUNK` float32, vectorised by `lanes`."""
    import tvm
    from tvm import te
    from tvm.s_tir import Schedule

    from plait.codegen.tvm.build import host_target, tvm_target
    from plait.codegen.tvm.lower import lower

    body = rule(Load(0, (), t.f32))
    x = te.placeholder((CHUNK,), "float32", name="x")
    y: Any = te.compute((CHUNK,), lambda i: lower(body, lambda k, index: x(i), {}), name="y")
    schedule = Schedule(te.create_prim_func([x, y]))
    (loop,) = schedule.get_loops(schedule.get_sblock("y"))
    schedule.vectorize(schedule.split(loop, [None, lanes])[1])
    return tvm.compile(schedule.mod, target=tvm_target(host_target()))


def as_function(module: Any) -> Callable[[F32], F32]:
    """The compiled kernel on arrays of any one-dimensional size."""
    import tvm

    kernel = module["main"]

    def call(x: F32) -> F32:
        out = np.empty_like(x)
        for start in range(0, x.size, CHUNK):
            part = np.zeros(CHUNK, np.float32)
            piece = x[start : start + CHUNK]
            part[: piece.size] = piece
            result = tvm.runtime.tensor(np.zeros(CHUNK, np.float32))
            kernel(tvm.runtime.tensor(part), result)
            out[start : start + CHUNK] = result.numpy()[: piece.size]
        return out

    return call


def worst(name: str, function: Callable[[F32], F32], inputs: Iterator[F32]) -> tuple[float, float]:
    """The largest error in ULP and the input that gives it, on two threads."""

    def one(x: F32) -> tuple[float, float]:
        got, want = function(x), exact(name, x)
        if _constant(got) and _constant(want):  # most of exp and tanh is 0, 1 or infinity
            got, want = got[:1], want[:1]
        errors = ulp_errors(got, want)
        k = int(np.argmax(errors))
        return float(errors[k]), float(x[k])

    largest = (0.0, 0.0)
    with ThreadPoolExecutor(2) as pool:
        for group in _batches(inputs, 64):
            largest = max([largest, *pool.map(one, group)], key=lambda pair: pair[0])
    return largest


def _constant(x: NDArray[Any]) -> bool:
    bits = x.view(f"i{x.itemsize}")
    return bool((bits == bits[0]).all())


def _batches(inputs: Iterator[F32], size: int) -> Iterator[list[F32]]:
    group: list[F32] = []
    for x in inputs:
        group.append(x)
        if len(group) == size:
            yield group
            group = []
    yield group


def nanoseconds(module: Any, x: F32) -> float:
    """Per element, the least of many runs."""
    import tvm

    args = tvm.runtime.tensor(x), tvm.runtime.tensor(np.zeros(CHUNK, np.float32))
    module["main"](*args)
    timer = module.mod.time_evaluator("main", tvm.cpu(), number=4, repeat=40)
    return float(min(timer(*args).results)) / CHUNK * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", default=list(approx.TABLE))
    parser.add_argument("--exhaustive", action="store_true", help="try every float32 value")
    options = parser.parse_args()
    x = np.random.default_rng(0).normal(scale=4, size=CHUNK).astype(np.float32)
    print(f"{'function':9} {'bound':>6} {'worst ULP':>9} {'at':>13} {'nodes':>5} "
          f"{'plait ns':>8} {'TVM ns':>7} {'times':>5}")  # fmt: skip
    for name in options.names:
        rule = approx.TABLE[name]
        ours, own = compiled(rule), compiled(partial(apply, name))
        inputs = all_floats(EXACT[name].mirror) if options.exhaustive else iter([sample()])
        error, where = worst(name, as_function(ours), inputs)
        data = np.abs(x) if name in ("log", "rsqrt", "log1p") else x
        fast, slow = nanoseconds(ours, data), nanoseconds(own, data)
        nodes = sum(isinstance(n, Apply) for n in walk(rule(Load(0, (), t.f32))))
        print(f"{name:9} {approx.ULP[name]:6.2f} {error:9.4f} {where:13.6g} {nodes:5} "
              f"{fast:8.3f} {slow:7.3f} {slow / fast:5.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
