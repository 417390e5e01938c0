"""Random well-typed graphs, driven by the op records and their own type rules.

There is no second list of what an op accepts: operands and attributes are proposed, by the
attributes' names and defaults, and kept where the op's type rule takes them.  Ops whose operands
are too particular to be met by chance are proposed as `plait.fuzz.samples` applies them.  A
proposal with symbolic sizes is kept only if the rule takes it at every size as well, with equal
results.  The same seed gives the same graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

from plait.fuzz.samples import SAMPLES, SPECIAL
from plait.ir import arrays, dims
from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.dims import Dim, Symbol
from plait.ir.errors import PlaitError
from plait.ir.graph import Attrs, Blob, Graph, Input, Node
from plait.ir.interp import bind_attrs, bind_type
from plait.ir.op import REQUIRED
from plait.ir.text import attribute_symbols
from plait.ir.types import TensorType

DTYPES = (t.f32, t.f32, t.f32, t.f64, t.i64, t.i32, t.bool_)


@dataclass(frozen=True)
class Settings:
    """What a graph may contain; `nodes` counts those of the outermost graph."""

    nodes: int = 10
    symbols: tuple[Symbol, ...] = (Symbol("n", 1, 5), Symbol("m", 2, 4))
    layouts: bool = True
    kernels: bool = True
    host: bool = False  # ops that only a backend with torch runs
    attempts: int = 40
    max_elements: int = 4096


@dataclass(frozen=True)
class _Ref:
    """A value under construction: an input, or result `result` of a node."""

    node: int | None
    result: int


@dataclass(frozen=True)
class _Proposal:
    op: str
    operands: tuple[_Ref | TensorType, ...]
    attrs: Attrs
    results: tuple[TensorType, ...]


def generate(seed: int, settings: Settings | None = None) -> Graph:
    """A random graph that the verifier accepts and the interpreter runs."""
    return _Generator(Random(seed), settings or Settings()).run()


class _Generator:
    """Collects nodes; inputs are added as they are wanted, unless `given` fixes them."""

    def __init__(
        self, random: Random, settings: Settings, given: Sequence[TensorType] | None = None
    ) -> None:
        self.random = random
        self.settings = settings
        self.fixed = given is not None
        self.inputs: list[TensorType] = list(given or ())
        self.nodes: list[tuple[_Proposal, str]] = []
        self.values: list[tuple[_Ref, TensorType]] = [
            (_Ref(None, k), ty) for k, ty in enumerate(self.inputs)
        ]
        self.sizes: list[Dim] = [1, 2, 3, 4]
        if not self.fixed:
            self.sizes += [dims.symbol(s.name, s.low, s.high) for s in settings.symbols]

    def run(self) -> Graph:
        names = _pool(self.settings)
        for _ in range(self.settings.nodes):
            proposal = self.propose(self.random.choice(names))
            if proposal is not None:
                self.add(proposal)
        return self.finish()

    def propose(self, name: str) -> _Proposal | None:
        """An application of the op, or None where no attempt was accepted."""
        record = ops.get(name)
        for attempt in range(self.settings.attempts):
            try:
                if attempt % 4 == 3 or not _by_chance(name):
                    found = self.from_sample(name)
                else:
                    found = self.from_chance(record)
            except (PlaitError, NotImplementedError):
                continue
            if found is not None and self.fits(record, found):
                return found
        return None

    def fits(self, record: ops.Op, found: _Proposal) -> bool:
        """Small results, and the same ones at every size of the symbols."""
        if any(dims.bounds(ty.size)[1] > self.settings.max_elements for ty in found.results):
            return False
        types = tuple(self.type_of(v) for v in found.operands)
        shapes = [d for ty in (*types, *found.results) for d in ty.shape]
        symbols = list(dims.symbols_of(shapes).values())
        for point in itertools.product(*(range(s.low, s.high + 1) for s in symbols)):
            sizes = {s.name: n for s, n in zip(symbols, point, strict=True)}
            bound = tuple(bind_type(ty, sizes) for ty in types)
            try:
                results = record.result_types(bind_attrs(found.attrs, sizes), bound)
            except PlaitError:
                return False
            if results != tuple(bind_type(ty, sizes) for ty in found.results):
                return False
        return True

    def from_sample(self, name: str) -> _Proposal | None:
        """The types and attributes of a sample, on existing values of these types if any."""
        if not _samples(name):
            return None
        sample = self.random.choice(_samples(name))
        operands: list[_Ref | TensorType] = []
        for ty in sample.types:
            same = [ref for ref, other in self.values if other == ty]
            operands.append(self.random.choice(same) if same else ty)
        results = ops.get(name).result_types(sample.complete, sample.types)
        return _Proposal(name, tuple(operands), sample.complete, results)

    def from_chance(self, record: ops.Op) -> _Proposal | None:
        operands = self.operands(record)
        types = tuple(self.type_of(v) for v in operands)
        if record.name == "kernel":
            body = _Generator(self.random, _inside(self.settings), types).run()
            attrs = record.complete({"body": body, "schedule": self.random.choice(["", "row"])})
        else:
            chosen = {k: self.attribute(k, d, types) for k, d in record.attrs.items()}
            attrs = record.complete(chosen)
        return _Proposal(record.name, operands, attrs, record.result_types(attrs, types))

    def operands(self, record: ops.Op) -> tuple[_Ref | TensorType, ...]:
        """Values of one dtype in the main, of shapes made of the same sizes."""
        wanted: list[str] = []
        for name in record.operands:
            count = 1 if name[-1] not in "?" and name[0] != "*" else self.random.randrange(3)
            wanted += [name] * (count if name[0] == "*" else min(count, 1))
        chosen: list[_Ref | TensorType] = []
        local = self.random.sample(self.sizes, 2)
        dtype = self.random.choice(DTYPES)
        for _ in wanted:
            near = [r for r, ty in self.values if ty.dtype == dtype]
            if near and self.random.random() < 0.6:
                chosen.append(self.random.choice(near))
            elif self.values and self.random.random() < 0.2:
                chosen.append(self.random.choice(self.values)[0])
            else:
                if chosen:
                    local += self.type_of(chosen[0]).shape
                shape = self.random.choices(local, k=self.random.randrange(5))
                chosen.append(TensorType(dtype, tuple(shape)))
            if len(chosen) == 1:
                dtype = self.type_of(chosen[0]).dtype
        return tuple(chosen)

    def attribute(self, name: str, default: Any, types: Sequence[TensorType]) -> Any:
        """A value for an attribute, by its name or by the kind of its default."""
        if name in CHOOSERS:
            return CHOOSERS[name](self.random, types, self.sizes)
        return self.random.random() < 0.5 if isinstance(default, bool) else default

    def type_of(self, value: _Ref | TensorType) -> TensorType:
        if isinstance(value, TensorType):
            return value
        return next(ty for ref, ty in self.values if ref == value)

    def add(self, found: _Proposal) -> None:
        traits = ops.get(found.op).traits
        free = "kernel" not in traits
        operands = tuple(v if isinstance(v, _Ref) else self.fresh(v, free) for v in found.operands)
        results = found.results
        if not traits & {"kernel", "layout", "source"}:
            results = tuple(self.laid_out(ty) for ty in results)
        loc = self.random.choice(["", f'model.py:{len(self.nodes)} "{found.op}"'])
        self.nodes.append((replace(found, operands=operands, results=results), loc))
        for r, ty in enumerate(results):
            self.values.append((_Ref(len(self.nodes) - 1, r), ty))

    def fresh(self, ty: TensorType, free: bool) -> _Ref:
        """A new input, in any layout if `free`, or a constant."""
        static = dims.is_static(ty.shape)
        if self.fixed or (static and self.random.random() < 0.3):
            plain = ty.with_layout(None)
            value = Blob(
                arrays.random_array(self.random, plain.static("constant"), ty.dtype, SPECIAL), "w"
            )
            attrs = ops.get("constant").complete({"value": value})
            self.nodes.append((_Proposal("constant", (), attrs, (plain,)), ""))
            ref = _Ref(len(self.nodes) - 1, 0)
            self.values.append((ref, plain))
            return ref
        ty = self.laid_out(ty) if free else ty
        self.inputs.append(ty)
        ref = _Ref(None, len(self.inputs) - 1)
        self.values.append((ref, ty))
        return ref

    def laid_out(self, ty: TensorType) -> TensorType:
        if not self.settings.layouts or self.random.random() < 0.8:
            return ty
        return ty.with_layout(tuple(self.random.sample(range(ty.rank), ty.rank)))

    def bind_symbols(self) -> None:
        """Add an input for each symbol in use that is no dimension of an input."""
        used = [ty for _, ty in self.values]
        used += [self.type_of(v) for p, _ in self.nodes for v in p.operands]
        free = dims.symbols_of(d for ty in used for d in ty.shape)
        for p, _ in self.nodes:
            free |= attribute_symbols(p.attrs)
        plain = {dims.as_symbol(d) for ty in self.inputs for d in ty.shape}
        for s in free.values():
            if s not in plain:
                self.inputs.append(TensorType(t.bool_, (dims.symbol(s.name, s.low, s.high),)))

    def finish(self) -> Graph:
        """Number the values; the outputs are those that no node reads, and some others."""
        if not self.fixed:
            self.bind_symbols()
        starts, at = [], len(self.inputs)
        for proposal, _ in self.nodes:
            starts.append(at)
            at += len(proposal.results)

        def number(ref: _Ref | TensorType) -> int:
            assert isinstance(ref, _Ref)
            return ref.result if ref.node is None else starts[ref.node] + ref.result

        nodes = tuple(
            Node(p.op, tuple(map(number, p.operands)), p.attrs, p.results, loc)
            for p, loc in self.nodes
        )
        read = {v for n in nodes for v in n.operands}
        made = [v for v in range(len(self.inputs), at) if v not in read] or list(range(at))[-1:]
        extra = [v for v in range(at) if self.random.random() < 0.1]
        inputs = tuple(Input(ty, f"x{k}") for k, ty in enumerate(self.inputs))
        return Graph(inputs, nodes, tuple((made + extra)[:6]), "generated")


Chooser = Callable[[Random, Sequence[TensorType], Sequence[Dim]], Any]


def _rank(types: Sequence[TensorType]) -> int:
    return types[0].rank if types else 2


def _each(*values: int, spatial: bool = True) -> Chooser:
    """A value for each dimension of the first operand, or for each spatial one."""

    def run(random: Random, types: Sequence[TensorType], _: Sequence[Dim]) -> Any:
        count = _rank(types) - (2 if spatial and random.random() < 0.7 else 0)
        return tuple(random.choices(values, k=max(count, 0)))

    return run


def _among(*values: Any) -> Chooser:
    return lambda random, types, sizes: random.choice(values)


def _axis(random: Random, types: Sequence[TensorType], _: Sequence[Dim]) -> Any:
    return random.randrange(max(_rank(types), 1))


def _axes(random: Random, types: Sequence[TensorType], _: Sequence[Dim]) -> Any:
    return tuple(d for d in range(_rank(types)) if random.random() < 0.5)


def _permutation(random: Random, types: Sequence[TensorType], _: Sequence[Dim]) -> Any:
    return tuple(random.sample(range(_rank(types)), _rank(types)))


def _few(random: Random, types: Sequence[TensorType], _: Sequence[Dim]) -> Any:
    rank = min((ty.rank for ty in types), default=0)
    return tuple(random.sample(range(rank), min(rank, random.randrange(2))))


def _some_dims(random: Random, types: Sequence[TensorType], _: Sequence[Dim]) -> Any:
    """Sizes up to those of the first operand."""
    return tuple(random.choice([n, n, 1, n - 1]) for n in types[0].shape) if types else ()


def _shape(random: Random, types: Sequence[TensorType], sizes: Sequence[Dim]) -> Any:
    """Any shape; with an operand, one with as many elements, or one that it broadcasts to."""
    if not types:
        return tuple(random.choices(sizes, k=random.randrange(1, 4)))
    shape = list(types[0].shape)
    if random.random() < 0.5:
        grown = [random.choice(sizes) if n == 1 else n for n in shape]
        return (*random.choices(sizes, k=random.randrange(2)), *grown)
    random.shuffle(shape)
    while len(shape) > 1 and random.random() < 0.5:
        shape[:2] = [shape[0] * shape[1]]
    return (*shape, *([1] * random.randrange(2)))


def _blob(random: Random, _: Sequence[TensorType], sizes: Sequence[Dim]) -> Any:
    static = [n for n in sizes if isinstance(n, int)]
    shape = tuple(random.choices([*static, 6], k=random.randrange(4)))
    return Blob(
        arrays.random_array(random, shape, random.choice(DTYPES), SPECIAL),
        random.choice(["", "w.0"]),
    )


# The vocabulary of attributes: what is proposed for one of a name, whichever op declares it.
CHOOSERS: dict[str, Chooser] = {
    "approx": _among("", "poly"), "form": _among("none", "tanh"),
    "axis": _axis, "axes": _axes, "dims": _among(1, 2), "perm": _permutation,
    "layout": _permutation, "shape": _shape, "size": _some_dims,
    "start": _each(0, 0, 1, spatial=False), "step": _each(1, 1, 2, spatial=False),
    "low": _each(0, 0, 1, -1), "high": _each(0, 1, 2, -1), "stride": _each(1, 1, 2),
    "dilation": _each(1, 1, 2), "window": _each(1, 2), "groups": _among(1, 1, 2),
    "lhs_batch": _few, "rhs_batch": _few, "lhs_contract": _few, "rhs_contract": _few,
    "eps": _among(1e-5, 0.1), "scale": _among(1.0, 0.25), "value": _blob,
    "dtype": _among(t.f32, t.f64, t.i64, t.i32, t.i8, t.bool_),
}  # fmt: skip


@cache
def _samples(name: str) -> list[Any]:
    return [s for s in SAMPLES if s.op == name]


@cache
def _by_chance(name: str) -> bool:
    """Whether every required attribute can be proposed."""
    required = [k for k, d in ops.get(name).attrs.items() if d is REQUIRED]
    return name == "kernel" or all(k in CHOOSERS for k in required)


def _inside(settings: Settings) -> Settings:
    """Settings of a kernel's body: a few nodes, no kernel among them."""
    return replace(settings, nodes=4, kernels=False, host=False, symbols=())


def _pool(settings: Settings) -> list[str]:
    """The ops to draw from; those that no sample shows (made by a test, say) only by chance.

    In the order of their names: that of their registration depends on who imports what first.
    """
    ops.load_all()
    return [
        name
        for name, record in sorted(ops.OPS.items())
        if (settings.kernels or name != "kernel")
        and (settings.host or "host" not in record.traits)
        and (_by_chance(name) or _samples(name))
    ]


def random_inputs(graph: Graph, seed: int) -> list[Any]:
    """Arguments for a graph, special floats among them."""
    return arrays.random_inputs(graph, seed, SPECIAL)


__all__ = ["Settings", "generate", "random_inputs"]
