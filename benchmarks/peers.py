"""The peers: what else runs a PyTorch model on a CPU, each as a callable on the model's inputs.

A peer's builder takes a module in eval mode and its arguments and returns a call without arguments
that runs the model once and returns its outputs as a list of arrays. Each peer gets its best
ordinary settings: no gradients, frozen weights, the same number of threads. A builder raises
`ModuleNotFoundError` where its package is not installed.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.measuring import best

Call: TypeAlias = Callable[[], list[NDArray[Any]]]
Builder: TypeAlias = Callable[[nn.Module, tuple[Tensor, ...], int], Call]


def eager(model: nn.Module, args: tuple[Tensor, ...], threads: int) -> Call:
    """PyTorch's own kernels."""
    return _torch_call(model, args, threads)


def inductor(model: nn.Module, args: tuple[Tensor, ...], threads: int) -> Call:
    """`torch.compile` with weights frozen into the code; needs a C++ compiler."""
    return _inductor(model, args, threads, "default")


def inductor_tuned(model: nn.Module, args: tuple[Tensor, ...], threads: int) -> Call:
    """The same in mode "max-autotune": on a CPU its C++ products race those of ATen."""
    return _inductor(model, args, threads, "max-autotune")


def _inductor(model: nn.Module, args: tuple[Tensor, ...], threads: int, mode: str) -> Call:
    import torch._inductor.config as settings

    torch._dynamo.reset()
    torch.set_num_threads(threads)
    call = _torch_call(torch.compile(model, fullgraph=True, mode=mode), args, threads)
    with settings.patch(freezing=True), torch._dynamo.config.patch(allow_rnn=True):
        call()
    return call


def _torch_call(model: Any, args: tuple[Tensor, ...], threads: int) -> Call:
    torch.set_num_threads(threads)

    def call() -> list[NDArray[Any]]:
        with torch.no_grad():
            return arrays(model(*args))

    return call


