"""Options of the backend: every bad one is named in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.frontend import options
from plait.ir.errors import UnknownName, UsageError


def test_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown option 'frieze', did you mean 'freeze'"):
        options.resolve(None, {"frieze": True})


def test_unknown_mode_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'max-autotune'"):
        options.resolve("max-autotun", None)


def test_bad_value_names_the_option() -> None:
    with pytest.raises(UsageError, match="option 'freeze'"):
        options.resolve(None, {"freeze": "sometimes"})


@pytest.mark.parametrize(("value", "word"), [(True, "always"), (False, "never"), ("auto", "auto")])
def test_freeze_takes_a_bool(value: object, word: str) -> None:
    assert options.resolve(None, {"freeze": value}).freeze == word


def test_modes_are_those_of_torch() -> None:
    from torch._inductor import list_mode_options

    assert set(options.MODES) == {"default", *list_mode_options()}
    for mode in options.MODES:
        assert options.resolve(mode, {"threads": 3}) == options.resolve(None, {"threads": 3})


def test_the_page_lists_the_options_as_they_are(repo_root: Path) -> None:
    page = (repo_root / "docs" / "torch_compile.md").read_text()
    for name, info in options.Options.model_fields.items():
        assert f"| `{name}` | `{info.default!r}` | {info.description} |" in page
