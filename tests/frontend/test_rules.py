"""Decompositions of ours, and operators folded at capture: right, and nothing left to torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.frontend import dynamo


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    dynamo.forget()
    yield
    torch._dynamo.reset()


def lowered(function: Callable[..., Any], *args: Any) -> None:
    """The compiled function equals eager and has no fallback."""
    compiled = torch.compile(function, backend="plait", options={"executor": "interpreter"})
    torch.testing.assert_close(compiled(*args), function(*args), equal_nan=True)
    (graph,) = dynamo.recent()
    assert not graph.fallbacks and not graph.reason_eager


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("function", "weight", "options"),
    [
        (F.conv_transpose1d, (4, 6, 4), {"stride": 3, "padding": 5, "dilation": 2}),
        (F.conv_transpose2d, (4, 3, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
        (F.conv_transpose2d, (4, 3, 3, 2), {"groups": 2, "stride": (1, 3)}),
        (F.conv_transpose3d, (4, 2, 2, 2, 2), {"stride": 2}),
    ],
)
def test_transposed_convolution(
    function: Callable[..., Tensor], weight: tuple[int, ...], options: dict[str, Any]
) -> None:
    x = randn(2, 4, *[5, 6, 7][: len(weight) - 2])
    lowered(lambda x, w: function(x, w, **options), x, randn(*weight))


@pytest.mark.parametrize("offset", [-3, -1, 0, 2, 5, 6])
@pytest.mark.parametrize("dims", [(0, 1), (2, 0)])
def test_diagonal(offset: int, dims: tuple[int, int]) -> None:
    lowered(lambda x: torch.diagonal(x, offset, *dims) * 2, randn(4, 6, 3))


@pytest.mark.parametrize(("size", "step"), [(3, 1), (2, 2), (4, 3)])
def test_unfold(size: int, step: int) -> None:
    lowered(lambda x: x.unfold(1, size, step) + 1, randn(2, 9, 3))


def test_as_strided() -> None:
    lowered(lambda x: torch.as_strided(x, (3, 2), (2, 5), 1) + 1, randn(4, 4))


@pytest.mark.parametrize("name", ["fmax", "fmin"])
def test_fmax_ignores_nan(name: str) -> None:
    nan = float("nan")
    a = torch.tensor([1.0, nan, 3.0, nan, float("inf")])
    b = torch.tensor([2.0, 5.0, nan, nan, 1.0])
    lowered(getattr(torch, name), a, b)


@pytest.mark.parametrize("name", ["max", "min"])
def test_largest_with_its_place(name: str) -> None:
    x = torch.tensor([[1.0, 3.0, 3.0], [float("nan"), 7.0, float("nan")], [-1.0, -1.0, -2.0]])
    lowered(lambda x: tuple(getattr(torch, name)(x, 1)), x)


@pytest.mark.parametrize("name", ["sum", "amax", "mean", "prod", "any", "var"])
def test_a_scalar_has_one_dimension_to_reduce(name: str) -> None:
    options: dict[str, Any] = {"correction": 0} if name == "var" else {}
    lowered(lambda x: getattr(torch, name)(x, dim=0, **options), torch.tensor(2.5))


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_addbmm(beta: float) -> None:
    x = randn(3, 5) / (0.0 if beta == 0 else 1.0)
    lowered(lambda x, a, b: torch.addbmm(x, a, b, beta=beta), x, randn(2, 3, 4), randn(2, 4, 5))


@pytest.mark.parametrize("decimals", [0, 2, -1])
def test_round_to_decimals(decimals: int) -> None:
    lowered(lambda x: torch.round(x, decimals=decimals), randn(9) * 50)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder_layer(norm_first: bool, activation: str) -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        16, 4, 32, norm_first=norm_first, activation=activation, batch_first=True
    ).eval()
    with torch.no_grad():
        lowered(layer, randn(2, 5, 16))


def test_new_memory_is_zero() -> None:
    lowered(lambda x: torch.empty_like(x).zero_() + x.new_empty(3, 4).fill_(2), randn(3, 4))


def test_operators_on_known_values_are_constants() -> None:
    def function(x: Tensor) -> Tensor:
        order = torch.sort(torch.tensor([3, 1, 2, 0])).indices
        return x[order] + torch.cumsum(torch.arange(4), 0)

    lowered(function, randn(4))
