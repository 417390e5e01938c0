"""The parser of the text form (see `plait.ir.text`)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from plait.ir import dims
from plait.ir.errors import ParseError
from plait.ir.graph import Attrs, Blob, Graph, Input, Node
from plait.ir.types import DTYPES, DType, TensorType

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<value>%\d+)|(?P<name>[A-Za-z_][\w.]*)
    |(?P<number>-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)|(?P<punct>->|//|[@(){}\[\]<>,:=!*+\-]))""",
    re.VERBOSE,
)
T = TypeVar("T")


class Parser:
    """Recursive descent over the tokens of one text; `arrays` resolves blobs by digest.

    Without `arrays`, stand-ins take the place of blobs.
    """

    def __init__(self, text: str, arrays: Mapping[str, Any] | None) -> None:
        self.text = text
        self.arrays = arrays
        self.at = 0
        self.symbols: dict[str, dims.Dim] = {}

    def error(self, message: str) -> ParseError:
        at = len(self.text) - len(self.text[self.at :].lstrip())
        line = self.text.count("\n", 0, at) + 1
        column = at - self.text.rfind("\n", 0, at)
        return ParseError(message, line=line, column=column)

    def peek(self) -> tuple[str, str]:
        """Kind and text of the next token; kind is empty at the end."""
        found = _TOKEN.match(self.text, self.at)
        if not found or not found.lastgroup:
            if self.text[self.at :].strip():
                raise self.error(f"unexpected character {self.text[self.at :].strip()[0]!r}")
            return "", ""
        return found.lastgroup, found.group(found.lastgroup)

    def take(self, expected: str = "", kind: str = "") -> str:
        found_kind, text = self.peek()
        if (expected and text != expected) or (kind and found_kind != kind):
            raise self.error(f"expected {expected or kind}, found {text or 'the end'!r}")
        match = _TOKEN.match(self.text, self.at)
        if match:
            self.at = match.end()
        return text

    def accept(self, text: str) -> bool:
        if self.peek()[1] != text:
            return False
        self.take(text)
        return True

    def listed(self, close: str, item: Callable[[], T]) -> list[T]:
        """Comma-separated items up to `close`."""
        found: list[T] = []
        while not self.accept(close):
            if found:
                self.take(",")
            found.append(item())
        return found

    def file(self) -> Graph:
        """The graph of a whole text; what a number or a string refuses is an error there."""
        try:
            return self.declared()
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            raise self.error(str(error)) from error

    def declared(self) -> Graph:
        """Symbols, then one graph, then nothing."""
        while self.accept("sym"):
            name = self.take(kind="name")
            self.take("in")
            self.take("[")
            low = int(self.take(kind="number"))
            self.take(",")
            high = int(self.take(kind="number"))
            self.take("]")
            self.symbols[name] = dims.symbol(name, low, high)
        graph = self.graph()
        if self.peek()[1]:
            raise self.error(f"unexpected {self.peek()[1]!r} after the graph")
        return graph

    def graph(self) -> Graph:
        self.take("graph")
        self.take("@")
        quoted = self.peek()[0] == "string"
        name = json.loads(self.take()) if quoted else self.take(kind="name")
        self.take("(")
        numbers: dict[str, int] = {}
        inputs = self.listed(")", lambda: self.input(numbers))
        self.take("{")
        nodes: list[Node] = []
        while not self.accept("return"):
            nodes.append(self.node(numbers))
        outputs: list[int] = []
        while self.peek()[0] == "value":
            outputs.append(self.operand(numbers))
            self.accept(",")
        self.take("}")
        return Graph(tuple(inputs), tuple(nodes), tuple(outputs), name)

    def input(self, numbers: dict[str, int]) -> Input:
        self.define(numbers)
        name = json.loads(self.take()) if self.peek()[0] == "string" else ""
        self.take(":")
        return Input(self.type(), name)

    def define(self, numbers: dict[str, int]) -> None:
        name = self.take(kind="value")
        if name in numbers:
            raise self.error(f"{name} is defined twice")
        numbers[name] = len(numbers)

    def operand(self, numbers: dict[str, int]) -> int:
        name = self.peek()[1]
        if name not in numbers:
            raise self.error(f"{name!r} is used before its definition")
        self.take(kind="value")
        return numbers[name]

    def node(self, numbers: dict[str, int]) -> Node:
        results: list[str] = []
        while self.peek()[0] == "value":
            results.append(self.take(kind="value"))
            self.accept(",")
        if results:
            self.take("=")
        op = self.take(kind="name")
        self.take("(")
        operands = self.listed(")", lambda: self.operand(numbers))
        attrs = self.attrs() if self.peek()[1] == "{" else Attrs()
        self.take(":")
        types = [self.type()] if results else []
        while len(types) < len(results):
            self.take(",")
            types.append(self.type())
        loc = ""
        if self.accept("loc"):
            self.take("(")
            loc = json.loads(self.take(kind="string"))
            self.take(")")
        for name in results:
            if name in numbers:
                raise self.error(f"{name} is defined twice")
            numbers[name] = len(numbers)
        return Node(op, tuple(operands), attrs, tuple(types), loc)

    def type(self) -> TensorType:
        dtype = self.dtype()
        self.take("[")
        shape = self.listed("]", self.dim)
        layout = None
        if self.accept("{"):
            layout = tuple(self.listed("}", lambda: int(self.take(kind="number"))))
        return TensorType(dtype, tuple(shape), layout)

    def dtype(self) -> DType:
        name = self.peek()[1]
        if name not in DTYPES:
            raise self.error(f"{name!r} is not a dtype; known: {', '.join(DTYPES)}")
        self.take()
        return DTYPES[name]

    def dim(self) -> dims.Dim:
        """A sum of products of integers, symbols and `(dim)//n`."""
        total = self.term()
        while self.peek()[1] in ("+", "-") or self.peek()[1].startswith("-"):
            if self.accept("+"):
                total = total + self.term()
            elif self.accept("-"):
                total = total - self.term()
            else:
                total = total + self.term()
        return total

    def term(self) -> dims.Dim:
        if self.accept("-"):
            return -1 * self.term()
        result = self.factor()
        while self.accept("*"):
            result = result * self.factor()
        return result

    def factor(self) -> dims.Dim:
        kind, text = self.peek()
        if self.accept("("):
            inner = self.dim()
            self.take(")")
            self.take("//")
            return dims.floordiv(inner, int(self.take(kind="number")))
        if kind == "number":
            return int(self.take())
        if text not in self.symbols:
            raise self.error(f"{text!r} is not a declared symbol")
        self.take()
        return self.symbols[text]

    def attrs(self) -> Attrs:
        self.take("{")

        def item() -> tuple[str, Any]:
            name = self.take(kind="name")
            self.take("=")
            return name, self.attr()

        return Attrs(dict(self.listed("}", item)))

    def attr(self) -> Any:
        kind, text = self.peek()
        if kind == "string":
            return json.loads(self.take())
        if kind == "number":
            self.take()
            return float(text) if any(ch in text for ch in ".e") else int(text)
        if text in ("none", "true", "false"):
            self.take()
            return {"none": None, "true": True, "false": False}[text]
        if text == "graph":
            return self.graph()
        if self.accept("!"):
            return self.dtype()
        if self.accept("["):
            return tuple(self.listed("]", self.attr))
        bracketed = {"type": self.type, "dim": self.dim, "dense": self.dense, "blob": self.blob}
        if text in bracketed:
            self.take()
            self.take("<")
            inside = bracketed[text]()
            self.take(">")
            return inside
        if self.accept("float"):
            self.take("(")
            sign = "-" if self.accept("-") else ""
            number = float(sign + self.take(kind="name"))
            self.take(")")
            return number
        raise self.error(f"expected an attribute value, found {text or 'the end'!r}")

    def dense(self) -> Blob:
        """Elements in place, or their bytes behind `hex`."""
        ty = self.type()
        shape = ty.static("constant")
        self.take(":")
        end = self.text.index(">", self.at)
        body = self.text[self.at : end].strip()
        self.at = end
        if body.startswith("hex"):
            array = np.frombuffer(bytes.fromhex(body[3:]), ty.dtype.numpy)
        else:
            words = [w.strip() for w in body.split(",")] if body else []
            array = np.array([_number(w) for w in words]).astype(ty.dtype.numpy)
        if array.size != int(np.prod(shape)):
            raise self.error(f"{array.size} elements do not fill {ty}")
        return Blob(array.reshape(shape))

    def blob(self) -> Blob:
        ty = self.type()
        self.take(",")
        name = json.loads(self.take(kind="string"))
        self.take(",")
        end = self.text.index(">", self.at)
        digest = self.text[self.at : end].strip()
        if self.arrays is None:
            self.at = end
            return Blob.stand_in(ty, name, digest)
        if digest not in self.arrays:
            raise self.error(f"the array with digest {digest[:12]} was not given")
        self.at = end
        return Blob(self.arrays[digest], name)


def _number(word: str) -> int | float | bool:
    if word in ("true", "false"):
        return word == "true"
    try:
        return int(word)
    except ValueError:
        return float(word)
