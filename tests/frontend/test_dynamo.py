"""The torch.compile backend against eager: results, strides, aliasing, mutation, freezing."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait.frontend import dynamo
from plait.frontend.dynamo import CompiledGraph
from plait.frontend.options import resolve
from plait.frontend.tensors import is_dense


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    dynamo.forget()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function through the backend, run by the reference interpreter unless told otherwise."""
    settings = {"executor": "interpreter", **options}
    result: Callable[..., Any] = torch.compile(function, backend="plait", options=settings)
    return result


def last() -> CompiledGraph:
    return dynamo.recent()[-1]


def same(found: Any, expected: Any) -> None:
    """Equal values and, for dense tensors, equal strides."""
    torch.testing.assert_close(found, expected)
    if isinstance(found, Tensor):
        assert found.stride() == expected.stride()


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


def test_operator_without_lowering_runs_between_segments() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        values, order = torch.sort(torch.relu(x) * 3 - 1)
        return torch.tanh(values) + 1, order

    x = torch.randn(4, 9)
    for found, expected in zip(compiled(function)(x), function(x), strict=True):
        same(found, expected)
    assert [f.target for f in last().fallbacks] == ["aten.sort.default"]
    assert "test_dynamo.py" in last().fallbacks[0].loc
    (program,) = last().programs
    assert (program.segments, program.host_calls) == (2, 1)


def test_fallback_can_be_refused() -> None:
    f = compiled(lambda x: torch.sort(x)[0], fallback="error")
    with pytest.raises(Exception, match=r"operator 'aten.sort.default' has no lowering"):
        f(torch.randn(3))


def test_random_operators_draw_as_eager_does() -> None:
    def function(x: Tensor) -> Tensor:
        a = torch.rand_like(x)
        b = torch.rand_like(x)
        return torch.exp(b) - torch.rand_like(x + b) * a

    x = torch.randn(5)
    torch.manual_seed(3)
    expected = function(x)
    torch.manual_seed(3)
    same(compiled(function)(x), expected)


def test_sizes_that_depend_on_data_run_with_torch() -> None:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        f = compiled(lambda x: torch.nonzero(x > 0) + 1)
        x = torch.randn(9)
        with pytest.warns(UserWarning, match="depends on the data"):
            same(f(x), torch.nonzero(x > 0) + 1)


def test_other_sizes_make_other_variants() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    f = compiled(model)
    with torch.no_grad():
        for batch in (2, 5, 7, 5):
            x = torch.randn(batch, 4)
            same(f(x), model(x))
    assert len(last().programs) == 2


def test_training_on_symbolic_sizes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.MaxPool2d(2))
    f = torch.compile(model, backend="plait", dynamic=True, options={"executor": "interpreter"})
    for size in ((2, 3, 12, 12), (3, 3, 13, 17)):
        x = torch.randn(size, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        f(x).square().sum().backward()
        model(y).square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-4)
    assert not any(graph.reason_eager for graph in dynamo.recent())


def test_sizes_outside_polynomials() -> None:
    def function(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        y = x.view(x.shape[0] // 2, -1)[:, : x.shape[1] * 2 - n]
        return y.mean(0) + torch.arange(y.shape[1]), x.new_zeros(max(n, 2), min(x.shape[1], 7))

    settings: dict[str, Any] = {"executor": "interpreter"}
    f = torch.compile(function, backend="plait", dynamic=True, options=settings)
    for size, n in (((4, 6), 1), ((8, 5), 2), ((6, 9), 3)):
        x = torch.randn(size)
        for found, expected in zip(f(x, n), function(x, n), strict=True):
            same(found, expected)


def test_many_sizes_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo, "MOST_SIZES", 2)
    f = compiled(lambda x: torch.relu(x) * 2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for size in (3, 4, 5, 6, 4):
            x = torch.randn(size, 7)
            same(f(x), torch.relu(x) * 2)
    told = [w for w in seen if "compiled for 2 sets of sizes" in str(w.message)]
    assert len(told) == 1
    assert len(last().programs) == 2


def model_with_buffer() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh()).eval()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].weight.mul_(2),
        lambda m: m[0].weight.data.mul_(2),
        lambda m: setattr(m[0].weight, "data", torch.randn(4, 6)),
        lambda m: m[1].running_mean.add_(1),
        lambda m: m.load_state_dict(model_with_buffer().state_dict()),
        lambda m: m[0].weight.numpy().fill(0.5),
    ],
    ids=["operator", "data", "new_storage", "buffer", "load_state_dict", "numpy"],
)
def test_frozen_weights_follow_a_change(change: Callable[[Any], object]) -> None:
    model, x = model_with_buffer(), torch.randn(3, 6)
    f = compiled(model)
    with torch.no_grad():
        same(f(x), model(x))
        assert len(last().programs[0].graph.inputs) == 1
        change(model)
        same(f(x), model(x))


def test_weights_that_keep_changing_become_inputs() -> None:
    model, x = model_with_buffer(), torch.randn(3, 6)
    f = compiled(model)
    with torch.no_grad():
        for _ in range(dynamo.MOST_REPACKS + 3):
            same(f(x), model(x))
            next(model.parameters()).mul_(1.5)
    assert last().repacks == dynamo.MOST_REPACKS + 1
    assert len(last().programs[0].graph.inputs) > 1


