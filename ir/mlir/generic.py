"""A compute definition as one `linalg.generic`.

Loads whose index is affine and provably inside the operand become inputs with an indexing map;
all other loads (gathers, padding, reshapes) are `tensor.extract` on computed indices.  A
reduction at the root gives reduction iterators, one further inside a loop nest of `scf.for`.
"""

# The bindings' compiled half has no stubs that a checker could follow.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch_mlir import ir
from torch_mlir.dialects import arith, linalg, scf, tensor

from plait.ir import types as t
from plait.ir.dims import equal
from plait.ir.expr import Apply, Axis, Compute, Expr, Index, Lit, Load, Reduce, Size, identity, walk
from plait.ir.mlir.affine import Linear, affine_index
from plait.ir.mlir.constants import (
    Sizes,
    element_type,
    index_constant,
    is_empty,
    literal,
    shape_of,
)
from plait.ir.mlir.scalar import combine, convert, lower_apply
from plait.ir.types import TensorType

Read: TypeAlias = tuple[int, tuple[Linear, ...]]
Memo: TypeAlias = "ChainMap[int, Any]"


def lower_compute(
    compute: Compute, operands: Sequence[Any], types: Sequence[TensorType], sizes: Sizes
) -> Any:
    """The tensor that `compute` defines on tensors `operands` of the given types."""
    extents = [a.extent for a in compute.axes]
    root = compute.body if isinstance(compute.body, Reduce) else None
    over = root.axes if root else ()
    dtype = compute.body.dtype
    if root is None or is_empty(extents):
        start = sizes.empty(extents, dtype)
    else:
        start = sizes.filled(extents, identity(root.kind, dtype), dtype)
    if is_empty([*extents, *(a.extent for a in over)]):
        return start
    element = root.body if root else compute.body
    return _Generic(compute.axes, over, element, operands, types, sizes).emit(start, root)


