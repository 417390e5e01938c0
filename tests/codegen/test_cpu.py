"""CPU targets: what the host offers, and what is missing."""

from __future__ import annotations

import platform
from dataclasses import replace

import pytest

from plait.codegen import cpu
from plait.codegen.cpu import CpuTarget


@pytest.fixture
def plain() -> CpuTarget:
    return CpuTarget(platform.machine(), "generic", ())


def test_round_trip(plain: CpuTarget) -> None:
    target = replace(plain, features=("avx2", "fma"))
    assert CpuTarget.from_json(target.to_json()) == target


def test_what_is_missing(plain: CpuTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "host_features", lambda: frozenset({"avx2", "fma"}))
    assert plain.missing() == ()
    assert replace(plain, features=("avx2",)).missing() == ()
    assert replace(plain, features=("avx2", "avx512f", "gfni")).missing() == ("avx512f", "gfni")
    assert replace(plain, machine="pdp11").missing() == ("pdp11",)


def test_tuning_hints_are_not_features() -> None:
    assert cpu.checked_features({"avx2", "fast-lzcnt", "64bit", "wbnoinvd"}) == ("avx2",)
