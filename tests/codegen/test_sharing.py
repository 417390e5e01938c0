"""Work shared as it goes: every item once, by however many threads."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from tvm import tirx

from plait.codegen.plan import Call, ModulePlan, PointerArg, TensorSpec
from plait.codegen.tvm.build import compile_kernel, host_target
from plait.codegen.tvm.loops import put
from plait.codegen.tvm.main_func import compile_main
from plait.codegen.tvm.pointers import over_pointers
from plait.codegen.tvm.pool import pool_object
from plait.codegen.tvm.sharing import MOST_PARTS, SHARES, parts_for, shared
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library


@pytest.mark.parametrize("threads", [1, 2, 7, 8, 9, 24, 100, 128, 200])
def test_parts_are_as_many_for_each_thread(threads: int) -> None:
    parts = parts_for(threads)
    assert parts % threads == 0 and parts <= max(MOST_PARTS, threads)
    assert 1 < threads <= MOST_PARTS // SHARES or parts // threads < SHARES


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 100])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_item_is_done_once(count: int, threads: int) -> None:
    x, y = (tirx.decl_buffer((count,), "float32", name=name) for name in "xy")
    own = tirx.decl_buffer((1,), "float32", name="own")

    def item(i: tirx.PrimExpr) -> tirx.Stmt:
        return tirx.SeqStmt([put(own, 0, x[i] + y[i]), put(y, i, own[0])])

    func = tirx.PrimFunc([x, y], shared(count, threads, item, [own])).with_attr("s_tir", True)
    given, made = (TensorSpec(name, "float32", (count,)) for name in "xy")
    # The second call adds to what the first has made.
    calls = [Call("k_add", (PointerArg("input"), PointerArg("output"))) for _ in range(2)]
    plan = ModulePlan("items", (given,), (made,), tuple(calls), threads=threads)
    objects = [compile_kernel(over_pointers(func), "k_add", host_target())]
    objects.append(compile_main(plan, host_target()))
    data = np.arange(count, dtype=np.float32)
    for workers in (1, 2, 4):
        model = CompiledModel(plan, Library(objects, pool_object(host_target())), threads=workers)
        for _ in range(100):
            result = np.ones(count, np.float32)
            model.run_into([data], [result])
            np.testing.assert_array_equal(result, 2 * data + 1)
