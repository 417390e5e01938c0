"""Notices when frozen parameters and buffers are no longer what was packed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

_Array: TypeAlias = NDArray[Any]
_SAMPLES = 8
_WHOLE = 64  # elements of a tensor that is compared as a whole
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NOTHING = torch.empty(0, dtype=torch.uint8).numpy()


class Watch:
    """Remembers dense tensors (`plait.frontend.tensors.is_dense`) whose values were compiled in.

    A tensor is held to be unchanged when it is the same object at the same address with the same
    version counter, and a few of its elements are the same bits. The counter sees every in-place
    operator; the elements are for writes that it does not see (`p.data`, numpy views, inference
    tensors), which in practice change a whole tensor. A lone element written in such a way goes
    unnoticed: `freeze="never"` is for programs that do that.
    """

    def __init__(self, tensors: Sequence[Tensor], values: bool = True) -> None:
        """Without `values`, only other objects are noticed and no change of these."""
        self._values = values
        samples = [_sample(tensor) for tensor in tensors]
        self._marks = [
            (weakref.ref(tensor), tensor.data_ptr(), _version(tensor), sample, sample.tobytes())
            for tensor, sample in zip(tensors, samples, strict=True)
        ]

    def state(self, tensors: Sequence[Tensor]) -> Literal["same", "changed", "other"]:
        """Whether these are the tensors that were compiled in, with the values they had then."""
        if len(tensors) != len(self._marks):
            return "other"
        changed = False
        for tensor, (ref, pointer, version, sample, bits) in zip(tensors, self._marks, strict=True):
            if ref() is not tensor:
                return "other"
            if self._values and not changed:
                changed = (
                    pointer != tensor.data_ptr()
                    or version != _version(tensor)
                    or bits != sample.tobytes()
                )
        return "changed" if changed else "same"


def _version(tensor: Tensor) -> int:
    """The version counter; an inference tensor has none."""
    return -1 if tensor.is_inference() else tensor._version


def _sample(tensor: Tensor) -> _Array:
    """A view of some elements as integers, from the first to near the last; of all if it is small.

    Of a tensor with gaps, some of them may lie in the gaps.
    """
    real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    if not real.numel():
        return _NOTHING
    extent = 1 + sum((n - 1) * s for n, s in zip(real.shape, real.stride(), strict=True))
    flat = real.as_strided((extent,), (1,)).view(_BITS[real.element_size()])
    step = 1 if extent <= _WHOLE else (extent - 1) // (_SAMPLES - 1)
    found: _Array = flat[::step].numpy()
    return found
