"""Canonicalisation: algebraic identities, view composition, and folding of constants.

Measures that fall: the identities and compositions lower the number of nodes; `fold-*` lower
the number of nodes that are not constants; `pad-into-conv` lowers the number of pads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.builder import Value
from plait.ir.dims import is_static
from plait.ir.graph import Graph
from plait.ir.interp import run_node
from plait.ir.ops.shapes import broadcast
from plait.ir.types import TensorType
from plait.passes.context import Context
from plait.passes.pipeline import Pass, register_pass
from plait.passes.reshapes import reshape_rules
from plait.passes.rewrite import Match, Replacement, Rule, apply_rules, rule

# A constant may be computed now if its result is small, or no larger than what it is made from.
FOLD_ELEMENTS = 1 << 16
FOLD_PRODUCTS = 1 << 22  # computing one costs more than reading it does


@rule("reshape", "transpose", "broadcast_to", "cast", "slice", "relayout")
def drop_identity(m: Match) -> Replacement:
    """op(x) -> x where op changes nothing."""
    x, node = m.operands[0], m.node
    same = x.type == node.types[0]
    if node.op == "transpose":
        same = m.attrs["perm"] == tuple(range(x.rank))
    return x if same else None


@rule("transpose")
def merge_transposes(m: Match) -> Replacement:
    """transpose(transpose(x, p), q) -> transpose(x, p[q])."""
    inner = m.made_by(m.operands[0], "transpose")
    if inner is None:
        return None
    perm = tuple(inner.attrs["perm"][p] for p in m.attrs["perm"])
    return m.b.transpose(m.b.value(inner.operands[0]), perm)


@rule("slice")
def merge_slices(m: Match) -> Replacement:
    """slice(slice(x)) -> slice(x)."""
    inner = m.made_by(m.operands[0], "slice")
    if inner is None:
        return None
    triples = zip(inner.attrs["start"], inner.attrs["step"], m.attrs["start"], m.attrs["step"],
                  strict=True)  # fmt: skip
    start, step = zip(*((s + r * p, p * q) for s, p, r, q in triples), strict=True)
    return m.b.emit(
        "slice", m.b.value(inner.operands[0]), start=start, step=step, size=m.attrs["size"]
    )


@rule("broadcast_to")
def merge_broadcasts(m: Match) -> Replacement:
    """broadcast(broadcast(x)) -> broadcast(x)."""
    inner = m.made_by(m.operands[0], "broadcast_to")
    if inner is None:
        return None
    return m.b.emit("broadcast_to", m.b.value(inner.operands[0]), shape=m.attrs["shape"])


def broadcast_rule() -> Rule:
    """op(broadcast(x), y) -> op(x, y) where the op's own broadcasting gives the same shape."""

    def rewrite(m: Match) -> Replacement:
        for k, operand in enumerate(m.operands):
            made = m.made_by(operand, "broadcast_to")
            if made is None:
                continue
            operands = [*m.operands]
            operands[k] = m.b.value(made.operands[0])
            if broadcast(m.node.op, [v.shape for v in operands]) == m.node.types[0].shape:
                return m.b.emit(m.node.op, *operands, **m.attrs)
        return None

    ops.load_all()
    names = frozenset(n for n, o in ops.OPS.items() if "elementwise" in o.traits)
    return Rule("drop-broadcast", names, rewrite, f"{__file__}:{rewrite.__code__.co_firstlineno}")


@rule("cast")
def merge_casts(m: Match) -> Replacement:
    """cast(cast(x, wider), y) -> cast(x, y) where the first loses nothing."""
    inner = m.made_by(m.operands[0], "cast")
    if inner is None:
        return None
    x = m.b.value(inner.operands[0])
    wide, narrow = inner.attrs["dtype"], x.dtype
    widens = wide.kind == narrow.kind and wide.bits > narrow.bits
    exact = narrow.kind == "b" or wide == narrow or widens
    return m.b.cast(x, m.attrs["dtype"]) if exact and m.attrs["dtype"].kind != "b" else None


@rule("reduce_sum", "reduce_prod", "reduce_max", "reduce_min")
def reduce_nothing(m: Match) -> Replacement:
    """A reduction over no dimension -> x."""
    return m.operands[0] if not m.attrs["axes"] else None


