"""The fallback op: a call of a torch operator that has no lowering.

It keeps a captured graph whole. A backend that has torch runs it on the host between kernels; a
standalone artifact refuses it. Torch is imported only to run an operator.

The arguments are JSON: ``{"args": [...], "kwargs": {...}, "draw": n}`` holds literals and tagged
objects. ``{"$": k}`` is operand k, ``{"torch": name}`` an attribute of the torch module (dtype,
layout, memory format), ``{"device": name}``, ``{"complex": [real, imaginary]}``, ``{"size": text}``
a symbolic size. ``draw`` numbers the calls that draw random numbers, so that no two are equal and
their order is known; it is absent from all others.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.ir.errors import UnsupportedOp
from plait.ir.graph import Node
from plait.ir.op import REQUIRED, Call, Op, register
from plait.ir.types import DTYPES, TensorType


@lru_cache(1024)
def _parse(arguments: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(arguments)
    return data


def draws(node: Node) -> bool:
    """Whether an ``aten`` node draws random numbers."""
    return "draw" in _parse(node.attrs["arguments"])


def _decode(value: Any, tensors: Sequence[Any], target: str) -> Any:
    import torch

    if isinstance(value, list):
        return [_decode(item, tensors, target) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    match tag:
        case "$":
            return tensors[content]
        case "torch":
            return getattr(torch, content)
        case "device":
            return torch.device(content)
        case "complex":
            return complex(*content)
    raise UnsupportedOp(f"{target} with the symbolic size {content}")


def bind(target: str, arguments: str) -> Callable[[Sequence[Any]], list[Any]]:
    """The call of an operator, for instance ``aten.sort.stable``, as a function of torch tensors.

    It gives the tensor results in order, nested lists unrolled, results of other types dropped.
    """
    import torch

    operators: Any = torch.ops
    function = reduce(getattr, target.split("."), operators)
    data = _parse(arguments)

    def run(tensors: Sequence[Any]) -> list[Any]:
        args = _decode(data["args"], tensors, target)
        kwargs = {name: _decode(value, tensors, target) for name, value in data["kwargs"].items()}
        return _tensors(function(*args, **kwargs))

    return run


def _tensors(out: Any) -> list[Any]:
    import torch

    if isinstance(out, torch.Tensor):
        return [out]
    return reduce(operator.iadd, map(_tensors, out), []) if isinstance(out, list | tuple) else []


def _infer(c: Call) -> tuple[TensorType, ...]:
    return tuple(
        TensorType(DTYPES[dtype], tuple(shape))
        for dtype, shape in zip(c.dtypes, c.shapes, strict=True)
    )


def to_torch(array: NDArray[Any], type: TensorType) -> Any:
    """A new torch tensor with the array's elements."""
    import torch

    return torch.from_numpy(np.array(array, order="C")).view(getattr(torch, type.dtype.name))


def to_numpy(tensor: Any) -> NDArray[Any]:
    """A torch tensor's elements, its memory itself where it can be; bfloat16 as its 16 bits."""
    import torch

    bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[Any] = bits.numpy(force=True)
    return array


def _reference(c: Call, *arrays: Any) -> Any:
    """Run through torch on copies, since an operator may keep or change its operands."""
    tensors = [to_torch(a, ty) for a, ty in zip(arrays, c.types, strict=True)]
    found = bind(c.target, c.arguments)(tensors)
    results = [to_numpy(result.contiguous()) for result in found]
    return results[0] if len(results) == 1 else tuple(results)


register(
    Op("aten", ("*x",), _infer, _reference,
       attrs={"target": REQUIRED, "arguments": REQUIRED, "dtypes": REQUIRED, "shapes": REQUIRED},
       traits=frozenset({"opaque", "host"}), precision="approx",
       doc="Torch's own operator `target`, where Plait has no lowering. `arguments` is the JSON "
       "form of its arguments; `dtypes` and `shapes` are those of its tensor results.")
)  # fmt: skip
