"""The self-test of `plait doctor`: a small graph through the whole compiler."""

from __future__ import annotations

from importlib.util import find_spec

from plait.cli.output import format_seconds


class NotPossible(Exception):
    """This installation lacks what the self-test needs; the message says what."""


def self_test() -> str:
    """Compile, run and compare; return a short description of what was done.

    Nothing is taken from the cache of kernels. Raises `NotPossible` for an installation without the
    compiler, `PlaitError` for a failure.
    """
    if find_spec("tvm") is None:
        raise NotPossible("the compiler is not installed: pip install 'plait[compile]'")
    import tempfile
    from pathlib import Path

    from plait.ir.agreement import compare
    from plait.ir.arrays import random_inputs
    from plait.ir.builder import Builder
    from plait.ir.errors import PlaitError
    from plait.ir.interp import interpret
    from plait.ir.types import TensorType, f32
    from plait.runtime.cache import KernelCache
    from plait.runtime.compiler import compile_graph

    b = Builder("selftest")
    x = b.input(TensorType(f32, (16, 32)), "x")
    y = b.input(TensorType(f32, (16, 32)), "y")
    graph = b.finish([b.emit("tanh", x * y) + 1.0])
    inputs = random_inputs(graph)
    (want,) = interpret(graph, inputs)
    with tempfile.TemporaryDirectory() as folder:
        module = compile_graph(graph, cache=KernelCache(Path(folder)))
    (got,) = module.load()(*inputs)
    result = compare(got, want)
    if not result.agrees:
        raise PlaitError(f"a compiled kernel gives a wrong result: it {result.reason}")
    seconds = format_seconds(module.seconds["total"])
    return f"compiled {len(module.kernels)} kernel in {seconds} and ran it right"
