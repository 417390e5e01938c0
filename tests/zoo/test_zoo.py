"""The model zoo, compiled both ways, against eager: no fallback, numbers within the bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import plait
from benchmarks.peers import arrays
from benchmarks.zoo import ZOO, ZooEntry
from plait.frontend.export import capture
from plait.ir.agreement import compare
from plait.passes.footprint import eager_peak
from plait.passes.memory_check import check_plan
from plait.runtime.compiler import compile_graph

QUICK = ("mlp", "mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet", "crepe_tiny", "minilm", "lstm",
         "gru", "mobilenet_v2")  # fmt: skip
NAMES = [
    pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ZOO
]  # fmt: skip


def outputs(model: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
    with torch.no_grad():
        return arrays(model(*args))


def judge(entry: ZooEntry) -> list[Any]:
    """The same computation in float64."""
    import copy

    wide = copy.deepcopy(entry.model).double()
    args = tuple(a.double() if a.is_floating_point() else a for a in entry.example_args)
    return outputs(wide, args)


def check(entry: ZooEntry, got: list[Any]) -> None:
    want = outputs(entry.model, entry.example_args)
    verdicts = [compare(g, w) for g, w in zip(got, want, strict=True)]
    if not all(v.agrees for v in verdicts):
        exact = judge(entry)
        verdicts = [compare(g, w, j) for g, w, j in zip(got, want, exact, strict=True)]
    assert all(v.agrees for v in verdicts), [v.reason for v in verdicts]


@pytest.mark.parametrize("name", NAMES)
def test_ahead_of_time(name: str) -> None:
    entry = ZOO[name]()
    captured = capture(entry.model, entry.example_args, name=name)
    assert captured.fallbacks == ()
    module = compile_graph(captured.graph)
    check_plan(module.graph, module.memory)
    assert module.memory.size <= eager_peak(captured.graph)
    check(entry, list(module.load()(*(a.numpy() for a in entry.example_args))))


@pytest.mark.parametrize("name", NAMES)
def test_torch_compile(name: str) -> None:
    torch._dynamo.reset()
    entry = ZOO[name]()
    fast = torch.compile(
        entry.model, backend="plait", fullgraph=True, options={"fallback": "error"}
    )
    with torch._dynamo.config.patch(allow_rnn=True):
        check(entry, outputs(fast, entry.example_args))


def test_the_pitch_of_a_tone() -> None:
    """A sine of 440 Hz: the estimator with its trained weights, compiled, names the right bin."""
    entry = ZOO["crepe_tiny"]()
    time = np.arange(1024) / 16_000
    frames = np.stack([np.sin(2 * np.pi * 440 * time + phase) for phase in (0.0, 1.0)])
    frames = (frames - frames.mean(1, keepdims=True)) / frames.std(1, keepdims=True)
    model = plait.compile(entry.model, (torch.from_numpy(frames.astype(np.float32)),))
    (bins,) = model(frames.astype(np.float32))
    cents = 20 * bins.argmax(1) + 1997.3794084376191
    hertz = 10 * 2 ** (cents / 1200)
    assert np.all(np.abs(hertz - 440) < 440 * (2 ** (20 / 1200) - 1)), hertz
