"""Tensors through the torch.compile backend: strides, subclasses, aliases, writes, dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait.frontend.tensors import is_dense
from tests.frontend.backend import compiled, same

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_several_results_keep_their_order_and_strides() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.relu(x) * 2
        return y.t(), y, y.permute(1, 0).contiguous()

    x = torch.randn(3, 5)
    for found, expected in zip(compiled(function)(x), function(x), strict=True):
        same(found, expected)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16])
def test_strides_of_dtypes_that_torch_computes(dtype: torch.dtype) -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x * 2).t(), x.t() + 1

    x = torch.randn(3, 5).to(dtype).t()
    for found, expected in zip(compiled(function)(x), function(x), strict=True):
        same(found, expected)


def test_channels_last_results_stay_channels_last() -> None:
    model = nn.Conv2d(3, 8, 3).eval()
    model.weight.data = model.weight.data.contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 9, 7).to(memory_format=torch.channels_last)
    with torch.no_grad():
        same(compiled(model)(x), model(x))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, 1:4],
        lambda x: x[:, :1].expand(6, 8),
        lambda x: x.t(),
        lambda x: x[::2],
        lambda x: x.as_strided((4, 5), (2, 3), 1),
    ],
)
def test_inputs_of_any_strides(view: Callable[[Tensor], Tensor]) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.exp(x) + 1

    x = view(torch.randn(6, 8))
    torch.testing.assert_close(compiled(function)(x), function(x))


def zero() -> Tensor:
    found: Tensor = torch.ops.aten._efficientzerotensor((3, 4))
    return found


def negative() -> Tensor:
    found: Tensor = torch.ops.aten._neg_view(torch.randn(3, 4))
    return found


def conjugate() -> Tensor:
    return torch.randn(3, 4, dtype=torch.complex64).conj()


@pytest.mark.parametrize("make", [zero, negative, conjugate])
@pytest.mark.parametrize("executor", ["native", "interpreter"])
def test_tensors_whose_memory_holds_other_elements(
    make: Callable[[], Tensor], executor: str
) -> None:
    """As input and as a buffer of the model, frozen or read at every call."""

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Buffer(make())

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.shift).real * 2

    x, y, model = make(), torch.randn(3, 4), Shift()
    assert not is_dense(x)
    with torch.no_grad():
        same(compiled(lambda x: torch.abs(x + 1), executor=executor)(x), torch.abs(x + 1))
        for freeze in ("auto", "never"):
            same(compiled(model, executor=executor, freeze=freeze)(y), model(y))


class Boxed(Tensor):
    """A subclass that keeps its elements in another tensor, and gives plain results, doubled."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Boxed:
        shape, dtype = inner.shape, inner.dtype
        made: Boxed = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, strides=inner.stride(), dtype=dtype, device=inner.device
        )
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Boxed:
        return Boxed(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        inner = [a.inner if isinstance(a, Boxed) else a for a in args]
        return function(*inner, **(kwargs or {})) * 2


def test_subclasses_are_taken_apart() -> None:
    x = Boxed(torch.randn(3, 4))
    with torch.no_grad():
        same(compiled(lambda x: x + 1, executor="native")(x), (x.inner + 1) * 2)


class Named(Tensor):
    """A subclass that is a tensor like any other."""


def test_subclasses_that_hold_their_elements() -> None:
    x = torch.randn(3, 4)
    with torch.no_grad():
        found = compiled(torch.exp, executor="native")(x.as_subclass(Named))
        torch.testing.assert_close(found.as_subclass(Tensor), torch.exp(x))


def test_result_that_is_the_input() -> None:
    x = torch.randn(4)
    a, b = compiled(lambda x: (x, x * 2))(x)
    assert a.data_ptr() == x.data_ptr()
    same(b, x * 2)


def test_view_of_the_input_aliases_it() -> None:
    x = torch.randn(4, 3)
    a, b = compiled(lambda x: (x.t(), x + 1))(x)
    x.add_(5)
    same(a, x.t())
    same(b, x - 4)


def test_input_written_in_place() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        x.mul_(2)
        y[1:3] = 7.0
        return x + y

    x, y = torch.randn(5), torch.randn(5)
    x2, y2 = x.clone(), y.clone()
    same(compiled(function)(x, y), function(x2, y2))
    same(x, x2)
    same(y, y2)


def test_same_tensor_given_twice() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        return x * y

    x = torch.randn(4)
    x2 = x.clone()
    same(compiled(function)(x, x), function(x2, x2))
    same(x, x2)


def test_constant_result_is_new_at_every_call() -> None:
    f = compiled(lambda x: (torch.tensor([1.0, 2.0]), x + 1))
    a, _ = f(torch.zeros(2))
    a.add_(1)
    b, _ = f(torch.zeros(2))
    same(b, torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_other_dtypes(dtype: torch.dtype) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(x > y, x, y), x == y

    x = torch.randint(0, 2, (3, 4)).to(dtype)
    y = torch.randint(0, 2, (3, 4)).to(dtype)
    for found, expected in zip(compiled(function)(x, y), function(x, y), strict=True):
        same(found, expected)
