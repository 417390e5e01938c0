"""Small applications of every op on numpy arrays: what tests run each op's record on.

`SAMPLES` covers the registry (`missing` gives the ops it forgets); arrays hold negative values,
zeros, NaN and infinities where the op's meaning on them is defined.  Floats are float32; a test
that wants another precision casts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.errors import TypeRuleError
from plait.ir.graph import Attrs, Blob, Graph
from plait.ir.types import TensorType, from_numpy


@dataclass(frozen=True, eq=False)
class Sample:
    """One application: operands, attributes, and what it is about."""

    op: str
    arrays: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.label}" if self.label else self.op

    @property
    def types(self) -> tuple[TensorType, ...]:
        return tuple(TensorType(from_numpy(a.dtype), a.shape) for a in self.arrays)

    @property
    def complete(self) -> Attrs:
        return ops.get(self.op).complete(self.attrs)

    def graph(self) -> Graph:
        """A graph of this one node, its operands inputs."""
        b = Builder()
        operands = [b.input(ty) for ty in self.types]
        return b.finish(b.emit_all(self.op, operands, self.attrs))

    def in_float64(self) -> Sample:
        """The same on double-precision operands."""
        arrays = tuple(a.astype(np.float64) if a.dtype == np.float32 else a for a in self.arrays)
        return Sample(self.op, arrays, self.attrs, self.label)


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-30, -3e5], np.float32)
INTEGERS = np.array([0, 1, -1, 7, -8, 100, -128, 127], np.int32)


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    """Normally distributed float32 values."""
    noise = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return (scale * noise).astype(np.float32)


def within(low: float, high: float, count: int = 24) -> Any:
    """Evenly spaced float32 values, the ends included."""
    return np.linspace(low, high, count, dtype=np.float32).reshape(-1, 4)


# Elementwise ops that single precision or the integers do not bear everywhere: their intervals.
DOMAINS: dict[str, tuple[float, float]] = {
    "tan": (-1.4, 1.4), "asin": (-1, 1), "acos": (-1, 1), "atanh": (-0.99, 0.99),
    "acosh": (1, 40), "log": (0.01, 40), "log2": (0.01, 40), "log10": (0.01, 40),
    "log1p": (-0.9, 40), "sqrt": (0, 40), "rsqrt": (0.01, 40), "pow": (0.1, 4),
}  # fmt: skip
# Ops that jump, or that numpy computes less exactly, at these special values.
NOT_SPECIAL = {"sin", "cos", "tan", "mod", "fmod", "floordiv", "truncdiv", "pow"}


def _elementwise() -> Iterator[Sample]:
    """Every elementwise op on each kind of operand that its type rule accepts."""
    ops.load_all()
    for record in list(ops.OPS.values()):
        if "elementwise" in record.traits and record.name not in ("cast", "select"):
            for label, arrays in _operands(record.name, len(record.operands)):
                sample = Sample(record.name, arrays, label=label)
                if _accepts(record, sample):
                    yield sample
    yield Sample("gelu", (within(-6, 6),), {"form": "tanh"}, "tanh")
    whole = np.array([-2, -1, 0, 4], np.float32), np.array([3, 2, 0, 0.5], np.float32)
    yield Sample("pow", whole, label="whole")
    yield Sample("select", (SPECIAL > 0, SPECIAL, floats(2, 1)), label="broadcast")
    for dtype in (t.f64, t.i32, t.bool_, t.f32):
        yield Sample("cast", (within(-9, 9),), {"dtype": dtype}, dtype.name)
    yield Sample("cast", (INTEGERS,), {"dtype": t.f32}, "int-float")
    yield Sample("cast", (INTEGERS.astype(np.int64),), {"dtype": t.i8}, "narrow")


def _accepts(record: ops.Op, sample: Sample) -> bool:
    try:
        record.result_types(sample.complete, sample.types)
    except TypeRuleError:
        return False
    return True


def _operands(name: str, arity: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Floats over the op's domain, special floats, integers and booleans, broadcasting."""
    low, high = DOMAINS.get(name, (-9.0, 9.0))
    first = within(low, high)
    shapes = [(3, 2, 1, 4), (6, 1), (4,)]
    yield "range", (first, *(floats(*s, seed=k, scale=4) for k, s in enumerate(shapes)))[:arity]
    if name not in NOT_SPECIAL:
        axes = [(-1, *([1] * k)) for k in range(arity)]
        yield "special", tuple(SPECIAL.reshape(shape) for shape in axes)
    divisors = np.array([1, 2, 3, 5], np.int32) * (1 if name in ("shl", "shr") else -1)
    yield "int", (INTEGERS.reshape(-1, 1), divisors, divisors)[:arity]
    booleans = np.array([True, False])
    yield "bool", (booleans[:, None], booleans, booleans)[:arity]


