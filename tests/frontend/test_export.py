"""Capture through torch.export: graphs compute what eager does, bad sources are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import zoo
from benchmarks.zoo import ZOO
from benchmarks.zoo.entry import package_folder
from plait.frontend.export import CapturedModel, capture
from plait.ir.agreement import compare
from plait.ir.errors import Unsupported, UsageError
from plait.ir.interp import interpret

SMALL = ("minilm_batch", "crepe_tiny", "mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet", "mlp", "lstm",
         "gru")  # fmt: skip


def check(model: CapturedModel) -> None:
    """The interpreted graph agrees with eager on the samples."""
    results = interpret(model.graph, [model.samples[name] for name in model.input_names])
    wanted = [model.expected[name] for name in model.output_names]
    verdicts = [compare(a, b) for a, b in zip(results, wanted, strict=True)]
    assert all(v.agrees for v in verdicts), [v.reason for v in verdicts]


@pytest.mark.parametrize("name", SMALL)
def test_zoo_models_are_captured_whole(name: str) -> None:
    entry = ZOO[name]()
    model = capture(entry.model, entry.example_args, name=name)
    assert not model.fallbacks
    check(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ZOO) - set(SMALL)))
def test_large_zoo_models_are_captured_whole(name: str) -> None:
    test_zoo_models_are_captured_whole(name)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}],
)
@pytest.mark.parametrize("given", [False, True], ids=["zero state", "given state"])
def test_a_recurrent_layer_is_one_op_for_each_direction(
    kind: type[nn.LSTM | nn.GRU | nn.RNN], options: dict[str, Any], given: bool
) -> None:
    torch.manual_seed(5)
    layer = kind(3, 5, **options).eval()
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    states = [torch.randn(rows, 4, 5) for _ in range(1 + (kind is nn.LSTM))]
    args: tuple[Any, ...] = (torch.randn(4, 4, 3),)
    if given:
        args = (*args, tuple(states) if kind is nn.LSTM else states[0])
    model = capture(layer, args)
    assert not model.fallbacks
    ops = [node.op for node in model.graph.nodes]
    assert sum(op in ("lstm", "gru", "rnn_tanh") for op in ops) == rows
    check(model)


class Tied(nn.Module):
    """Two layers that share a weight, a buffer, a tensor made in forward, a dict as result."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.shift = nn.Buffer(torch.ones(4))

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Any]:
        y = self.second(torch.relu(self.first(x))) + self.shift
        return {"logits": y * scale, "both": (y, torch.tensor([1.0, 2.0]))}


def test_names_and_tied_weights() -> None:
    model = capture(Tied(), (torch.randn(2, 4), torch.tensor(3.0)))
    assert model.input_names == ("x", "scale")
    assert model.output_names == ("logits", "both_0", "both_1")
    weights = [n.attrs["value"] for n in model.graph.nodes if n.op == "constant"]
    shared = [w for w in weights if w.name == "first.weight"]
    assert len(shared) == 2 and shared[0] is shared[1]
    check(model)


def test_a_view_that_conjugates_is_no_tied_weight() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = torch.randn(3, dtype=torch.complex64)
            self.plain, self.turned = nn.Buffer(weight), nn.Buffer(weight.conj())

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.view_as_real(self.plain), torch.view_as_real(self.turned.resolve_conj())

    check(capture(Both(), (torch.randn(3),)))


def test_nodes_know_their_source() -> None:
    model = capture(Tied(), (torch.randn(2, 4), torch.tensor(3.0)))
    locations = {n.op: n.loc for n in model.graph.nodes}
    assert locations["relu"].startswith("test_export.py:")
    assert "in first" in next(n.loc for n in model.graph.nodes if n.op == "dot_general")


def test_one_capture_serves_a_range_of_sizes() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.LayerNorm(3)).eval()
    model = capture(module, (torch.randn(3, 4),), dynamic={"input": {0: ("batch", 1, 64)}})
    assert str(model.graph.inputs[0].type.shape[0]) == "batch"
    for batch in (1, 2, 7):
        x = torch.randn(batch, 4)
        (found,) = interpret(model.graph, [x.numpy()])
        np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_pt2_file(tmp_path: Path) -> None:
    module, args = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)).eval(), (torch.randn(2, 4),)
    torch.export.save(torch.export.export(module, args), tmp_path / "m.pt2")
    model = capture(tmp_path / "m.pt2")
    check(model)


def test_factory_by_name() -> None:
    assert capture("benchmarks.zoo:mlp").input_names == ("input",)


@pytest.mark.parametrize("name", ZOO)
def test_every_zoo_name_is_a_factory(name: str) -> None:
    assert getattr(zoo, name) is ZOO[name]


def test_factories_are_seeded() -> None:
    one, two = (capture("benchmarks.zoo:mlp").samples["input"] for _ in range(2))
    np.testing.assert_array_equal(one, two)


FACTORIES = """
def broken():
    raise RuntimeError("no weights here")

def lacking():
    import no_such_package
"""


def test_factories_that_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"some_factories:broken: .*RuntimeError.*no weights here"):
        capture("some_factories:broken")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        capture("some_factories:lacking")


def test_a_model_names_the_package_that_it_lacks() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        package_folder("no_such_package")
    assert caught.value.name == "no_such_package"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.pt2", "missing.pt2: no such file"),
        ("benchmarks.zoo:nothing", "benchmarks.zoo has no callable 'nothing'"),
        ("no_such_package:f", "no module named 'no_such_package'"),
        (__file__, r"not a \.pt2 file"),
    ],
)
def test_sources_that_cannot_be_read(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        capture(source)


def test_control_flow_on_data_is_refused() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(Unsupported, match=r"torch\.export cannot capture the model"):
        capture(Branch(), (torch.randn(3),))


def test_state_written_in_forward_is_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = nn.Buffer(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            return x + self.count

    with pytest.raises(Unsupported, match="writes to 'count'"):
        capture(Counter(), (torch.randn(3),))


def test_training_mode_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()
    model = capture(module, (torch.randn(2, 3),))
    assert module[1].training and not model.fallbacks


def test_output_names_that_would_coincide_are_told_apart() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"a": {"b": x + 1}, "a_b": x * 2}

    model = capture(Nested(), (torch.ones(3),))
    assert model.output_names == ("a_b", "a_b_2")
    np.testing.assert_array_equal(model.expected["a_b"], np.full(3, 2, np.float32))
