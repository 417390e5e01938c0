"""Text form of graphs: `parse_graph(print_graph(g)) == g`.

    sym batch in [1, 64]
    graph @main(%0 "x": float32[batch, 3], %1: float32[3, 4]{1, 0}) {
      %2 = dot_general(%0, %1) {lhs_contract = [1], rhs_contract = [0], ...} : float32[batch, 4]
      %3 = constant() {value = dense<float32[2]: 1.0, nan>} : float32[2]
      return %2
    }

A layout stands in braces behind the shape.  Constants of up to 16 elements are printed in
place; larger ones as `blob<type, "name", digest>`, resolved on parsing from a given mapping.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from plait.ir.dims import Dim, Symbol, SymDim, symbols_of
from plait.ir.graph import Attrs, Blob, Graph
from plait.ir.types import DType, TensorType

INLINE_ELEMENTS = 16
INDENT = "  "
_PLAIN_NAME = re.compile(r"[A-Za-z_][\w.]*")


def show_type(type: TensorType) -> str:
    dims = ", ".join(show_dim(d) for d in type.shape)
    layout = "{" + ", ".join(map(str, type.layout)) + "}" if type.layout is not None else ""
    return f"{type.dtype}[{dims}]{layout}"


def show_dim(dim: Dim) -> str:
    return str(dim)


def show_attrs(attrs: Attrs, stable: bool = False, indent: str = "") -> str:
    """Attributes in braces, nothing for none.  `stable` drops names, for hashing."""
    if not attrs:
        return ""
    shown = (f"{k} = {show_attr(v, stable, indent)}" for k, v in attrs.items())
    return "{" + ", ".join(shown) + "}"


def show_attr(value: Any, stable: bool = False, indent: str = "") -> str:
    match value:
        case None | bool():
            return str(value).lower()
        case float():
            return repr(value) if np.isfinite(value) else f"float({value!r})"
        case int():
            return str(value)
        case str():
            return json.dumps(value)
        case DType():
            return f"!{value}"
        case TensorType():
            return f"type<{show_type(value)}>"
        case SymDim():
            return f"dim<{value}>"
        case Blob():
            return _show_blob(value, stable)
        case Graph():
            return value.digest if stable else _show_graph(value, indent + INDENT)
        case tuple():
            return "[" + ", ".join(show_attr(v, stable, indent) for v in value) + "]"
    raise TypeError(f"not an attribute value: {value!r}")


def _show_blob(blob: Blob, stable: bool) -> str:
    ty = show_type(blob.type)
    if blob.array.size > INLINE_ELEMENTS:
        name = "" if stable else json.dumps(blob.name)
        return f"blob<{ty}, {name or json.dumps('')}, {blob.digest}>"
    flat = blob.array.reshape(-1)
    if flat.dtype.kind == "c" or (flat.dtype.kind == "f" and np.isnan(flat).any()):
        return f"dense<{ty}: hex {flat.tobytes().hex()}>"
    items = ", ".join(_show_number(v) for v in flat.tolist())
    return f"dense<{ty}: {items}>"


def _show_number(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def print_graph(graph: Graph) -> str:
    """The whole graph with the symbols it uses declared first."""
    head = "".join(
        f"sym {s.name} in [{s.low}, {s.high}]\n" for s in sorted(graph_symbols(graph).values())
    )
    return head + _show_graph(graph, "") + "\n"


def _show_graph(graph: Graph, indent: str) -> str:
    inputs = ", ".join(
        f"%{k}{' ' + json.dumps(i.name) if i.name else ''}: {show_type(i.type)}"
        for k, i in enumerate(graph.inputs)
    )
    name = graph.name if _PLAIN_NAME.fullmatch(graph.name) else json.dumps(graph.name)
    lines = [f"graph @{name}({inputs}) {{"]
    inner = indent + INDENT
    lines += [inner + show_node(graph, k, inner) for k in range(len(graph.nodes))]
    lines.append(f"{inner}return {', '.join(f'%{v}' for v in graph.outputs)}".rstrip())
    lines.append(indent + "}")
    return "\n".join(lines)


def show_node(graph: Graph, index: int, indent: str = "") -> str:
    """One line of the text form (more for a node with a body)."""
    node = graph.nodes[index]
    results = ", ".join(f"%{v}" for v in graph.results(index))
    operands = ", ".join(f"%{v}" for v in node.operands)
    types = ", ".join(show_type(ty) for ty in node.types)
    attrs = show_attrs(node.attrs, indent=indent)
    loc = f" loc({json.dumps(node.loc)})" if node.loc else ""
    head = f"{results} = " if results else ""
    return f"{head}{node.op}({operands}){' ' + attrs if attrs else ''} : {types}{loc}".rstrip()


def show_around(graph: Graph, index: int, reach: int = 5) -> str:
    """The nodes around one, which is marked; for error messages."""
    first, last = max(0, index - reach), min(len(graph.nodes), index + reach + 1)
    lines = [("->" if k == index else "  ") + " " + show_node(graph, k) for k in range(first, last)]
    return "\n".join(lines)


def graph_symbols(graph: Graph) -> dict[str, Symbol]:
    """Every symbol that occurs in a graph's types and attributes, bodies included."""
    found = symbols_of(d for ty in graph.types for d in ty.shape)
    for node in graph.nodes:
        found |= attribute_symbols(node.attrs)
    return found


def attribute_symbols(attrs: Attrs) -> dict[str, Symbol]:
    """Every symbol that occurs in the attributes of a node."""
    found: dict[str, Symbol] = {}

    def visit(value: Any) -> None:
        match value:
            case SymDim():
                found.update(symbols_of([value]))
            case tuple():
                for v in value:
                    visit(v)
            case TensorType():
                found.update(symbols_of(value.shape))
            case Graph():
                found.update(graph_symbols(value))

    for value in attrs.values():
        visit(value)
    return found


def blobs(graph: Graph) -> Iterator[Blob]:
    """Every constant of a graph, bodies included."""
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, Blob):
                yield value
            elif isinstance(value, Graph):
                yield from blobs(value)


def blob_table(graph: Graph) -> dict[str, Any]:
    """Arrays of the constants that the text only names, by digest: what parsing needs."""
    return {b.digest: b.array for b in blobs(graph) if b.array.size > INLINE_ELEMENTS}


def parse_graph(text: str, arrays: Mapping[str, Any] | None = None) -> Graph:
    """The graph whose text form this is; `ParseError` names line and column otherwise."""
    from plait.ir.parse import Parser

    return Parser(text, arrays or {}).file()


def parse_outline(text: str) -> Graph:
    """As `parse_graph` where the arrays are not at hand: stand-ins take their places.

    They are zeros with the digest that the text names, so the graph prints as the same text.
    """
    from plait.ir.parse import Parser

    return Parser(text, None).file()