def _movement() -> Iterator[Sample]:
    x = floats(2, 3, 4)
    for shape in ((6, 4), (2, 12), (4, 6), (24,), (2, 1, 3, 2, 2), (2, 3, 4, 1)):
        yield Sample("reshape", (x,), {"shape": shape}, "x".join(map(str, shape)))
    yield Sample("reshape", (floats(2, 0, 3),), {"shape": (0, 5)}, "empty")
    yield Sample("reshape", (floats(1),), {"shape": ()}, "scalar")
    yield Sample("transpose", (x,), {"perm": (2, 0, 1)})
    yield Sample("broadcast_to", (floats(3, 1),), {"shape": (2, 3, 4)})
    yield Sample("broadcast_to", (floats(),), {"shape": (2, 3)}, "scalar")
    yield Sample("slice", (x,), {"start": (0, 1, 0), "step": (1, 1, 2), "size": (2, 2, 2)})
    yield Sample("slice", (x,), {"start": (2, 0, 3), "step": (1, 1, 1), "size": (0, 3, 1)}, "empty")
    value = np.asarray(np.float32(-1.5))
    yield Sample("pad", (x, value), {"low": (0, 1, 2), "high": (1, 0, 3)})
    yield Sample("pad", (x, value), {"low": (0, -1, -2), "high": (-1, 2, 0)}, "crop")
    yield Sample("concat", (x, floats(2, 1, 4), floats(2, 2, 4)), {"axis": 1})
    yield Sample("concat", (x,), {"axis": 2}, "one")
    yield Sample("concat", (floats(0, 2), floats(3, 2), floats(0, 2)), {"axis": 0}, "empty")
    yield Sample("reverse", (x,), {"axes": (0, 2)})
    yield Sample("reverse", (INTEGERS,), {"axes": ()}, "none")


def _sources() -> Iterator[Sample]:
    yield Sample("constant", (), {"value": Blob(np.float32(2.5))}, "scalar")
    yield Sample("constant", (), {"value": Blob(SPECIAL, "special")}, "special")
    for dtype in (t.i64, t.f32):
        yield Sample("iota", (), {"shape": (2, 5), "axis": 1, "dtype": dtype}, dtype.name)
    x, where = floats(5, 3), np.array([[0, 4], [-1, 2]])
    yield Sample("take", (x, where), {"axis": 0}, "rows")
    yield Sample("take", (x, np.array(1)), {"axis": 1}, "scalar")
    yield Sample("take", (x, where.astype(np.int32)), {"axis": 0}, "int32")
    yield Sample("gather", (x, np.array([[0, 4, -5], [3, 1, -1]])), {"axis": 0}, "rows")
    yield Sample("gather", (x, np.array([[2, 1, 0, 0]])), {"axis": 1}, "columns")


