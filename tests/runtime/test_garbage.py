"""Garbage, collected later."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest

from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.types import TensorType
from plait.runtime.compiler import compile_graph
from plait.runtime.garbage import collected_later


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_is_not_collected_while_passes_run() -> None:
    seen: list[bool] = []
    b = Builder("relu")
    graph = b.finish([b.emit("relu", b.input(TensorType(t.f32, (4,))))])
    module = compile_graph(graph, hooks=[lambda *_: seen.append(gc.isenabled())])
    assert seen
    assert not any(seen)
    assert gc.isenabled()
    (y,) = module.load()(np.array([-1, 0, 1, 2], np.float32))
    assert y.tolist() == [0, 0, 1, 2]
    assert gc.isenabled()


def test_is_collected_again_after_an_error() -> None:
    with pytest.raises(KeyError), collected_later():
        raise KeyError
    assert gc.isenabled()


def test_stays_uncollected_where_nobody_collects() -> None:
    gc.disable()
    with collected_later():
        assert not gc.isenabled()
    assert not gc.isenabled()