def openvino(model: nn.Module, args: tuple[Tensor, ...], threads: int) -> Call:
    """OpenVINO's CPU plugin in float32 (its default may be bfloat16).

    What it cannot convert from an exported program goes by way of ONNX.
    """
    import openvino as ov

    try:
        with torch.no_grad():
            converted = ov.convert_model(torch.export.export(model, args, strict=False))
    except Exception:  # its frontends raise errors of several modules
        with tempfile.TemporaryDirectory() as folder:
            converted = ov.convert_model(_onnx(model, args, Path(folder)))
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.compile_model(converted, "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
    request = request.create_infer_request()
    feeds = [x.numpy() for x in args]
    return lambda: list(request.infer(feeds, share_inputs=True, share_outputs=True).values())


def onnxruntime(model: nn.Module, args: tuple[Tensor, ...], threads: int) -> Call:
    """ONNX Runtime's CPU provider with all graph optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = _onnx(model, args, Path(folder))
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    feeds = {name: x.numpy() for name, x in zip(names, args, strict=True)}
    return lambda: arrays(session.run(None, feeds))


def _onnx(model: nn.Module, args: tuple[Tensor, ...], folder: Path) -> Path:
    """The model as an ONNX file, by torch's older exporter where the newer one fails.

    The older one leaves traces in what it exports: it gets a copy.
    """
    path = folder / "model.onnx"
    try:
        torch.onnx.export(model, args, path, dynamo=True, verbose=False)
    except torch.onnx.errors.OnnxExporterError:
        torch.onnx.export(copy.deepcopy(model), args, path, dynamo=False)
    return path


def tvm(model: nn.Module, args: tuple[Tensor, ...], threads: int) -> Call:
    """TVM's importer and its default Relax pipeline for CPUs, for this CPU's instructions.

    The pipeline fuses but schedules no loops: untuned, they are neither tiled nor parallel.
    """
    from tvm import compile, cpu, relax, runtime
    from tvm.relax.frontend.torch import from_exported_program
    from tvm.target import Target
    from tvm.target.codegen import llvm_get_system_cpu

    with torch.no_grad():
        module = from_exported_program(torch.export.export(model, args, strict=False))
    target = Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": threads})
    pipeline = relax.get_default_pipeline(target)
    main = relax.VirtualMachine(compile(module, target, relax_pipeline=pipeline), cpu())["main"]
    feeds = [runtime.tensor(x.numpy()) for x in args]

    def call() -> list[NDArray[Any]]:
        found = main(*feeds)
        parts = [found] if isinstance(found, runtime.Tensor) else found
        return [part.numpy() for part in parts]

    return call


def iree(model: nn.Module, args: tuple[Tensor, ...], threads: int) -> Call:
    """IREE by torch-mlir's importer, for this CPU, on its pool of threads.

    Of its two ways to compile products, as they stand or by tiles of packed data with the kernels
    that IREE brings, neither wins on every model: both are built, and the faster one is kept.
    """
    import iree.runtime as runtime

    program = _linalg(model, args)
    runtime.flags.parse_flags(f"--task_topology_group_count={threads}")
    config = runtime.Config("local-task")
    calls = [_iree_call(_iree_program(program, flags), args, config) for flags in ((), TILED)]
    for call in calls:
        call()
    return min(calls, key=partial(best, rounds=3))


TILED: Final = ("--iree-opt-data-tiling", "--iree-llvmcpu-enable-ukernels=all")


def _linalg(model: nn.Module, args: tuple[Tensor, ...]) -> bytes:
    """The exported program in MLIR's linalg dialect, as bytecode."""
    from torch_mlir import fx

    for module in model.modules():  # the importer looks for every buffer in the state dict
        module._non_persistent_buffers_set.clear()
    with torch.no_grad():
        exported = torch.export.export(model, args, strict=False)
    found = io.BytesIO()
    lowered = fx.export_and_import(exported, output_type="linalg-on-tensors", func_name="main")
    lowered.operation.write_bytecode(found)
    return found.getvalue()


def _iree_program(program: bytes, flags: tuple[str, ...]) -> Any:
    """IREE's own bytecode with this CPU's instructions in it; raises its errors in one line."""
    from iree.compiler import CompilerToolError, compile_str

    host = ("--iree-llvmcpu-target-cpu=host", "--iree-opt-level=O3")
    try:
        return compile_str(program, target_backends=["llvm-cpu"], extra_args=[*host, *flags])
    except CompilerToolError as error:  # it begins with the name of the tool
        lines = [line for line in str(error).splitlines() if "error:" in line]
        raise RuntimeError(lines[0] if lines else str(error)) from error


def _iree_call(program: bytes, args: tuple[Tensor, ...], config: Any) -> Call:
    import iree.runtime as runtime

    loaded = runtime.VmModule.copy_buffer(config.vm_instance, program)
    main = runtime.load_vm_module(loaded, config).main
    feeds = [runtime.asdevicearray(config.device, x.numpy()) for x in args]

    def call() -> list[NDArray[Any]]:
        found = main(*feeds)
        return [part.to_host() for part in (found if isinstance(found, tuple) else (found,))]

    return call


def plait(model: nn.Module, args: tuple[Tensor, ...], threads: int) -> Call:
    """This project, ahead of time: capture, compile, link in memory."""
    import plait as compiler

    compiled = compiler.compile(model, args, threads=threads)
    feeds = [x.numpy() for x in args]
    return lambda: list(compiled(*feeds))


def arrays(result: Any) -> list[NDArray[Any]]:
    """A model's result, a tensor or a tuple of tensors, as arrays."""
    parts = result if isinstance(result, tuple | list) else [result]
    return [np.asarray(part) for part in parts]


PEERS: Final[Mapping[str, Builder]] = MappingProxyType(
    {"eager": eager, "inductor": inductor, "openvino": openvino, "onnxruntime": onnxruntime}
)
# What takes long to build, or to run: measured only on request.
SLOW_PEERS: Final[Mapping[str, Builder]] = MappingProxyType(
    {"inductor max-autotune": inductor_tuned, "tvm": tvm, "iree": iree}
)
PACKAGES: Final = (
    "torch", "openvino", "onnxruntime", "onnx", "apache-tvm", "torch-mlir", "iree-base-compiler",
    "plait",
)  # fmt: skip


def versions() -> dict[str, str]:
    """The version of each package that takes part; one that is not installed is left out."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
