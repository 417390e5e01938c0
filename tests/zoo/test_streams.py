"""The memory-bound kernels: large enough, and one kernel each."""

from __future__ import annotations

import pytest

from benchmarks import streams
from plait.runtime.compiler import compile_graph

ENOUGH_BYTES = 64 << 20  # twice the L3 of the reference machine


@pytest.mark.parametrize("name", streams.KERNELS)
def test_a_kernel_moves_more_than_caches_hold(name: str) -> None:
    graph = streams.graph_of(name)
    assert streams.traffic(graph) >= ENOUGH_BYTES
    assert len(compile_graph(graph).plan.steps) == 1


def test_traffic_counts_arguments_and_results() -> None:
    assert streams.traffic(streams.graph_of("relu")) == 2 * 4096 * 4096 * 4
    assert streams.traffic(streams.graph_of("concat")) == 2 * 16384 * 768 * 4
