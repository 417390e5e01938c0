"""The stacks of kernels, of which vectors that do not fit the registers are part."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.codegen.core import AVX2, ZEN4, Core
from plait.codegen.tvm.build import assembly, named_target
from plait.codegen.tvm.kernel import prim_func
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


def stored_vectors(core: Core, cpu: str, parts: int = 1) -> tuple[str, list[str]]:
    func = in_parts(build_nest(norm(core)), parts)
    text = assembly(over_pointers(func), "k_norm", named_target(cpu))
    return text, STORED.findall(text)


@pytest.mark.parametrize("core", [ZEN4], indirect=True)
@pytest.mark.parametrize("parts", [1, 4])
def test_vectors_on_the_stack_lie_in_one_line(core: Core, parts: int) -> None:
    text, stored = stored_vectors(core, "znver4", parts)
    assert len(stored) > 8 and set(stored) == {"vmovaps"}
    assert ALIGNED.search(text)


def test_other_cores_keep_the_register_that_it_costs(core: Core) -> None:
    assert core is AVX2
    text, _ = stored_vectors(core, "znver3")
    assert not ALIGNED.search(text)


@pytest.mark.parametrize("core", [ZEN4, AVX2], ids=["zen4", "avx2"])
def test_the_core_of_a_schedule_decides(core: Core) -> None:
    body, words = norm(core), "" if core is AVX2 else f"core={core.name}"
    func = prim_func(body, f"loops{{{words}}}", (), 2)
    assert ("plait_align_stack" in func.script()) == (core is ZEN4)
