"""Every op record on its samples: type rule, references, compute definition, decomposition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plait.fuzz.samples import SAMPLES, Sample, missing
from plait.ir import op as ops
from plait.ir.builder import Builder
from plait.ir.expr_eval import evaluate
from plait.ir.interp import interpret
from plait.ir.verify import verify

# Relative to the largest finite magnitude of the result, by the record's stated precision.
TOLERANCE = {"exact": 0.0, "rounded": 3e-7, "sum": 3e-6, "approx": 4e-6}


def reference(sample: Sample) -> tuple[Any, ...]:
    record = ops.get(sample.op)
    found = record.reference(record.call(sample.complete, sample.types), *sample.arrays)
    return found if isinstance(found, tuple) else (found,)


def assert_close(got: Any, want: Any, precision: str) -> None:
    """Equal NaNs and infinities, and finite values near each other."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, want)
        return
    wide = want.astype(np.float64)
    with np.errstate(over="ignore"):
        wide = np.where(np.isfinite(wide.astype(got.dtype)), wide, wide.astype(got.dtype))
    finite = np.abs(wide[np.isfinite(wide)])
    bar = TOLERANCE[precision] * (1 if got.dtype == np.float32 else 1e-6)
    scale = finite.max(initial=0.0) if precision in ("sum", "approx") else 0.0
    floor = 0.0 if precision == "exact" else float(np.finfo(got.dtype).tiny)
    np.testing.assert_allclose(got.astype(np.float64), wide, rtol=bar, atol=max(bar * scale, floor))


def test_every_op_has_a_sample() -> None:
    assert missing() == []


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_the_reference_has_the_inferred_type(sample: Sample) -> None:
    graph = sample.graph()
    verify(graph)
    outputs = interpret(graph, sample.arrays)
    for array, ty in zip(outputs, graph.output_types, strict=True):
        assert (array.dtype, array.shape) == (ty.dtype.numpy, ty.shape)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_single_precision_is_near_double(sample: Sample) -> None:
    precision = ops.get(sample.op).precision
    if sample.op == "kernel":
        pytest.skip("a body has the types it was built with")
    wide = reference(sample.in_float64())
    for got, want in zip(reference(sample), wide, strict=True):
        assert_close(got, want, "rounded" if precision == "exact" else precision)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize("double", [False, True], ids=["f32", "f64"])
def test_the_compute_definition_agrees(sample: Sample, double: bool) -> None:
    if sample.op == "constant" and sample.label != "scalar":
        pytest.skip("a constant tensor has no compute definition")
    sample = sample.in_float64() if double else sample
    record = ops.get(sample.op)
    computes = record.computes(sample.complete, sample.types)
    if computes is None:
        assert record.decompose or record.traits & {"opaque", "kernel", "layout"}
        return
    types = record.result_types(sample.complete, sample.types)
    for compute, ty, want in zip(computes, types, reference(sample), strict=True):
        assert tuple(a.extent for a in compute.axes) == ty.shape
        assert compute.body.dtype == ty.dtype
        assert_close(evaluate(compute, sample.arrays), want, record.precision)


COMPOSITES = [s for s in SAMPLES if ops.get(s.op).decompose]


@pytest.mark.parametrize("sample", COMPOSITES, ids=str)
@pytest.mark.parametrize("double", [False, True], ids=["f32", "f64"])
def test_the_decomposition_means_the_same(sample: Sample, double: bool) -> None:
    sample = sample.in_float64() if double else sample
    record = ops.get(sample.op)
    decompose = record.decompose
    assert decompose is not None
    b = Builder()
    values = [b.input(ty) for ty in sample.types]
    found = decompose(b, record.call(sample.complete, sample.types), *values)
    graph = b.finish(found if isinstance(found, tuple) else (found,))
    verify(graph)
    assert graph.output_types == record.result_types(sample.complete, sample.types)
    for got, want in zip(interpret(graph, sample.arrays), reference(sample), strict=True):
        assert_close(got, want, "approx" if record.precision == "approx" else "sum")


def test_every_record_is_documented() -> None:
    for record in ops.OPS.values():
        assert record.doc.endswith(".") and record.precision in TOLERANCE, record.name
