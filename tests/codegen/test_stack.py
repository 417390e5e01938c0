"""The stacks of kernels, of which vectors that do not fit the registers are part."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.codegen.core import AVX2, ZEN4, Core
from plait.codegen.tvm.build import assembly, named_target
from plait.codegen.tvm.loopnest import build_nest
from plait.codegen.tvm.parts import in_parts
from plait.codegen.tvm.pointers import over_pointers
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Graph
from plait.ir.types import TensorType
from tests.codegen.graphs import normal, only_kernel

ALIGNED = re.compile(r"andq\s+\$-64, %rsp")
STORED = re.compile(r"(vmov\w+)\s+%[yz]mm\d+, -?\d*\(%rsp\)")


def norm(core: Core) -> Graph:
    """The body of a kernel whose row of weights, read again and again, exceeds the registers."""
    b = Builder()
    x = b.input(TensorType(t.f32, (4096, 768)))
    affine = (b.constant(normal(k, 768), name) for k, name in enumerate(("w", "b")))
    _, kernel = only_kernel(b.finish([b.emit("layer_norm", x, *affine, dims=1, eps=1e-5)]), core)
    body: Graph = kernel.attrs["body"]
    return body


@pytest.mark.parametrize(
    ("core", "cpu"), [(AVX2, "znver3"), (ZEN4, "znver4")], indirect=["core"], ids=["8", "16"]
)
@pytest.mark.parametrize("parts", [1, 4])
def test_vectors_on_the_stack_lie_in_one_line(core: Core, cpu: str, parts: int) -> None:
    func = in_parts(build_nest(norm(core)), parts)
    text = assembly(over_pointers(func), "k_norm", named_target(cpu))
    stored = STORED.findall(text)
    assert len(stored) > (8 if core is ZEN4 else 0)
    assert set(stored) <= {"vmovaps", "vmovapd", "vmovdqa", "vmovdqa64"}
    assert ALIGNED.search(text)
