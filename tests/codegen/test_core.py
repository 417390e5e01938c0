"""The core that kernels are made for: which one, for how long, and where it is written down."""

from __future__ import annotations

import pytest

from plait.codegen.core import AVX2, AVX512, ZEN4, Core, core, core_with, making_for, simd
from plait.codegen.cpu import CpuTarget
from plait.codegen.tvm.build import named_target
from plait.codegen.tvm.target import cpu_target
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Graph
from plait.ir.types import TensorType

WIDE = ("avx512bw", "avx512dq", "avx512f", "avx512vl")


def relu() -> Graph:
    b = Builder("relu")
    return b.finish([b.emit("relu", b.input(TensorType(t.f32, (4, 48))))])


@pytest.mark.parametrize("lacking", WIDE)
def test_all_of_the_wide_features_make_the_wide_core(lacking: str) -> None:
    assert core_with(("avx2", "fma", *WIDE)) == AVX512
    assert core_with({"avx2", "fma", *WIDE} - {lacking}) == AVX2


def test_a_named_cpu_has_its_own_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of what stands for the CPU at hand
    assert isinstance(CpuTarget.core, property)
    assert named_target("x86-64-v3").core == AVX2
    assert named_target("x86-64-v4").core == named_target("cascadelake").core == AVX512


def test_a_scope_ends() -> None:
    with making_for(AVX512):
        assert (core(), simd()) == (AVX512, 16)
        with pytest.raises(KeyError), making_for(AVX2):
            assert simd() == 8
            raise KeyError
        assert core() == AVX512
    assert core() == AVX2


@pytest.mark.parametrize(("chosen", "name"), [(AVX2, "loops"), (AVX512, "loops{core=avx512}"),
                                             (ZEN4, "loops{core=zen4}")])  # fmt: skip
def test_a_schedule_alone_decides_the_code(chosen: Core, name: str) -> None:
    """Whoever chose it, and whatever target builds it."""
    body = relu()
    assert cpu_target(core=chosen).select(body, (False,)).schedule == name
    made = [cpu_target(core=other).build(body, name).script() for other in (AVX2, AVX512, ZEN4)]
    assert made[0] == made[1] == made[2]
    assert f"T.vectorized({chosen.lanes})" in made[0]


def test_zen_4_has_a_core_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its extensions: those that came before lack some, those that came later have more."""
    monkeypatch.undo()  # of what stands for the CPU at hand
    zen4 = {"avx2", "fma", *WIDE, "avx512bf16", "avx512vbmi2", "avx512vnni"}
    assert core_with(zen4) == named_target("znver4").core == ZEN4
    assert core_with(zen4 | {"avxvnni"}) == named_target("sapphirerapids").core == AVX512
    assert core_with(zen4 - {"avx512vbmi2"}) == named_target("cooperlake").core == AVX512
