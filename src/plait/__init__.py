"""Plait weaves a PyTorch graph into a few fused kernels.

`plait.compile(model, args)` compiles ahead of time, `plait.load(path)` loads an artifact, and
`torch.compile(model, backend="plait")` needs no import of this package.

The package is the union of the folders `ir`, `passes`, `costmodel`, `codegen`, `runtime`,
`frontend` and `fuzz`. Importing it costs nothing: no folder and no large library is loaded until
one is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from plait.frontend.standalone import Standalone
    from plait.runtime.executor import CompiledModel

__version__ = "0.1.0"

__all__ = ["__version__", "compile", "load"]


def compile(
    model: nn.Module | ExportedProgram | str | Path,
    example_args: Sequence[Any] | None = None,
    **options: Any,
) -> Standalone:
    """Compile a model for inference: call the result with numpy arrays, or `save` it to a file.

    `model` is a module with `example_args`, an exported program, the path of a `.pt2` file or
    `package.module:factory`. Options: `name`, `pipeline`, `cpu`, `threads`; see
    `plait.frontend.standalone.compile_model`.
    """
    from plait.frontend.standalone import compile_model

    return compile_model(model, example_args, **options)


def load(path: str | Path, threads: int | None = None, check: bool = True) -> CompiledModel:
    """Load an artifact; needs neither torch nor the compiler.

    The file is mapped, and read once for its digests; `check=False` trusts them.

    Raises `plait.ir.errors.ArtifactError` for a file that is damaged, newer, or for another CPU.
    """
    from plait.runtime.artifact import Artifact

    return Artifact.open(Path(path), check).load(threads)
