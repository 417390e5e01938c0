"""A small model that runs right after an operation of torch's, whose threads still spin.

    python -m benchmarks.beside [MODEL] [--rounds N]

Prints for Plait and each peer the median microseconds of a call among its own calls, of a call
right after torch has computed something on all threads, and what torch itself then takes.  MODEL is
one of the zoo (default `mlp`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from benchmarks import peers
from benchmarks.measuring import best
from benchmarks.zoo import ZOO

THREADS = 2
ELEMENTS = 1 << 20  # of torch's own operation: enough for all its threads


def beside(call: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median microseconds: of the call alone, after an operation of torch's, and of that."""
    x, seconds = torch.ones(ELEMENTS), partial(best, rounds=1)
    time.sleep(0.3)  # threads of whoever was measured before go to sleep
    for _ in range(rounds):
        call()
    alone = [seconds(call) for _ in range(rounds)]
    pairs = [(seconds(lambda: torch.relu(x)), seconds(call)) for _ in range(rounds)]
    torchs, after = zip(*pairs, strict=True)
    alone_us, after_us, torch_us = (float(np.median(s)) * 1e6 for s in (alone, after, torchs))
    return alone_us, after_us, torch_us


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", nargs="?", default="mlp", choices=sorted(ZOO))
    parser.add_argument("--rounds", type=int, default=300)
    given = parser.parse_args(arguments)
    entry = ZOO[given.model]()
    torch.set_num_threads(THREADS)
    print(f"{given.model}, {THREADS} threads{'alone':>16}{'after torch':>14}{'torch itself':>15}")
    for name, builder in {"plait": peers.plait, **peers.PEERS}.items():
        call = builder(entry.model, entry.batched(1), THREADS)
        columns = beside(call, given.rounds)
        print(f"{name:<20}" + "".join(f"{c:>11.1f} us" for c in columns), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
