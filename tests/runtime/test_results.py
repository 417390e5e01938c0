"""Arrays for outputs: aligned, new to whoever holds one, in memory that is used again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plait.codegen.plan import ALIGNMENT, TensorSpec
from plait.runtime import results
from plait.runtime.artifact import Artifact
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
    make = Reused(SPEC)

    def work(number: int) -> None:
        for _ in range(3000):
            array = make()
            array[:] = number
            assert (array == number).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_a_model_whose_results_take_memory_again(
    small_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_ALIGN_FROM", 0)
    monkeypatch.setattr(results, "_REUSE_FROM", 0)
    artifact = Artifact.open(small_artifact)
    again = artifact.load(threads=2)
    monkeypatch.undo()
    once = artifact.load(threads=2)
    x = np.random.default_rng(0).standard_normal((4, 256), np.float32)
    places, held, want = set(), again(x), once(x)
    for k in range(5):
        found = again(x + k)
        places.add(start(found[0]))
        for got, expected in zip((*found, *held), (*once(x + k), *want), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert len(places) == 2  # one result is held while the next is made
    assert start(held[0]) not in places
