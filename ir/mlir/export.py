"""A graph as an MLIR module: a public function, and a private one for every kernel body."""

# The bindings' compiled half has no stubs that a checker could follow.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import re
from typing import Any

from torch_mlir import ir
from torch_mlir.dialects import func

from plait.ir import op as ops
from plait.ir.errors import VerifyError
from plait.ir.functions import FUNCTIONS
from plait.ir.graph import Blob, Graph, Node
from plait.ir.mlir.constants import Sizes, dense, is_large, large_constants, tensor_type
from plait.ir.mlir.expand import expand
from plait.ir.mlir.generic import lower_compute
from plait.ir.types import TensorType

# Names of the C library that lowering to LLVM calls: a graph called "exp" must not become `exp`.
_RESERVED = {f"{name}{end}" for name in (*FUNCTIONS, "roundeven") for end in ("", "f")} | {
    "malloc", "free", "memcpy", "memrefCopy"
}  # fmt: skip


def to_mlir(graph: Graph) -> Any:
    """The `Module` of a graph (`str` of it is the text); the last function bears its name.

    Arguments are the graph's inputs, then its `large_constants`; results are its outputs, all
    tensors of the logical shapes.  A symbolic dimension is `?`.  Raises `UnsupportedOp` for an
    opaque op, `Unsupported` for complex numbers, `UnsupportedSymbol` for a dimension that no
    input tells.
    """
    context = ir.Context()
    with context, ir.Location.unknown(context):
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            _Exporter().function(expand(graph), "")
        return module


def verify_mlir(module: Any) -> None:
    """Run MLIR's verifier; `VerifyError` carries what it reports."""
    try:
        module.operation.verify()
    except ir.MLIRError as error:
        raise VerifyError(str(error), where="MLIR module") from error


class _Exporter:
    """Adds functions to a module; equal kernel bodies share one."""

    def __init__(self) -> None:
        self.bodies: dict[Graph, Any] = {}
        self.names = set(_RESERVED)

    def function(self, graph: Graph, visibility: str) -> Any:
        """Add the function of a graph at the insertion point, and those it calls before it."""
        for node in graph.nodes:
            if node.op == "kernel" and node.attrs["body"] not in self.bodies:
                body = node.attrs["body"]
                self.bodies[body] = self.function(body, "private")
        large = large_constants(graph)
        types = [*graph.input_types, *(b.type for b in large)]
        results = [tensor_type(ty) for ty in graph.output_types]
        kind = ir.FunctionType.get([tensor_type(ty) for ty in types], results)
        made = func.FuncOp(self._name(graph.name), kind, visibility=visibility or None)
        with ir.InsertionPoint(made.add_entry_block()):
            arguments = list(made.arguments)
            constants = dict(zip(large, arguments[len(graph.inputs) :], strict=True))
            values = arguments[: len(graph.inputs)]
            sizes = Sizes(graph.input_types, values)
            for node in graph.nodes:
                types_in = [graph.types[v] for v in node.operands]
                with _location(node):
                    values += self._node(
                        node, [values[v] for v in node.operands], types_in, sizes, constants
                    )
            func.ReturnOp([values[v] for v in graph.outputs])
        return made

    def _name(self, wanted: str) -> str:
        """A symbol name that no function has yet."""
        base = re.sub(r"\W", "_", wanted) or "graph"
        name, number = base, 1
        while name in self.names:
            name, number = f"{base}_{number}", number + 1
        self.names.add(name)
        return name

    def _node(self, node: Node, operands: list[Any], types: list[TensorType], sizes: Sizes,
              constants: dict[Blob, Any]) -> list[Any]:  # fmt: skip
        """The tensors of a node's results."""
        if node.op == "constant":
            blob = node.attrs["value"]
            return [constants[blob] if is_large(blob) else dense(blob)]
        if node.op == "relayout":
            return operands
        if node.op == "kernel":
            body = node.attrs["body"]
            extra = [constants[b] for b in large_constants(body)]
            return list(func.CallOp(self.bodies[body], [*operands, *extra]).results)
        computes = ops.get(node.op).computes(node.attrs, tuple(types))
        assert computes is not None, f"{node.op} was not expanded"
        return [lower_compute(c, operands, types, sizes) for c in computes]


def _location(node: Node) -> Any:
    return ir.Location.name(node.loc) if node.loc else ir.Location.unknown()