def _unit(match: Match, identity: float) -> Value | None:
    """The other operand if one is a constant full of `identity` that does not broadcast it."""
    for k in (0, 1):
        other = match.operands[1 - k]
        if match.scalar(match.operands[k]) == identity and other.type == match.node.types[0]:
            return other
    return None


@rule("add")
def add_zero(m: Match) -> Replacement:
    """x + 0 -> x; for floats only -0.0 is neutral, since -0.0 + 0.0 is 0.0."""
    floats = m.node.types[0].dtype.is_float
    if floats and not any(_negative_zero(m.scalar(v)) for v in m.operands):
        return None
    return _unit(m, 0)


def _negative_zero(value: int | float | bool | None) -> bool:
    return value is not None and value == 0 and math.copysign(1, value) < 0


@rule("mul")
def mul_one(m: Match) -> Replacement:
    """x * 1 -> x."""
    return _unit(m, 1)


@rule("sub", "div")
def right_unit(m: Match) -> Replacement:
    """x - 0 -> x; x / 1 -> x."""
    x, y = m.operands
    value = m.scalar(y)
    unit = value == (0 if m.node.op == "sub" else 1) and not _negative_zero(value)
    return x if unit and x.type == m.node.types[0] else None


@rule("div")
def div_by_power_of_two(m: Match) -> Replacement:
    """x / 2**n -> x * 2**-n, which is exact."""
    x, y = m.operands
    value = m.scalar(y)
    if value is None or not math.isfinite(value) or value == 0:
        return None
    if abs(math.frexp(value)[0]) != 0.5 or x.type != m.node.types[0] or x.dtype == t.bf16:
        return None
    with np.errstate(over="ignore"):
        inverse = np.asarray(1 / value).astype(x.dtype.numpy)
    exact = math.isfinite(inverse) and float(inverse) == 1 / value
    return x * m.b.constant(inverse) if exact else None


@rule("mul", "add")
def merge_scalars(m: Match) -> Replacement:
    """(x op a) op b -> x op (a op b) for scalar constants of integers."""
    if not m.node.types[0].dtype.is_int:
        return None
    inner = m.made_by(m.operands[0], m.node.op)
    b = m.constant(m.operands[1])
    if inner is None or b is None or b.ndim:
        return None
    a = m.constant(m.b.value(inner.operands[1]))
    if a is None or a.ndim:
        return None
    both = a + b if m.node.op == "add" else a * b
    return m.b.emit(m.node.op, m.b.value(inner.operands[0]), m.b.constant(np.asarray(both)))


@rule("select")
def select_known(m: Match) -> Replacement:
    """select(true, a, b) -> a; select(false, a, b) -> b."""
    known = m.scalar(m.operands[0])
    if known is None:
        return None
    chosen = m.operands[1] if known else m.operands[2]
    return m.b.emit("broadcast_to", chosen, shape=m.node.types[0].shape)


@rule("and", "or")
def logic_unit(m: Match) -> Replacement:
    """p & true -> p; p | false -> p."""
    return _unit(m, m.node.op == "and") if m.node.types[0].dtype == t.bool_ else None


@rule("attention")
def drop_full_mask(m: Match) -> Replacement:
    """A mask that hides nothing goes; a bool one that hides just the future becomes `causal`.

    A float mask stays: minus infinity does not hide a score that is NaN.
    """
    if len(m.operands) < 4:
        return None
    mask = m.constant(m.operands[3])
    if mask is None:
        return None
    keep = mask if mask.dtype == bool else mask == 0
    if keep.all():
        return m.b.emit("attention", *m.operands[:3], **m.attrs)
    rows, columns = m.operands[0].shape[-2], m.operands[1].shape[-2]
    if m.attrs["causal"] or mask.dtype != bool or keep.shape[-2:] != (rows, columns):
        return None
    if (keep == np.tri(*keep.shape[-2:], dtype=np.bool_)).all():
        return m.b.emit("attention", *m.operands[:3], **m.attrs.set(causal=True))
    return None


