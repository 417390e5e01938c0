"""Functions through the torch.compile backend, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plait.frontend import dynamo
from plait.frontend.dynamo import CompiledGraph


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function through the backend, run by the reference interpreter unless told otherwise."""
    settings = {"executor": "interpreter", **options}
    result: Callable[..., Any] = torch.compile(function, backend="plait", options=settings)
    return result


def last() -> CompiledGraph:
    return dynamo.recent()[-1]


def same(found: Any, expected: Any) -> None:
    """Equal values and, for dense tensors, equal strides."""
    torch.testing.assert_close(found, expected)
    if isinstance(found, Tensor):
        assert found.stride() == expected.stride()