def test_layers_that_share_a_graph_keep_their_own_weights() -> None:
    layers = [nn.Linear(5, 5).eval() for _ in range(3)]
    f = compiled(lambda layer, x: torch.relu(layer(x)))
    x = torch.randn(2, 5)
    with torch.no_grad():
        for _ in range(2):
            for layer in layers:
                same(f(layer, x), torch.relu(layer(x)))


def test_freeze_always_looks_at_identity_alone() -> None:
    model, x = model_with_buffer(), torch.randn(3, 6)
    f = compiled(model, freeze="always", executor="native")  # the interpreter reads weights
    with torch.no_grad():
        first = model(x)
        same(f(x), first)
        linear = model[0]
        assert isinstance(linear, nn.Linear)
        linear.weight.mul_(2)
        same(f(x), first)
        linear.weight = nn.Parameter(torch.randn(4, 6))
        same(f(x), model(x))


def test_freeze_never_reads_weights_at_every_call() -> None:
    model, x = model_with_buffer(), torch.randn(3, 6)
    f = compiled(model, freeze=False)
    with torch.no_grad():
        same(f(x), model(x))
        next(model.parameters()).data[0, 0] = 9.0
        same(f(x), model(x))
    assert last().repacks == 0


def test_statistics_that_the_graph_updates_are_not_frozen() -> None:
    def pair() -> tuple[nn.Module, nn.Module]:
        a, b = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        return a.train(), b.train()

    ours, theirs = pair()
    f = compiled(ours)
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(8, 4)
            same(f(x), theirs(x))
    same(ours.running_var, theirs.running_var)
    assert last().repacks == 0


def test_gradients() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))
    x = torch.randn(5, 6, requires_grad=True)
    model(x).pow(2).sum().backward()
    leaves = [x, *model.parameters()]
    expected = [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]
    for leaf in leaves:
        leaf.grad = None
    compiled(model)(x).pow(2).sum().backward()
    assert [g.role for g in dynamo.recent()] == ["forward", "backward"]
    for leaf, want in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_gradients_of_a_recurrent_layer(kind: type[nn.LSTM | nn.GRU | nn.RNN]) -> None:
    def gradients(wrap: Callable[[nn.Module], Callable[..., Any]]) -> list[Tensor]:
        torch.manual_seed(4)
        model, x = kind(3, 5, 2), torch.randn(4, 2, 3, requires_grad=True)
        output, state = wrap(model)(x)
        hidden = state[0] if kind is nn.LSTM else state
        return list(
            torch.autograd.grad(output.sum() + hidden.pow(2).sum(), [x, *model.parameters()])
        )

    with torch._dynamo.config.patch(allow_rnn=True):
        torch.testing.assert_close(gradients(compiled), gradients(lambda m: m))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_compiled_whole(kind: type[nn.LSTM | nn.GRU | nn.RNN]) -> None:
    torch.manual_seed(4)
    model, x = kind(3, 5, 2, batch_first=True, bidirectional=True).eval(), torch.randn(2, 4, 3)
    with torch._dynamo.config.patch(allow_rnn=True), torch.no_grad():
        torch.testing.assert_close(compiled(model)(x), model(x))
    assert [g.fallbacks for g in dynamo.recent()] == [()]


def test_training_step_with_an_optimizer() -> None:
    def train(wrap: Callable[[nn.Module], Callable[..., Any]]) -> list[float]:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 1))
        step, optimizer = wrap(model), torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(4):
            x = torch.randn(8, 4)
            loss = (step(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert train(compiled) == pytest.approx(train(lambda m: m), rel=1e-4)


@pytest.mark.parametrize("executor", ["native", "interpreter"])
def test_calls_from_many_threads(executor: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU()).eval()
    f = compiled(model, executor=executor)
    inputs = [torch.randn(4, 16) for _ in range(8)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        f(inputs[0])
    wrong: list[int] = []

    def work(k: int) -> None:
        with torch.no_grad():
            for _ in range(5 if executor == "interpreter" else 200):
                if not torch.allclose(f(inputs[k]), expected[k], atol=1e-5):
                    wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_first_calls_come_from_many_threads() -> None:
    """Threads that find nothing compiled wait for one compilation, and all get right results."""
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU()).eval()
    inputs = [torch.randn(4, 16) for _ in range(4)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        compiled(model, executor="native")(inputs[0])
    graph = last()
    graph._variants.clear()
    found: dict[int, Tensor] = {}
    ready = threading.Barrier(len(inputs))

    def work(k: int) -> None:
        ready.wait()
        with torch.no_grad():
            (found[k],) = graph([*model.parameters(), inputs[k]])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(graph.programs) == 1
    for k, want in enumerate(expected):
        torch.testing.assert_close(found[k], want, rtol=1e-4, atol=1e-5)


def test_modes_of_torch_reach_the_backend() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.tanh(x) + 1

    x = torch.randn(4)
    with torch.no_grad():
        same(torch.compile(function, backend="plait", mode="max-autotune")(x), function(x))
        assert last().settings == resolve(None, None)
        with pytest.raises(Exception, match="unknown mode 'max-autotoon'"):
            torch.compile(function, backend="plait", mode="max-autotoon")(x)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(Exception, match="unknown option 'tunes'"):
        torch.compile(lambda x: x + 1, backend="plait", options={"tunes": 3})(torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_other_dtypes(dtype: torch.dtype) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(x > y, x, y), x == y

    x = torch.randint(0, 2, (3, 4)).to(dtype)
    y = torch.randint(0, 2, (3, 4)).to(dtype)
    for found, expected in zip(compiled(function)(x, y), function(x, y), strict=True):
        same(found, expected)