def _reductions() -> Iterator[Sample]:
    x, holes = floats(3, 4, 5), np.tile(SPECIAL[:7], (2, 1))
    for kind in ("sum", "prod", "max", "min"):
        for axes, keep in (((0, 2), False), ((1,), True), ((0, 1, 2), False), ((), False)):
            label = f"{''.join(map(str, axes))}{'-keep' if keep else ''}"
            yield Sample(f"reduce_{kind}", (x,), {"axes": axes, "keepdims": keep}, label)
        yield Sample(f"reduce_{kind}", (floats(2, 0),), {"axes": (1,)}, "empty")
        yield Sample(f"reduce_{kind}", (holes,), {"axes": (1,)}, "special")
        yield Sample(f"reduce_{kind}", (INTEGERS.reshape(2, 4),), {"axes": (1,)}, "int")
        yield Sample(f"reduce_{kind}", (np.eye(3, dtype=bool),), {"axes": (0,)}, "bool")
    for kind in ("argmax", "argmin"):
        yield Sample(kind, (x,), {"axis": 1})
        yield Sample(kind, (holes,), {"axis": 1}, "nan")
        yield Sample(kind, (np.array([[3, 1, 3, 1]]),), {"axis": 1}, "ties")
    for axis in (0, 1, 2):
        yield Sample("cumsum", (x,), {"axis": axis}, f"axis{axis}")
    yield Sample("cumsum", (holes,), {"axis": 1}, "special")
    yield Sample("cumsum", (INTEGERS.reshape(2, 4),), {"axis": 1}, "int")
    yield Sample("cumsum", (floats(2, 0),), {"axis": 1}, "empty")


def _contractions() -> Iterator[Sample]:
    dims = {"lhs_contract": (1,), "rhs_contract": (0,)}
    yield Sample("dot_general", (floats(3, 4), floats(4, 5)), dims, "matmul")
    yield Sample("dot_general", (floats(3, 4), floats(4)), dims, "vector")
    yield Sample("dot_general", (floats(3, 0), floats(0, 5)), dims, "empty")
    yield Sample("dot_general", (INTEGERS.reshape(2, 4), INTEGERS.reshape(4, 2)), dims, "int")
    batched = {"lhs_batch": (0,), "rhs_batch": (2,), "lhs_contract": (2, 1), "rhs_contract": (0, 3)}
    yield Sample("dot_general", (floats(2, 3, 4), floats(4, 5, 2, 3)), batched, "batched")
    yield Sample("dot_general", (floats(2), floats(3)), {"lhs_contract": (), "rhs_contract": ()},
                 "outer")  # fmt: skip

    def conv(x: Any, w: Any, label: str, groups: int = 1, **given: Any) -> Sample:
        rank = x.ndim - 2
        attrs = {"stride": (1,) * rank, "low": (0,) * rank, "high": (0,) * rank,
                 "dilation": (1,) * rank, "groups": groups, **given}  # fmt: skip
        return Sample("conv", (x, w), attrs, label)

    image = floats(2, 4, 6, 5)
    yield conv(image, floats(3, 4, 3, 2), "plain")
    yield conv(image, floats(3, 4, 3, 3), "same", low=(1, 1), high=(1, 1))
    yield conv(image, floats(3, 4, 2, 2), "strided", stride=(2, 3), low=(1, 0), high=(0, 2))
    yield conv(image, floats(3, 4, 2, 2), "dilated", dilation=(2, 3))
    yield conv(image, floats(6, 2, 2, 2), "grouped", groups=2)
    yield conv(image, floats(4, 1, 3, 3), "depthwise", groups=4, low=(1, 1), high=(1, 1))
    yield conv(image, floats(3, 4, 3, 3), "cropped", low=(-1, 1), high=(0, -1))
    yield conv(floats(1, 2, 7), floats(3, 2, 3), "1d", stride=(2,))
    yield conv(floats(1, 2, 3, 4, 3), floats(2, 2, 2, 2, 2), "3d")


def _pools() -> Iterator[Sample]:
    x = floats(2, 3, 6, 5)
    plain = {"window": (2, 3), "stride": (2, 1), "low": (0, 0), "high": (0, 0), "dilation": (1, 1)}
    forms: dict[str, dict[str, Any]] = {
        "plain": {}, "padded": {"low": (1, 1), "high": (0, 2)}, "dilated": {"dilation": (2, 2)},
        "cropped": {"low": (-1, 0), "high": (1, -1)},
    }  # fmt: skip
    for name in ("max_pool", "sum_pool"):
        for label, changes in forms.items():
            yield Sample(name, (x,), {**plain, **changes}, label)
        yield Sample(name, (floats(1, 1, 9),), {"window": (3,), "stride": (2,), "low": (1,),
                                                "high": (1,), "dilation": (1,)}, "1d")  # fmt: skip


