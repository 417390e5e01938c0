"""What a machine can do at most: arithmetic in float32 and bandwidth of memory, measured.

The arithmetic peak is that of numpy's matrix product, the bandwidth that of copying arrays larger
than most caches.  Both use a given number of threads, each with work of its own.  How many threads
numpy's product starts is settled when numpy is loaded, so this module is also a program: it runs in
a process whose products are told to use one thread, and prints its findings as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from threading import Barrier

import numpy as np

SIDE = 256  # of the square matrices: long enough for a clock, short enough for a busy machine
COPIED_BYTES = 64 << 20  # by all threads together, to as much memory again
TRIES_OF_PRODUCT, TRIES_OF_COPY = 200, 16
TIMEOUT_SECONDS = 60
# How the libraries that numpy may be built on are told their number of threads.
_LIMITS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Ceilings:
    """The most that `threads` threads did together; a copied byte counts twice: read, written."""

    flops_per_second: float
    bytes_per_second: float
    threads: int

    def least_seconds(self, flops: float, nbytes: float) -> float:
        """The time that work and traffic take at least, each hidden behind the other."""
        return max(flops / self.flops_per_second, nbytes / self.bytes_per_second)


def measure_ceilings(threads: int) -> Ceilings:
    """Measure in a process of its own, for about a second.

    Raises `EnvironmentProblem` if that process fails.
    """
    from plait.ir.errors import EnvironmentProblem

    # -P: the folder of this file holds modules whose names are also those of the standard library.
    command = [sys.executable, "-P", __file__, str(threads)]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, **dict.fromkeys(_LIMITS, "1"), "PYTHONPATH": paths}
    try:
        done = subprocess.run(
            command,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        return Ceilings(**json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        message = f"measuring it failed: {said[-1] if said else type(error).__name__}"
        raise EnvironmentProblem(
            what="what this machine can do at most", message=message
        ) from error


def measure_here(threads: int) -> Ceilings:
    """Measure in this process, whose matrix products must be limited to one thread each."""
    matrices = [np.ones((3, SIDE, SIDE), np.float32) for _ in range(threads)]
    size = COPIED_BYTES // threads
    pairs = [(np.zeros(size, np.uint8), np.ones(size, np.uint8)) for _ in range(threads)]

    def multiply(k: int) -> None:
        left, right, out = matrices[k]
        np.matmul(left, right, out=out)

    product = _shortest(multiply, TRIES_OF_PRODUCT, threads)
    copy = _shortest(lambda k: np.copyto(*pairs[k]), TRIES_OF_COPY, threads)
    return Ceilings(2 * SIDE**3 * threads / product, 2 * size * threads / copy, threads)


def _shortest(work: Callable[[int], object], tries: int, threads: int) -> float:
    """Seconds of the fastest of several tries, from the first thread's start to the last's end.

    `work(k)` is the share of thread k.  Each thread is bound to a CPU, as those of a model are:
    a scheduler may leave two that wait for each other on one.
    """
    cpus = sorted(os.sched_getaffinity(0))
    together = Barrier(threads)

    def run(k: int) -> list[tuple[float, float]]:
        os.sched_setaffinity(0, {cpus[k % len(cpus)]})
        spans = []
        for _ in range(tries):
            together.wait()
            begin = time.perf_counter()
            work(k)
            spans.append((begin, time.perf_counter()))
        return spans

    with ThreadPoolExecutor(threads) as pool:
        spans = np.array(list(pool.map(run, range(threads))))  # [threads, tries, 2]
    return float((spans[:, :, 1].max(axis=0) - spans[:, :, 0].min(axis=0)).min())


if __name__ == "__main__":
    print(json.dumps(asdict(measure_here(int(sys.argv[1])))))
