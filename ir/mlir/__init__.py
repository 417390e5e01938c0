"""MLIR: a graph as `func` + `linalg` on tensors + `arith`/`math`/`scf`, and its execution.

Every node is lowered from its compute definition, so MLIR's verifier and its execution engine
check the definitions a second time, through a compiler that shares nothing with the targets.
"""

from plait.ir.mlir.constants import INLINE_ELEMENTS, large_constants
from plait.ir.mlir.export import to_mlir, verify_mlir
from plait.ir.mlir.run import MlirProgram, run_mlir

__all__ = [
    "INLINE_ELEMENTS",
    "MlirProgram",
    "large_constants",
    "run_mlir",
    "to_mlir",
    "verify_mlir",
]
