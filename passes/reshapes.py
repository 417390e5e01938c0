"""Reshapes and transposes move towards the outputs, where they meet others and vanish.

In between, what was computed in several shapes is computed in one, and can share a kernel.
Measures that fall: `merge-*`, `transpose-as-reshape` and `drop-leading-ones` lower the number of
movements; `keep-*` the number of reductions that drop dimensions; `least-rank` the sum of the ranks
of elementwise results, and no other rule raises the rank of one that it would lower again; all
others bring a movement nearer to the outputs.
"""

from __future__ import annotations

from collections.abc import Callable

from plait.ir import op as ops
from plait.ir.builder import Value
from plait.ir.dims import Dim, equal, product
from plait.ir.ops.shapes import broadcast
from plait.passes.rewrite import Match, Replacement, Rule, rule

_REDUCTIONS = ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min")


@rule("reshape")
def merge_reshapes(m: Match) -> Replacement:
    """reshape(reshape(x)) -> reshape(x)."""
    inner = m.made_by(m.operands[0], "reshape")
    if inner is None:
        return None
    return m.b.reshape(m.b.value(inner.operands[0]), m.attrs["shape"])


@rule("transpose")
def transpose_as_reshape(m: Match) -> Replacement:
    """A transpose that only moves dimensions of size 1 -> reshape."""
    x = m.operands[0]
    moved = [p for p in m.attrs["perm"] if x.shape[p] != 1]
    return m.b.reshape(x, m.node.types[0].shape) if moved == sorted(moved) else None


@rule(*_REDUCTIONS)
def keep_reduced_dims(m: Match) -> Replacement:
    """A reduction without the reduced dimensions -> reshape of one that keeps them.

    The reshape then moves down, and the reduction and what follows it share a space.
    """
    if m.attrs["keepdims"] or not m.attrs["axes"]:
        return None
    kept = m.b.emit(m.node.op, m.operands[0], **m.attrs.set(keepdims=True))
    return m.b.reshape(kept, m.node.types[0].shape)


@rule(*_REDUCTIONS)
def sink_reshape_below_reduction(m: Match) -> Replacement:
    """reduce(reshape(x)) -> reshape(reduce(x)) where x has the reduced dimensions too."""
    inner = m.made_by(m.operands[0], "reshape")
    if inner is None or not m.attrs["keepdims"]:
        return None
    x = m.b.value(inner.operands[0])
    axes = tuple(_same_axis(m.operands[0].shape, axis, x.shape) for axis in m.attrs["axes"])
    if None in axes:
        return None
    kept = m.b.emit(m.node.op, x, **m.attrs.set(axes=axes))
    return m.b.reshape(kept, m.node.types[0].shape)


def _same_axis(shape: tuple[Dim, ...], axis: int, source: tuple[Dim, ...]) -> int | None:
    """The dimension of `source` that a reshape to `shape` keeps as `axis`; None for no, and for one
    of size 1 or behind one of size 0, of which there may be many."""
    size, before = shape[axis], product(shape[:axis])
    if equal(size, 1) or equal(before, 0):
        return None
    same = (k for k, n in enumerate(source) if equal(n, size))
    return next((k for k in same if equal(product(source[:k]), before)), None)


@rule("dot_general")
def lift_reshape_of_lhs(m: Match) -> Replacement:
    """dot(reshape(x), w) -> reshape(dot(x, w)) where the reshape merges leading dimensions, or adds
    leading ones."""
    inner = m.made_by(m.operands[0], "reshape")
    lhs = m.operands[0]
    if inner is None or m.attrs["lhs_batch"] or m.attrs["lhs_contract"] != (lhs.rank - 1,):
        return None
    x = m.b.value(inner.operands[0])
    merges = equal(product(x.shape[:-1]), product(lhs.shape[:-1]))
    nearer = x.rank > lhs.rank or _stripped(x.shape) == _stripped(lhs.shape)
    if not nearer or not x.rank or x.shape[-1] != lhs.shape[-1] or not merges:
        return None
    out = m.b.emit("dot_general", x, m.operands[1], **m.attrs.set(lhs_contract=(x.rank - 1,)))
    return m.b.reshape(out, m.node.types[0].shape)


