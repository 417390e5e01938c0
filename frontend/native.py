"""Segments as machine code, run on torch's memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.frontend.options import Options
from plait.frontend.program import Compile, Run
from plait.frontend.tensors import TO_TORCH
from plait.ir.arrays import random_inputs
from plait.ir.graph import Graph
from plait.ir.knobs import thread_count
from plait.passes.hooks import ReferenceCheck, verify_each
from plait.passes.pipeline import DEFAULT_PIPELINE, Hook
from plait.runtime.compiler import compile_graph


def compiler(settings: Options) -> Compile:
    """How to compile a segment under these options."""

    def compile_segment(graph: Graph) -> Run:
        threads = thread_count(settings.threads)
        hooks: list[Hook] = []
        if settings.verify_passes:
            hooks = [verify_each, ReferenceCheck(random_inputs(graph))]
        pipeline = settings.pipeline or DEFAULT_PIPELINE
        module = compile_graph(graph, pipeline=pipeline, threads=threads, hooks=hooks)
        model = module.load(threads)
        results = [(ty.static("a segment"), TO_TORCH[ty.dtype]) for ty in graph.output_types]

        def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
            outputs = [torch.empty(shape, dtype=dtype) for shape, dtype in results]
            model.run_into(tensors, outputs)
            return outputs

        return run

    return compile_segment
