"""Attention that a model writes out, as the one operation it is.

`softmax(q @ k^T * scale + mask) @ v` is three kernels, whose scores go through memory twice; whole
it is one, whose scores stay in a cache.  Between the products there may be, in any order: factors
that are one number, masks that are added (relative positions), masks that choose -inf or the least
number elsewhere, and reshapes that split or merge the dimensions before the last two, as torch's
`matmul` makes them.

A row without any key to look at is NaN when it is written out with -inf, and zeros in `attention`,
so a mask must leave each row something to look at, whatever the inputs: a constant that does, or
finite numbers that flags choose.  Scores that overflow by themselves are not looked at.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.builder import Value
from plait.ir.dims import Dim
from plait.ir.graph import Graph, Node
from plait.ir.types import TensorType
from plait.passes.context import Context
from plait.passes.pipeline import Pass, register_pass
from plait.passes.rewrite import Match, Replacement, apply_rules, rule

Takes: TypeAlias = "Callable[[str, tuple[TensorType, ...]], bool]"
LARGEST = float(np.finfo(np.float32).max)
DISTINCT = 2.3e38  # kernels scale scores by log2(e): what is larger they take for the largest float
NEGLIGIBLE = 1e30  # added to what is beyond DISTINCT, it is lost in rounding
MOST = 1e3  # of what is added: more may be a low number's way back, which has rounded the score
UNCHANGED = ("reshape", "broadcast", "transpose")
COMBINATIONS = 1 << 16  # of numbers that are looked at
HIDDEN = -1e9  # a score of so little is exp(-inf) beside any score that a model computes


@dataclass(frozen=True)
class _Mask:
    """What is added to scores: a value that broadcasts to them in this shape, times `scale`.

    `levels` are all numbers it may come to so (float64), by rows where they hold -inf.
    """

    value: Value
    shape: tuple[Dim, ...]
    scale: float
    levels: Any


@dataclass
class _Scores:
    """What is known of the scores on the way from the softmax down to the first product.

    `shape` is that of the scores at the softmax or, if it has more dimensions, further down.  Masks
    broadcast to it: those that are `added`, and arrays of what is `seen`.
    """

    shape: tuple[Dim, ...]
    scale: float = 1.0
    added: list[_Mask] = field(default_factory=list[_Mask])
    seen: list[Any] = field(default_factory=list[Any])


def _same_matrices(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
    """Whether shapes differ in how batches are cut alone."""
    return len(a) >= 3 and len(b) >= 3 and a[-2:] == b[-2:]


def _cut(mask: tuple[Dim, ...], at: tuple[Dim, ...], shape: tuple[Dim, ...]) -> Any:
    """The shape for scores of `shape` of a mask for scores of shape `at`; None if there is none."""
    if at == shape or len(mask) <= 2:
        return mask
    if at[-3] == shape[-3] and all(n == 1 for n in mask[:-3]):
        return mask[-3:]
    return mask[-2:] if all(n == 1 for n in mask[:-2]) else None


def _step(m: Match, node: Node, scores: _Scores, at: tuple[Dim, ...]) -> Value | None:
    """One node of the way down: notes what it does, and gives the operand that goes on."""
    operands = [m.b.value(v) for v in node.operands]
    if node.op == "reshape":
        return _reshaped(m, operands[0], scores, at)
    if node.op in ("mul", "div"):
        factor = m.scalar(operands[1])
        if factor is None or not factor or operands[0].shape != at:
            return None
        scores.scale *= float(factor) if node.op == "mul" else 1 / float(factor)
        return operands[0] if 1e-15 < abs(scores.scale) < 1e15 else None
    if node.op == "add":
        for value, mask in (operands, operands[::-1]):
            cut = _cut(mask.shape, at, scores.shape) if value.shape == at else None
            levels = None if cut is None else _levels(m, mask)
            if cut is not None and levels is not None:
                levels = levels.astype(np.float64) * scores.scale
                scores.added.append(_Mask(mask, cut, scores.scale, levels))
                return value
        return None
    return _chosen(m, operands, scores, at) if node.op == "select" else None


def _reshaped(m: Match, below: Value, scores: _Scores, at: tuple[Dim, ...]) -> Value | None:
    """Below a reshape that cuts batches otherwise; masks go by the most dimensions."""
    if not _same_matrices(at, below.shape):
        return None
    if below.rank > len(scores.shape):
        added = [_cut(mask.shape, scores.shape, below.shape) for mask in scores.added]
        seen = [_cut(mask.shape, scores.shape, below.shape) for mask in scores.seen]
        if None in (*added, *seen):
            return None
        scores.added = [replace(x, shape=s) for x, s in zip(scores.added, added, strict=True)]
        scores.seen = [x.reshape(s) for x, s in zip(scores.seen, seen, strict=True)]
        scores.shape = below.shape
    return below


def _chosen(m: Match, operands: list[Value], scores: _Scores, at: tuple[Dim, ...]) -> Value | None:
    """For a choice between scores and a number so low that it hides them: the scores."""
    mask = m.constant(operands[0])
    cut = None if mask is None else _cut(mask.shape, at, scores.shape)
    if mask is None or cut is None:
        return None
    for k, value in ((1, operands[1]), (2, operands[2])):
        low = m.scalar(operands[3 - k])
        if low is None or not low * scores.scale <= HIDDEN or value.shape != at:
            continue
        seen = mask if k == 1 else ~mask
        scores.seen += [] if seen.all() else [seen.reshape(cut)]
        return value
    return None


def _levels(m: Match, value: Value, depth: int = 12) -> Any:
    """All numbers that a value may come to whatever the inputs, in its dtype; those of a constant
    by rows.  None if they are not known, or too many."""
    array = m.constant(value)
    if array is not None:
        return array
    if value.dtype == t.bool_:
        return np.array([[False], [True]])
    made = m.b.producer(value)
    if made is None or depth == 0:
        return None
    operands = [m.b.value(v) for v in made.operands]
    if ops.has_trait(made.op, "gather"):
        operands = operands[:1]
    elif made.op == "select":
        operands = operands[1:]
    elif made.op not in UNCHANGED and not ops.has_trait(made.op, "elementwise"):
        return None
    found = list[Any]()
    for x in operands:
        found.append(_levels(m, x, depth - 1))
        if found[-1] is None:
            return None
    each = [np.unique(x) for x in found]
    if made.op == "select" or not ops.has_trait(made.op, "elementwise"):
        return np.concatenate(each).reshape(-1, 1)
    return _computed(made, operands, each)


def _computed(node: Node, operands: list[Value], each: list[Any]) -> Any:
    """What an elementwise node makes of all combinations of what its operands may come to."""
    if math.prod(x.size for x in each) > COMBINATIONS:
        return None
    record = ops.get(node.op)
    call = record.call(node.attrs, tuple(x.type for x in operands))
    with np.errstate(all="ignore"):  # what overflows is found in the result
        made = record.reference(call, *np.meshgrid(*each, indexing="ij"))
    return np.asarray(made).reshape(-1, 1)


def _add_up(masks: list[_Mask]) -> bool:
    """Whether a kernel may add the sum of the masks: but for rounding it is as is written."""
    hiding = [x.levels for x in masks if np.isneginf(x.levels).any()]
    # Two may hide a row together.
    if len(hiding) > 1 or not all((x.max(-1) > -np.inf).all() for x in hiding):
        return False
    finite = [x.levels[x.levels != -np.inf] for x in masks]
    if not sum(x.max(initial=0.0) for x in finite) <= MOST:  # nor is NaN
        return False
    lows = [x.min(initial=0.0) for x in finite]
    if sum(lows) >= -DISTINCT:
        return True
    lowest = finite.pop(int(np.argmin(lows)))
    beyond = np.unique(lowest[lowest < -DISTINCT])
    alone = all((abs(x) < NEGLIGIBLE).all() for x in finite)
    return alone and beyond.size == 1 and bool(beyond[0] >= -LARGEST)


def _whole_mask(m: Match, scores: _Scores) -> tuple[bool, Value | None]:
    """Whether the masks may be one mask, and that: None if there is none.

    One that is added does not hide a score that is NaN, so it cannot stand for one that chooses.
    """
    if scores.seen:
        seen = np.asarray(functools.reduce(np.logical_and, scores.seen))
        fits = not scores.added and bool(seen.any(-1).all())
        return fits, m.b.constant(seen) if fits else None
    if not scores.added:
        return True, None
    if not _add_up(scores.added):
        return False, None
    masks = [m.b.reshape(x.value, x.shape) * x.scale for x in scores.added]
    return True, functools.reduce(lambda a, b: a + b, masks)


def _is_product(node: Node, lhs: Value, rhs: Value) -> bool:
    """Whether a node multiplies matrices: [*batch, rows, k] and either [*batch, k, n] or n, k."""
    if node.op != "dot_general" or lhs.rank != rhs.rank or lhs.rank < 3:
        return False
    rank, a = lhs.rank, node.attrs
    batch = tuple(range(rank - 2))
    return (
        tuple(a["lhs_batch"]) == tuple(a["rhs_batch"]) == batch
        and tuple(a["lhs_contract"]) == (rank - 1,)
        and tuple(a["rhs_contract"]) in ((rank - 2,), (rank - 1,))
    )


def _matrices(m: Match, node: Node, x: Value, batch: tuple[Dim, ...], last: bool) -> Value:
    """A product's right operand with these batches; what it contracts is `last`, or is not."""
    is_last = tuple(node.attrs["rhs_contract"]) == (x.rank - 1,)
    x = m.b.reshape(x, (*batch, *x.shape[-2:]))
    if is_last == last:
        return x
    return m.b.transpose(x, (*range(x.rank - 2), x.rank - 1, x.rank - 2))


