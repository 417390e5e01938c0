"""One line for a number and the bar it is held to, the same in every script that has bars."""

from __future__ import annotations

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
