"""Random arguments for graphs: for checks, tests and the fuzzer."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.ir import dims
from plait.ir.graph import Graph
from plait.ir.types import DType


def random_array(
    random: Random, shape: tuple[int, ...], dtype: DType, special: NDArray[Any] | None = None
) -> Any:
    """Small numbers: normal floats, integers from -4 to 4, fair booleans.

    One array of floats in five has a fifth of its elements chosen from `special`.
    """
    noise = np.random.default_rng(random.getrandbits(64))
    if dtype.kind == "b":
        return noise.random(shape) < 0.5
    if not dtype.is_float:
        return noise.integers(-4 if dtype.kind == "i" else 0, 5, shape).astype(dtype.numpy)
    values = noise.standard_normal(shape)
    if special is not None:
        chosen = noise.random(shape) < (0.2 if random.random() < 0.2 else 0.0)
        values = np.where(chosen, noise.choice(special, shape), values)
    return values.astype(dtype.numpy)


def random_inputs(graph: Graph, seed: int = 0, special: NDArray[Any] | None = None) -> list[Any]:
    """Arguments for a graph, its symbols given random sizes in their ranges."""
    random = Random(seed)
    symbols = dims.symbols_of(d for ty in graph.input_types for d in ty.shape)
    sizes = {s.name: random.randint(s.low, min(s.high, s.low + 8)) for s in symbols.values()}
    return [
        random_array(random, tuple(dims.evaluate(d, sizes) for d in ty.shape), ty.dtype, special)
        for ty in graph.input_types
    ]
