"""Scalar expressions to Triton source: the one translation from compute definitions to Triton.

Code is straight-line: every subexpression that is used more than once, every load and whatever
would make a line too long becomes a variable, and equal text is computed once.  Index arithmetic
is int32, as Triton's `arange` is; operations of half precision round after each, as the
definition says.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from plait.ir import approx
from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.dims import SymDim
from plait.ir.errors import Unsupported, UnsupportedSymbol
from plait.ir.expr import Expr
from plait.ir.expr_eval import evaluate_scalar

# Longer text gets a name; the limit leaves room for indentation and an assignment.
LONGEST = 64
_WORD = re.compile(r"[a-zA-Z_]\w*")


@dataclass(frozen=True)
class Code:
    """A Triton expression; `block` tells a value per lane from one value per program."""

    text: str
    block: bool = False


LoadRule: TypeAlias = "Callable[[Source, int, Sequence[Code], Code | None], Code]"
AxisRule: TypeAlias = "Callable[[Source, e.Axis], Code]"


class Source:
    """The statements of a kernel's body under construction.

    `roots` are all expressions that will be asked for: they tell what is used more than once.
    `load(source, k, index, mask)` reads operand k at a logical index in the lanes of `mask`;
    `axis(source, a)` gives the value of an index variable.
    """

    def __init__(self, roots: Iterable[Expr], load: LoadRule, axis: AxisRule) -> None:
        self.lines: list[str] = []
        self._load, self._axis = load, axis
        self._uses = _count_uses(roots)
        self._memo: dict[tuple[int, str], Code] = {}
        self._literals: dict[int, e.Lit] = {}
        self._names: dict[str, Code] = {}
        self._kept: list[Expr] = []  # expressions made here: the memo goes by their ids
        self._numbered = 0

    def line(self, statement: str) -> None:
        """Add a statement, without needless parentheses."""
        self.lines.append(ast.unparse(ast.parse(statement)))

    def name(self, code: Code, name: str = "") -> Code:
        """A variable that holds the value; a value that has a name keeps it."""
        if code.text.isidentifier():
            return code
        if code.text not in self._names:
            if not name:
                name, self._numbered = f"v{self._numbered}", self._numbered + 1
            self.line(f"{name} = {code.text}")
            self._names[code.text] = Code(name, code.block)
        return self._names[code.text]

    def live_lines(self) -> list[str]:
        """The statements without assignments to variables that nothing reads."""
        kept: list[str] = []
        read: set[str] = set()
        for line in reversed(self.lines):
            target, assigns, value = line.partition(" = ")
            if not (assigns and target.isidentifier()) or target in read:
                kept.append(line)
                read.update(_WORD.findall(value or line))
        return kept[::-1]

    def code(self, root: Expr, mask: Code | None = None) -> Code:
        """The value of an expression in the lanes of `mask`; elsewhere it may be anything."""
        key = mask.text if mask else ""
        for node in list(e.walk(root, e.eager_children, lambda n: (id(n), key) in self._memo)):
            self._kept.append(node)
            self._memo[id(node), key] = self._settle(node, self._node(node, mask))
        return self._memo[id(root), key]

    def typed(self, expr: Expr, mask: Code | None = None) -> Code:
        """As `code`, with a literal as a tensor of its dtype."""
        code = self.code(expr, mask)
        known = self._literals.get(id(expr))
        return code if known is None else Code(_full(known), False)

    def _settle(self, node: Expr, code: Code) -> Code:
        leaf = isinstance(node, (e.Lit, e.Index, e.Size)) or id(node) in self._literals
        if leaf:
            return code
        shared = self._uses.get(id(node), 0) > 1
        return self.name(code) if shared or len(code.text) > LONGEST else code

    def _node(self, node: Expr, mask: Code | None) -> Code:
        match node:
            case e.Index():
                if node.axis.extent == 1:
                    return self._literal(node, 0)
                return self._axis(self, node.axis)
            case e.Lit():
                return self._literal(node, node.value)
            case e.Size():
                if isinstance(node.dim, SymDim):
                    raise UnsupportedSymbol(stage="Triton code generation", dim=str(node.dim))
                return self._literal(node, node.dim)
            case e.Load():
                index = [self.code(i, mask) for i in node.index]
                return self.name(self._load(self, node.operand, index, mask))
            case e.Apply():
                return self._apply(node, mask)
        raise Unsupported(f"{type(node).__name__} inside an expression reached code generation")

    def _literal(self, node: Expr, value: int | float | bool | complex) -> Code:
        self._literals[id(node)] = e.Lit(value, node.dtype)
        return Code(_literal(self._literals[id(node)]))

    def _apply(self, node: e.Apply, mask: Code | None) -> Code:
        if node.fn == "guard":
            return self._guard(node, mask)
        literals = [self._literals.get(id(a)) for a in node.args]
        if all(known is not None for known in literals):
            folded = e.Apply(node.fn, tuple(x for x in literals if x is not None), node.dtype)
            return self._literal(node, evaluate_scalar(folded, ()).item())
        args = [self.code(a, mask) for a in node.args]
        block = any(a.block for a in args)
        return Code(self._call(node, args, mask), block)

    def _guard(self, node: e.Apply, mask: Code | None) -> Code:
        """Select that loads each branch only in the lanes that choose it."""
        cond = self.name(self.code(node.args[0], mask))
        chosen = (cond, Code(f"({cond.text} == 0)", cond.block))
        branches = [
            self.typed(branch, self._both(mask, lanes) if _loads(branch) else mask)
            for branch, lanes in zip(node.args[1:], chosen, strict=True)
        ]
        block = any(c.block for c in (cond, *branches))
        return Code(f"tl.where({cond.text}, {branches[0].text}, {branches[1].text})", block)

    def _both(self, mask: Code | None, lanes: Code) -> Code:
        if mask is None:
            return self.name(lanes)
        return self.name(Code(f"({mask.text} & {lanes.text})", mask.block or lanes.block))

    def _call(self, node: e.Apply, args: Sequence[Code], mask: Code | None) -> str:
        texts = [a.text for a in args]
        source = node.args[0].dtype
        if node.fn == "cast":
            return _cast(texts[0], source, node.dtype)
        if node.fn == "bitcast":
            return f"({texts[0]}).to({tl_dtype(node.dtype)}, bitcast=True)"
        if node.fn == "select":
            branches = [self.typed(a, mask).text for a in node.args[1:]]
            return f"tl.where({texts[0]}, {branches[0]}, {branches[1]})"
        if source.kind == "b" and node.fn in _ON_BOOL:
            return _ON_BOOL[node.fn](*texts)
        if node.fn in _WHOLE and not source.is_float:
            return self._whole(node, mask)
        if node.fn in _INFIX:
            return f"({texts[0]} {_INFIX[node.fn]} {texts[1]})"
        if node.fn == "neg":
            return f"(-{texts[0]})"
        return self._function(node, mask)

    def _whole(self, node: e.Apply, mask: Code | None) -> str:
        """A division or a shift of integers, as numpy defines those that machines do not."""
        known = self._literals.get(id(node.args[1]))
        a, b = (self.typed(arg, mask).text for arg in node.args)
        if node.fn in ("shl", "shr"):
            bits = node.dtype.bits
            if known is not None and 0 <= int(known.value) < bits:  # type: ignore[arg-type]
                return f"({a} {_INFIX[node.fn]} {b})"
            b = b if known is None else _tensor(known)
            name = {"shl": "shift_left", "shr": "shift_right"}[node.fn]
            return f"device.{name}({a}, {b}, {bits})"
        plain = {"floordiv": "//", "mod": "%"}.get(node.fn)
        if known is not None and known.value not in (0, -1):
            if plain and all(map(self._not_negative, node.args)):
                return f"({a} {plain} {b})"
            return _WHOLE[node.fn].format(a=a, b=b)
        b = b if known is None else _tensor(known)
        text = _WHOLE[node.fn].format(a=a, b=f"device.divisor({b})")
        return f"device.quotient({a}, {b}, {text})" if node.fn in _QUOTIENTS else text

    def _function(self, node: e.Apply, mask: Code | None) -> str:
        """A function call; half precision is computed in float32 and rounded."""
        source = node.args[0].dtype
        if source.bits <= 32 and node.fn in POLYNOMIAL:
            return self.code(self._polynomial(node), mask).text
        half = source.is_float and source.bits < 32
        args = [self.typed(a, mask).text for a in node.args]
        if half:
            args = [f"({a}).to(tl.float32)" for a in args]
        rule = FUNCTIONS.get(node.fn)
        if rule is None:
            raise Unsupported(f"the scalar function {node.fn!r} has no code for the GPU")
        text = rule(t.f32 if half else source, *args)
        return f"({text}).to({tl_dtype(node.dtype)})" if half and node.dtype == source else text

    def _polynomial(self, node: e.Apply) -> Expr:
        wide = (a.cast(t.f32) for a in node.args)
        made = approx.TABLE[node.fn](*wide).cast(node.dtype)
        self._kept.append(made)
        for n, count in _count_uses([made]).items():
            self._uses[n] = self._uses.get(n, 0) + count
        return made

    def _not_negative(self, node: Expr) -> bool:
        """Whether an integer is certainly 0 or more: made of index variables and literals."""
        known = self._literals.get(id(node))
        if known is not None:
            return known.value >= 0  # type: ignore[operator]
        if isinstance(node, e.Apply) and node.fn in ("add", "mul", "floordiv", "mod", "cast"):
            return all(map(self._not_negative, node.args))
        return isinstance(node, e.Index)


def _count_uses(roots: Iterable[Expr]) -> dict[int, int]:
    """How many nodes, or roots, read each node."""
    uses: dict[int, int] = {}
    seen: set[int] = set()
    for root in roots:
        uses[id(root)] = uses.get(id(root), 0) + 1
        for node in e.walk(root):
            if id(node) not in seen:
                seen.add(id(node))
                for child in e.children(node):
                    uses[id(child)] = uses.get(id(child), 0) + 1
    return uses


def _loads(expr: Expr) -> bool:
    return any(isinstance(node, e.Load) for node in e.walk(expr))


def tl_dtype(dtype: t.DType) -> str:
    """Triton's name of an element type; `Unsupported` for complex numbers."""
    if dtype.kind == "c":
        raise Unsupported(f"dtype {dtype} has no code for the GPU")
    return "tl.int1" if dtype.kind == "b" else f"tl.{dtype.name}"


