"""Plait weaves a PyTorch graph into a few fused kernels.

The package is the union of the folders `ir`, `passes`, `costmodel`, `codegen`, `runtime`,
`frontend` and `fuzz`. Importing it costs nothing: no folder and no large library is loaded until
one is asked for.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
