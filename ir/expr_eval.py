"""Evaluate a compute definition with numpy, on arrays: the independent check of references."""

from __future__ import annotations

from typing import Any

import numpy as np

from plait.ir import dims
from plait.ir.expr import (
    Apply,
    Axis,
    Compute,
    Expr,
    Index,
    Lit,
    Load,
    Reduce,
    Size,
    identity,
)
from plait.ir.functions import FUNCTIONS

_REDUCERS = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


def evaluate(
    compute: Compute, operands: tuple[Any, ...], sizes: dict[str, int] | None = None
) -> Any:
    """The whole result array (row-major, logical shape) of `compute` on numpy operands."""
    sizes = sizes or {}
    extents = [dims.evaluate(a.extent, sizes) for a in compute.axes]
    rank = len(extents)
    grid = {
        axis: np.arange(n, dtype=np.int64).reshape([-1 if k == d else 1 for k in range(rank)])
        for d, (axis, n) in enumerate(zip(compute.axes, extents, strict=True))
    }
    with np.errstate(all="ignore"):
        value = _eval(compute.body, grid, operands, sizes)
    return np.array(np.broadcast_to(value, extents), compute.body.dtype.numpy, order="C")


def evaluate_scalar(expr: Expr, operands: tuple[Any, ...]) -> Any:
    """Evaluate an expression whose loads carry no index: operand k stands for a whole array."""
    with np.errstate(all="ignore"):
        return _eval(expr, {}, operands, {})


def _eval(
    expr: Expr, grid: dict[Axis, Any], operands: tuple[Any, ...], sizes: dict[str, int]
) -> Any:
    memo: dict[int, Any] = {}

    def go(node: Expr) -> Any:
        if id(node) not in memo:
            memo[id(node)] = visit(node)
        return memo[id(node)]

    def visit(node: Expr) -> Any:
        match node:
            case Index():
                return grid[node.axis]
            case Lit():
                return np.asarray(node.value).astype(node.dtype.numpy)
            case Size():
                return np.asarray(dims.evaluate(node.dim, sizes), dtype=np.int64)
            case Load():
                return _load(operands[node.operand], [go(i) for i in node.index])
            case Reduce():
                return _reduce(node, grid, operands, sizes)
            case Apply():
                return _apply(node, [go(a) for a in node.args])
        raise TypeError(f"not an expression: {node!r}")

    return go(expr)


def _load(array: Any, where: list[Any]) -> Any:
    """Gather with clipped indices: a guard discards what lies outside."""
    if not where:
        return np.asarray(array)
    if array.size == 0:
        return np.zeros((), array.dtype)
    clipped = tuple(np.clip(i, 0, n - 1) for i, n in zip(where, array.shape, strict=True))
    return array[clipped]


def _reduce(
    node: Reduce, grid: dict[Axis, Any], operands: tuple[Any, ...], sizes: dict[str, int]
) -> Any:
    """Reduce over trailing grid dimensions appended after the existing ones."""
    count = len(node.axes)
    rank = max((np.ndim(v) for v in grid.values()), default=0)
    inner = {a: np.reshape(v, np.shape(v) + (1,) * count) for a, v in grid.items()}
    extents = [dims.evaluate(a.extent, sizes) for a in node.axes]
    for d, (axis, n) in enumerate(zip(node.axes, extents, strict=True)):
        shape = [1] * (rank + count)
        shape[rank + d] = n
        inner[axis] = np.arange(n, dtype=np.int64).reshape(shape)
    body = _eval(node.body, inner, operands, sizes)
    full = np.broadcast_to(body, np.broadcast_shapes(np.shape(body), (1,) * rank + tuple(extents)))
    over = tuple(range(rank, rank + count))
    start = identity(node.kind, node.dtype)
    return _REDUCERS[node.kind].reduce(full, axis=over, initial=start).astype(node.dtype.numpy)


def _apply(node: Apply, args: list[Any]) -> Any:
    if node.fn in ("select", "guard"):
        return np.where(*args)
    if node.fn == "cast":
        return np.asarray(args[0]).astype(node.dtype.numpy)
    if node.fn == "bitcast":
        return np.asarray(args[0]).view(node.dtype.numpy)
    return FUNCTIONS[node.fn](*args)
