"""Decompositions that torch lacks or that suit the IR better, in terms of other torch operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
# A rule that gives NotImplemented leaves the operator whole.
RULES: Final[dict[Any, Callable[..., Any]]] = {}


def _rule(*overloads: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(overloads, function))
        return function

    return add


# Operators of torch's full table, beyond core ATen, whose rule ends in operators the IR has.
FROM_TORCH: Final = (
    "_addmm_activation", "_batch_norm_with_update_functional", "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional", "addmv", "bitwise_and", "bitwise_or", "bitwise_xor",
    "dist", "grid_sampler_2d", "is_same_size", "ldexp", "lift",
    "linalg_vector_norm", "narrow_copy", "native_batch_norm", "native_group_norm",
    "native_layer_norm", "permute_copy", "remainder", "slice_scatter", "special_ndtr",
    "tril_indices", "triu_indices", "unbind_copy", "upsample_bicubic2d", "upsample_bilinear2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_trilinear3d",
    "view_copy",
)  # fmt: skip


@_rule(aten.empty.memory_format, aten.empty_permuted.default, aten.empty_strided.default)
def _empty(size: Sequence[int], *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
    """Unspecified values are zeros: the same program gives the same result twice."""
    return torch.zeros(size, dtype=dtype)


@_rule(aten.new_empty.default, aten.new_empty_strided.default)
def _new_empty(
    x: Tensor, size: Sequence[int], *_: Any, dtype: torch.dtype | None = None, **__: Any
) -> Tensor:
    return torch.zeros(size, dtype=dtype or x.dtype)


@_rule(aten.empty_like.default)
def _empty_like(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return torch.zeros(x.shape, dtype=dtype or x.dtype)


@_rule(aten.copy.default)
def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(x.dtype).expand(x.shape).clone()


@_rule(aten.addbmm.default)
def _addbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """A zero `beta` ignores x, infinities and all."""
    product = torch.bmm(a, b).sum(0) * alpha
    return product if beta == 0 else x * beta + product


@_rule(aten.fmax.default)
def _fmax(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((a >= b) | (b != b), a, b)


@_rule(aten.fmin.default)
def _fmin(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((a <= b) | (b != b), a, b)


@_rule(aten.diagonal.default)
def _diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Rows of (i, i + offset), read at constant positions."""
    inner = torch.movedim(x, (dim1, dim2), (-2, -1))
    rows, columns = inner.shape[-2:]
    first = max(0, -offset)
    count = max(0, min(rows - first, columns - max(0, offset)))
    at = torch.arange(count)
    return inner.flatten(-2).index_select(-1, (at + first) * columns + at + first + offset)


@_rule(aten.unfold.default)
def _unfold(x: Tensor, dimension: int, size: int, step: int) -> Any:
    """Windows along a dimension: a read at constant positions, its inner axis moved last."""
    if x.dim() == 0:
        return NotImplemented
    dim = dimension % x.dim()
    count = (x.shape[dim] - size) // step + 1
    at = (torch.arange(count) * step).unsqueeze(1) + torch.arange(size)
    picked = x.index_select(dim, at.flatten()).unflatten(dim, (count, size))
    return picked.movedim(dim + 1, -1)


@_rule(aten.round.decimals)
def _round(x: Tensor, *, decimals: int) -> Tensor:
    scale = 10.0 ** abs(decimals)
    if decimals == 0:
        return torch.round(x)
    return torch.round(x * scale) / scale if decimals > 0 else torch.round(x / scale) * scale


@_rule(aten.max.dim)
def _max(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return torch.amax(x, dim, keepdim), torch.argmax(x, dim, keepdim)


@_rule(aten.min.dim)
def _min(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return torch.amin(x, dim, keepdim), torch.argmin(x, dim, keepdim)


@_rule(aten.as_strided.default)
def _as_strided(
    x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Any:
    """A read at constant positions, where x covers its memory in row-major order."""
    covers = x.is_contiguous() and not x.storage_offset()
    if not covers or x.untyped_storage().nbytes() != x.numel() * x.itemsize:
        return NotImplemented
    at = torch.full([1] * len(size), storage_offset or 0)
    for d, (n, step) in enumerate(zip(size, stride, strict=True)):
        at = at + (torch.arange(n) * step).view([n if k == d else 1 for k in range(len(size))])
    return x.flatten().index_select(0, at.flatten()).view(size)


@_rule(aten.convolution.default)
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """A transposed convolution is a plain one of the input spread out by zeros."""
    if not transposed:
        return NotImplemented
    inputs, outputs, *kernel = weight.shape
    split = weight.view(groups, inputs // groups, outputs, *kernel).transpose(1, 2)
    turned = split.reshape(groups * outputs, inputs // groups, *kernel)
    turned = turned.flip(list(range(2, weight.dim())))
    for d, step in enumerate(stride, 2):
        x = _spread(x, d, step)
    pads: list[int] = []
    for size, step, pad, extra in reversed(
        list(zip(kernel, dilation, padding, output_padding, strict=True))
    ):
        reach = step * (size - 1)
        pads += [reach - pad, reach - pad + extra]
    x = F.pad(x, pads)
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    return aten.convolution.default(x, turned, bias, ones, zeros, dilation, False, zeros, groups)


def _spread(x: Tensor, dim: int, step: int) -> Tensor:
    """x with step - 1 zeros between neighbours along a dimension."""
    if step == 1:
        return x
    size = x.shape[dim]
    pairs = F.pad(x.unsqueeze(dim + 1), [0, 0] * (x.dim() - 1 - dim) + [0, step - 1])
    return pairs.flatten(dim, dim + 1).narrow(dim, 0, (size - 1) * step + 1)


@_rule(aten._transformer_encoder_layer_fwd.default)
def _encoder_layer(
    x: Tensor,
    width: int,
    heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Any:
    """The fused operator that `nn.TransformerEncoderLayer` calls in inference, x[N, L, width]."""
    if mask is not None:
        return NotImplemented
    batch, length, _ = x.shape

    def attend(y: Tensor) -> Tensor:
        parts = F.linear(y, qkv_weight, qkv_bias).view(batch, length, 3, heads, width // heads)
        q, k, v = (part.transpose(1, 2) for part in parts.unbind(2))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return F.linear(mixed.reshape(batch, length, width), project_weight, project_bias)

    def feed(y: Tensor) -> Tensor:
        wide = F.linear(y, up_weight, up_bias)
        return F.linear(F.gelu(wide) if use_gelu else F.relu(wide), down_weight, down_bias)

    def norm1(y: Tensor) -> Tensor:
        return F.layer_norm(y, (width,), norm1_weight, norm1_bias, eps)

    def norm2(y: Tensor) -> Tensor:
        return F.layer_norm(y, (width,), norm2_weight, norm2_bias, eps)

    if norm_first:
        x = x + attend(norm1(x))
        return x + feed(norm2(x))
    x = norm1(x + attend(x))
    return norm2(x + feed(x))
