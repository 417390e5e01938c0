"""The watch over frozen tensors: what it takes for a change, and what it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from plait.frontend.weights import Watch

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "start": lambda store: store[:12].view(3, 4),
    "middle": lambda store: store[500:512].view(4, 3).t(),
    "end": lambda store: store[-3:],
    "gaps": lambda store: store[100:160].view(6, 10)[:, :2],
    "scalar": lambda store: store[7],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bool, torch.int64])
def test_a_view_is_watched_where_it_lies(
    view: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    store = torch.zeros(100_000).to(dtype)
    tensor = view(store)
    watch = Watch([tensor])
    assert watch.state([tensor]) == "same"
    store.numpy()[-1000:-900] = 1
    assert watch.state([tensor]) == "same", "the view does not reach there"
    tensor.numpy().fill(1)
    assert watch.state([tensor]) == "changed"


def test_the_last_elements_are_watched_too() -> None:
    store = torch.zeros(1_000_000)
    tensor = store[:701]
    watch = Watch([tensor])
    tensor.numpy()[350:] = 1.0
    assert watch.state([tensor]) == "changed"


def test_other_objects_are_told_from_changed_ones() -> None:
    a, b = torch.zeros(3), torch.zeros(3)
    watch = Watch([a, b])
    a.add_(1)
    assert watch.state([a, b]) == "changed"
    assert watch.state([a, b.clone()]) == "other"
    assert watch.state([a]) == "other"


def test_values_can_be_left_out() -> None:
    a = torch.zeros(3)
    watch = Watch([a], values=False)
    a.add_(1)
    assert watch.state([a]) == "same"
    assert watch.state([a.clone()]) == "other"


def test_tensors_without_counter_or_elements() -> None:
    with torch.inference_mode():
        made, empty = torch.zeros(3), torch.zeros(0)
        watch = Watch([made, empty])
        assert watch.state([made, empty]) == "same"
        made.add_(1)
        assert watch.state([made, empty]) == "changed"


def test_small_tensors_are_compared_as_a_whole() -> None:
    small = torch.zeros(64)
    watch = Watch([small])
    small.data[1] = 9.0
    assert watch.state([small]) == "changed"
