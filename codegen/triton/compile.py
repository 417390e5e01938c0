"""From Triton source to functions and cubins; neither needs a GPU, a driver or torch.

Fusion of multiplications with additions is off: where the definition wants one rounding it says
`fma`, and results are the same on every target.  `TRITON_DEFAULT_FP_FUSION` is set as well, since
Triton's own default changes in 3.10.
"""

from __future__ import annotations

import linecache
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "0")

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from plait.codegen.triton.loops import TritonKernel
from plait.ir import types as t
from plait.ir.errors import CompileFailure

_SIGNATURE = {
    t.f64: "*fp64", t.f32: "*fp32", t.f16: "*fp16", t.bf16: "*bf16", t.bool_: "*i1",
    t.i64: "*i64", t.i32: "*i32", t.i16: "*i16", t.i8: "*i8",
    t.u64: "*u64", t.u32: "*u32", t.u16: "*u16", t.u8: "*u8",
}  # fmt: skip
_ALIGNED = [["tt.divisibility", 16]]
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Cubin:
    """Machine code for one compute capability (90 is sm_90), and what it takes.

    `registers` per thread; `spilled` bytes of local memory per thread; `shared` bytes per program,
    static and dynamic.
    """

    capability: int
    data: bytes
    ptx: str
    registers: int
    spilled: int
    shared: int


@cache
def load_function(kernel: TritonKernel) -> Any:
    """The `triton.jit` function of a kernel: interpreted if TRITON_INTERPRET was set in time.

    Triton reads a function's source again, which the line cache gives it.
    """
    filename = f"<triton kernel {sha256(kernel.source.encode()).hexdigest()[:16]}>"
    linecache.cache[filename] = (
        len(kernel.source), None, kernel.source.splitlines(keepends=True), filename,
    )  # fmt: skip
    module: dict[str, Any] = {"__name__": f"plait.generated.{kernel.name}"}
    exec(compile(kernel.source, filename, "exec"), module)
    return module[kernel.name]


def launch(kernel: TritonKernel, *tensors: Any) -> None:
    """Run a kernel on torch tensors, inputs first; outputs are written in place."""
    if kernel.programs:
        function = load_function(kernel)
        function[(kernel.programs,)](*tensors, num_warps=kernel.warps, enable_fp_fusion=False)


def compile_cubin(kernel: TritonKernel, capability: int) -> Cubin:
    """Compile for a compute capability.

    Raises `CompileFailure`, with the source in its notes, when Triton or ptxas refuse the kernel.
    """
    function = load_function(kernel)
    types = (*kernel.inputs, *kernel.outputs)
    signature = {n: _SIGNATURE[ty.dtype] for n, ty in zip(function.arg_names, types, strict=True)}
    source = ASTSource(function, signature, attrs={(k,): _ALIGNED for k in range(len(types))})
    options = {"num_warps": kernel.warps, "enable_fp_fusion": False, "sanitize_overflow": False}
    try:
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    except Exception as error:  # Triton raises every kind, also for its own faults
        failure = CompileFailure(kernel=kernel.name, message=_reason(error))
        failure.add_note(kernel.source)
        raise failure from error
    data = bytes(made.asm["cubin"])
    registers, spilled = _usage(data)
    return Cubin(capability, data, str(made.asm["ptx"]), registers, spilled,
                 int(made.metadata.shared))  # fmt: skip


def _reason(error: BaseException) -> str:
    """The last line of what went wrong first: Triton wraps an error once for each call."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[-1]}"


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of stack and local memory, as the cubin itself states."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _USAGE.search(shown)
    if found is None:
        raise CompileFailure(kernel="cubin", message=f"cuobjdump said no register count: {shown!r}")
    registers, stack, _, local = map(int, found.groups())
    return registers, stack + local
