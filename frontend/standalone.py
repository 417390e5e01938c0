"""Ahead of time: a model to a module that needs torch no more, and to a file.

This is what `plait.compile` and `plait compile` do; `plait.frontend.dynamo` is the other way in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from plait.frontend.export import CapturedModel, capture
from plait.ir import logs
from plait.ir.agreement import Agreement
from plait.ir.errors import UnsupportedOp
from plait.ir.knobs import thread_count
from plait.passes.pipeline import DEFAULT_PIPELINE, Hook
from plait.runtime.check import check_outputs
from plait.runtime.compiler import Module, Progress, compile_graph
from plait.runtime.executor import CompiledModel


@dataclass(frozen=True)
class Standalone:
    """A compiled model with what capture knew about it."""

    captured: CapturedModel
    module: Module
    threads: int

    @cached_property
    def loaded(self) -> CompiledModel:
        """The module linked into this process."""
        return self.module.load(self.threads)

    def __call__(self, *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run on numpy arrays in the order of the inputs."""
        return self.loaded(*arrays)

    def save(self, path: str | Path) -> None:
        """Write the artifact, with the example inputs and eager's outputs for them."""
        samples, expected = dict(self.captured.samples), dict(self.captured.expected)
        self.module.save(Path(path), samples, expected)

    def check(self) -> dict[str, Agreement]:
        """Run the example inputs and hold the outputs, by name, against eager's.

        Empty for a model without example inputs.
        """
        if not self.captured.expected:
            return {}
        results = self.loaded.run(self.captured.samples)
        return check_outputs(self.loaded.outputs, results, self.captured.expected)


def compile_model(
    source: nn.Module | ExportedProgram | str | Path,
    example_args: Sequence[Any] | None = None,
    *,
    name: str = "model",
    pipeline: str = DEFAULT_PIPELINE,
    cpu: str = "native",
    threads: int | None = None,
    hooks: Sequence[Hook] = (),
    progress: Progress | None = None,
) -> Standalone:
    """Capture and compile a model; `source` is as for `capture`.

    Raises `UnsupportedOp` for the first operator that would need torch, and the errors of `capture`
    and `compile_graph`.
    """
    logs.configure()
    captured = capture(source, example_args, name=name)
    return compile_captured(
        captured, pipeline=pipeline, cpu=cpu, threads=threads, hooks=hooks, progress=progress
    )


def compile_captured(
    captured: CapturedModel,
    *,
    pipeline: str = DEFAULT_PIPELINE,
    cpu: str = "native",
    threads: int | None = None,
    hooks: Sequence[Hook] = (),
    progress: Progress | None = None,
) -> Standalone:
    """The second half of `compile_model`."""
    count = thread_count(threads)
    if captured.fallbacks:
        first = captured.fallbacks[0]
        raise UnsupportedOp(first.target, first.loc)
    module = compile_graph(
        captured.graph,
        pipeline=pipeline,
        cpu=cpu,
        threads=count,
        hooks=hooks,
        progress=progress,
        keep_stages=True,
        output_names=captured.output_names,
    )
    return Standalone(captured, module, count)
