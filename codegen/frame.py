"""The table through which Python hands a call to native code, and where numpy keeps an array.

A frame is words of 64 bits: where the data of each input and output is, the arena, the weights, how
the run ended (0: well), the type `numpy.ndarray`, then the dtype object of each input and output.
"""

from __future__ import annotations

from dataclasses import dataclass

# Words of an array object: PyArrayObject_fields of numpy's C interface behind CPython's header.
TYPE, DATA, RANK, DIMENSIONS, DTYPE, FLAGS = 1, 2, 3, 4, 7, 8
ITEMS = tuple.__basicsize__  # bytes from a tuple object's start to its items
READY = 0x1 | 0x100  # flags: dense and row-major, aligned
REFUSED = -2  # what `check` returns for arrays that are not as the plan says


@dataclass(frozen=True)
class FrameLayout:
    """Where what is in a frame for a number of tensors: inputs and outputs."""

    tensors: int

    @property
    def arena(self) -> int:
        return self.tensors

    @property
    def weights(self) -> int:
        return self.tensors + 1

    @property
    def status(self) -> int:
        return self.tensors + 2

    @property
    def type(self) -> int:
        return self.tensors + 3

    @property
    def dtypes(self) -> int:
        return self.tensors + 4

    @property
    def size(self) -> int:
        return self.dtypes + self.tensors
