"""Folding batch norms with constant statistics into the convolution before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.ir.builder import Value
from plait.ir.graph import Graph, Node
from plait.passes.context import Context
from plait.passes.pipeline import Pass, register_pass
from plait.passes.rewrite import Match, Replacement, apply_rules, rule


def _affine(m: Match) -> tuple[Any, Any] | None:
    """Scale and shift per channel, in float64, of a norm whose vectors are constant."""
    arrays = [m.constant(v) for v in m.operands[1:]]
    if any(a is None for a in arrays):
        return None
    mean, var, *affine = (a.astype(np.float64) for a in arrays)
    scale = 1 / np.sqrt(var + m.attrs["eps"])
    if affine:
        scale = scale * affine[0]
    shift = -mean * scale + (affine[1] if len(affine) > 1 else 0)
    return scale, shift


def _bias_of(m: Match, node: Node) -> tuple[Value, Any] | None:
    """For add(y, constant per channel): y and the bias vector."""
    for k in (0, 1):
        bias = m.constant(m.b.value(node.operands[k]))
        other = m.b.value(node.operands[1 - k])
        if bias is not None and other.rank >= 2 and bias.size in (1, other.shape[1]):
            per_channel = bias.ndim == 0 or (
                bias.ndim == other.rank - 1 and bias.shape[1:] == (1,) * (other.rank - 2)
            )
            if per_channel:
                return other, bias.reshape(-1).astype(np.float64)
    return None


@rule("batch_norm")
def fold_batch_norm(m: Match) -> Replacement:
    """batch_norm(conv(x, w) + b) -> conv(x, w * scale) + (b * scale + shift).

    Lowers the number of batch norms.  Only where the convolution has no other reader, since
    it would be computed twice; weights are scaled in float64 and rounded once.
    """
    affine = _affine(m)
    if affine is None or m.readers(m.operands[0]) != 1:
        return None
    scale, shift = affine
    source: Value = m.operands[0]
    producer = m.b.producer(source)
    bias: Any = 0.0
    if producer is not None and producer.op == "add":
        found = _bias_of(m, producer)
        if found is None:
            return None
        source, bias = found
        producer = m.b.producer(source)
    if producer is None or producer.op != "conv" or m.readers(source) != 1:
        return None
    weights = m.constant(m.b.value(producer.operands[1]))
    if weights is None:
        return None
    dtype = weights.dtype
    wide = weights.astype(np.float64) * scale.reshape(-1, *([1] * (weights.ndim - 1)))
    name = m.made_by(m.b.value(producer.operands[1]), "constant").attrs["value"].name  # type: ignore[union-attr]
    conv = m.b.emit("conv", m.b.value(producer.operands[0]),
                    m.b.constant(wide.astype(dtype), name), **producer.attrs)  # fmt: skip
    total = (bias * scale + shift).astype(dtype).reshape(-1, *([1] * (weights.ndim - 2)))
    return conv + m.b.constant(total, f"{name}.shift")


@register_pass
@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold batch norms into the convolutions before them."""

    name = "fold-batch-norm"

    def apply(self, graph: Graph, context: Context) -> Graph:
        return apply_rules(graph, (fold_batch_norm,), context)
