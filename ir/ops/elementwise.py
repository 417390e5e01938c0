"""Elementwise ops: arithmetic, comparison, logic, activations, select and cast.

Operands broadcast numpy-style.  The result's layout is row-major; the layout pass changes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from plait.ir import approx
from plait.ir import expr as e
from plait.ir import types as t
from plait.ir.builder import Capture, Value, rank_order
from plait.ir.expr import Compute, Expr
from plait.ir.functions import FUNCTIONS
from plait.ir.op import REQUIRED, Call, captures, register
from plait.ir.op import Op as OpRecord
from plait.ir.ops.shapes import broadcast, broadcast_load
from plait.ir.types import DType, TensorType

ScalarRule = Callable[..., Expr]


def elementwise(
    name: str,
    operands: tuple[str, ...],
    scalar: ScalarRule,
    reference: Callable[..., Any],
    *,
    doc: str,
    torch: tuple[str, ...] = (),
    attrs: dict[str, Any] | None = None,
    commutative: bool = False,
    result: DType | None = None,
    accepts: str = "fiub",
    precision: str = "rounded",
) -> OpRecord:
    """Declare an elementwise op from its scalar expression `(call, *elements)`.

    All operands have one dtype whose kind is in `accepts`; the result has it too, unless
    `result` says otherwise.  `torch` names the ATen overloads with the same arguments.
    """

    def infer(c: Call) -> TensorType:
        first = c.types[0].dtype
        for ty in c.types:
            c.require(ty.dtype == first, f"operands have dtypes {first} and {ty.dtype}")
            c.require(ty.dtype.kind in accepts, f"dtype {ty.dtype} is not accepted")
        return TensorType(result or first, broadcast(name, [ty.shape for ty in c.types]))

    def compute(c: Call) -> Compute:
        return pointwise(c, infer(c), scalar)

    def run(c: Call, *arrays: Any) -> Any:
        with np.errstate(all="ignore"):
            out = reference(c, *arrays)
        return np.asarray(out).astype(infer(c).dtype.numpy, copy=False)

    traits = {"elementwise"} | ({"commutative"} if commutative else set())
    record = register(
        OpRecord(name, operands, infer, run, compute, None, attrs or {}, frozenset(traits),
                 precision, doc)
    )  # fmt: skip
    if torch:
        captures(*torch)(_importer(name, len(operands)))
    return record


def pointwise(c: Call, result: TensorType, scalar: ScalarRule) -> Compute:
    """The compute definition of an elementwise op."""
    space = e.axes(*result.shape)
    at = [e.index(a) for a in space]
    return Compute(space, scalar(c, *(broadcast_load(k, ty, at) for k, ty in enumerate(c.types))))


def _importer(name: str, arity: int) -> Callable[..., Value]:
    """Import an ATen overload whose first `arity` arguments are the operands.

    Operands are cast to the dtype in which torch computes: for comparisons the promoted dtype
    of the operands, else the dtype of the result.
    """

    def run(cx: Capture, *args: Any, **_: Any) -> Value:
        picked = args[:arity]
        promoted = rank_order(a.type if isinstance(a, Value) else a for a in picked)
        compares = cx.dtype.kind in "iub"
        dtype = promoted if compares else cx.dtype
        out = cx.emit(name, *(cx.tensor(a, dtype) for a in picked))
        return cx.b.cast(out, cx.dtype)

    return run


def _fn(name: str) -> tuple[ScalarRule, Callable[..., Any]]:
    """Scalar rule and reference of a function of the scalar table."""

    def scalar(c: Call, *xs: Expr) -> Expr:
        chosen = c.attrs.get("approx")
        if chosen == "poly" and xs[0].dtype == t.f32 and name in approx.TABLE:
            return approx.TABLE[name](*xs)
        if chosen == "decay" and xs[0].dtype == t.f32 and name == "exp":
            return approx.decay(*xs)
        return e.apply(name, *xs)

    return scalar, lambda c, *xs: FUNCTIONS[name](*xs)


APPROX = {"approx": ""}

_UNARY_FLOAT = {
    "exp": "e**x", "exp2": "2**x", "expm1": "e**x - 1", "log": "ln x", "log2": "log2 x",
    "log10": "log10 x", "log1p": "ln(1 + x)", "sqrt": "sqrt x", "rsqrt": "1 / sqrt x",
    "sin": "sin x", "cos": "cos x", "tan": "tan x", "asin": "arcsin x", "acos": "arccos x",
    "atan": "arctan x", "sinh": "sinh x", "cosh": "cosh x", "asinh": "arsinh x",
    "acosh": "arcosh x", "atanh": "artanh x", "tanh": "tanh x", "erf": "erf x",
    "sigmoid": "1 / (1 + e**-x)",
}  # fmt: skip
for _name, _doc in _UNARY_FLOAT.items():
    _scalar, _ref = _fn(_name)
    elementwise(_name, ("x",), _scalar, _ref, doc=f"{_doc}, elementwise on floats.", accepts="f",
                torch=(f"aten.{_name}.default",), attrs=APPROX,
                precision="rounded" if _name == "sqrt" else "approx")  # fmt: skip

for _name, _kinds, _doc in (
    ("neg", "fiu", "-x"),
    ("abs", "fiu", "|x|"),
    ("floor", "f", "largest integer not above x"),
    ("ceil", "f", "smallest integer not below x"),
    ("trunc", "f", "x without its fraction"),
    ("round", "f", "nearest integer, ties to even"),
):
    _scalar, _ref = _fn(_name)
    elementwise(_name, ("x",), _scalar, _ref, doc=f"{_doc}, elementwise.", accepts=_kinds,
                torch=(f"aten.{_name}.default",), precision="exact")  # fmt: skip

elementwise("sign", ("x",),
            lambda c, x: e.select(x > 0, 1, e.select(x < 0, -1, e.lit(0, x.dtype))),
            lambda c, x: np.where(x > 0, 1, np.where(x < 0, -1, 0)), accepts="fi",
            doc="-1, 0 or 1, elementwise; 0 for NaN.", torch=("aten.sign.default",),
            precision="exact")  # fmt: skip
elementwise("isnan", ("x",), lambda c, x: x.ne(x), lambda c, x: np.isnan(x), accepts="f",
            doc="True where x is not a number.", torch=("aten.isnan.default",), result=t.bool_,
            precision="exact")  # fmt: skip
elementwise("isinf", ("x",), lambda c, x: e.apply("abs", x).eq(math.inf), lambda c, x: np.isinf(x),
            doc="True where x is +inf or -inf.", torch=("aten.isinf.default",), accepts="f",
            result=t.bool_, precision="exact")  # fmt: skip

for _name, _kinds, _commutes, _torch, _doc in (
    ("add", "fiub", True, (), "a + b"),
    ("sub", "fiu", False, (), "a - b"),
    ("mul", "fiub", True, ("aten.mul.Tensor", "aten.mul.Scalar"), "a * b"),
    ("div", "f", False, ("aten.div.Tensor", "aten.div.Scalar"), "a / b, true division"),
    ("floordiv", "fi", False, (), "floor of the exact quotient; 0 for a // 0 of integers"),
    ("truncdiv", "fi", False, (), "trunc(a / b); 0 for division of integers by zero"),
    ("mod", "fi", False, ("aten.remainder.Tensor", "aten.remainder.Scalar"),
     "a - floor(a / b) * b, with the sign of b"),
    ("fmod", "fi", False, ("aten.fmod.Tensor", "aten.fmod.Scalar"),
     "a - trunc(a / b) * b, with the sign of a"),
    ("pow", "f", False, (), "a ** b"),
    ("atan2", "f", False, ("aten.atan2.default",), "angle of the point (b, a)"),
    ("max", "fiub", True, ("aten.maximum.default",), "larger of a and b; NaN wins"),
    ("min", "fiub", True, ("aten.minimum.default",), "smaller of a and b; NaN wins"),
):  # fmt: skip
    _scalar, _ref = _fn(_name)
    elementwise(_name, ("a", "b"), _scalar, _ref, doc=f"{_doc}, elementwise.", accepts=_kinds,
                torch=_torch, commutative=_commutes,
                precision="approx" if _name in ("pow", "atan2") else "rounded")  # fmt: skip

for _name, _torch in (
    ("and", ("aten.bitwise_and.Tensor", "aten.bitwise_and.Scalar")),
    ("or", ("aten.bitwise_or.Tensor", "aten.bitwise_or.Scalar")),
    ("xor", ("aten.bitwise_xor.Tensor", "aten.bitwise_xor.Scalar")),
):
    _scalar, _ref = _fn(_name)
    elementwise(_name, ("a", "b"), _scalar, _ref, doc=f"Bitwise {_name}; logical on bool.",
                accepts="iub", torch=_torch, commutative=True, precision="exact")  # fmt: skip
for _name, _doc in (("shl", "a * 2**b"), ("shr", "a >> b, arithmetic")):
    _scalar, _ref = _fn(_name)
    elementwise(_name, ("a", "b"), _scalar, _ref, doc=f"{_doc}, for 0 <= b < bits.", accepts="iu",
                precision="exact")  # fmt: skip
_scalar, _ref = _fn("not")
elementwise("not", ("x",), _scalar, _ref, doc="Bitwise complement; logical not on bool.",
            accepts="iub", torch=("aten.bitwise_not.default",), precision="exact")  # fmt: skip

for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    elementwise(_name, ("a", "b"), lambda c, a, b: e.compare(c.op.name, a, b),
                lambda c, a, b: FUNCTIONS[c.op.name](a, b), result=t.bool_,
                doc=f"a {_name} b as bool; any comparison with NaN but ne is false.",
                torch=(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar"),
                commutative=_name in ("eq", "ne"), precision="exact")  # fmt: skip

elementwise("relu", ("x",), lambda c, x: e.maximum(x, 0),
            lambda c, x: np.maximum(x, x.dtype.type(0)),
            doc="max(x, 0); NaN stays NaN.", torch=("aten.relu.default",), accepts="fiu",
            precision="exact")  # fmt: skip


def _gelu(c: Call, x: Expr) -> Expr:
    poly = c.approx == "poly" and x.dtype == t.f32
    if c.form == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * 0.5 * ((approx.tanh(inner) if poly else e.apply("tanh", inner)) + 1.0)
    return approx.gelu(x) if poly else x * 0.5 * (e.apply("erf", x * math.sqrt(0.5)) + 1.0)


def _gelu_ref(c: Call, x: Any) -> Any:
    wide = x.astype(np.float64)
    if c.form == "tanh":
        return wide * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    return wide * 0.5 * (1 + FUNCTIONS["erf"](wide * math.sqrt(0.5)))


elementwise("gelu", ("x",), _gelu, _gelu_ref, attrs={"form": "none", **APPROX}, accepts="f",
            doc="x * Phi(x) (form none) or its tanh approximation (form tanh); Hendrycks and "
            "Gimpel 2016.", precision="approx")  # fmt: skip


def _sigmoid(c: Call, x: Expr) -> Expr:
    poly = c.approx == "poly" and x.dtype == t.f32
    return approx.sigmoid(x) if poly else e.apply("sigmoid", x)


elementwise("silu", ("x",), lambda c, x: x * _sigmoid(c, x),
            lambda c, x: x * FUNCTIONS["sigmoid"](x), attrs=APPROX, accepts="f",
            doc="x * sigmoid(x).", torch=("aten.silu.default",), precision="approx")  # fmt: skip


def _cast_infer(c: Call) -> TensorType:
    return c.types[0].with_dtype(c.dtype).with_layout(None)


def _cast_ref(c: Call, x: Any) -> Any:
    with np.errstate(all="ignore"):
        return x.astype(c.dtype.numpy)


register(
    OpRecord(
        "cast", ("x",), _cast_infer, _cast_ref,
        lambda c: pointwise(c, _cast_infer(c), lambda c, x: x.cast(c.dtype)),
        attrs={"dtype": REQUIRED}, traits=frozenset({"elementwise"}), precision="rounded",
        doc="x converted to `dtype`: to integers by truncation, to bool by x != 0.",
    )
)  # fmt: skip


def _select_infer(c: Call) -> TensorType:
    cond, a, b = c.types
    c.require(cond.dtype == t.bool_, f"the condition has dtype {cond.dtype}, expected bool")
    c.require(a.dtype == b.dtype, f"branches have dtypes {a.dtype} and {b.dtype}")
    return TensorType(a.dtype, broadcast("select", [cond.shape, a.shape, b.shape]))


register(
    OpRecord(
        "select", ("cond", "a", "b"), _select_infer, lambda c, cond, a, b: np.where(cond, a, b),
        lambda c: pointwise(c, _select_infer(c), lambda c, p, a, b: e.select(p, a, b)),
        traits=frozenset({"elementwise"}), doc="a where cond holds, else b; operands broadcast.",
    )
)  # fmt: skip


@captures("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar")
def _where(cx: Capture, cond: Value, a: Any, b: Any) -> Value:
    condition = cx.tensor(cond, t.bool_)
    return cx.emit("select", condition, cx.tensor(a, cx.dtype), cx.tensor(b, cx.dtype))


@captures("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(cx: Capture, x: Value, mask: Value, value: Any) -> Value:
    return cx.emit("select", mask, cx.tensor(value, cx.dtype), x)


@captures("aten.add.Tensor", "aten.add.Scalar")
def _add(cx: Capture, a: Any, b: Any, alpha: Any = 1, *, op: str = "add") -> Value:
    other = cx.tensor(b, cx.dtype)
    if alpha != 1:
        other = other * alpha
    return cx.emit(op, cx.tensor(a, cx.dtype), other)


@captures("aten.sub.Tensor", "aten.sub.Scalar")
def _sub(cx: Capture, a: Any, b: Any, alpha: Any = 1) -> Value:
    return _add(cx, a, b, alpha, op="sub")


@captures("aten.rsub.Tensor", "aten.rsub.Scalar")
def _rsub(cx: Capture, a: Any, b: Any, alpha: Any = 1) -> Value:
    return _add(cx, b, a, alpha, op="sub")


@captures("aten.reciprocal.default")
def _reciprocal(cx: Capture, x: Value) -> Value:
    one = cx.b.scalar(1, cx.dtype)
    return cx.emit("div", one, cx.tensor(x, cx.dtype))


@captures("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def _pow(cx: Capture, a: Any, b: Any) -> Value:
    """Small whole powers become products, as torch computes them."""
    if isinstance(b, (int, float)) and b in (2, 3) and isinstance(a, Value):
        x = cx.tensor(a, cx.dtype)
        return x * x if b == 2 else x * x * x
    if isinstance(b, float) and b == 0.5 and isinstance(a, Value):
        return cx.emit("sqrt", cx.tensor(a, cx.dtype))
    if not cx.dtype.is_float:
        raise NotImplementedError("integer power")
    return cx.emit("pow", cx.tensor(a, cx.dtype), cx.tensor(b, cx.dtype))


@captures("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def _div_mode(cx: Capture, a: Any, b: Any, *, rounding_mode: str | None = None) -> Value:
    op = {None: "div", "floor": "floordiv", "trunc": "truncdiv"}[rounding_mode]
    if op != "div" and not cx.dtype.is_float and not isinstance(b, int):
        raise NotImplementedError("integer division by a tensor may divide by zero")
    return cx.emit(op, cx.tensor(a, cx.dtype), cx.tensor(b, cx.dtype))


@captures("aten.gelu.default")
def _import_gelu(cx: Capture, x: Value, *, approximate: str = "none") -> Value:
    return cx.emit("gelu", x, form=approximate)


@captures("aten.clamp.default", "aten.clamp.Tensor", "aten.clamp_min.default",
          "aten.clamp_min.Tensor")  # fmt: skip
def _clamp(cx: Capture, x: Value, low: Any = None, high: Any = None) -> Value:
    value = cx.tensor(x, cx.dtype)
    if low is not None:
        value = cx.emit("max", value, cx.tensor(low, cx.dtype))
    return value if high is None else cx.emit("min", value, cx.tensor(high, cx.dtype))


@captures("aten.hardtanh.default")
def _hardtanh(cx: Capture, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    return _clamp(cx, x, low, high)


@captures("aten.clamp_max.default", "aten.clamp_max.Tensor")
def _clamp_max(cx: Capture, x: Value, high: Any) -> Value:
    return cx.emit("min", cx.tensor(x, cx.dtype), cx.tensor(high, cx.dtype))


@captures("aten.hardswish.default")
def _hardswish(cx: Capture, x: Value) -> Value:
    return x * _hardsigmoid(cx, x)


@captures("aten.hardsigmoid.default")
def _hardsigmoid(cx: Capture, x: Value) -> Value:
    low = cx.emit("max", x + 3.0, cx.b.scalar(0, x.dtype))
    return cx.emit("min", low, cx.b.scalar(6, x.dtype)) / 6.0


@captures("aten.leaky_relu.default")
def _leaky_relu(cx: Capture, x: Value, slope: float = 0.01) -> Value:
    positive = cx.emit("gt", x, cx.b.scalar(0, x.dtype))
    return cx.emit("select", positive, x, x * slope)


@captures("aten._prelu_kernel.default")
def _prelu(cx: Capture, x: Value, weight: Value) -> Value:
    positive = cx.emit("gt", x, cx.b.scalar(0, x.dtype))
    return cx.emit("select", positive, x, x * weight)


@captures("aten.elu.default")
def _elu(cx: Capture, x: Value, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Value:
    positive = cx.emit("gt", x, cx.b.scalar(0, x.dtype))
    return cx.emit("select", positive, x * scale, cx.emit("expm1", x * rate) * (alpha * scale))


@captures("aten.logical_not.default")
def _logical_not(cx: Capture, x: Value) -> Value:
    return cx.emit("not", cx.tensor(x, t.bool_))


def _logical(op: str) -> Callable[[Capture, Value, Value], Value]:
    return lambda cx, a, b: cx.emit(op, cx.tensor(a, t.bool_), cx.tensor(b, t.bool_))


for _name in ("and", "or", "xor"):
    captures(f"aten.logical_{_name}.default")(_logical(_name))


@captures("aten._to_copy.default", "prims.convert_element_type.default")
def _to_copy(cx: Capture, x: Value, *_: Any, **__: Any) -> Value:
    return cx.b.cast(x, cx.dtype)


@captures("aten.clone.default", "aten.alias.default", "aten.detach.default",
          "aten.contiguous.default", "aten.lift_fresh_copy.default",
          "aten.lift_fresh.default")  # fmt: skip
def _same(cx: Capture, x: Value, *_: Any, **__: Any) -> Value:
    return x


@captures("aten.dropout.default")
def _dropout(cx: Capture, x: Value, p: float, train: bool) -> Value:
    if train:
        raise NotImplementedError("dropout while training")
    return x