def _sink_reshape(m: Match) -> Replacement:
    """op(reshape(x), y) -> reshape(op(x, y)) where y varies only along untouched dimensions.

    Not where y is as large as x, which then gets the leading ones that the reshape drops.
    """
    shape = m.node.types[0].shape
    source = None
    operands: list[Value | None] = []
    for operand in m.operands:
        made = m.made_by(operand, "reshape")
        if made is not None and operand.shape == shape:
            x = m.b.value(made.operands[0])
            if source is not None and x.shape != source:
                return None
            source = x.shape
            operands.append(x)
        else:
            operands.append(None)
    if source is None:
        return None
    alike = 0
    while alike < min(len(source), len(shape)) and source[-1 - alike] == shape[-1 - alike]:
        alike += 1
    given = []
    for operand, moved in zip(m.operands, operands, strict=True):
        if moved is None and (operand.rank > alike or _as_large(m, operand)):
            return None
        given.append(operand if moved is None else moved)
    return m.b.reshape(m.b.emit(m.node.op, *given, **m.attrs), shape)


def _stripped(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape without its leading ones, which broadcasting ignores."""
    ones = 0
    while ones < len(shape) and equal(shape[ones], 1):
        ones += 1
    return shape[ones:]


def _elementwise_rule(name: str, rewrite: Callable[[Match], Replacement]) -> Rule:
    ops.load_all()
    names = frozenset(n for n, o in ops.OPS.items() if "elementwise" in o.traits)
    return Rule(name, names, rewrite, f"{__file__}:{rewrite.__code__.co_firstlineno}")


def _drop_leading_ones(m: Match) -> Replacement:
    """op(reshape(x), y) -> op(x, y) where the reshape only adds or drops leading ones."""
    shape = m.node.types[0].shape
    for k, operand in enumerate(m.operands):
        made = m.made_by(operand, "reshape")
        if made is None:
            continue
        x = m.b.value(made.operands[0])
        if x.rank > len(shape) or _stripped(x.shape) != _stripped(operand.shape):
            continue
        given = [*m.operands[:k], x, *m.operands[k + 1 :]]
        if broadcast(m.node.op, [v.shape for v in given]) == shape:
            return m.b.emit(m.node.op, *given, **m.attrs)
    return None


def _least_rank(m: Match) -> Replacement:
    """op(x, y) -> reshape(op(x, reshape(y))) where y is as large as x, but for leading ones.

    Constants do not count: what a convolution gives stays as it is.
    """
    shape = m.node.types[0].shape
    if not _stripped(shape):
        return None
    rank = min((v.rank for v in m.operands if _as_large(m, v)), default=len(shape))
    if rank == len(shape):
        return None
    given = [v if v.rank <= rank else m.b.reshape(v, v.shape[v.rank - rank :]) for v in m.operands]
    return m.b.reshape(m.b.emit(m.node.op, *given, **m.attrs), shape)


def _as_large(m: Match, operand: Value) -> bool:
    """Whether an operand is the result's size, and no constant."""
    whole = _stripped(operand.shape) == _stripped(m.node.types[0].shape)
    return whole and m.made_by(operand, "constant") is None


def _sink_transpose(m: Match) -> Replacement:
    """op(transpose(x), scalar) -> transpose(op(x, scalar)), also of several alike.

    Only where the op can then join the kernel that makes x: elsewhere reading in another order
    costs less than writing in it.
    """
    found = [made for v in m.operands if (made := m.made_by(v, "transpose")) is not None]
    given = [v for v in m.operands if v.rank]
    if not found or len(found) < len(given) or any(n.attrs != found[0].attrs for n in found):
        return None
    if any(v.shape != m.node.types[0].shape for v in given):
        return None
    sources = [m.b.value(node.operands[0]) for node in found]
    if not any(_after_sums(m, x) for x in sources):
        return None
    rest = iter(sources)
    moved = [next(rest) if v.rank else v for v in m.operands]
    return m.b.transpose(m.b.emit(m.node.op, *moved, **m.attrs), found[0].attrs["perm"])


def _after_sums(m: Match, value: Value) -> bool:
    """Whether a value is a contraction's or a window's result, or made of one by elementwise
    operations and reshapes."""
    waiting, seen = [value], set[int]()
    while waiting:
        made = m.b.producer(waiting.pop())
        if made is None:
            continue
        traits = ops.get(made.op).traits
        if traits & {"contraction", "window"}:
            return True
        if "elementwise" in traits or made.op == "reshape":
            waiting += [m.b.value(v) for v in made.operands if v not in seen]
            seen.update(made.operands)
    return False


def reshape_rules() -> tuple[Rule, ...]:
    """All rules of this module."""
    return (
        merge_reshapes, transpose_as_reshape, keep_reduced_dims, sink_reshape_below_reduction,
        lift_reshape_of_lhs,
        _elementwise_rule("sink-reshape", _sink_reshape),
        _elementwise_rule("drop-leading-ones", _drop_leading_ones),
        _elementwise_rule("least-rank", _least_rank),
        _elementwise_rule("sink-transpose", _sink_transpose),
    )  # fmt: skip
