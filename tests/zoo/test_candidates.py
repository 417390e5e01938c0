"""Candidates in processes of their own: what is measured of them, and how they fail."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import candidates
from benchmarks.candidates import CACHES, Call, Candidate, CandidateFailed
from plait.runtime import bench

MEGABYTES = 1 << 20


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIN_SAMPLE_SECONDS", "WARM_SECONDS", "SETTLE_SECONDS"):
        monkeypatch.setattr(bench, name, 0.0)


def failing(fault: Callable[[], object]) -> Callable[[], Call]:
    """A builder that ends in a fault."""

    def build() -> Call:
        fault()
        return list

    return build


def test_a_candidate_is_built_and_timed_elsewhere() -> None:
    def build() -> Call:
        time.sleep(0.05)
        return lambda: [np.array([os.getpid()])]

    with Candidate(build, limit=60) as candidate:
        assert candidate.built.results[0] != os.getpid()
        assert 0.05 < candidate.built.build_seconds < 10
        assert all(0 < candidate.sample() < 1 for _ in range(3))


def test_memory_that_was_freed_counts() -> None:
    def build() -> Call:
        np.ones(64 * MEGABYTES, np.uint8)
        return list

    with Candidate(build, limit=60) as candidate:
        assert 63 <= candidate.built.peak_bytes / MEGABYTES < 80


def test_garbage_of_the_parent_does_not_count() -> None:
    garbage: list[object] = [np.ones(96 * MEGABYTES, np.uint8)]
    garbage.append(garbage)
    del garbage

    def build() -> Call:
        gc.collect()
        np.ones(64 * MEGABYTES, np.uint8)
        return list

    with Candidate(build, limit=60) as candidate:
        assert 63 <= candidate.built.peak_bytes / MEGABYTES < 80


def test_memory_that_the_parents_allocator_keeps_does_not_count() -> None:
    """Blocks below malloc's limit for mappings, which a small one above holds back from the system.

    The first raises that limit when it is freed, to the most that it can be.
    """
    np.ones(31 * MEGABYTES, np.uint8)
    blocks = [np.ones(30 * MEGABYTES, np.uint8) for _ in range(4)]
    above = np.ones(MEGABYTES, np.uint8)
    blocks.clear()

    def build() -> Call:
        np.ones(64 * MEGABYTES, np.uint8)
        return list

    with Candidate(build, limit=60) as candidate:
        assert 63 <= candidate.built.peak_bytes / MEGABYTES < 80
    assert above.all()


def test_caches_are_empty_and_do_not_outlive_the_candidate() -> None:
    def build() -> Call:
        folders = [Path(os.environ[name]) for name in CACHES]
        assert not any(folder.exists() for folder in folders)
        folders[0].mkdir()
        return lambda: [np.array([str(folder) for folder in folders])]

    before = [os.environ.get(name) for name in CACHES]
    with Candidate(build, limit=60) as candidate:
        folder = Path(candidate.built.results[0][0])
        assert folder.exists()
    assert not folder.exists()
    assert [os.environ.get(name) for name in CACHES] == before


def raise_error() -> None:
    raise ValueError("first line\nsecond line")


@pytest.mark.parametrize(
    ("fault", "limit", "message"),
    [
        (raise_error, 60, "ValueError: first line$"),
        (lambda: os._exit(3), 60, "its process ended with code 3"),
        (lambda: time.sleep(60), 0.2, "took more than 0.2 s"),
    ],
)
def test_faults(fault: Callable[[], object], limit: float, message: str) -> None:
    with pytest.raises(CandidateFailed, match=message):
        Candidate(failing(fault), limit)


def test_an_error_without_a_message_has_a_reason() -> None:
    assert candidates.reason(ValueError()) == "ValueError: "
