"""A compiled model's outputs held against expected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from plait.codegen.plan import TensorSpec
from plait.ir.agreement import Agreement, compare

Arrays = Mapping[str, NDArray[Any]]


def check_outputs(specs: Sequence[TensorSpec], got: Arrays, want: Arrays) -> dict[str, Agreement]:
    """How each output, by name, agrees with the expected one."""
    return {
        spec.name: compare(declared(spec, got[spec.name]), declared(spec, want[spec.name]))
        for spec in specs
    }


def declared(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """`array` with the dtype that its spec names (bfloat16 travels as uint16)."""
    if spec.dtype == "bfloat16":
        import ml_dtypes

        return array.view(ml_dtypes.bfloat16)
    return array
