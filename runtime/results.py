"""New arrays for the outputs of a model, aligned; the memory of large ones is used again."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.codegen.plan import TensorSpec, aligned_empty

Array = NDArray[Any]
_ALIGN_FROM = 1 << 14  # bytes; aligning a smaller result costs more than its stores gain
_REUSE_FROM = 32 << 20  # bytes; malloc maps larger blocks anew each time, page by page
_KEPT = 2  # arrays of an output: the last result is still held while the next one is made


def maker(spec: TensorSpec) -> Callable[[], Array]:
    """What makes a new array for an output, uninitialised."""
    if spec.nbytes < _ALIGN_FROM:
        return partial(np.empty, spec.shape, spec.numpy)
    if spec.nbytes < _REUSE_FROM:
        return lambda: aligned_empty(spec.nbytes).view(spec.numpy).reshape(spec.shape)
    return Reused(spec)


class Reused:
    """Makes arrays in memory of its own, in turn where nobody holds the array made before.

    Whoever looks at an array, a view of it or a tensor that shares it holds its memory, which is an
    object with counted references.  Safe to call from many threads at once: a block that is out of
    `_blocks` is one thread's own.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._blocks: deque[Array] = deque()

    def __call__(self) -> Array:
        block = self._unheld()
        if block is None:
            block = aligned_empty(self._spec.nbytes)
        array = block.view(self._spec.numpy).reshape(self._spec.shape)
        self._blocks.append(block)
        return array

    def _unheld(self) -> Array | None:
        """A block that nobody else holds; of those that somebody does, the latest are kept."""
        found: Array | None = None
        for _ in range(len(self._blocks)):
            try:
                block = self._blocks.popleft()
            except IndexError:  # another thread took it
                break
            if _references(block) == _ALONE:
                found = block
                break
            self._blocks.append(block)
        while len(self._blocks) >= _KEPT:
            try:
                self._blocks.popleft()
            except IndexError:
                break
        return found


def _references(block: Array) -> int:
    """How many hold the memory of a block, which is itself a view of it, as all its views are."""
    return sys.getrefcount(block.base)


_ALONE = _references(aligned_empty(1))
