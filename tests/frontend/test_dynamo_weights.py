"""Weights through the torch.compile backend: freezing, gradients, training steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait.frontend import dynamo
from tests.frontend.backend import compiled, last, same

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


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