def _literal(node: e.Lit) -> str:
    """The shortest text that has the literal's value in its dtype."""
    tl_dtype(node.dtype)
    if node.dtype.kind == "b":
        return str(bool(node.value))
    if not node.dtype.is_float:
        return str(int(node.value))  # type: ignore[arg-type]
    value = float(node.value)  # type: ignore[arg-type]
    if not np.isfinite(value):
        return f'float("{value}")'
    return repr(value if node.dtype == t.f64 else float(str(np.float32(value))))


def _full(node: e.Lit) -> str:
    """A literal as a tensor: Triton takes a bare number for float32 or int32."""
    plain = node.dtype in (t.bool_, t.f32) or (
        node.dtype in (t.i32, t.i64) and -(2**31) <= int(node.value) < 2**31  # type: ignore[arg-type]
    )
    return _literal(node) if plain else _tensor(node)


def _tensor(node: e.Lit) -> str:
    return f"tl.full([], {_literal(node)}, {tl_dtype(node.dtype)})"


def _cast(text: str, source: t.DType, target: t.DType) -> str:
    if target.kind == "b":
        return text if source.kind == "b" else f"({text} != 0)"
    return f"({text}).to({tl_dtype(target)})"


def _divide(d: t.DType, a: str, b: str) -> str:
    return f"tl.div_rn({a}, {b})" if d == t.f32 else f"({a} / {b})"


