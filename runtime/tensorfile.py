"""The safetensors form of named tensors, written so that each can be used where it lies in memory.

Every tensor starts at a multiple of 64 bytes from the start of the file.  The format allows no
gaps, so what lies between two tensors is itself a (uint8) tensor, named `__pad.<n>`.
Source: the format's description at https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.codegen.plan import ALIGNMENT, TensorSpec, WeightSpec, align, weight_bytes
from plait.ir.types import DTYPES

_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
_NAMES = {code: name for name, code in _CODES.items()}
_PAD = "__pad."
_LENGTH = 8  # bytes of the header's length


def encode(
    specs: Sequence[WeightSpec], arrays: Mapping[str, NDArray[Any]]
) -> Iterator[bytes | memoryview]:
    """The file in pieces: header, then the tensors at their offsets.  Specs are in offset order."""
    header: dict[str, Any] = {}
    at = 0
    for spec in specs:
        if spec.byte_offset > at:
            header[f"{_PAD}{len(header)}"] = _entry("U8", [spec.byte_offset - at], at)
        header[spec.name] = _entry(_CODES[spec.dtype], list(spec.shape), spec.byte_offset)
        at = spec.byte_offset + spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    size = align(_LENGTH + len(text)) - _LENGTH
    yield size.to_bytes(_LENGTH, "little") + text.ljust(size)
    at = 0
    for spec in specs:
        yield bytes(spec.byte_offset - at)
        yield weight_bytes(spec, arrays[spec.name]).data
        at = spec.byte_offset + spec.nbytes


def decode(data: NDArray[np.uint8]) -> tuple[tuple[WeightSpec, ...], NDArray[np.uint8]]:
    """The tensors' specs, and the bytes (a view of `data`, uint8) that their offsets count in.

    Raises `ValueError` with a sentence when `data` is not such a file.
    """
    if len(data) < _LENGTH:
        raise ValueError("the tensor file is shorter than its header")
    size = int.from_bytes(data[:_LENGTH].tobytes(), "little")
    body = data[_LENGTH + size :]
    try:
        header = json.loads(data[_LENGTH : _LENGTH + size].tobytes())
        specs = tuple(_specs(header))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the tensor file's header is malformed: {error}") from error
    for spec in specs:
        if spec.byte_offset + spec.nbytes > len(body):
            raise ValueError(f"tensor {spec.name!r} lies outside its file")
    return specs, body


def view(spec: WeightSpec, body: NDArray[np.uint8]) -> NDArray[Any]:
    """One tensor, without a copy."""
    raw = body[spec.byte_offset : spec.byte_offset + spec.nbytes]
    return raw.view(spec.numpy).reshape(spec.shape)


def spec_of(name: str, array: NDArray[Any]) -> TensorSpec:
    """The spec of an array that stands for itself (uint16 is uint16, not bfloat16)."""
    return TensorSpec(name, DTYPES[array.dtype.name].name, array.shape)


def _entry(code: str, shape: list[int], at: int) -> dict[str, Any]:
    nbytes = int(np.prod(shape, dtype=np.int64)) * DTYPES[_NAMES[code]].itemsize
    return {"dtype": code, "shape": shape, "data_offsets": [at, at + nbytes]}


def _specs(header: Mapping[str, Any]) -> Iterable[WeightSpec]:
    for name, entry in header.items():
        if name == "__metadata__" or name.startswith(_PAD):
            continue
        begin, end = entry["data_offsets"]
        shape = tuple(int(d) for d in entry["shape"])
        spec = WeightSpec(name, _NAMES[entry["dtype"]], shape, int(begin))
        if spec.nbytes != end - begin or begin < 0 or begin % ALIGNMENT:
            raise ValueError(f"tensor {name!r} does not fit its offsets")
        yield spec