@rule("conv")
def pad_into_conv(m: Match) -> Replacement:
    """conv(pad(x, 0)) -> conv with wider padding, when only spatial dimensions are padded."""
    pad = m.made_by(m.operands[0], "pad")
    if pad is None or m.scalar(m.b.value(pad.operands[1])) != 0:
        return None
    low, high = pad.attrs["low"], pad.attrs["high"]
    if any(low[:2]) or any(high[:2]) or min(*low, *high) < 0:
        return None
    wider = m.attrs.set(
        low=tuple(a + b for a, b in zip(m.attrs["low"], low[2:], strict=True)),
        high=tuple(a + b for a, b in zip(m.attrs["high"], high[2:], strict=True)),
    )
    return m.b.emit("conv", m.b.value(pad.operands[0]), m.operands[1], **wider)


@rule("take")
def take_of_iota(m: Match) -> Replacement:
    """take(x, [s, s+1, ...]) -> slice(x)."""
    where = m.constant(m.operands[1])
    axis = m.attrs["axis"]
    x = m.operands[0]
    if where is None or where.ndim != 1 or where.size == 0 or not is_static(x.shape):
        return None
    start = int(where[0])
    consecutive = start >= 0 and (where == np.arange(start, start + where.size)).all()
    if not consecutive or start + where.size > x.shape[axis]:
        return None
    starts, sizes = [0] * x.rank, list(x.shape)
    starts[axis], sizes[axis] = start, int(where.size)
    return m.b.emit("slice", x, start=starts, step=[1] * x.rank, size=sizes)


def _elements(type: TensorType) -> int:
    return math.prod(type.static("constant folding"))


def _foldable(m: Match) -> bool:
    if not is_static(d for ty in m.node.types for d in ty.shape):
        return False
    if not all(m.made_by(v, "constant") for v in m.operands):
        return False
    # numpy has no bfloat16: its constants cannot be told from uint16.
    if any(ty.dtype == t.bf16 for ty in (*m.node.types, *(v.type for v in m.operands))):
        return False
    # One number spread over a shape stays a number, which its reader's loop holds in a register.
    if m.node.op == "broadcast_to" and _elements(m.operands[0].type) == 1:
        return False
    made = sum(_elements(ty) for ty in m.node.types)
    read = sum(_elements(v.type) for v in m.operands)
    most = FOLD_PRODUCTS if ops.has_trait(m.node.op, "contraction") else FOLD_ELEMENTS
    return made <= max(most, read)


def _fold(m: Match) -> Replacement:
    """op(constants) -> constant."""
    if not _foldable(m):
        return None
    types, arrays = [v.type for v in m.operands], [m.constant(v) for v in m.operands]
    with np.errstate(all="ignore"):  # whatever comes out is what the program asks for
        results = run_node(m.node, types, arrays, {})
    names = [m.made_by(v, "constant").attrs["value"].name for v in m.operands]  # type: ignore[union-attr]
    name = next((n for n in names if n), "")
    return tuple(m.b.constant(np.ascontiguousarray(r).reshape(np.shape(r)), name) for r in results)


def fold_rule() -> Rule:
    """Constant folding for every op that is not opaque and holds no code."""
    ops.load_all()
    names = frozenset(n for n, o in ops.OPS.items() if "opaque" not in o.traits)
    names -= {"constant", "kernel"}
    return Rule("fold-constants", names, _fold, f"{__file__}:{_fold.__code__.co_firstlineno}")


IDENTITIES: tuple[Rule, ...] = (
    drop_identity, merge_transposes, merge_slices, merge_broadcasts, merge_casts, add_zero, mul_one,
    right_unit, div_by_power_of_two, merge_scalars, reduce_nothing, select_known, logic_unit,
    drop_full_mask, pad_into_conv, take_of_iota,
)  # fmt: skip


@register_pass
@dataclass(frozen=True)
class Canonicalize(Pass):
    """Identities, view composition, constant folding, CSE and DCE to a fixed point."""

    name = "canonicalize"
    fold: bool = True

    def apply(self, graph: Graph, context: Context) -> Graph:
        rules = (
            *IDENTITIES,
            broadcast_rule(),
            *reshape_rules(),
            *((fold_rule(),) if self.fold else ()),
        )
        return apply_rules(graph, rules, context)


def simplify(graph: Graph) -> Graph:
    """Canonicalise without a context, for tools and tests."""
    return Canonicalize().apply(graph, Context())
