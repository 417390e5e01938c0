"""Arguments of a torch operator as the JSON of an ``aten`` node (`plait.ir.ops.aten`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from plait.ir.builder import Value
from plait.ir.dims import SymDim
from plait.ir.errors import Unsupported
from plait.ir.types import DType


class Arguments:
    """Collects the tensors among an operator's arguments as operands, in order, once each."""

    def __init__(self) -> None:
        self.operands: list[Value] = []

    def text(self, args: Sequence[Any], kwargs: dict[str, Any], draw: int | None = None) -> str:
        """The JSON of the arguments; `draw` numbers a call that draws random numbers."""
        named = {name: self._encode(value) for name, value in kwargs.items()}
        data: dict[str, Any] = {"args": [self._encode(value) for value in args], "kwargs": named}
        if draw is not None:
            data["draw"] = draw
        return json.dumps(data)

    def _encode(self, value: Any) -> Any:
        if isinstance(value, Value):
            return {"$": self._operand(value)}
        if isinstance(value, list | tuple):
            return [self._encode(item) for item in value]
        if isinstance(value, DType):
            return {"torch": value.name}
        if isinstance(value, torch.layout | torch.memory_format):
            return {"torch": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, SymDim):
            return {"size": str(value)}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise Unsupported(f"an argument of type {type(value).__name__} cannot be recorded")

    def _operand(self, value: Value) -> int:
        if value not in self.operands:
            self.operands.append(value)
        return self.operands.index(value)
