"""Op records: everything the compiler knows about an op, in one place.

A record is declared in `ir/ops/<family>.py`.  Lowerings that belong to one target live in
tables keyed by the op's name beside that target.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from plait.ir.dims import bounds
from plait.ir.errors import TypeRuleError, UnknownName
from plait.ir.expr import Compute
from plait.ir.graph import Attrs
from plait.ir.types import TensorType

if TYPE_CHECKING:
    from plait.ir.builder import Value

REQUIRED = object()


@dataclass(frozen=True)
class Call:
    """An op applied to operands of the given types: what the rules of an op look at."""

    op: Op
    attrs: Attrs
    types: tuple[TensorType, ...]

    def __getattr__(self, name: str) -> Any:
        attrs: Attrs = object.__getattribute__(self, "attrs")
        if name in attrs:
            return attrs[name]
        raise AttributeError(name)

    def fail(self, message: str) -> TypeRuleError:
        return TypeRuleError(message, op=self.op.name)

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise self.fail(message)


TypeRule: TypeAlias = Callable[[Call], "TensorType | tuple[TensorType, ...]"]
ComputeRule: TypeAlias = Callable[[Call], "Compute | tuple[Compute, ...]"]
Reference: TypeAlias = Callable[..., Any]
Decomposition: TypeAlias = "Callable[..., Value | tuple[Value, ...]]"


@dataclass(frozen=True)
class Op:
    """An operator.

    `operands` names the operands (a trailing `*name` takes any number, a trailing `?` marks an
    optional one at the end); `attrs` maps attribute names to defaults (`REQUIRED` for none).
    `infer` is the type rule, run on ints and on symbols; `compute` the meaning as scalar
    expressions, None for opaque ops and composites without one; `reference` the numpy function
    `(call, *arrays)`; `decompose` the rewrite of a composite `(builder, call, *values)`.
    Traits: elementwise, commutative; reduction (over whole dimensions); contraction, window, scan
    (sums over a space of their own, each the anchor of a kernel); movement, gather, layout, source
    (compute nothing); composite; opaque, host (run by torch), kernel.
    """

    name: str
    operands: tuple[str, ...]
    infer: TypeRule
    reference: Reference
    compute: ComputeRule | None = None
    decompose: Decomposition | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    traits: frozenset[str] = frozenset()
    precision: str = "exact"  # exact, rounded (one rounding), sum (order matters), approx
    doc: str = ""

    def call(self, attrs: Attrs, types: tuple[TensorType, ...]) -> Call:
        return Call(self, attrs, types)

    def complete(self, given: dict[str, Any]) -> Attrs:
        """Attributes with defaults filled in; unknown or missing ones are errors."""
        for name in given:
            if name not in self.attrs:
                raise UnknownName(f"attribute of {self.name}", name, list(self.attrs))
        merged = {**self.attrs, **given}
        for name, value in merged.items():
            if value is REQUIRED:
                raise TypeRuleError(f"attribute {name!r} is required", op=self.name)
        return Attrs(merged)

    def result_types(self, attrs: Attrs, types: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
        """Types of the results; raises `TypeRuleError` when the operands do not fit."""
        self._check_arity(len(types))
        try:
            found = self.infer(self.call(attrs, types))
            results = found if isinstance(found, tuple) else (found,)
            negative = [d for ty in results for d in ty.shape if bounds(d)[1] < 0]
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            # A rule may trip over an attribute of the wrong kind: that is a refusal too.
            raise TypeRuleError(f"attributes {attrs} do not fit: {error}", op=self.name) from error
        if negative:
            raise TypeRuleError(f"the result would have the size {negative[0]}", op=self.name)
        return results

    def _check_arity(self, count: int) -> None:
        variadic = any(o.startswith("*") for o in self.operands)
        least = sum(not o.startswith("*") and not o.endswith("?") for o in self.operands)
        if count < least or (not variadic and count > len(self.operands)):
            raise TypeRuleError(
                f"takes operands ({', '.join(self.operands)}), got {count}", op=self.name
            )

    def computes(self, attrs: Attrs, types: tuple[TensorType, ...]) -> tuple[Compute, ...] | None:
        """The compute definitions of the results, or None for an opaque op."""
        if self.compute is None:
            return None
        found = self.compute(self.call(attrs, types))
        return found if isinstance(found, tuple) else (found,)


OPS: dict[str, Op] = {}
Importer: TypeAlias = Callable[..., Any]
CAPTURES: dict[str, Importer] = {}
F = TypeVar("F", bound=Importer)


def register(op: Op) -> Op:
    if op.name in OPS:
        raise ValueError(f"op {op.name!r} is registered twice")
    OPS[op.name] = op
    return op


def captures(*targets: str) -> Callable[[F], F]:
    """Register `(cx, *args, **kwargs)` as the importer of ATen overloads.

    Tensor arguments arrive as builder values, dtypes as `DType`, all else as Python values;
    `cx` is the `Capture` of `plait.ir.builder`.
    """

    def add(importer: F) -> F:
        for target in targets:
            if target in CAPTURES:
                raise ValueError(f"torch target {target!r} is captured twice")
            CAPTURES[target] = importer
        return importer

    return add


@cache
def load_all() -> None:
    """Import every family, so that its ops are registered."""
    import plait.ir.ops as families

    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"plait.ir.ops.{module.name}")


def get(name: str) -> Op:
    """The record of an op; `UnknownName` when there is none."""
    load_all()
    if name not in OPS:
        raise UnknownName("op", name, list(OPS))
    return OPS[name]


def importer(target: str) -> Importer | None:
    load_all()
    return CAPTURES.get(target)


def is_commutative(name: str) -> bool:
    return "commutative" in get(name).traits


def has_trait(name: str, trait: str) -> bool:
    return trait in get(name).traits


__all__ = [
    "CAPTURES",
    "OPS",
    "REQUIRED",
    "Call",
    "Op",
    "captures",
    "get",
    "has_trait",
    "importer",
    "is_commutative",
    "load_all",
    "register",
]
