"""The threads of parallel loops: how many there are, whom they wait for, when they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from tvm.script import tirx as T

from plait.codegen.plan import Call, ModulePlan, PointerArg, TensorSpec
from plait.codegen.tvm.build import compile_kernel, host_target
from plait.codegen.tvm.main_func import compile_main
from plait.codegen.tvm.pool import pool_object
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library

TASKS = 64
MODEL = """
import os, sys, threading, time, numpy as np, plait
path = sys.argv[1]
model = plait.load(path, threads=2)
x = np.ones((4, 256), np.float32)
before = model(x)[0]
def forked(work):
    child = os.fork()
    if child == 0:
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


@pytest.fixture(scope="module")
def who_works() -> Callable[[int], set[int]]:
    """The threads, by the system's numbers, that share a loop of 64 ms among so many."""

    @T.prim_func(s_tir=True)
    def func(a: T.handle) -> T.int32:
        A = T.decl_buffer((TASKS,), "int32", data=a)
        for i in T.parallel(TASKS):
            T.evaluate(T.call_extern("int32", "usleep", 1000))
            A[i] = T.call_extern("int32", "gettid")
        return 0

    plan = ModulePlan("who", (), (TensorSpec("y", "int32", (TASKS,)),),
                      (Call("k_who", (PointerArg("output"),)),))  # fmt: skip
    target = host_target()
    objects = [compile_kernel(func, "k_who", target), compile_main(plan, target)]
    library = Library(objects, pool_object(target))
    return lambda count: set(CompiledModel(plan, library, threads=count)()[0].tolist())


def in_new_process(artifact: Path, code: str = "") -> None:
    """Code after that of MODEL, which ends the process with 0 and says nothing if all is well."""
    command = [sys.executable, "-c", MODEL + code, str(artifact)]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("counts", [(2, 1, 2), (1, 4, 2, 3, 4)])
def test_as_many_threads_as_are_asked_for(
    who_works: Callable[[int], set[int]], counts: tuple[int, ...]
) -> None:
    """A worker on the launcher's CPU stays out, so a run may have fewer, but none has more."""
    with ThreadPoolExecutor(max_workers=1) as launcher:
        for count in counts:
            found = [len(launcher.submit(who_works, count).result()) for _ in range(5)]
            assert max(found) <= count
            assert max(found) >= min(count, len(os.sched_getaffinity(0)))


def test_launchers_beside_each_other(who_works: Callable[[int], set[int]]) -> None:
    """The first one has the workers, the others do their loops alone: no thread works for two."""
    with ThreadPoolExecutor(max_workers=3) as launchers:
        found = list(launchers.map(who_works, [2] * 3))
    assert all(1 <= len(threads) <= 2 for threads in found)
    assert sum(len(threads) for threads in found) == len(set().union(*found))


def test_a_forked_process_starts_threads_of_its_own(small_artifact: Path) -> None:
    code = (
        "same = lambda: all(np.array_equal(model(x)[0], before) for _ in range(100))\n"
        "code = forked(lambda: same() and len(os.listdir('/proc/self/task')) > 1)\n"
        "assert same()\n"
        "sys.exit(code)\n"
    )
    in_new_process(small_artifact, code)


def test_a_process_that_is_forked_while_others_load_can_load(small_artifact: Path) -> None:
    code = (
        "import signal\n"
        "def load():\n"
        "    return np.array_equal(plait.load(path, threads=2)(x)[0], before)\n"
        "def loads():\n"
        "    while True: load()\n"
        "def work():\n"
        "    signal.alarm(5)\n"
        "    return load()\n"
        "for _ in range(2): threading.Thread(target=loads, daemon=True).start()\n"
        "codes = [(time.sleep(0.003), forked(work))[1] for _ in range(40)]\n"
        "os._exit(any(codes))\n"
    )
    in_new_process(small_artifact, code)


def test_a_process_that_is_forked_during_a_call_ends_it(small_artifact: Path) -> None:
    code = (
        "codes = []\n"
        "model._share = lambda count: codes.append(os.fork())\n"
        "same = np.array_equal(model(x)[0], before)\n"
        "if codes == [0]: os._exit(0 if same else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(codes[0], 0)[1]))\n"
    )
    in_new_process(small_artifact, code)