def _attention(m: Match, scores: _Scores, first: Node, takes: Takes) -> Replacement:
    """The whole operation, if the target has it and the masks can be one."""
    fits, mask = _whole_mask(m, scores)
    batch = scores.shape[:-2]
    q, k = (m.b.value(v) for v in first.operands)
    operands = [
        m.b.reshape(q, (*batch, *q.shape[-2:])),
        _matrices(m, first, k, batch, last=True),
        _matrices(m, m.node, m.operands[1], batch, last=False),
    ]
    if mask is not None:
        operands.append(mask)
    if not fits or not takes("attention", tuple(x.type for x in operands)):
        return None
    whole = m.b.emit("attention", *operands, scale=scores.scale, causal=False)
    return m.b.reshape(whole, m.node.types[0].shape)


def _weights(m: Match) -> tuple[Value, Node] | None:
    """The softmax that a product's left operand is, and its node."""
    at = m.operands[0]
    while (made := m.b.producer(at)) is not None and m.readers(at) == 1:
        if made.op == "softmax":
            found = at.rank >= 3 and made.attrs["axis"] == at.rank - 1
            return (at, made) if found else None
        below = m.b.value(made.operands[0]) if made.op == "reshape" else None
        if below is None or not _same_matrices(at.shape, below.shape):
            return None
        at = below
    return None


def _raised(m: Match, takes: Takes) -> Replacement:
    found = _weights(m) if _is_product(m.node, *m.operands) else None
    if found is None:
        return None
    scores, at = _Scores(found[0].shape), m.b.value(found[1].operands[0])
    while m.readers(at) == 1 and (made := m.b.producer(at)) is not None:
        if made.op == "dot_general" and _is_product(made, *map(m.b.value, made.operands)):
            return _attention(m, scores, made, takes)
        below = _step(m, made, scores, at.shape)
        if below is None:
            return None
        at = below
    return None


@register_pass
@dataclass(frozen=True)
class RaiseAttention(Pass):
    """Make one operation of attention that is written out."""

    name = "raise-attention"

    def apply(self, graph: Graph, context: Context) -> Graph:
        takes = context.require_target(self.name).takes

        @rule("dot_general")
        def raise_attention(m: Match) -> Replacement:
            """softmax(q @ k^T * scale + mask) @ v -> attention(q, k, v, mask).

            Lowers the number of softmaxes: only where nothing else reads scores or weights.
            """
            return _raised(m, takes)

        return apply_rules(graph, (raise_attention,), context)