class _Generic:
    """One `linalg.generic` in the making."""

    def __init__(self, space: Sequence[Axis], over: Sequence[Axis], element: Expr,
                 operands: Sequence[Any], types: Sequence[TensorType], sizes: Sizes
                 ) -> None:  # fmt: skip
        self.space, self.over, self.element = space, over, element
        self.operands, self.types, self.sizes = operands, types, sizes
        self.loops = [*space, *over]
        self.reads: dict[Read, int] = {}
        self.indices: dict[Axis, Any] = {}
        self.block: Any = None

    def emit(self, start: Any, root: Reduce | None) -> Any:
        """Add the op, with `start` as its output operand."""
        self._collect_reads()
        inputs = [self.operands[k] for k, _ in self.reads]
        maps = [self._map(forms) for _, forms in self.reads]
        uncovered = self._uncovered()
        if uncovered:
            # A window axis occurs only inside sums; a tensor of its shape states its extent.
            inputs.append(self.sizes.empty([a.extent for a in uncovered], self.element.dtype))
            maps.append(self._map([Linear(((a, 1),)) for a in uncovered]))
        maps.append(self._map([Linear(((a, 1),)) for a in self.space]))
        kinds = ["parallel"] * len(self.space) + ["reduction"] * len(self.over)
        dtype = self.element.dtype
        shape = shape_of([a.extent for a in self.space])
        op = linalg.GenericOp(
            [ir.RankedTensorType.get(shape, element_type(dtype))], inputs, [start],
            ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in maps]),
            ir.ArrayAttr.get([ir.Attribute.parse(f"#linalg.iterator_type<{k}>") for k in kinds]),
        )  # fmt: skip
        elements = [v.type.element_type for v in (*inputs, start)]
        self.block = op.regions[0].blocks.append(*elements)
        with ir.InsertionPoint(self.block):
            value = self._value(self.element, ChainMap())
            if root is not None:
                value = combine(root.kind, dtype, self.block.arguments[len(inputs)], value)
            linalg.YieldOp([value])
        return op.results[0]

    def _collect_reads(self) -> None:
        for node in walk(self.element):
            if isinstance(node, Load):
                forms = affine_index(node, self.types, self.loops)
                if forms is not None:
                    self.reads.setdefault((node.operand, forms), len(self.reads))

    def _uncovered(self) -> list[Axis]:
        """Reduction axes that no indexing map mentions on their own."""
        plain = {form.axis for _, forms in self.reads for form in forms}
        return [a for a in self.over if a not in plain]

    def _map(self, forms: Sequence[Linear]) -> Any:
        exprs = []
        for form in forms:
            total = ir.AffineConstantExpr.get(form.constant)
            for axis, coefficient in form.terms:
                total = total + ir.AffineDimExpr.get(self.loops.index(axis)) * coefficient
            exprs.append(total)
        return ir.AffineMap.get(len(self.loops), 0, exprs)

    def _value(self, expr: Expr, memo: Memo) -> Any:
        """The value of an expression at the insertion point; `memo` holds what dominates it."""
        if id(expr) not in memo:
            memo[id(expr)] = self._lower(expr, memo)
        return memo[id(expr)]

    def _lower(self, expr: Expr, memo: Memo) -> Any:
        match expr:
            case Lit():
                return literal(expr.value, expr.dtype)
            case Index():
                return convert(self._index(expr.axis), t.i64, expr.dtype)
            case Size():
                return arith.index_cast(element_type(expr.dtype), self.sizes.value(expr.dim))
            case Load():
                return self._load(expr, memo)
            case Reduce():
                start = literal(identity(expr.kind, expr.dtype), expr.dtype)
                return self._loop(expr, expr.axes, start, memo)
            case Apply(fn="guard"):
                return self._guard(expr, memo)
            case Apply():
                return lower_apply(expr, [self._value(a, memo) for a in expr.args])
        raise TypeError(f"not an expression: {expr!r}")

    def _index(self, axis: Axis) -> Any:
        """A loop variable as i64, taken at the top of the body, where `linalg.index` must be."""
        if axis not in self.indices:
            with ir.InsertionPoint.at_block_begin(self.block):
                position = linalg.IndexOp(self.loops.index(axis)).result
                self.indices[axis] = arith.index_cast(element_type(t.i64), position)
        return self.indices[axis]

    def _load(self, load: Load, memo: Memo) -> Any:
        forms = affine_index(load, self.types, self.loops)
        if forms is not None:
            return self.block.arguments[self.reads[load.operand, forms]]
        index = ir.IndexType.get()
        where = []
        for expr, size in zip(load.index, self.types[load.operand].shape, strict=True):
            one = equal(size, 1) and isinstance(expr, Lit)
            position = self._value(expr, memo)
            where.append(index_constant(0) if one else arith.index_cast(index, position))
        return tensor.extract(self.operands[load.operand], where)

    def _guard(self, node: Apply, memo: Memo) -> Any:
        condition = self._value(node.args[0], memo)
        op = scf.IfOp(condition, [element_type(node.dtype)], has_else=True)
        for block, branch in zip((op.then_block, op.else_block), node.args[1:], strict=True):
            with ir.InsertionPoint(block):
                scf.YieldOp([self._value(branch, memo.new_child())])
        return op.results[0]

    def _loop(self, node: Reduce, axes: Sequence[Axis], total: Any, memo: Memo) -> Any:
        """Loops over `axes` that add `node`'s elements to `total`."""
        if not axes:
            return combine(node.kind, node.dtype, total, self._value(node.body, memo))
        end = self.sizes.value(axes[0].extent)
        loop = scf.ForOp(index_constant(0), end, index_constant(1), [total])
        with ir.InsertionPoint(loop.body):
            position = arith.index_cast(element_type(t.i64), loop.induction_variable)
            self.indices[axes[0]] = position
            inner = self._loop(node, axes[1:], loop.inner_iter_args[0], memo.new_child())
            scf.YieldOp([inner])
        return loop.results[0]
