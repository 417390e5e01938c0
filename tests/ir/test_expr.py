"""Scalar expressions: the checks made while they are built."""

from __future__ import annotations

import numpy as np
import pytest

from plait.ir import expr as e
from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.dims import symbol
from plait.ir.functions import FUNCTIONS
from plait.ir.graph import Attrs
from plait.ir.types import TensorType

X = e.Load(0, (), t.f32)
N = e.Load(1, (), t.i64)
YES = e.Load(2, (), t.bool_)


def test_numbers_take_the_dtype_of_the_other_operand() -> None:
    made = [X + 1, 2 * N, e.select(YES, 0, N), e.guard(YES, X, 0), e.fma(X, 2, 1)]
    assert [m.dtype for m in made] == [t.f32, t.i64, t.i64, t.f32, t.f32]
    assert all(a.dtype == m.dtype for m in made[:2] for a in e.children(m))


@pytest.mark.parametrize(
    "make",
    [
        lambda: X + N,
        lambda: X < N,
        lambda: e.select(YES, X, N),
        lambda: e.guard(YES, X, N),
        lambda: e.fma(X, N, 1),
    ],
)
def test_mixed_dtypes_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(TypeError, match="float32 and int64: cast one of them"):
        make()


def test_numbers_alone_have_no_dtype() -> None:
    with pytest.raises(TypeError, match="select of Python numbers alone"):
        e.select(YES, 1, 0)


def test_whole_numbers_divided_by_zero_give_zero() -> None:
    zero = np.zeros(3, np.int32)
    for name in ("floordiv", "truncdiv", "mod", "fmod"):
        with np.errstate(divide="ignore"):
            found = FUNCTIONS[name](np.array([-7, 0, 7], np.int32), zero)
        assert found.tolist() == [0, 0, 0], name


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_to_a_symbolic_number_of_channels_has_a_meaning(groups: int) -> None:
    out = symbol("n", 1, 8) * groups
    types = (TensorType(t.f32, (1, 4, 5)), TensorType(t.f32, (out, 4 // groups, 3)))
    one = (1,)
    attrs = Attrs(stride=one, low=(0,), high=(0,), dilation=one, groups=groups)
    computes = ops.get("conv").computes(attrs, types)
    assert computes is not None
    assert [a.extent for a in computes[0].axes] == [1, out, 3]
