"""The bars of tuning, without the measurements."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import tuning


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"seconds": 61.0}, False),
        ({"untuned": 1.2}, False),
        ({"left": 1}, False),  # not all kernels were measured
        ({"kernels": 0, "untuned": 0.0, "tuned": 0.0}, True),  # nothing to choose from
    ],
)
def test_bars(change: dict[str, Any], holds: bool) -> None:
    row = {"model": "mlp", "kernels": 3, "left": 0, "seconds": 9.0, "untuned": 1.1, "tuned": 1.0}
    assert tuning.bars({**row, **change}) is holds