def _composites() -> Iterator[Sample]:
    x = floats(2, 4, 3, scale=3)
    for name in ("softmax", "log_softmax"):
        for axis in (0, 2):
            yield Sample(name, (x,), {"axis": axis}, f"axis{axis}")
        yield Sample(name, (x * 200,), {"axis": 1}, "large")
    for affine in range(3):
        vectors = (floats(4, 3, seed=5), floats(4, 3, seed=6))[:affine]
        yield Sample("layer_norm", (x, *vectors), {"dims": 2}, f"affine{affine}")
        channels = (floats(4, seed=5), floats(4, seed=6))[:affine]
        yield Sample("group_norm", (x, *channels), {"groups": 2}, f"affine{affine}")
        statistics = (floats(4, seed=7), np.abs(floats(4, seed=8)))
        yield Sample("batch_norm", (x, *statistics, *channels), {"eps": 1e-5}, f"affine{affine}")
    yield Sample("layer_norm", (x + 30,), {"dims": 1}, "offset")
    yield Sample("rms_norm", (x,), {"dims": 1, "eps": 1e-6}, "plain")
    yield Sample("rms_norm", (x, floats(3, seed=5)), {"dims": 1, "eps": 1e-6}, "scaled")
    for reverse in (False, True):
        state = floats(3, 4, seed=9), floats(3, 4, seed=10)
        operands = (floats(5, 3, 16), *state, floats(16, 4, seed=11))
        label = "backward" if reverse else "forward"
        yield Sample("lstm", operands, {"reverse": reverse}, label)
        operands = (floats(5, 3, 12), state[0], floats(12, 4, seed=11), floats(4, seed=12))
        yield Sample("gru", operands, {"reverse": reverse}, label)
        for name in ("rnn_tanh", "rnn_relu"):
            plain = (floats(5, 3, 4), state[0], floats(4, 4, seed=11))
            yield Sample(name, plain, {"reverse": reverse}, label)
    yield from _attention()


def _attention() -> Iterator[Sample]:
    q, k, v = floats(2, 4, 5, 8), floats(2, 4, 6, 8, seed=1), floats(2, 4, 6, 3, seed=2)
    keep = np.random.default_rng(3).random((2, 1, 5, 6)) > 0.4
    keep[0, 0, 2] = False
    yield Sample("attention", (q, k, v), {"scale": 0.3}, "plain")
    yield Sample("attention", (q, k, v), {"scale": 0.3, "causal": True}, "causal")
    yield Sample("attention", (q, k, v, keep), {"scale": 0.3}, "mask")
    yield Sample("attention", (q, k, v, floats(6)), {"scale": 0.3}, "bias")
    grouped = (q, k[:, :2].copy(), v[:, :2].copy())
    yield Sample("attention", grouped, {"scale": 0.3}, "grouped")
    yield Sample("attention", (q[0], k[0], v[0]), {}, "rank3")


def _structure() -> Iterator[Sample]:
    b = Builder("body")
    x, y = (b.input(TensorType(t.f32, s)) for s in ((2, 3), (3,)))
    total = x + y
    body = b.finish([b.emit("exp", total), b.emit("reduce_sum", total, axes=(1,))])
    yield Sample("kernel", (floats(2, 3), floats(3)), {"body": body})
    yield Sample("relayout", (floats(2, 3),), {"layout": (1, 0)})
    arguments = json.dumps({"args": [{"$": 0}, 1], "kwargs": {}})
    call = {"target": "aten.cumsum.default", "arguments": arguments}
    yield Sample("aten", (floats(2, 3),), {**call, "dtypes": ("float32",), "shapes": ((2, 3),)})


FAMILIES = (_elementwise, _movement, _sources, _reductions, _contractions, _pools, _composites,
            _structure)  # fmt: skip
SAMPLES: tuple[Sample, ...] = tuple(s for family in FAMILIES for s in family())


def missing() -> list[str]:
    """Ops of the registry without a sample."""
    ops.load_all()
    covered = {s.op for s in SAMPLES}
    return sorted(name for name in ops.OPS if name not in covered)
