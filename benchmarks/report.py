"""One line for a number and the bar it is held to, the same in every script that has bars."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from typing import Literal


def report(
    what: str,
    found: float,
    bar: float,
    unit: str,
    wanted: Literal["at most", "at least"] = "at most",
) -> bool:
    """Print one line; whether the bar holds, which no NaN does."""
    holds = found <= bar if wanted == "at most" else found >= bar
    verdict = "ok" if holds else "MISSED"
    print(f"{what:<46} {found:8.2f} {unit:<3} {wanted} {bar:6.2f}  {verdict}")
    return holds


def options(
    module: str, doc: str | None, known: Collection[str], bar: str, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """The options of a benchmark of kernels, and the names of those that it is to measure.

    `bar` says what `--bars` holds them to. Names that no kernel contains end the program (code 2).
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help="kernels whose name contains one of these")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement")
    parser.add_argument("--bars", action="store_true", help=bar)
    given = parser.parse_args(arguments)
    return given, selected(parser, given.names, known)


def selected(
    parser: argparse.ArgumentParser, words: Sequence[str], known: Collection[str]
) -> list[str]:
    """The known names that contain one of the words, all without any word.

    A word that no name contains ends the program (code 2).
    """
    if unknown := [word for word in words if not any(word in name for name in known)]:
        parser.error(f"no kernel is named like {', '.join(unknown)}; known: {', '.join(known)}")
    return [name for name in known if not words or any(word in name for word in words)]
