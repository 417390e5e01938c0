"""The plan of a compiled module: what its `main` calls, with which pointers.  Pure data.

A plan is what code generation hands to the runtime.  It has a JSON form, which an artifact
stores, and knows neither TVM nor the loader.  All sizes and offsets are in bytes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from plait.ir.errors import PlanError
from plait.ir.graph import Blob
from plait.ir.types import DTYPES, LINE_BYTES

Space = Literal["input", "output", "arena", "weights"]
ALIGNMENT = LINE_BYTES  # of the arena, the weights, and their places in files


@dataclass(frozen=True)
class TensorSpec:
    """A named, densely packed row-major tensor: dtype name as in `plait.ir.types.DTYPES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype that carries it (bfloat16 travels as uint16)."""
        return DTYPES[self.dtype].numpy

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class WeightSpec(TensorSpec):
    """A tensor inside the weights blob, at a multiple of `ALIGNMENT`."""

    byte_offset: int = 0


@dataclass(frozen=True)
class PointerArg:
    """A pointer: byte `byte_offset` of a space.  `index` picks the input or the output."""

    space: Space
    index: int = 0
    byte_offset: int = 0


@dataclass(frozen=True)
class Call:
    """A call of the kernel exported as `symbol`; `label` says for people what it computes.

    `parts`: 0 if the kernel starts threads by itself; else the calls that make it whole, which any
    threads may do, with the number of the part as the last argument if there are several.
    """

    symbol: str
    args: tuple[PointerArg, ...]
    label: str = ""
    parts: int = 0


@dataclass(frozen=True)
class Code:
    """The object of a kernel, and in how many parts it is called, as in `Call`."""

    data: bytes
    parts: int = 0

    def to_bytes(self) -> bytes:
        return b"%d\n" % self.parts + self.data

    @staticmethod
    def from_bytes(stored: bytes) -> Code:
        """What `to_bytes` made."""
        parts, _, data = stored.partition(b"\n")
        return Code(data, int(parts))


@dataclass(frozen=True)
class Copy:
    """`nbytes` moved from `src` to `dst`: an output that is an input or a weight, say."""

    dst: PointerArg
    src: PointerArg
    nbytes: int


@dataclass(frozen=True)
class ModulePlan:
    """A whole module: its interface, its memory, and the steps of one run in order.

    `threads`: for how many it is made.  A kernel of so many parts or fewer has one for each thread;
    threads take the parts of others as they go.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[Call | Copy, ...]
    arena_bytes: int = 0
    weights: tuple[WeightSpec, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict[str, str])
    threads: int = 1

    @cached_property
    def weights_bytes(self) -> int:
        return max((w.byte_offset + w.nbytes for w in self.weights), default=0)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The kernels called, each once, in order of first use."""
        return tuple(dict.fromkeys(s.symbol for s in self.steps if isinstance(s, Call)))

    @cached_property
    def main_symbol(self) -> str:
        """The name of `main`, derived from the content, so that modules never share one."""
        digest = sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()
        return f"main_{digest[:32]}"

    @property
    def steps_symbol(self) -> str:
        return f"{self.main_symbol}_steps"

    @property
    def check_symbol(self) -> str:
        return f"{self.main_symbol}_check"

    @property
    def run_symbol(self) -> str:
        return f"{self.main_symbol}_run"

    def check(self) -> None:
        """Raise `PlanError` if a pointer leaves its space, a weight is misplaced, or a name of an
        input, of an output or of a weight stands for two."""
        for what, specs in (("inputs", self.inputs), ("outputs", self.outputs),
                            ("weights", self.weights)):  # fmt: skip
            names = Counter(spec.name for spec in specs)
            if twice := [name for name, count in names.items() if count > 1]:
                raise PlanError(f"{what} share the name {twice[0]!r}")
        for step in self.steps:
            pointers = step.args if isinstance(step, Call) else (step.dst, step.src)
            extent = step.nbytes if isinstance(step, Copy) else 0
            name = step.symbol if isinstance(step, Call) else "copy"
            for pointer in pointers:
                _check_pointer(self, name, pointer, extent)
        for weight in self.weights:
            if weight.byte_offset % ALIGNMENT:
                raise PlanError(f"weight {weight.name!r} is not {ALIGNMENT}-byte aligned")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "inputs": [_spec_json(t) for t in self.inputs],
            "outputs": [_spec_json(t) for t in self.outputs],
            "steps": [_step_json(s) for s in self.steps],
            "arena_bytes": self.arena_bytes,
            "weights": [{**_spec_json(w), "offset": w.byte_offset} for w in self.weights],
            "meta": dict(self.meta),
            **({"threads": self.threads} if self.threads > 1 else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ModulePlan:
        """The plan that `to_json` wrote; `PlanError` names a field that is missing or wrong."""
        try:
            plan = ModulePlan(
                name=str(data["name"]),
                inputs=tuple(_spec(t) for t in data["inputs"]),
                outputs=tuple(_spec(t) for t in data["outputs"]),
                steps=tuple(_step(s) for s in data["steps"]),
                arena_bytes=int(data["arena_bytes"]),
                weights=tuple(_weight(w) for w in data["weights"]),
                meta={str(k): str(v) for k, v in data["meta"].items()},
                threads=int(data.get("threads", 1)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"the plan is malformed: {error!r}") from error
        plan.check()
        return plan


def align(nbytes: int, to: int = ALIGNMENT) -> int:
    """The next multiple of `to`."""
    return -(-nbytes // to) * to


def distinct(names: Sequence[str]) -> list[str]:
    """The names in order; what was there before gets a number, `name_2`, that makes it new."""
    found: dict[str, None] = {}
    for name in names:
        new, number = name, 2
        while new in found or (new != name and new in names):
            new, number = f"{name}_{number}", number + 1
        found[new] = None
    return list(found)


def place_weights(weights: Iterable[TensorSpec]) -> tuple[WeightSpec, ...]:
    """Give each weight its offset in the blob, in the order given, each aligned."""
    placed: list[WeightSpec] = []
    at = 0
    for w in weights:
        placed.append(WeightSpec(w.name, w.dtype, w.shape, at))
        at = align(at + w.nbytes)
    return tuple(placed)


def gather_weights(
    specs: Sequence[WeightSpec], constants: Mapping[str, Sequence[Blob]]
) -> NDArray[np.uint8]:
    """The weights as kernels read them (uint8, aligned, read-only), given equal constants by name.

    The constants lie there from then on and let go of the memory they were in, one by one: it holds
    a model's weights no more than once.  Raises `PlanError` for one that does not have the dtype
    and shape of its spec.
    """
    memory = aligned_empty(max((w.byte_offset + w.nbytes for w in specs), default=0))
    end = 0
    for spec in sorted(specs, key=lambda w: w.byte_offset):
        memory[end : spec.byte_offset] = 0
        end = spec.byte_offset + spec.nbytes

    def move(spec: WeightSpec) -> None:
        blobs = constants[spec.name]
        place = memory[spec.byte_offset : spec.byte_offset + spec.nbytes]
        place[:] = weight_bytes(spec, blobs[0].array)
        for blob in blobs:
            blob.move(place)

    # Copying lets go of the interpreter's lock, and most of it is the first touch of pages.
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(move, specs))
    memory.flags.writeable = False
    return memory


def weight_bytes(spec: TensorSpec, array: NDArray[Any]) -> NDArray[np.uint8]:
    """`array` as flat bytes, after checking it against `spec`."""
    if array.shape != spec.shape or array.dtype.itemsize != spec.numpy.itemsize:
        got = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
        raise PlanError(f"weight {spec.name!r}: expected {spec}, got {got}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def aligned_empty(nbytes: int) -> NDArray[np.uint8]:
    """`nbytes` uninitialised bytes (uint8) that start on an `ALIGNMENT` boundary."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


def _check_pointer(plan: ModulePlan, name: str, pointer: PointerArg, extent: int) -> None:
    tensors = {"input": plan.inputs, "output": plan.outputs}.get(pointer.space)
    if tensors is None:
        size = plan.arena_bytes if pointer.space == "arena" else plan.weights_bytes
    elif 0 <= pointer.index < len(tensors):
        size = tensors[pointer.index].nbytes
    else:
        raise PlanError(f"{name}: there is no {pointer.space} {pointer.index}")
    if not 0 <= pointer.byte_offset <= size - extent:
        raise PlanError(
            f"{name}: byte {pointer.byte_offset} + {extent} is outside the "
            f"{pointer.space} of {size} bytes"
        )


def _spec_json(t: TensorSpec) -> dict[str, Any]:
    return {"name": t.name, "dtype": t.dtype, "shape": list(t.shape)}


def _spec(data: Mapping[str, Any]) -> TensorSpec:
    if data["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {data['dtype']!r}")
    return TensorSpec(str(data["name"]), data["dtype"], tuple(int(d) for d in data["shape"]))


def _weight(data: Mapping[str, Any]) -> WeightSpec:
    t = _spec(data)
    return WeightSpec(t.name, t.dtype, t.shape, int(data["offset"]))


def _pointer_json(p: PointerArg) -> list[str | int]:
    return [p.space, p.index, p.byte_offset]


def _pointer(data: Sequence[Any]) -> PointerArg:
    space, index, offset = data
    if space not in get_args(Space):
        raise ValueError(f"unknown space {space!r}")
    return PointerArg(cast(Space, space), int(index), int(offset))


def _step_json(step: Call | Copy) -> dict[str, Any]:
    if isinstance(step, Copy):
        return {
            "copy": [_pointer_json(step.dst), _pointer_json(step.src)],
            "nbytes": step.nbytes,
        }
    args = [_pointer_json(a) for a in step.args]
    parts = {"parts": step.parts} if step.parts else {}  # artifacts of before have none
    return {"call": step.symbol, "args": args, "label": step.label, **parts}


def _step(data: Mapping[str, Any]) -> Call | Copy:
    if "copy" in data:
        dst, src = data["copy"]
        return Copy(_pointer(dst), _pointer(src), int(data["nbytes"]))
    args = tuple(_pointer(a) for a in data["args"])
    return Call(str(data["call"]), args, str(data["label"]), int(data.get("parts", 0)))
