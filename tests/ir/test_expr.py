"""Scalar expressions: the checks made while they are built."""

from __future__ import annotations

import pytest

from plait.ir import expr as e
from plait.ir import types as t

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
