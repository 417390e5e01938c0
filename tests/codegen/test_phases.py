"""Phases: each part once, and after all parts of the phase before, by however many threads."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from tvm import tirx

from plait.codegen.plan import Call, ModulePlan, PointerArg, TensorSpec
from plait.codegen.tvm.build import compile_kernel, host_target
from plait.codegen.tvm.loops import loop, put, sequence
from plait.codegen.tvm.main_func import compile_main
from plait.codegen.tvm.phases import Phases
from plait.codegen.tvm.pointers import over_pointers
from plait.codegen.tvm.pool import pool_object
from plait.codegen.tvm.scalars import const
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library

PARTS = (3, 1, 2, 3, 2, 1, 1, 3) * 3


def counting(y: Any, skipped: int = 0) -> Any:
    """Each part adds to its element of `y` one more than what the phase before has in all."""
    phases = Phases(max(PARTS))
    width = phases.parts

    def work(number: int, part: Any) -> Any:
        before = [y[(number - 1) * width + p] for p in range(PARTS[number - 1])] if number else []
        total = const(1, "int64")
        for value in before:
            total = total + value
        pause = tirx.Evaluate(tirx.call_extern("int32", "usleep", const(50, "int32")))
        place = number * width + part
        slow = tirx.IfThenElse(part == number % 3, pause, None)
        return sequence([slow, put(y, place, y[place] + total)])

    def thread(own: Any) -> Any:
        numbers = range(skipped, len(PARTS))
        return sequence([
            phases.run(const(number, "int32"), PARTS[number], own, partial(work, number))
            for number in numbers
        ])  # fmt: skip

    return phases.around(loop(width, thread, tirx.ForKind.PARALLEL, "own"), const(skipped, "int32"))


@pytest.mark.parametrize("skipped", [0, 1, 7])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_phases_follow_each_other(threads: int, skipped: int) -> None:
    width, size = max(PARTS), max(PARTS) * len(PARTS)
    want, total = np.zeros(size, np.int64), 1
    for number, parts in enumerate(PARTS):
        if number < skipped:
            continue
        want[number * width : number * width + parts] = total
        total = 1 + total * parts
    y = tirx.decl_buffer((size,), "int64", name="y")
    func = tirx.PrimFunc([y], counting(y, skipped)).with_attr("s_tir", True)
    plan = ModulePlan("phases", (), (TensorSpec("y", "int64", (size,)),),
                      (Call("k_phases", (PointerArg("output"),)),), threads=3)  # fmt: skip
    kernel = compile_kernel(over_pointers(func), "k_phases", host_target())
    objects = [kernel, compile_main(plan, host_target())]
    model = CompiledModel(plan, Library(objects, pool_object(host_target())), threads=threads)
    for _ in range(20):
        found = np.zeros(size, np.int64)
        model.run_into([], [found])
        np.testing.assert_array_equal(found, want)
