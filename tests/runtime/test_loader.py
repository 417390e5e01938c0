"""Finding and opening the native libraries, and the threads of parallel loops."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from plait.ir.errors import EnvironmentProblem
from plait.runtime import loader
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library, Threads


def test_the_runtime_library_is_found() -> None:
    assert loader.runtime_library().name == "libtvm_runtime.so"


def test_an_installation_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'plait\[runtime\]'"):
        loader.runtime_library()


def test_a_library_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "libtvm_runtime.so"
    path.write_bytes(b"not a library")
    with pytest.raises(EnvironmentProblem, match="cannot be opened"):
        loader._open(path)


def test_torch_is_hidden_from_one_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    found: list[object] = []
    with loader.without_torch():
        finder = sys.meta_path[0]
        with pytest.raises(ModuleNotFoundError, match="torch is hidden"):
            finder.find_spec("torch", None)
        other = threading.Thread(target=lambda: found.append(finder.find_spec("torch", None)))
        other.start()
        other.join()
    assert found == [None]
    assert finder not in sys.meta_path


def in_new_thread(work: Callable[[], Any]) -> Any:
    """What `work` gives in a thread of its own, with a pool of its own."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()


@pytest.fixture(scope="module")
def who_works() -> Callable[[int], set[int]]:
    """The threads, by the system's numbers, that share a parallel loop among so many."""
    pytest.importorskip("tvm", reason="TVM comes with the compile extra")
    from tvm.script import tirx as T

    from plait.codegen.plan import Call, ModulePlan, PointerArg, TensorSpec
    from plait.codegen.tvm.build import compile_kernel, host_target
    from plait.codegen.tvm.main_func import compile_main

    @T.prim_func(s_tir=True)
    def func(a: T.handle) -> T.int32:
        A = T.decl_buffer((64,), "int32", data=a)
        for i in T.parallel(64):
            A[i] = T.call_extern("int32", "gettid")
        return 0

    plan = ModulePlan("who", (), (TensorSpec("y", "int32", (64,)),),
                      (Call("k_who", (PointerArg("output"),)),))  # fmt: skip
    target = host_target()
    library = Library([compile_kernel(func, "k_who", target), compile_main(plan, target)])
    return lambda count: set(CompiledModel(plan, library, threads=count)()[0].tolist())


@pytest.mark.parametrize("counts", [(2, 1, 2), (1, 4, 2, 3, 4)])
def test_threads_can_be_fewer_and_more_again(
    who_works: Callable[[int], set[int]], counts: tuple[int, ...]
) -> None:
    """Also more than there are CPUs, up to the first count of more than one."""
    assert in_new_thread(lambda: [len(who_works(n)) for n in counts]) == list(counts)


def test_the_launcher_keeps_cpus_that_were_narrowed_since() -> None:
    """It gets off the workers' CPUs only where it may be elsewhere."""
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("one CPU has nothing to move to")

    def work() -> list[set[int]]:
        threads = Threads()
        threads.use(2)
        (worker,) = threads._workers
        found = []
        for allowed in ({worker}, cpus):
            os.sched_setaffinity(0, allowed)
            threads._moved = 0.0
            threads._move()
            found.append(os.sched_getaffinity(0))
        return found

    (worker,), after = in_new_thread(work)
    assert worker in cpus and after == cpus
