"""Notices when frozen parameters and buffers are no longer what was packed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

_Array: TypeAlias = NDArray[Any]
_SAMPLES = 8
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class _Mark:
    """What is compared of one tensor at every call."""

    ref: weakref.ref[Tensor]
    pointer: int
    version: int | None  # None for an inference tensor, which has no counter


class Watch:
    """Remembers tensors whose values were compiled in.

    A tensor is held to be unchanged when it is the same object at the same address with the same
    version counter, and a few of its elements are the same bits. The counter sees every in-place
    operator; the elements are for writes that it does not see (`p.data`, numpy views, inference
    tensors), which in practice change a whole tensor. A lone element written in such a way goes
    unnoticed: `freeze="never"` is for programs that do that.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._marks = [
            _Mark(weakref.ref(t), t.data_ptr(), None if t.is_inference() else t._version)
            for t in tensors
        ]
        self._views = _samples(tensors)
        self._saved = self._read()

    def same_objects(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the tensors that were compiled in."""
        return all(m.ref() is t for m, t in zip(self._marks, tensors, strict=True))

    def unchanged(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors, known to be the same objects, still hold the same values."""
        for mark, tensor in zip(self._marks, tensors, strict=True):
            if mark.pointer != tensor.data_ptr():
                return False
            if mark.version is not None and mark.version != tensor._version:
                return False
        return self._saved == self._read()

    def _read(self) -> list[bytes]:
        return [view.tobytes() for view in self._views]


def _samples(tensors: Sequence[Tensor]) -> list[_Array]:
    """Views of some elements of every tensor as integers."""
    found: list[_Array] = []
    for tensor in tensors:
        real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        if not real.numel():
            continue
        size = real.element_size()
        length = real.untyped_storage().nbytes() // size - real.storage_offset()
        flat = real.as_strided((length,), (1,)).view(_BITS[size])
        found.append(flat[:: max(1, (length - 1) // (_SAMPLES - 1))].numpy())
    return found