def test_threads_that_the_system_does_not_start_are_not_waited_for(small_artifact: Path) -> None:
    code = (
        "import resource\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))\n"
        "tasks = len(os.listdir('/proc/self/task'))\n"
        "model.threads = 64\n"
        "same = np.array_equal(model(x)[0], before)\n"
        "os._exit(0 if same and len(os.listdir('/proc/self/task')) == tasks else 1)\n"
    )
    in_new_process(small_artifact, code)


def test_a_process_without_a_key_of_threads_left_is_told_so(small_artifact: Path) -> None:
    code = (
        "from plait.ir.errors import EnvironmentProblem\n"
        "from plait.runtime import loader\n"
        "import ctypes\n"
        "libc, key = ctypes.CDLL(None), ctypes.c_uint()\n"
        "while libc.pthread_key_create(ctypes.byref(key), None) == 0: pass\n"
        "loader.native()._pool = None\n"
        "try:\n"
        "    plait.load(path)\n"
        "except EnvironmentProblem as problem:\n"
        "    os._exit(0 if 'keys' in str(problem) else 1)\n"
        "os._exit(2)\n"
    )
    in_new_process(small_artifact, code)


def test_a_process_ends_while_workers_look_for_work(small_artifact: Path) -> None:
    for _ in range(5):
        in_new_process(small_artifact)


def tasks_named(name: str) -> list[Path]:
    """The threads of this process by that name."""
    tasks = Path("/proc/self/task").iterdir()
    return [task for task in tasks if (task / "comm").read_text().strip() == name]


def test_the_pool_ends_beside_a_launcher_that_goes_on(small_artifact: Path) -> None:
    """A worker that always finds another loop looks whether it is to end, too."""
    code = (
        "def run():\n"
        "    while True: model(x)\n"
        "launcher = threading.Thread(target=run, daemon=True)\n"
        "launcher.start()\n"
        "cpus = sorted(os.sched_getaffinity(0))\n"
        "def name(task):\n"
        "    try: return open(f'/proc/self/task/{task}/comm').read()\n"
        "    except OSError: return ''  # it has ended\n"
        "workers = []\n"
        "while not workers:  # they name themselves, once they get a CPU\n"
        "    workers = [t for t in os.listdir('/proc/self/task') if name(t) == 'plait\\n']\n"
        "for task, cpu in ((launcher.native_id, cpus[0]), (int(workers[0]), cpus[-1])):\n"
        "    os.sched_setaffinity(task, {cpu})\n"
        "time.sleep(0.2)\n"
        "begin = time.perf_counter()\n"
        "model._library.pool._end()\n"
        "os._exit(time.perf_counter() - begin > 2)\n"
    )
    in_new_process(small_artifact, code)


def test_signals_are_left_to_the_threads_of_the_program(
    who_works: Callable[[int], set[int]],
) -> None:
    """A program may block a signal and wait for it: no thread of ours may take it, and die."""
    who_works(2)
    workers = tasks_named("plait")
    assert workers
    for worker in workers:
        status = dict(line.split(":", 1) for line in (worker / "status").read_text().splitlines())
        blocked = int(status["SigBlk"], 16)
        assert blocked >> (signal.SIGUSR1 - 1) & 1 and blocked >> (signal.SIGINT - 1) & 1
        assert not any(blocked >> (n - 1) & 1 for n in (signal.SIGSEGV, signal.SIGSYS))


def test_idle_threads_sleep(who_works: Callable[[int], set[int]]) -> None:
    who_works(2)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU has no second thread")
def test_nobody_waits_for_a_thread_that_gets_no_cpu() -> None:
    """Torch's threads spin for milliseconds after their work, on the CPU of our worker."""
    torch = pytest.importorskip("torch", reason="torch's threads are those in the way")
    import plait

    layers = [torch.nn.Linear(256, 256), torch.nn.ReLU()] * 3
    model = plait.compile(torch.nn.Sequential(*layers), (torch.ones(32, 256),), threads=2)
    x, other = np.ones((32, 256), np.float32), torch.ones(1 << 20)
    alone, beside = list[float](), list[float]()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(60):
            beside.append((torch.relu(other), seconds(lambda: model(x)))[1])
        time.sleep(0.1)
        for _ in range(60):
            alone.append(seconds(lambda: model(x)))
    finally:
        torch.set_num_threads(threads)
    # It was 30 times as long while launchers waited, since each call took some 4 ms.
    assert np.median(beside) < 8 * np.median(alone)
