"""A small compiled model to be profiled: two products by one kernel, and a loop nest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.types import TensorType

ROWS, DEEP = 8, 64
LONG = 4096
PRODUCT_FLOPS = 2 * ROWS * DEEP * DEEP
PRODUCT_BYTES = 4 * (ROWS * DEEP + DEEP * DEEP + ROWS * DEEP)
LOOP_BYTES = 4 * 2 * LONG


def profiled_inputs() -> dict[str, Any]:
    generator = np.random.default_rng(3)
    return {
        "x": generator.standard_normal((ROWS, DEEP), np.float32),
        "y": generator.standard_normal(LONG, np.float32),
    }


@pytest.fixture(scope="session")
def profiled_module() -> Any:
    """(x @ w.T) @ v.T and y + 1, compiled with its stages kept."""
    pytest.importorskip("tvm", reason="TVM comes with the compile extra")
    from plait.runtime.compiler import compile_graph

    b = Builder("profiled")
    x = b.input(TensorType(t.f32, (ROWS, DEEP)), "x")
    y = b.input(TensorType(t.f32, (LONG,)), "y")
    generator = np.random.default_rng(4)
    for k in range(2):
        w = b.constant(generator.standard_normal((DEEP, DEEP), np.float32), f"w{k}")
        with b.at(f"model.py:{k + 1}"):
            x = b.emit("dot_general", x, w, lhs_contract=(1,), rhs_contract=(1,))
    with b.at("model.py:9"):
        shifted = b.emit("add", y, b.constant(np.float32(1)))
    return compile_graph(b.finish([x, shifted]), threads=1, keep_stages=True)


@pytest.fixture(scope="session")
def profiled_artifact(profiled_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "profiled.plait"
    profiled_module.save(path, profiled_inputs())
    return path
