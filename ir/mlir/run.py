"""Graphs through MLIR's own compiler and execution engine: an oracle beside the interpreter."""

# The bindings' compiled half has no stubs that a checker could follow.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import bufferization, func
from torch_mlir.execution_engine import ExecutionEngine
from torch_mlir.passmanager import PassManager

from plait.ir.dims import evaluate
from plait.ir.graph import Graph
from plait.ir.interp import bind_sizes
from plait.ir.mlir.constants import large_constants
from plait.ir.mlir.export import to_mlir, verify_mlir

_ENTRY = "plait_entry"

# Tensors to buffers with owners, loops, bfloat16 by way of float32, then the LLVM dialect.
_PIPELINE = (
    "builtin.module(canonicalize,cse,"
    "one-shot-bufferize{bufferize-function-boundaries=true "
    "function-boundary-type-conversion=identity-layout-map},"
    "buffer-deallocation-pipeline,convert-bufferization-to-memref,"
    "convert-linalg-to-loops,lower-affine,convert-scf-to-cf,expand-strided-metadata,lower-affine,"
    "math-extend-to-supported-types,"
    "arith-emulate-unsupported-floats{source-types=bf16 target-type=f32},"
    "arith-expand{include-bf16=true},convert-math-to-llvm,convert-math-to-libm,"
    "convert-arith-to-llvm,convert-index-to-llvm,finalize-memref-to-llvm,convert-func-to-llvm,"
    "convert-cf-to-llvm,canonicalize,reconcile-unrealized-casts)"
)


def run_mlir(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """Outputs of `graph` on numpy arrays, computed by MLIR; errors as `to_mlir` raises them.

    Raises `InputMismatch` on a wrong argument.  Sums accumulate in their own dtype.
    """
    return MlirProgram(graph)(inputs)


class MlirProgram:
    """A graph compiled by MLIR; calling it runs it on numpy arrays."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._constants = [np.ascontiguousarray(b.array) for b in large_constants(graph)]
        module = to_mlir(graph)
        with module.context, ir.Location.unknown(module.context):
            _add_entry(module)
            verify_mlir(module)
            PassManager.parse(_PIPELINE).run(module.operation)
            # An oracle is compiled more often than it runs: no LLVM optimisation.
            self._engine = ExecutionEngine(module, opt_level=0)

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        sizes = bind_sizes(self.graph, inputs)
        given = [np.ascontiguousarray(a).reshape(np.shape(a)) for a in inputs]
        results = [
            np.empty([evaluate(d, sizes) for d in ty.shape], ty.dtype.numpy)
            for ty in self.graph.output_types
        ]
        descriptors = [_descriptor(a) for a in (*given, *self._constants, *results)]
        pointers = [ctypes.c_void_p(d.ctypes.data) for d in descriptors]
        self._engine.invoke(_ENTRY, *map(ctypes.pointer, pointers))
        return results


def _descriptor(array: Any) -> Any:
    """MLIR's memref descriptor of a contiguous array: two pointers, offset, sizes, strides."""
    strides = [s // array.itemsize for s in array.strides]
    address = array.ctypes.data
    return np.array([address, address, 0, *array.shape, *strides], np.int64)


def _add_entry(module: Any) -> None:
    """A function on buffers: arguments in, results written into buffers of the caller."""
    main = list(module.body.operations)[-1]
    kind = main.type
    buffers = [ir.MemRefType.get(ty.shape, ty.element_type) for ty in (*kind.inputs, *kind.results)]
    with ir.InsertionPoint(module.body):
        entry = func.FuncOp(_ENTRY, ir.FunctionType.get(buffers, []))
        entry.attributes["llvm.emit_c_interface"] = ir.UnitAttr.get()
        with ir.InsertionPoint(entry.add_entry_block()):
            given = list(entry.arguments)[: len(kind.inputs)]
            tensors = [
                bufferization.to_tensor(ty, buffer, restrict=True)
                for ty, buffer in zip(kind.inputs, given, strict=True)
            ]
            results = func.CallOp(main, tensors).results
            for value, target in zip(results, entry.arguments[len(kind.inputs) :], strict=True):
                bufferization.materialize_in_destination(
                    None, value, target, restrict=True, writable=True
                )
            func.ReturnOp([])
