"""The tensor file: round trip through our reader and safetensors', and malformed files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors

from plait.codegen.plan import TensorSpec, place_weights
from plait.runtime.tensorfile import decode, encode, view

ARRAYS = {
    "f": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(7, np.int64),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 4), np.float16),
    "long": np.arange(100, dtype=np.uint8),
}


def encoded() -> bytes:
    specs = place_weights(TensorSpec(k, a.dtype.name, a.shape) for k, a in ARRAYS.items())
    return b"".join(encode(specs, ARRAYS))


def test_round_trip() -> None:
    specs, body = decode(np.frombuffer(encoded(), np.uint8))
    assert [s.name for s in specs] == list(ARRAYS)
    for spec in specs:
        np.testing.assert_array_equal(view(spec, body), ARRAYS[spec.name])


def test_safetensors_reads_it() -> None:
    theirs = load_safetensors(encoded())
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(theirs[name], array)


def test_nothing_at_all() -> None:
    specs, body = decode(np.frombuffer(b"".join(encode((), {})), np.uint8))
    assert specs == () and len(body) == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "shorter than its header"),
        (encoded()[:40], "header is malformed"),
        (encoded()[:-50], "tensor 'long' lies outside"),
        (b"\xff" * 64, "header is malformed"),
    ],
)
def test_malformed(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(np.frombuffer(data, np.uint8))


def test_offsets_that_do_not_fit() -> None:
    header = {"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(12)
    with pytest.raises(ValueError, match="tensor 'x' does not fit its offsets"):
        decode(np.frombuffer(data, np.uint8))
