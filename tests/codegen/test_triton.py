"""The CUDA target without a GPU: kernels interpreted, compiled to cubins, and read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton comes with the compile extra")

from plait.codegen.triton.compile import compile_cubin, load_function
from plait.codegen.triton.lower import tl_dtype
from plait.codegen.triton.target import cuda_target
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.dims import symbol
from plait.ir.errors import CompileFailure, Unsupported, UnsupportedSymbol
from plait.ir.op import OPS
from plait.ir.types import TensorType
from plait.passes.fuse import is_anchor
from tests.codegen.triton_cases import CASES, LIBRARY, arguments, difference, graph, kernels

# What a program of the largest GPU at hand for sm_80 and sm_90 may use.
SHARED = {80: 163 * 1024, 90: 227 * 1024}


@pytest.fixture(scope="module", autouse=True)
def _triton_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def interpreted(repo_root: Path) -> dict[str, str]:
    """What differs from the numpy interpreter, by case."""
    paths = os.pathsep.join([str(repo_root / "src"), str(repo_root)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.codegen.triton_cases"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        cwd=repo_root, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", CASES)
def test_interpreter_agrees(case: str, interpreted: dict[str, str]) -> None:
    assert interpreted[case] == ""


def test_interpreter_agrees_on_every_op(interpreted: dict[str, str]) -> None:
    """Every sample either agrees or needs a contraction, a window or a recurrence."""
    samples = {name: found for name, found in interpreted.items() if name.startswith("sample")}
    refused = {name for name, found in samples.items() if found.startswith("unsupported: ")}
    wrong = {name: found for name, found in samples.items() if found and name not in refused}
    assert not wrong
    assert len(samples) - len(refused) > 190
    for name in refused:
        assert any(repr(op) in samples[name] for op in OPS if is_anchor(op)), samples[name]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("case", CASES)
def test_compiles(case: str, capability: int) -> None:
    for kernel in kernels(CASES[case]):
        cubin = compile_cubin(kernel, capability)
        assert cubin.data.startswith(b"\x7fELF")
        assert f".target sm_{capability}" in cubin.ptx
        assert 0 < cubin.registers <= 128
        assert cubin.spilled == 0
        assert cubin.shared <= SHARED[capability]


def test_library_functions_compile() -> None:
    def make(b: Builder, x, y):  # type: ignore[no-untyped-def]
        total = x
        for op in LIBRARY:
            total = total + (b.emit(op, x, y) if op in ("pow", "atan2") else b.emit(op, x))
        return total

    for dtype in (t.f32, t.f64):
        (kernel,) = kernels(graph(make, (100,), (100,), dtype=dtype))
        assert compile_cubin(kernel, 90).registers > 0


def test_long_row_reports_registers_and_spills() -> None:
    (kernel,) = kernels(graph(lambda b, x: b.emit("softmax", x, axis=1), (2, 32_000)))
    cubin = compile_cubin(kernel, 90)
    assert kernel.warps == 16
    assert cubin.registers > 64
    assert 0 < cubin.shared <= SHARED[90]


def test_multiplication_and_addition_stay_apart() -> None:
    (kernel,) = kernels(graph(lambda b, x, y, z: x * y + z, (64,), (64,), (64,)))
    ptx = compile_cubin(kernel, 90).ptx
    assert "fma" not in ptx
    assert "mul" in ptx


def test_a_remainder_of_floats_is_the_library_s() -> None:
    """The one that the machine code of `%` has is rounded: it takes 1 % 0.1 for 0."""
    (kernel,) = kernels(graph(lambda b, x, y: b.emit("mod", x, y), (64,), (64,)))
    ptx = compile_cubin(kernel, 90).ptx
    assert "bra" in ptx, "the library's function is a loop"


@pytest.mark.parametrize(("by", "guarded"), [(5, False), (0, True), (-1, True), (None, True)])
def test_a_division_of_integers_is_guarded_where_it_must_be(by: int | None, guarded: bool) -> None:
    def make(b: Builder, x, y):  # type: ignore[no-untyped-def]
        return b.emit("floordiv", x, y if by is None else b.scalar(by, t.i32))

    (kernel,) = kernels(graph(make, (64,), (64,), dtype=t.i32))
    assert ("device.quotient" in kernel.source) == guarded
    assert compile_cubin(kernel, 90).registers > 0


def test_no_mask_where_blocks_fit() -> None:
    (kernel,) = kernels(graph(lambda b, x: x * 2.0, (4, 1024)))
    assert "mask" not in kernel.source
    assert kernel.programs == 4


def test_source_is_a_module(tmp_path: Path) -> None:
    """What the golden files show can be written to a file and imported."""
    (kernel,) = kernels(CASES["softmax"])
    path = tmp_path / "generated.py"
    path.write_text(kernel.source)
    code = f"import generated; print(generated.{kernel.name}.arg_names)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["['x0',", "'y0']"]
    assert load_function(kernel).arg_names == ["x0", "y0"]


@pytest.mark.parametrize("case", ["chain", "pieces", "softmax", "columns", "two_norms"])
def test_golden(case: str, golden: Callable[[str, str], None]) -> None:
    golden(f"{case}.triton", "\n\n".join(kernel.source for kernel in kernels(CASES[case])))


def test_refuses_a_product() -> None:
    def matmul(b: Builder, x, y):  # type: ignore[no-untyped-def]
        return b.emit("dot_general", x, y, lhs_contract=(1,), rhs_contract=(0,))

    with pytest.raises(Unsupported, match="no template for 'dot_general' yet"):
        list(kernels(graph(matmul, (4, 8), (8, 4))))


def test_refuses_a_row_that_does_not_fit() -> None:
    with pytest.raises(Unsupported, match="a row of 40000 elements"):
        list(kernels(graph(lambda b, x: b.emit("reduce_sum", x, axes=(0,)), (40_000,))))


def test_refuses_a_symbolic_size() -> None:
    b = Builder()
    x = b.input(TensorType(t.f32, (symbol("n", 1, 64),)))
    with pytest.raises(UnsupportedSymbol, match="'n' is symbolic"):
        cuda_target().select(b.finish([x * 2.0]), (False,))


def test_refuses_complex_numbers() -> None:
    with pytest.raises(Unsupported, match="complex64"):
        tl_dtype(t.c64)


def test_names_what_triton_refuses() -> None:
    from dataclasses import replace

    (kernel,) = kernels(CASES["softmax"])
    broken = replace(kernel, source=kernel.source.replace("tl.exp(", "tl.no_such_function("))
    with pytest.raises(CompileFailure, match="no_such_function") as caught:
        compile_cubin(broken, 90)
    assert broken.source in caught.value.__notes__


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_gpu_agrees(case: str) -> None:
    torch = pytest.importorskip("torch", reason="torch comes with the compile extra")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert difference(CASES[case], arguments(case), "cuda") == ""
