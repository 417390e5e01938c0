"""Fixtures of the tests of the torch front ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from plait.frontend import dynamo


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """A seeded torch; no compiled code from tests before or for tests after."""
    torch._dynamo.reset()
    dynamo.forget()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()
