"""Fixtures shared by all tests."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["tests.small_model", "tests.profiled"]

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files instead of comparing"
    )


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository root, for tests about files."""
    return ROOT


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the test run's kernel cache out of the user's."""
    os.environ.setdefault("PLAIT_CACHE_DIR", str(tmp_path_factory.mktemp("plait-cache")))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` compares text with `tests/golden/<test module>/<name>`.

    A missing file is a failure; `make golden` writes the files, to be reviewed as a diff.
    """
    folder = GOLDEN / request.path.stem
    update = bool(request.config.getoption("--update-golden"))

    def check(name: str, text: str) -> None:
        path = folder / name
        text = text.rstrip("\n") + "\n"
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        assert path.is_file(), f"{path.relative_to(ROOT)} is missing: run `make golden`"
        want = path.read_text()
        diff = "".join(
            difflib.unified_diff(want.splitlines(True), text.splitlines(True), "golden", "now")
        )
        assert want == text, f"{path.relative_to(ROOT)} differs:\n{diff}"

    return check
