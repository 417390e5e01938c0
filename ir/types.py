"""Types: element type, tensor type (logical shape plus physical layout)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from plait.ir.dims import Dim, product
from plait.ir.errors import UnsupportedSymbol

LINE_BYTES = 64  # a cache line, and the widest vector of any CPU target


@dataclass(frozen=True, order=True)
class DType:
    """An element type: `kind` is one of f (float), i, u (integers), b (bool), c (complex)."""

    name: str
    kind: str
    bits: int

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype; bf16, which numpy lacks, is carried as its raw 16 bits."""
        return np.dtype(_NUMPY.get(self.name, self.name))

    @property
    def itemsize(self) -> int:
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_int(self) -> bool:
        return self.kind in "iu"

    def __str__(self) -> str:
        return self.name


f64, f32, f16 = DType("float64", "f", 64), DType("float32", "f", 32), DType("float16", "f", 16)
bf16 = DType("bfloat16", "f", 16)
i64, i32, i16, i8 = (DType(f"int{b}", "i", b) for b in (64, 32, 16, 8))
u64, u32, u16, u8 = (DType(f"uint{b}", "u", b) for b in (64, 32, 16, 8))
bool_ = DType("bool", "b", 8)
c64, c128 = DType("complex64", "c", 64), DType("complex128", "c", 128)

DTYPES: dict[str, DType] = {
    t.name: t for t in (f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, bool_, c64, c128)
}
_NUMPY = {"bfloat16": "uint16"}


def from_numpy(dtype: np.dtype[Any]) -> DType:
    """The element type of a numpy array."""
    return DTYPES[dtype.name]


@dataclass(frozen=True)
class TensorType:
    """A tensor: element type, logical shape, and the physical order of its dimensions.

    `layout` lists logical dimensions outermost first; None is row-major.  A (N, C, H, W) image
    stored as NHWC has layout (0, 2, 3, 1).  Meaning is defined on the logical shape alone.
    """

    dtype: DType
    shape: tuple[Dim, ...]
    layout: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout == tuple(range(self.rank)):
            object.__setattr__(self, "layout", None)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def order(self) -> tuple[int, ...]:
        """Logical dimensions from outermost to innermost in memory."""
        return self.layout if self.layout is not None else tuple(range(self.rank))

    @property
    def size(self) -> Dim:
        """Number of elements."""
        return product(self.shape)

    def static(self, stage: str) -> tuple[int, ...]:
        """The shape as ints, or `UnsupportedSymbol` naming the symbolic dimension."""
        for dim in self.shape:
            if not isinstance(dim, int):
                raise UnsupportedSymbol(stage=stage, dim=str(dim))
        return tuple(d for d in self.shape if isinstance(d, int))

    def nbytes(self, stage: str) -> int:
        """Bytes of all elements, or `UnsupportedSymbol` naming the symbolic dimension."""
        return math.prod(self.static(stage)) * self.dtype.itemsize

    def with_dtype(self, dtype: DType) -> TensorType:
        return replace(self, dtype=dtype)

    def with_layout(self, layout: tuple[int, ...] | None) -> TensorType:
        return replace(self, layout=layout)

    def __str__(self) -> str:
        from plait.ir.text import show_type

        return show_type(self)
