"""The self-test of `plait doctor`: a small graph through the whole compiler."""

from __future__ import annotations

from importlib.util import find_spec


class NotPossible(Exception):
    """This installation lacks what the self-test needs; the message says what."""


def self_test() -> str:
    """Compile, run and compare; return a short description of what was done.

    Raises `NotPossible` for an installation without the compiler, `PlaitError` for a failure.
    """
    if find_spec("tvm") is None:
        raise NotPossible("the compiler is not installed: pip install 'plait[compile]'")
    raise NotPossible("not connected yet")