def _nan_wins(name: str) -> Callable[..., str]:
    def rule(d: t.DType, a: str, b: str) -> str:
        nan = ", propagate_nan=tl.PropagateNan.ALL" if d.is_float else ""
        return f"tl.{name}({a}, {b}{nan})"

    return rule


def _device(name: str) -> Callable[..., str]:
    """A function of `plait.codegen.triton.device`."""
    return lambda d, *xs: f"device.{name}({', '.join(xs)})"


def _libdevice(name: str) -> Callable[..., str]:
    return lambda d, *xs: f"libdevice.{name}({', '.join(xs)})"


# Functions without good code of Triton's own, written out from their polynomials in float32.
POLYNOMIAL = frozenset({"tanh", "expm1", "log1p"})
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^", "shl": "<<",
    "shr": ">>", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
}  # fmt: skip
# Of integers, with a divisor that is neither 0 nor -1.
_WHOLE = {
    "floordiv": "device.floor_divide({a}, {b})", "truncdiv": "({a} // {b})",
    "mod": "device.modulo({a}, {b})", "fmod": "({a} % {b})", "shl": "", "shr": "",
}  # fmt: skip
_QUOTIENTS = ("floordiv", "truncdiv")
_ON_BOOL: dict[str, Callable[..., str]] = {
    "add": lambda a, b: f"({a} | {b})",
    "mul": lambda a, b: f"({a} & {b})",
    "max": lambda a, b: f"({a} | {b})",
    "min": lambda a, b: f"({a} & {b})",
    "not": lambda a: f"({a} == 0)",
}
FUNCTIONS: dict[str, Callable[..., str]] = {
    "div": _divide,
    "sqrt": lambda d, x: f"tl.sqrt_rn({x})" if d == t.f32 else f"tl.sqrt({x})",
    "floordiv": lambda d, a, b: f"device.floor_divide_float({a}, {b}, {_divide(d, a, b)})",
    "truncdiv": lambda d, a, b: f"device.trunc({_divide(d, a, b)})",
    "fmod": _device("fmod"),
    "mod": _device("modulo_float"),
    "max": _nan_wins("maximum"),
    "min": _nan_wins("minimum"),
    "fma": lambda d, a, b, c: f"tl.fma({a}, {b}, {c})",
    "abs": lambda d, x: x if d.kind == "u" else f"tl.abs({x})",
    "not": lambda d, x: f"(~{x})",
    "round": _device("round_even"),
    "trunc": _device("trunc"),
    "isnan": lambda d, x: f"({x} != {x})",
    "isinf": lambda d, x: f'(tl.abs({x}) == float("inf"))',
}
for _name in ("exp", "exp2", "log", "log2", "rsqrt", "sin", "cos", "erf", "sigmoid", "floor",
              "ceil"):  # fmt: skip
    FUNCTIONS[_name] = lambda d, x, name=_name: f"tl.{name}({x})"
for _name in ("tanh", "expm1", "log1p", "log10", "tan", "asin", "acos", "atan", "sinh", "cosh",
              "asinh", "acosh", "atanh", "pow", "atan2"):  # fmt: skip
    FUNCTIONS[_name] = _libdevice(_name)
