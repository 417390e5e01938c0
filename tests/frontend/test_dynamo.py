"""The torch.compile backend against eager: segments, sizes, threads, options."""

from __future__ import annotations

import logging
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait.frontend import dynamo
from plait.frontend.options import resolve
from plait.ir import logs
from tests.frontend.backend import compiled, last, same

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


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

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
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

    with ThreadPoolExecutor(len(inputs)) as pool:
        list(pool.map(work, range(len(inputs))))
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


def test_gradients_of_attention() -> None:
    """Torch's own rule for the forward part gives no log of sums, which the backward part reads."""
    given = [torch.randn(1, 2, 5, 8) for _ in range(3)]
    direction = torch.randn(1, 2, 5, 8)

    def gradients(attend: Any, dtype: torch.dtype) -> list[Tensor]:
        xs = [x.to(dtype).requires_grad_() for x in given]
        (attend(*xs) * direction.to(dtype)).sum().backward()
        return [x.grad for x in xs if x.grad is not None]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v)

    wanted = gradients(attend, torch.float64)
    for found, want in zip(gradients(compiled(attend), torch.float32), wanted, strict=True):
        torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-6)


def test_the_environment_asks_for_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else than the backend is there to look at it."""
    logger = logging.getLogger("plait.runtime.compiler")
    monkeypatch.setenv("PLAIT_DEBUG", "2")
    compiled(torch.relu)(torch.randn(3, 5))
    assert logger.isEnabledFor(logging.INFO)
    monkeypatch.undo()
    logs.configure()
    assert not logger.isEnabledFor(logging.INFO)
