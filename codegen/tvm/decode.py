"""Attention of a single query row: products of a vector with K and with V as they lie in memory.

Each key's product runs along its depth in lanes, eight keys at a time, whose lanes are then summed
by a transposition; powers and their sum run along keys, the result along its own columns.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from plait.codegen.tvm.blocks import (
    LOG2E,
    MINUS_INFINITY,
    SQUARE,
    ZERO,
    bounded,
    scratch,
    transpose8,
    weight,
)
from plait.codegen.tvm.loops import across, along, loop, put, unrolled
from plait.codegen.tvm.operands import Operands
from plait.codegen.tvm.scalars import const

PrimExpr = Any
Stmt = Any

PANEL = 8 * SQUARE  # columns of V summed at once


def build_decode(op: Operands, shared: bool) -> Stmt:
    """The code of all heads, which threads may share."""
    kind = tirx.ForKind.PARALLEL if shared else tirx.ForKind.SERIAL
    return loop(op.heads, lambda head: Row(op, head).build(), kind, "head")


class Row:
    """The code for one head."""

    def __init__(self, op: Operands, head: PrimExpr) -> None:
        self.op, self.head = op, head
        self.seen = 1 if op.causal else op.keys
        self.padded = -(-self.seen // SQUARE) * SQUARE
        self.query, self.powers = scratch(op.depth, "query"), scratch(self.padded, "powers")
        self.top, self.total = scratch(SQUARE, "top"), scratch(SQUARE, "total")
        self.result = scratch(2, "result")

    def build(self) -> Stmt:
        op = self.op
        buffers = (self.query, self.powers, self.top, self.total, self.result)
        scale, zero = const(op.scale * LOG2E, "float32"), const(0, "int32")
        load = along(op.depth, lambda d: put(
            self.query, d, op.query(self.head, zero, d) * scale))  # fmt: skip
        return tirx.SeqStmt([
            *(tirx.AllocBuffer(b) for b in buffers),
            load,
            across(SQUARE, lambda i: put(self.top, i, MINUS_INFINITY)),
            loop(self.padded // SQUARE, lambda g: self.eight_scores(g * SQUARE), None, "keys"),
            *self.softmax(),
            *self.products(),
        ])  # fmt: skip

    def eight_scores(self, first: PrimExpr) -> Stmt:
        """Scores of eight keys; those beyond the end are hidden."""
        op = self.op
        acc, score = scratch(SQUARE * SQUARE, "acc"), scratch(SQUARE, "score")
        ragged = self.padded != self.seen

        def key(k: PrimExpr) -> PrimExpr:
            return bounded(first + k, op.keys - 1, ragged)

        def lanes(stmt: Any) -> Stmt:
            return unrolled(SQUARE, lambda k: across(SQUARE, lambda v: stmt(k, v)))

        def term(u: PrimExpr) -> Stmt:
            return lanes(lambda k, v: put(
                acc, k * SQUARE + v,
                op.key(self.head, key(k), u * SQUARE + v) * self.query[u * SQUARE + v]
                + acc[k * SQUARE + v]))  # fmt: skip

        def single(d: PrimExpr) -> Stmt:
            return across(SQUARE, lambda k: put(
                score, k, op.key(self.head, key(k), d) * self.query[d] + score[k]))  # fmt: skip

        def add(k: int, column: PrimExpr) -> Stmt:
            place = tirx.Ramp(const(0, "int32"), 1, SQUARE)
            return tirx.BufferStore(score, tirx.BufferLoad(score, [place]) + column, [place])

        def finish(k: PrimExpr) -> Stmt:
            value = op.masked(score[k], self.head, const(0, "int32"), key(k))
            hidden = []
            if ragged:
                # A statement of its own: TVM takes the bound of `key` away where the condition
                # implies it, and then reads all lanes of the mask, also those past its end.
                hidden.append(put(score, k, value))
                value = tirx.Select(first + k < self.seen, score[k], MINUS_INFINITY)
            return tirx.SeqStmt([
                *hidden, put(self.powers, first + k, value),
                put(self.top, k, tirx.max(self.top[k], self.powers[first + k])),
            ])  # fmt: skip

        whole, rest = divmod(op.depth, SQUARE)
        sums = [loop(whole, term, None, "d"), *transpose8(acc, add)] if whole else []
        tail = [loop(rest, lambda d: single(whole * SQUARE + d), None, "tail")] if rest else []
        return tirx.SeqStmt([
            tirx.AllocBuffer(acc), tirx.AllocBuffer(score),
            lanes(lambda k, v: put(acc, k * SQUARE + v, ZERO)),
            across(SQUARE, lambda k: put(score, k, ZERO)),
            *sums, *tail, across(SQUARE, finish),
        ])  # fmt: skip

    def softmax(self) -> list[Stmt]:
        """Powers in place of scores, and the inverse of their sum in `result[1]`."""
        result, one = self.result, const(1.0, "float32")
        first, second = const(0, "int32"), const(1, "int32")
        top = loop(SQUARE, lambda i: put(
            result, first, tirx.max(result[0], self.top[i])), None, "i")  # fmt: skip
        base = tirx.Select(result[0] > MINUS_INFINITY, result[0], ZERO)

        def power(u: PrimExpr) -> Stmt:
            def lane(v: PrimExpr) -> Stmt:
                at = u * SQUARE + v
                value = weight(self.powers[at] - result[0])
                total = self.total[v] + self.powers[at]
                return tirx.SeqStmt([put(self.powers, at, value), put(self.total, v, total)])

            return across(SQUARE, lane)

        total = loop(SQUARE, lambda i: put(result, second, result[1] + self.total[i]), None, "i")
        inverse = tirx.Select(result[1] > ZERO, one / result[1], result[1])
        return [
            put(result, first, MINUS_INFINITY), top, put(result, first, base),
            across(SQUARE, lambda i: put(self.total, i, ZERO)),
            loop(self.padded // SQUARE, power, None, "keys"),
            put(result, second, ZERO), total, put(result, second, inverse),
        ]  # fmt: skip

    def products(self) -> list[Stmt]:
        """Powers times V, panel by panel of columns."""
        whole, rest = divmod(self.op.width, PANEL)
        stmts = (
            [loop(whole, lambda p: self.panel(p * PANEL, PANEL), None, "panel")] if whole else []
        )
        vectors, singles = divmod(rest, SQUARE)
        at = whole * PANEL
        if vectors:
            stmts.append(self.panel(const(at, "int32"), vectors * SQUARE))
        at += vectors * SQUARE
        if singles:
            stmts.append(loop(singles, lambda e: self.panel(at + e, 1), None, "column"))
        return stmts

    def panel(self, column: PrimExpr, width: int) -> Stmt:
        op = self.op
        acc = scratch(width, "acc")

        def each(stmt: Any) -> Stmt:
            return stmt(const(0, "int32")) if width == 1 else across(width, stmt)

        def term(n: PrimExpr) -> Stmt:
            return each(lambda e: put(
                acc, e, self.powers[n] * op.value(self.head, n, column + e) + acc[e]))  # fmt: skip

        return tirx.SeqStmt([
            tirx.AllocBuffer(acc), each(lambda e: put(acc, e, ZERO)),
            loop(self.seen, term, None, "n"),
            each(lambda e: op.store(self.head, const(0, "int32"), column + e,
                                    acc[e] * self.result[1])),
        ])  # fmt: skip
