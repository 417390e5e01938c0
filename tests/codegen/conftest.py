"""Kernels of these tests are made for AVX2, whatever the CPU at hand; some for AVX-512 too.

Code for AVX-512 runs anywhere: LLVM cuts its vectors in two where the CPU lacks them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plait.codegen.core import AVX2, Core, making_for
from plait.codegen.cpu import CpuTarget


@pytest.fixture(autouse=True)
def core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Core]:
    """The core that kernels are made for; `graphs.both_cores` asks for each in turn."""
    chosen: Core = getattr(request, "param", AVX2)
    monkeypatch.setattr(CpuTarget, "core", chosen)
    with making_for(chosen):
        yield chosen
