"""What a machine can do at most: the code that measures it, and that it is measured."""

from __future__ import annotations

import pytest

from plait.ir.errors import EnvironmentProblem
from plait.runtime import ceilings
from plait.runtime.ceilings import Ceilings, measure_ceilings, multiply_adds


def test_as_measured_with_the_threads_asked_for() -> None:
    found = measure_ceilings(2)
    assert found.threads == 2
    assert found.flops_per_second > 1e9 and found.bytes_per_second > 1e7


def test_work_and_traffic_hide_behind_each_other() -> None:
    assert Ceilings(100.0, 10.0, 1).least_seconds(flops=200, nbytes=10) == 2
    assert Ceilings(100.0, 10.0, 1).least_seconds(flops=200, nbytes=30) == 3


@pytest.mark.parametrize(
    ("lanes", "registers", "instructions"),
    [
        # As an assembler writes them: vpxor of 8; vfmadd231ps of 0 and of 11 by 15; the end.
        (8, 16, ("c4413defc0", "c4c205b8c7", "c44205b8df", "48ffcf0f85bbffffffc5f877c3")),
        # vpxord of register 23; vfmadd231ps of 0, 8, and 23 by 31.
        (16, 32, ("62a14540efff", "62920540b8c7", "62120540b8c7", "62820540b8ff")),
    ],
)
def test_code(lanes: int, registers: int, instructions: tuple[str, ...]) -> None:
    code = multiply_adds(lanes, registers)
    for instruction in instructions:
        assert code.count(bytes.fromhex(instruction)) == 1


@pytest.mark.parametrize("features", [set(), {"avx2"}, {"fma"}])
def test_without_multiply_adds(features: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "host_features", lambda: features)
    with pytest.raises(EnvironmentProblem, match="measuring it failed: the CPU has no AVX2"):
        measure_ceilings(1)


def test_where_a_process_may_not_make_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ceilings.mmap, "mmap", refuse)
    with pytest.raises(EnvironmentProblem, match="no memory for code: Permission denied"):
        measure_ceilings(1)
