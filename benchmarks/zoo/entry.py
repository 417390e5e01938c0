"""What every entry of the zoo is made of: seeds, calibrated random weights, inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

Kind = Literal["real", "random"]
SEED: Final = 20
CLASSES: Final = 1000


@dataclass(frozen=True)
class ZooEntry:
    """A model ready to run: ``model(*example_args)`` returns a tensor or a tuple of tensors.

    ``kind`` says whether the weights are a trained model's ("real") or seeded noise ("random").
    ``batch_dims`` are the arguments' dimensions of samples, by default the first of each.
    """

    model: nn.Module
    example_args: tuple[Tensor, ...]
    kind: Kind
    batch_dims: tuple[int, ...] = ()

    def batched(self, times: int) -> tuple[Tensor, ...]:
        """The arguments with every sample ``times`` times."""
        dims = self.batch_dims or (0,) * len(self.example_args)
        pairs = zip(self.example_args, dims, strict=True)
        return tuple(x.repeat_interleave(times, dim) for x, dim in pairs)


class Fields(nn.Module):
    """A ``transformers`` model called with named tensors that returns chosen fields as tensors."""

    def __init__(self, inner: nn.Module, arguments: tuple[str, ...], field: str) -> None:
        super().__init__()
        self.inner = inner
        self.arguments = arguments
        self.field = field

    def forward(self, *args: Tensor) -> Tensor:
        """Return the one field; ``args`` correspond to ``arguments`` in order."""
        result = self.inner(**dict(zip(self.arguments, args, strict=True)))
        value: Tensor = getattr(result, self.field)
        return value


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises ``ModuleNotFoundError`` naming the package that the model needs.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        reason = f"the model needs package {package!r}, which is not installed"
        raise ModuleNotFoundError(reason, name=package)
    return Path(spec.origin).parent


def jitter_affine(model: nn.Module) -> None:
    """Move the affine parameters of every norm off one and zero, so that tests see them."""
    for module in model.modules():
        if (
            isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm)
            and module.weight is not None
        ):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.1)


def calibrate(model: nn.Module, example_args: tuple[Tensor, ...]) -> None:
    """Set batch-norm statistics to those of the model's own activations, then switch to eval."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    if norms:
        model.train()
        with torch.no_grad():
            model(*example_args)
    model.eval()


def image(*shape: int) -> Tensor:
    """Return a smooth picture with some noise, normalised to zero mean, unit deviation."""
    coarse = torch.randn(shape[0], shape[1], 8, 8)
    smooth = nn.functional.interpolate(coarse, shape[2:], mode="bicubic", align_corners=False)
    return torch.nn.functional.layer_norm(smooth + 0.2 * torch.randn(shape), shape[1:])


def seeded(factory: Callable[..., ZooEntry], *args: Any) -> Callable[[], ZooEntry]:
    """Return a factory that draws from ``SEED`` and leaves the global generator untouched."""

    @wraps(factory)
    def build() -> ZooEntry:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return factory(*args)

    return build


def random_entry(model: nn.Module, example_args: tuple[Tensor, ...]) -> ZooEntry:
    """Return an entry of seeded random weights with calibrated norms."""
    jitter_affine(model)
    calibrate(model, example_args)
    return ZooEntry(model, example_args, "random")
