"""Arrays between the command line, files and compiled models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plait.ir.errors import UsageError

if TYPE_CHECKING:
    from plait.codegen.plan import TensorSpec

Arrays = Mapping[str, NDArray[Any]]


def read_inputs(given: Sequence[str], specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """Input arrays from `name=file.npy` and `file.npz` arguments.

    Raises `UsageError` naming the argument that is malformed or the input that is missing.
    """
    found: dict[str, NDArray[Any]] = {}
    for argument in given:
        name, separator, file = argument.partition("=")
        if separator:
            found[name] = _load(Path(file), ".npy")
        elif argument.endswith(".npz"):
            found.update(_load(Path(argument), ".npz"))
        else:
            raise UsageError(f"--input {argument!r}: expected NAME=FILE.npy or FILE.npz")
    missing = [spec.name for spec in specs if spec.name not in found]
    if missing:
        wanted = ", ".join(f"{spec.name}: {spec}" for spec in specs)
        raise UsageError(f"no array for input {missing[0]!r}; the model takes {wanted}")
    return found


def _load(path: Path, suffix: str) -> Any:
    if path.suffix != suffix:
        raise UsageError(f"{path}: expected a {suffix} file")
    try:
        loaded = np.load(path, allow_pickle=False)
        return dict(loaded) if suffix == ".npz" else loaded
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path}: not a numpy file ({error})") from None


def stand_ins(specs: Sequence[TensorSpec], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Arrays for models without sample inputs: standard normal floats, zeros for integers.

    Zeros because an integer is most often an index, and 0 is the one that is always in range.
    """
    generator = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    for spec in specs:
        if spec.dtype in ("float32", "float64", "float16"):
            arrays[spec.name] = generator.standard_normal(spec.shape).astype(spec.numpy)
        else:
            arrays[spec.name] = np.zeros(spec.shape, spec.numpy)
    return arrays
