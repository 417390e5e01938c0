"""Triton kernels of loop-nest bodies: source text from two templates.

`elementwise` gives each program a block of consecutive elements of the flattened space; `rows`
gives each program one row, held whole in a block whose size is the next power of two: it reduces
level by level in registers and reads memory once.  Sizes are numbers in the text, so a kernel's
source is its identity, and a program without a ragged end has no mask.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from plait.codegen.collapse import Space, collapse, loop_space
from plait.codegen.compose import Composer, Stop
from plait.codegen.triton.lower import Code, Source, tl_dtype
from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.errors import Unsupported
from plait.ir.graph import Graph, Node
from plait.ir.layout import strides
from plait.ir.types import TensorType

WARP = 32
# Above this a row does not fit the registers of one program.
MAX_ROW = 32_768
# Offsets from here on do not fit int32.
WIDE = 2**31

_STEPS = {"sum": "tl.sum({x}, 0)", "prod": "tl.reduce({x}, 0, device.product)",
          "max": "tl.reduce({x}, 0, device.largest)",
          "min": "tl.reduce({x}, 0, device.smallest)"}  # fmt: skip


@dataclass(frozen=True)
class TritonKernel:
    """A kernel as text: `name` is its function in the module `source`.

    It takes pointers to `inputs`, then `outputs`, each aligned to 16 bytes and laid out as its
    type says, and runs `programs` programs of `warps` warps.
    """

    name: str
    source: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    programs: int
    warps: int


def build_elementwise(body: Graph, block: int, warps: int) -> TritonKernel:
    """The kernel of a body without reductions; `block` elements a program."""
    return _Elementwise(body, block).build("elementwise", warps)


def build_rows(body: Graph, block: int, warps: int) -> TritonKernel:
    """The kernel of a body with reductions; `block`, a power of two, holds a row."""
    return _Rows(body, block).build("rows", warps)


def is_reduction(node: Node) -> bool:
    return node.op.startswith("reduce_")


def row_length(space: Space) -> int:
    """Elements of a row: the reduced dimensions."""
    return math.prod(space.shape[d] for d in space.axes)


class _Kernel:
    """What both templates share: the space, element expressions, loads and stores.

    Subclasses place the dimensions `across`, in memory order, over the lanes of a block of
    `length` elements, and the rest over the programs.
    """

    def __init__(self, body: Graph, block: int) -> None:
        self.given = body
        self.body = collapse(body)
        self.space = loop_space(self.body)
        self.block = block
        self.axes = e.axes(*self.space.shape)
        self.index = [e.index(a) for a in self.axes]
        self.reductions = [
            (v, node) for k, node in enumerate(self.body.nodes) if is_reduction(node)
            for v in self.body.results(k)
        ]  # fmt: skip
        stops: dict[int, Stop] = {v: self._stop(v) for v, _ in self.reductions}
        self.composer = Composer(self.body, stops)
        self.totals: dict[int, Code] = {}
        sources = [self._element(node.operands[0]) for _, node in self.reductions]
        self.elements = dict(zip((v for v, _ in self.reductions), sources, strict=True))
        self.results = [self._element(v) for v in self.body.outputs]
        self.source = Source([*sources, *self.results], self._load, self._axis)
        self.lanes = self._lanes()
        total = math.prod(self._extents(self.lanes))
        self.mask = Code("mask", True) if total % block or not total else None

    # What a template decides

    def _lanes(self) -> list[int]:
        """The dimensions that run over the lanes of a block, in memory order."""
        raise NotImplementedError

    def _statements(self) -> None:
        raise NotImplementedError

    def _programs(self) -> int:
        raise NotImplementedError

    # Values of the body

    def _stop(self, v: int) -> Stop:
        dtype = self.body.types[v].dtype
        return lambda index: e.Load(-1 - v, (), dtype)

    def _place(self, v: int) -> tuple[e.Expr, ...]:
        """The index of a value at the current element of the space."""
        shape = self.body.types[v].static("Triton code generation")
        dims = range(len(self.axes) - len(shape), len(self.axes))
        zero = e.lit(0, t.i64)
        return tuple(zero if n == 1 else self.index[d] for d, n in zip(dims, shape, strict=True))

    def _element(self, v: int) -> e.Expr:
        return self.composer.element(v, self._place(v))

    # Memory

    def _extents(self, dims: Sequence[int]) -> list[int]:
        return [self.space.shape[d] for d in dims]

    def _axis(self, source: Source, axis: e.Axis) -> Code:
        """An index variable: one coordinate of the lane's or of the program's position."""
        d = self.axes.index(axis)
        across = d in self.lanes
        dims = self.lanes if across else [k for k in self.space.order if k not in self.lanes]
        inner = math.prod(self._extents(dims[dims.index(d) + 1 :]))
        text = "at" if across else "row"
        if inner != 1:
            text = f"({text} // {inner})"
        if math.prod(self._extents(dims[: dims.index(d)])) != 1:
            text = f"({text} % {self.space.shape[d]})"
        return source.name(Code(text, across), f"i{d}")

    def _address(self, source: Source, name: str, type: TensorType, index: Sequence[Code]) -> Code:
        """A pointer to an element."""
        whole = type.shape == self.space.shape and type.order == self.space.order
        if whole and len(self.lanes) > 1 and list(self.space.order) == self.lanes:
            axes = [self._axis(source, a) if a.extent != 1 else Code("0") for a in self.axes]
            if list(index) == axes:
                return Code(f"({name} + at)", True)
        terms = [name]
        for code, step, n in zip(index, strides(type), type.shape, strict=True):
            if n != 1 and code.text != "0":
                terms.append(code.text if step == 1 else f"{code.text} * {step}")
        block = any(c.block for c, n in zip(index, type.shape, strict=True) if n != 1)
        return Code(f"({' + '.join(terms)})", block)

    def _load(self, source: Source, k: int, index: Sequence[Code], mask: Code | None) -> Code:
        if k < 0:
            return self.totals[-1 - k]
        where = self._address(source, f"x{k}", self.body.types[k], index)
        if mask is None or (mask == self.mask and not where.block):
            return Code(f"tl.load({where.text})", where.block)
        if mask.block and not where.block:
            # A block of conditions needs a block of pointers, all of them the same one.
            where = Code(f"({where.text} + tl.zeros([{self.block}], tl.int32))", True)
        return Code(f"tl.load({where.text}, mask={mask.text})", where.block)

    def _stores(self) -> None:
        """Compute all results, then store them: an output may lie in the place of an input."""
        values = [self.source.typed(result, self.mask) for result in self.results]
        for position, (v, value) in enumerate(zip(self.body.outputs, values, strict=True)):
            index = [self.source.code(i) for i in self._place(v)]
            where = self._address(self.source, f"y{position}", self.body.types[v], index)
            mask = f", mask={self.mask.text}" if self.mask and where.block else ""
            self.source.line(f"tl.store({where.text}, {value.text}{mask})")

    def _start(self, position: str, total: int) -> None:
        """The statements that say where this program and its lanes are."""
        self.source.line(position)
        if self.mask is not None:
            self.source.line(f"mask = at < {total}")

    def _wide(self) -> str:
        """`program_id`, in int64 where an offset would not fit int32."""
        sizes = (math.prod(ty.static("Triton code generation")) for ty in self.body.types)
        return "tl.program_id(0)" + (".to(tl.int64)" if max(sizes, default=0) >= WIDE else "")

    def build(self, template: str, warps: int) -> TritonKernel:
        self._statements()
        name = f"{template}_{self.body.name}"
        inputs = [f"x{k}" for k in range(len(self.body.inputs))]
        outputs = [f"y{k}" for k in range(len(self.body.outputs))]
        types = (*self.body.input_types, *self.body.output_types)
        shown = [f"{n} {ty}" for n, ty in zip([*inputs, *outputs], types, strict=True)]
        text = _module(name, f"{template}: {', '.join(shown)}", [*inputs, *outputs],
                       self.source.live_lines())  # fmt: skip
        return TritonKernel(name, text, self.given.input_types, self.given.output_types,
                            self._programs(), warps)  # fmt: skip


def _module(name: str, doc: str, parameters: Sequence[str], lines: Sequence[str]) -> str:
    """The text of a Python module with one kernel; it imports what the kernel uses."""
    body = "".join(f"    {line}\n" for line in lines)
    imports = "import triton\nimport triton.language as tl\n"
    if re.search(r"\blibdevice\.", body):
        imports += "from triton.language.extra import libdevice\n"
    if re.search(r"\bdevice\.", body):
        imports += "\nfrom plait.codegen.triton import device\n"
    head = f"@triton.jit\ndef {name}({', '.join(parameters)}):\n"
    return f'"""{doc}"""\n\n{imports}\n\n{head}{body}'


class _Elementwise(_Kernel):
    """A block of consecutive elements per program."""

    def _lanes(self) -> list[int]:
        return list(self.space.order)

    def _programs(self) -> int:
        return -(-math.prod(self.space.shape) // self.block)

    def _statements(self) -> None:
        self._start(
            f"at = {self._wide()} * {self.block} + tl.arange(0, {self.block})",
            math.prod(self.space.shape),
        )
        self._stores()


class _Rows(_Kernel):
    """One row per program: reductions of rising level, then what follows from them."""

    def _lanes(self) -> list[int]:
        return [d for d in self.space.order if d in self.space.axes]

    def _programs(self) -> int:
        return math.prod(n for d, n in enumerate(self.space.shape) if d not in self.space.axes)

    def _statements(self) -> None:
        self.source.line(f"row = {self._wide()}")
        self._start(f"at = tl.arange(0, {self.block})", row_length(self.space))
        for v, node in self.reductions:
            self.totals[v] = self._reduce(v, node)
        self._stores()

    def _reduce(self, v: int, node: Node) -> Code:
        kind, dtype = node.op.removeprefix("reduce_"), self.body.types[v].dtype
        value = self.source.typed(self.elements[v], self.mask)
        wide = _accumulator(dtype)
        text = value.text if wide == dtype else f"({value.text}).to({tl_dtype(wide)})"
        neutral = e.Lit(e.identity(kind, dtype), wide)
        start = self.source.typed(neutral).text
        if self.mask is not None:
            text = f"tl.where(mask, {text}, {start})"
        elif not value.block:
            text = f"(tl.zeros([{self.block}], {tl_dtype(wide)}) + {text})"
        total = _STEPS[kind].format(x=text)
        if dtype.kind == "b":
            total = f"({total} != 0)"
        elif wide != dtype:
            total = f"({total}).to({tl_dtype(dtype)})"
        return self.source.name(Code(total), f"{kind}{v}")


def _accumulator(dtype: t.DType) -> t.DType:
    """The dtype in which a reduction runs: half precision in float32, small integers in int32."""
    if dtype.is_float:
        return t.f32 if dtype.bits < 32 else dtype
    return t.i32 if dtype.bits < 32 else dtype


def check_static(body: Graph) -> None:
    """`UnsupportedSymbol`, naming the dimension, if a value of the body has a symbolic size."""
    for type in body.types:
        type.static("Triton code generation")


def elementwise_block(space: Space) -> tuple[int, int]:
    """Elements a program, and warps: eight elements a thread, fewer programs for little work."""
    block = max(WARP, min(1024, power_of_two(math.prod(space.shape))))
    return block, max(1, min(4, block // WARP))


def rows_block(space: Space) -> tuple[int, int]:
    """The block that holds a row, and warps; `Unsupported` for a row that no block holds."""
    length = row_length(space)
    if length > MAX_ROW:
        raise Unsupported(
            f"a row of {length} elements is longer than the {MAX_ROW} that template `rows` holds"
        )
    block = power_of_two(length)
    return block, max(1, min(16, block // 256))


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
