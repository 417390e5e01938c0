"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository root, for tests about files."""
    return ROOT


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the test run's kernel cache out of the user's."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PLAIT_CACHE_DIR", str(tmp_path_factory.mktemp("plait-cache")))
