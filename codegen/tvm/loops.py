"""What makes TIR loops and flat memory: shared by every template that writes TIR directly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tvm import tirx

from plait.codegen.core import core, simd
from plait.codegen.tiles import L2_BYTES, LINE, ceil_div
from plait.codegen.tvm.past import PAST, marked
from plait.codegen.tvm.scalars import FUNCTIONS, bindings, const, dtype_of, tir_dtype
from plait.ir import types as t
from plait.ir.dims import Dim
from plait.ir.errors import Unsupported
from plait.ir.graph import Graph
from plait.ir.layout import pitched
from plait.ir.types import TensorType

PrimExpr = Any
Stmt = Any
LEAST = 8  # elements of the shortest vector that is worth its code
# Below about this many elementary operations a second thread costs more than it saves.
PARALLEL_WORK = 30_000
_MOST = 2**31 - 1  # positions and loop variables are int32


def loop(n: int | PrimExpr, body: Callable[[Any], Stmt], kind: Any = None, name: str = "i") -> Stmt:
    """A loop of `n` iterations, which may be computed; a single one needs no loop."""
    if isinstance(n, int):
        if n == 1 and kind != tirx.ForKind.VECTORIZED:
            return body(const(0, "int32"))
        n = const(n, "int32")
    var = tirx.Var(name, "int32")
    return tirx.For(var, const(0, "int32"), n, kind or tirx.ForKind.SERIAL, body(var))


def sequence(stmts: Sequence[Stmt]) -> Stmt:
    kept = [s for s in stmts if s is not None]
    if not kept:
        return tirx.Evaluate(const(0, "int32"))
    return kept[0] if len(kept) == 1 else tirx.SeqStmt(kept)


def unflatten(position: PrimExpr, extents: Sequence[int]) -> list[PrimExpr]:
    """The index of a row-major position."""
    index: list[PrimExpr] = []
    for n in reversed(extents[1:]):
        index.append(tirx.floormod(position, n))
        position = tirx.floordiv(position, n)
    return ([position, *reversed(index)]) if extents else []


def arranged(dims: Iterable[int], index: Iterable[PrimExpr]) -> list[PrimExpr]:
    """An index in the order of dimensions, given in the order of `dims`."""
    pairs = sorted(zip(dims, index, strict=True), key=lambda pair: pair[0])
    return [i for _, i in pairs]


@dataclass(frozen=True)
class Memory:
    """Where a tensor lies: a buffer that may hold a part of it, and the place of element 0.

    The place is below 0 where the buffer holds a later part.  Rows of the innermost dimension lie
    `pitch` elements apart, side by side if it is 0.
    """

    buffer: Any
    start: PrimExpr | int = 0
    pitch: int = 0


@dataclass
class Flat:
    """A tensor as flat memory, addressed by logical index.

    past: whether what is stored goes past the caches.
    """

    type: TensorType
    buffer: Any
    start: PrimExpr | int = 0
    pitch: int = 0
    past: bool = False
    steps: tuple[Dim, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.steps = pitched(self.type, self.pitch)

    def at(self, index: Sequence[PrimExpr]) -> PrimExpr:
        offset: PrimExpr = const(self.start, "int32") if isinstance(self.start, int) else self.start
        for i, step, n in zip(index, self.steps, self.type.shape, strict=True):
            if n != 1:
                offset = offset + i * step if step != 1 else offset + i
        return offset

    def load(self, index: Sequence[PrimExpr]) -> PrimExpr:
        return self.buffer[self.at(index)]

    def store(self, index: Sequence[PrimExpr], value: PrimExpr) -> Stmt:
        store = tirx.BufferStore(self.buffer, value, [self.at(index)])
        return marked(store) if self.past else store


def size_of(type: TensorType) -> int:
    """The elements of a tensor; `Unsupported` if their positions do not fit int32."""
    return indexed(math.prod(type.static("TVM code generation")), f"a tensor of {type}")


def indexed(size: int, what: str) -> int:
    """`size`, the elements of a buffer; `Unsupported` if their positions do not fit int32."""
    if size > _MOST:
        raise Unsupported(f"{what} has {size} elements, but CPU kernels index at most {_MOST}")
    return size


def flat(type: TensorType, name: str) -> Flat:
    return Flat(type, tirx.decl_buffer((max(1, size_of(type)),), tir_dtype(type.dtype), name=name))


def check_sizes(body: Graph) -> None:
    """`Unsupported` if a value, also one that stays inside, has too many elements to count."""
    for type in body.types:
        size_of(type)


def apart(body: Graph, pitch: Sequence[int]) -> list[Memory]:
    """Where the inputs and outputs of a kernel lie, given the distances of their rows if any lie
    apart; nothing if all lie in one piece."""
    if not pitch:
        return []
    types = (*body.input_types, *body.output_types)
    names = [f"x{k}" for k in range(len(body.inputs))] + [f"y{k}" for k in range(len(body.outputs))]
    found = []
    for type, name, distance in zip(types, names, pitch, strict=True):
        width = type.static("TVM code generation")[type.order[-1]] if distance else 1
        size = size_of(type) // width * (distance or 1)
        if size > _MOST:
            raise Unsupported(f"{type} lies in a tensor of more than {_MOST} elements")
        buffer = tirx.decl_buffer((max(1, size),), tir_dtype(type.dtype), name=name)
        found.append(Memory(buffer, 0, distance))
    return found


class Parameters:
    """The flat memory of a body's inputs and outputs, in order; it checks all sizes.

    `places` says where they lie in a kernel of several bodies, the inputs first.
    """

    def __init__(self, body: Graph, places: Sequence[Memory] = ()) -> None:
        check_sizes(body)
        self.body = body
        if places:
            types = (*(i.type for i in body.inputs), *body.output_types)
            made = [
                Flat(ty, m.buffer, m.start, m.pitch) for ty, m in zip(types, places, strict=True)
            ]
            self.inputs, self.outputs = made[: len(body.inputs)], made[len(body.inputs) :]
        else:
            self.inputs = [flat(i.type, f"x{k}") for k, i in enumerate(body.inputs)]
            self.outputs = [flat(ty, f"y{k}") for k, ty in enumerate(body.output_types)]

    def send_past(self) -> None:
        """Let results that are too large for the caches go past them, unless they are read here."""
        for v, f in zip(self.body.outputs, self.outputs, strict=True):
            large = 0 < core().past_bytes < f.type.dtype.itemsize * size_of(f.type)
            f.past = large and not self.body.users[v]

    def function(self, stmts: Sequence[Stmt]) -> Any:
        """The PrimFunc of a kernel: its parameters are the inputs, then the outputs."""
        made = kernel([f.buffer for f in (*self.inputs, *self.outputs)], stmts)
        return made.with_attr(PAST, 1) if any(f.past for f in self.outputs) else made


def kernel(buffers: Sequence[Any], stmts: Sequence[Stmt]) -> Any:
    """The PrimFunc of statements over flat buffers."""
    return tirx.PrimFunc(buffers, sequence(stmts)).with_attr("s_tir", True)


def as_stored(value: PrimExpr, dtype: t.DType) -> PrimExpr:
    """Index arithmetic is int32; memory has the full width."""
    want = tir_dtype(dtype)
    return value if dtype_of(value) == want else value.astype(want)


def vector(stmt: Callable[[PrimExpr], Stmt], length: int = 0) -> Stmt:
    """`stmt` at all lanes of a vector, a whole one unless told."""
    return loop(length or simd(), stmt, tirx.ForKind.VECTORIZED, "v")


def vectors(count: int, stmt: Callable[[int, PrimExpr], Stmt]) -> list[Stmt]:
    """`stmt(u, lane)` for vectors u = 0..count-1, one vector loop after the other."""
    return [vector(partial(stmt, u)) for u in range(count)]


def unrolled(extent: int, body: Callable[[PrimExpr], Stmt]) -> Stmt:
    """A loop that TVM unrolls after its own passes, which then see little code."""
    return loop(extent, body, tirx.ForKind.UNROLLED, "u")


def across(width: int, stmt: Callable[[PrimExpr], Stmt]) -> Stmt:
    """`stmt` at 0..width-1 in vectors, unrolled; `width` is a multiple of `LEAST`."""
    whole, rest = divmod(width, simd())
    return sequence([
        unrolled(whole, lambda u: vector(lambda v: stmt(u * simd() + v))) if whole else None,
        vector(lambda v: stmt(whole * simd() + v), rest) if rest else None,
    ])  # fmt: skip


def along(extent: int, stmt: Callable[[PrimExpr], Stmt]) -> Stmt:
    """`stmt` at 0..extent-1: a loop of vectors, perhaps a shorter one, then the rest one by one."""
    whole, rest = divmod(extent, simd())
    at, first = whole * simd(), extent - rest % LEAST
    return sequence([
        loop(whole, lambda j: vector(lambda v: stmt(j * simd() + v)), None, "j") if whole else None,
        vector(lambda v: stmt(at + v), first - at) if first > at else None,
        loop(extent - first, lambda v: stmt(first + v), None, "tail") if extent > first else None,
    ])  # fmt: skip


def put(buffer: Any, at: PrimExpr, value: PrimExpr) -> Stmt:
    return tirx.BufferStore(buffer, value, [at])


def fill(buffer: Any, value: PrimExpr) -> Callable[[PrimExpr], Stmt]:
    """A statement that stores one value at a position of a buffer."""
    return lambda at: put(buffer, at, value)


def combine(kind: str, dtype: t.DType, a: PrimExpr, b: PrimExpr, numbers: bool = False) -> PrimExpr:
    """One step of a reduction; `a` is the accumulator, read from memory.

    numbers: whether a maximum or minimum need not keep NaN.
    """
    if kind in ("sum", "prod"):
        return FUNCTIONS[{"sum": "add", "prod": "mul"}[kind]](dtype, a, b)
    bound, b = bindings(b)  # TVM takes no value that binds inside of a value
    new = tirx.Var("new", dtype_of(b))  # the rules of these use it twice
    if numbers and dtype.is_float:
        found = {"max": tirx.max, "min": tirx.min}[kind](a, new)
    else:
        found = FUNCTIONS[kind](dtype, a, new)
    result = tirx.Let(new, b, found)
    for var, value in reversed(bound):
        result = tirx.Let(var, value, result)
    return result


def prefetch(buffer: Any, at: PrimExpr, write: bool = False, near: bool = False) -> Stmt:
    """Ask for the line of an element, to be read from L2 soon (from L1 if `near`) or written."""
    how = (const(n, "int32") for n in (int(write), 3 if write or near else 2, 1))
    line = tirx.address_of(buffer[at])
    return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", line, *how))


@dataclass(frozen=True)
class Ahead:
    """Asks for the next block of weights while one is in use.

    A block is read by `parts` passes of `steps` steps, `width` elements each; the first pass would
    wait for memory.  Here every step of every pass asks for its share of the next block instead,
    so that memory is read evenly.  All blocks are read `times` times, numbered on and on.
    """

    buffer: Any
    blocks: int
    steps: int
    width: int
    parts: int
    times: int = 1

    @property
    def worthwhile(self) -> bool:
        """Whether the weights are too many to stay in L2, and read more than once."""
        return self.parts > 1 and 4 * self.blocks * self.steps * self.width > L2_BYTES // 2

    def after(self, block: PrimExpr) -> PrimExpr:
        """The block that is read after one; after the last, itself."""
        following = tirx.min(block + 1, self.blocks * self.times - 1)
        return tirx.floormod(following, self.blocks) if self.times > 1 else following

    @property
    def share(self) -> int:
        """Elements of the next block that a step asks for: a part of a line, or whole lines."""
        share = ceil_div(self.width, self.parts)
        return share if share <= LINE else ceil_div(share, LINE) * LINE

    def at(self, following: PrimExpr, part: PrimExpr, step: PrimExpr) -> PrimExpr:
        """The first element of the block `following` to ask for in a step of a pass."""
        size, share = self.steps * self.width, self.share
        start = tirx.min(part * (self.steps * share), self.steps * (self.width - share))
        return following * size + start + step * share

    def ask(self, following: PrimExpr, part: PrimExpr, step: PrimExpr) -> Stmt:
        """Ask for the lines of a step's share."""
        first = self.at(following, part, step)
        return sequence([prefetch(self.buffer, first + k) for k in range(0, self.share, LINE)])

    def ask_after(self, block: PrimExpr, part: PrimExpr, step: PrimExpr) -> Stmt:
        """Ask for a step's share of the block after one."""
        return self.ask(self.after(block), part, step)
