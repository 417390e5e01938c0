"""Segments as machine code."""

from __future__ import annotations

from plait.frontend.options import Options
from plait.frontend.program import Compile, interpreted


def compiler(settings: Options) -> Compile:
    """How to compile a segment under these options."""
    return interpreted
