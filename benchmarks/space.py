"""All candidates of a kernel in turns: what each is estimated to take, and what it takes.

    python -m benchmarks.space NAME ... [--threads N] [--within F] [--most N] [--rounds N]

NAME selects shapes of `benchmarks.kernels` that contain it.  Candidates run as `plait tune` runs
them, one after the other with weights from memory, but all of them: those estimated at up to
`--within` times the best.  Prints the fastest first: the best time of each, its GFLOP/s, and the
estimate over that time (1 where the estimate is right, less where the kernel is slower).  Cycles
become seconds by the clock at which the CPU multiplies and adds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.kernels import SHAPES, Shape
from benchmarks.report import selected
from plait.codegen.core import Core
from plait.codegen.cpu import host_core
from plait.codegen.tvm.target import cpu_target
from plait.runtime.ceilings import flops_per_second
from plait.runtime.tune import Race, tasks

HEAD = f"{'us':>10}{'GFLOP/s':>10}{'estimate':>10}  schedule"


def clock(core: Core) -> float:
    """Cycles a second, of a core that begins two multiply-adds of vectors in each."""
    return flops_per_second(1) / (4 * core.lanes)


def rows(shape: Shape, threads: int, within: float, most: int, rounds: int) -> list[str]:
    """A line for each candidate of the shape's kernel, the fastest first."""
    target = cpu_target(threads, host_core())
    found = []
    for task in tasks(shape.graph(), target, kept=most, hopeless=within):
        samples = Race(task, target).run(rounds)
        hertz = clock(target.core)
        for number, seconds in ((k, float(np.min(v))) for k, v in samples.items()):
            candidate = task.candidates[number]
            found.append((seconds, candidate.cycles / hertz, candidate.selection.schedule))
    return [f"{1e6 * seconds:10.1f}{shape.flops / seconds / 1e9:10.1f}{estimate / seconds:10.2f}"
            f"  {schedule}" for seconds, estimate, schedule in sorted(found)]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.space", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="+", help="shapes whose name contains one of these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--within", type=float, default=1.5, help="times the best estimate")
    parser.add_argument("--most", type=int, default=200, help="candidates of a kernel")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args(arguments)
    for name in selected(parser, given.names, SHAPES):
        print(f"{name}\n{HEAD}")
        lines = rows(SHAPES[name], given.threads, given.within, given.most, given.rounds)
        print("\n".join(lines) or "  no choice", flush=True)


if __name__ == "__main__":
    main()
