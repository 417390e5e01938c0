"""What a machine can do at most: arithmetic in float32 and bandwidth of memory, measured.

The arithmetic peak is that of multiply-adds whose operands stay in registers, in the longest
vectors of the CPU; the bandwidth that of copying arrays larger than most caches.  Both use a given
number of threads, each with work of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier, BrokenBarrierError

import numpy as np

from plait.codegen.cpu import host_core, host_features
from plait.codegen.plan import aligned_empty
from plait.ir.errors import EnvironmentProblem

ROUNDS = 100_000  # of multiply-adds, one in each accumulator: long enough for a clock
COPIED_BYTES = 64 << 20  # by all threads together, to as much memory again
TRIES_OF_ARITHMETIC, TRIES_OF_COPY = 50, 16


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
    """Measure, for about half a second.

    Raises `EnvironmentProblem` on a CPU without fused multiply-adds in vectors, and where a process
    may not make code.
    """
    return Ceilings(flops_per_second(threads), copied_bytes_per_second(threads), threads)


def flops_per_second(threads: int) -> float:
    """Float32 operations a second; a multiply-add is two.  Raises as `measure_ceilings` does."""
    core = host_core()
    run = _function(multiply_adds(core.lanes, core.registers))
    seconds = _shortest(lambda _: run(ROUNDS), TRIES_OF_ARITHMETIC, threads)
    return 2 * core.lanes * accumulators(core.registers) * ROUNDS * threads / seconds


def copied_bytes_per_second(threads: int) -> float:
    """Bytes read and bytes written a second, between arrays that lie as in an arena."""
    size = COPIED_BYTES // threads
    pairs = [(aligned_empty(size), aligned_empty(size)) for _ in range(threads)]
    for target, source in pairs:
        target[:], source[:] = 0, 1
    seconds = _shortest(lambda k: np.copyto(*pairs[k]), TRIES_OF_COPY, threads)
    return 2 * size * threads / seconds


def accumulators(registers: int) -> int:
    """Sums that do not wait for each other: two units of four or five cycles need ten."""
    return 3 * registers // 4


def multiply_adds(lanes: int, registers: int) -> bytes:
    """Machine code of `void run(int64_t rounds)`, x86-64: each round adds to every accumulator.

    The operand is 0 and so is every sum, since numbers that are not normal may take longer.
    """
    operand, sums = registers - 1, range(accumulators(registers))
    zero = b"".join(_instruction(1, 0xEF, k, k, lanes) for k in (*sums, operand))  # vpxor
    body = b"".join(_instruction(2, 0xB8, k, operand, lanes) for k in sums)  # vfmadd231ps
    body += bytes((0x48, 0xFF, 0xCF))  # dec rdi
    back = -(len(body) + 6)
    again = bytes((0x0F, 0x85)) + back.to_bytes(4, "little", signed=True)  # jnz
    return zero + body + again + bytes((0xC5, 0xF8, 0x77, 0xC3))  # vzeroupper, ret


def _instruction(table: int, opcode: int, result: int, operand: int, lanes: int) -> bytes:
    """One instruction of vectors, `result` by `operand` and `operand`, all in registers.

    Encoded as the manuals of the architecture say (Intel, volume 2, "VEX" and "EVEX"): the upper
    bits of the registers' numbers are stored inverted.
    """
    high = [~(number >> bit) & 1 for number in (result, operand) for bit in (3, 4)]
    r, r16, b, x = high
    third, modrm = (~operand & 15) << 3, 0xC0 | (result & 7) << 3 | operand & 7
    if lanes == 16:
        first = r << 7 | x << 6 | b << 5 | r16 << 4 | table
        return bytes((0x62, first, third | 0b101, 0x40 | x << 3, opcode, modrm))
    return bytes((0xC4, r << 7 | 1 << 6 | b << 5 | table, third | 0b101, opcode, modrm))


def _function(code: bytes) -> Callable[[int], None]:
    """Machine code as a function of an integer, which other threads run beside it."""
    if platform.machine() != "x86_64" or not {"avx2", "fma"} <= host_features():
        raise _unmeasured("the CPU has no AVX2 with fused multiply-adds")
    try:
        memory = mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError as error:
        raise _unmeasured(f"no memory for code: {error.strerror}") from error
    memory.write(code)
    first = ctypes.c_char.from_buffer(memory)
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64)(ctypes.addressof(first))

    def run(rounds: int, _memory: object = first) -> None:
        call(rounds)

    return run


def _unmeasured(why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        what="what this machine can do at most", message=f"measuring it failed: {why}"
    )


def _shortest(work: Callable[[int], object], tries: int, threads: int) -> float:
    """Seconds of the fastest of several tries, from the first thread's start to the last's end.

    `work(k)` is the share of thread k.  Each thread is bound to a CPU: a scheduler may leave two
    that wait for each other on one.
    """
    cpus = sorted(os.sched_getaffinity(0))
    together = Barrier(threads)

    def run(k: int) -> list[tuple[float, float]]:
        spans = []
        try:
            os.sched_setaffinity(0, {cpus[k % len(cpus)]})
            for _ in range(tries):
                together.wait()
                begin = time.perf_counter()
                work(k)
                spans.append((begin, time.perf_counter()))
        except BaseException:
            together.abort()  # or the others would wait for this one for ever
            raise
        return spans

    with ThreadPoolExecutor(threads) as pool:
        runs = [pool.submit(run, k) for k in range(threads)]
    failures = [error for r in runs if (error := r.exception()) is not None]
    for error in sorted(failures, key=lambda e: isinstance(e, BrokenBarrierError)):
        raise error  # what broke the barrier before those that it broke for
    spans = np.array([r.result() for r in runs])  # [threads, tries, 2]
    return float((spans[:, :, 1].max(axis=0) - spans[:, :, 0].min(axis=0)).min())
