"""Arrays for outputs: aligned, new to whoever holds one, in memory that is used again."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from plait.codegen.plan import ALIGNMENT, TensorSpec
from plait.runtime import results
from plait.runtime.results import Reused, maker

SPEC = TensorSpec("y", "float32", (3, 5))


def start(array: Any) -> int:
    return int(array.ctypes.data)


@pytest.mark.parametrize("rows", [0, 1, 5000, 9 << 20])
def test_arrays_are_as_specified(rows: int) -> None:
    array = maker(TensorSpec("y", "bfloat16", (rows, 2)))()
    assert array.shape == (rows, 2) and array.dtype == np.uint16
    assert array.flags.c_contiguous and array.flags.writeable
    assert array.nbytes < results._ALIGN_FROM or start(array) % ALIGNMENT == 0


def test_only_large_arrays_are_made_in_memory_that_stays() -> None:
    assert not isinstance(maker(SPEC), Reused)
    assert isinstance(maker(TensorSpec("y", "float32", (8 << 20,))), Reused)


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    make = Reused(SPEC)
    first = make()
    place = start(first)
    second = make()
    assert not np.shares_memory(first, second)
    del first
    assert start(make()) == place


def take_row(array: Any) -> Any:
    return array[1]


def take_tensor(array: Any) -> Any:
    return torch.from_numpy(array)[2:]


def take_dlpack(array: Any) -> Any:
    return np.from_dlpack(array)


@pytest.mark.parametrize("take", [take_row, take_tensor, take_dlpack, memoryview])
def test_memory_that_is_looked_at_in_any_way_stays(take: Any) -> None:
    make = Reused(SPEC)
    first = make()
    first[:] = 7
    held = take(first)
    del first
    for _ in range(5):
        make()[:] = 0
    assert (np.asarray(held) == 7).all()


def test_arrays_that_are_held_do_not_pile_up() -> None:
    make = Reused(SPEC)
    held = [make() for _ in range(9)]
    assert len({start(array) for array in held}) == 9
    assert len(make._blocks) <= results._KEPT


def test_no_two_threads_get_the_same_memory() -> None:
    make, wrong = Reused(SPEC), list[int]()

    def work(number: int) -> None:
        for _ in range(3000):
            array = make()
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
