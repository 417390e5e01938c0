"""What measuring kernels gives over the estimate: speed before and after, and how long it takes.

    python -m benchmarks.tuning [--models mlp,resnet50] [--budget 120]

Each model's kernels are tuned with empty caches in a process of its own, as `plait tune` does. The
speed of the estimate's choices is that of the tuned ones times the share printed, summed over the
distinct kernels. Tuning is held to 60 s a model, the share to 90 %; the exit code is 1 if one is
missed. Results go to `benchmarks/results/tuning.json`, in place of those of the same models.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.measuring import MODELS, RESULTS, apart, chosen, keep, on_this_kind
from benchmarks.report import report
from plait.ir import knobs

FILE: Final = RESULTS / f"{on_this_kind('tuning')}.json"
SECONDS_BAR: Final = 60.0
SHARE_BAR: Final = 90.0  # percent


def measure(name: str, budget: float) -> dict[str, Any]:
    """Tune one model for at most `budget` seconds; the result as plain data, times in seconds."""
    from benchmarks.zoo import ZOO
    from plait.codegen.cpu import host_core
    from plait.codegen.host import host
    from plait.codegen.tvm.target import cpu_target
    from plait.frontend.export import capture
    from plait.runtime import tune as tuning
    from plait.runtime.cache import KernelCache

    entry = ZOO[name]()
    graph = capture(entry.model, entry.example_args, name=name).graph
    target = cpu_target(knobs.NUM_THREADS.get(), host_core())
    start = time.perf_counter()
    todo = tuning.tasks(graph, target)
    found = list(tuning.tune(todo, target, KernelCache(), budget))
    seconds = time.perf_counter() - start
    return {
        "model": name,
        "kernels": len(todo),
        "left": len(todo) - len(found),
        "seconds": seconds,
        "untuned": sum(r.default_seconds for r in found),
        "tuned": sum(r.seconds for r in found),
        "threads": target.threads,
        "host": asdict(host()),
    }


def bars(row: Mapping[str, Any]) -> bool:
    """Print a model's two bars; whether both hold. Kernels that were left out hold none."""
    name = row["model"]
    if row["left"]:
        print(f"{name}: {row['left']} of {row['kernels']} kernels left out after the budget")
    share = 100 * row["tuned"] / row["untuned"] if row["untuned"] else 100.0
    what = f"{name}: tuning {row['kernels']} kernels"
    quick = report(what, row["seconds"], SECONDS_BAR, "s")
    close = report(f"{name}: untuned, of the tuned speed", share, SHARE_BAR, "%", "at least")
    return quick and close and not row["left"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated zoo names")
    parser.add_argument("--budget", type=float, default=2 * SECONDS_BAR, help="seconds for each")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, file = given.one
        Path(file).write_text(json.dumps(measure(name, given.budget)))
        return
    held = True
    for name in chosen(parser, given.models):
        with tempfile.TemporaryDirectory() as cache:
            row = apart("benchmarks.tuning", [name], ["--budget", given.budget], Path(cache))
        held &= bars(row)
        sys.stdout.flush()
        keep(FILE, {"rows": [row]})
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
