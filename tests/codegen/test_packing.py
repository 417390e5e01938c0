"""Packed weights: the movement at the head of a packed body recovers what was packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Attrs, Node
from plait.ir.interp import interpret
from plait.ir.types import TensorType, from_numpy
from plait.passes.packing import FORMS
from tests.codegen.graphs import normal

CONV = {"stride": (1, 1), "low": (0, 0), "high": (0, 0), "dilation": (1, 1)}
CASES: list[tuple[str, int, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = [
    ("panels", 16, (7, 40), {"rhs_batch": (), "rhs_contract": (0,)}, (3, 7, 16)),
    ("panels", 8, (2, 9), {"rhs_batch": (), "rhs_contract": (1,)}, (1, 9, 8)),
    ("panels", 8, (5, 6, 4), {"rhs_batch": (), "rhs_contract": (2, 0)}, (1, 20, 8)),
    ("conv", 16, (20, 3, 2, 3), {**CONV, "groups": 1}, (2, 2, 3, 3, 16)),
    ("conv", 8, (30, 4, 3), {**CONV, "groups": 3}, (6, 3, 4, 8)),
    ("depthwise", 0, (6, 1, 3, 2), {**CONV, "groups": 6}, (3, 2, 6)),
    ("narrow", 8, (3, 16, 2, 5), {**CONV, "groups": 1}, (2, 5, 2, 3, 8)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_unpack_inverts_pack(
    case: tuple[str, int, tuple[int, ...], dict[str, Any], tuple[int, ...]],
) -> None:
    name, block, shape, attrs, packed_shape = case
    w = normal(0, *shape)
    type = TensorType(t.f32, shape)
    form = FORMS[name](Node("any", (), Attrs(attrs), ()), type, block)
    packed = form.pack(w)
    assert packed.shape == packed_shape
    b = Builder()
    x = b.input(TensorType(from_numpy(packed.dtype), packed.shape))
    (got,) = interpret(b.finish([form.unpack(b, x, type)]), [packed])
    np.testing.assert_array_equal(got, w)
