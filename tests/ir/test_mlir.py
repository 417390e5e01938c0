"""MLIR export: every compute definition, verified and run by MLIR, against the interpreter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from plait.fuzz.generate import Settings, generate, random_inputs
from plait.fuzz.samples import SAMPLES
from plait.ir import approx
from plait.ir import expr as e
from plait.ir import op as ops
from plait.ir import types as t
from plait.ir.agreement import compare
from plait.ir.builder import Builder, Value
from plait.ir.dims import symbol
from plait.ir.errors import (
    TypeRuleError,
    Unsupported,
    UnsupportedOp,
    UnsupportedSymbol,
    VerifyError,
)
from plait.ir.expr import Compute
from plait.ir.functions import FUNCTIONS
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType, from_numpy

pytest.importorskip("torch_mlir", reason="MLIR's bindings come with the compile extra")

from plait.ir.mlir import MlirProgram, large_constants, run_mlir, to_mlir, verify_mlir


def sample(type: TensorType, seed: int, low: float = -3, high: float = 3) -> Any:
    """Random elements of a type; integers cover [low, high] too, within their range."""
    rng = np.random.default_rng(seed)
    shape = type.static("test")
    if type.dtype.kind == "b":
        return rng.random(shape) < 0.5
    if type.dtype.is_float:
        return rng.uniform(low, high, shape).astype(type.dtype.numpy)
    least = max(int(low), 0) if type.dtype.kind == "u" else int(low)
    return rng.integers(least, int(high), shape, endpoint=True).astype(type.dtype.numpy)


def check(graph: Graph, *inputs: Any) -> list[Any]:
    """Export, verify and run; every output agrees with the interpreter's."""
    verify_mlir(to_mlir(graph))
    got, want = run_mlir(graph, inputs), interpret(graph, inputs)
    assert len(got) == len(want)
    for mine, other in zip(got, want, strict=True):
        outcome = compare(mine, other)
        assert outcome.agrees, f"{outcome.reason}\n{graph}\n{mine}\n{other}"
    return got


def build(make: Callable[..., Any], *types: TensorType) -> Graph:
    """A graph of `make(builder, *inputs)`."""
    b = Builder()
    made = make(b, *[b.input(ty) for ty in types])
    return b.finish(made if isinstance(made, tuple) else (made,))


def f32(*shape: int) -> TensorType:
    return TensorType(t.f32, shape)


def i64(*shape: int) -> TensorType:
    return TensorType(t.i64, shape)


def _one(op: str, **attrs: Any) -> Callable[..., Value]:
    return lambda b, *xs: b.emit(op, *xs, **attrs)


SAMPLES_OF = {
    name: [s for s in SAMPLES if s.op == name]
    for name in dict.fromkeys(s.op for s in SAMPLES)
    if name != "aten"
}


@pytest.mark.parametrize("name", SAMPLES_OF)
def test_samples(name: str) -> None:
    """All samples of an op as one graph, in single and in double precision."""
    doubles = [] if name == "kernel" else [s.in_float64() for s in SAMPLES_OF[name]]
    samples = [*SAMPLES_OF[name], *doubles]
    b = Builder(name)
    arguments = [[b.input(ty) for ty in s.types] for s in samples]
    results = [b.inline(s.graph(), given) for s, given in zip(samples, arguments, strict=True)]
    graph = b.finish([v for values in results for v in values])
    check(graph, *(a for s in samples for a in s.arrays))


DTYPES = (t.f32, t.f64, t.i64, t.i32, t.i8, t.u8, t.bool_)
SPECIAL = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.5, -1.5, np.inf, -np.inf, np.nan]
RELATIVE = {"float32": 2e-6, "float64": 4e-15}
UNIFORM = [
    n for n, r in ops.OPS.items() if "elementwise" in r.traits and n not in ("cast", "select")
]


def accepted(name: str, dtype: t.DType) -> bool:
    record = ops.get(name)
    scalar = (TensorType(dtype, ()),) * len(record.operands)
    try:
        record.result_types(record.complete({}), scalar)
    except TypeRuleError:
        return False
    return True


def elements(name: str, dtype: t.DType) -> tuple[Any, ...]:
    """Operands of an elementwise op: every pair of interesting values, where it is defined."""
    if dtype.is_float:
        line = np.array([*SPECIAL, *np.linspace(-4, 4, 14) + 0.01], dtype.numpy)
    elif dtype.kind == "b":
        line = np.array([False, True])
    else:
        info = np.iinfo(dtype.numpy)
        line = np.array([info.min, info.max, *range(max(info.min, -7), 9)], dtype.numpy)
    if len(ops.get(name).operands) == 1:
        return (line,)
    right = line
    if dtype.is_int and name in ("floordiv", "truncdiv", "mod", "fmod"):
        right = line[line != 0]
    return line.reshape(-1, 1), right


@pytest.mark.parametrize("name", UNIFORM)
def test_elementwise_is_numpys(name: str) -> None:
    """Every dtype an op accepts, special values included, to the last bit where it is defined."""
    operands = [elements(name, d) for d in DTYPES if accepted(name, d)]
    b = Builder(name)
    inputs = [
        [b.input(TensorType(from_numpy(a.dtype), a.shape)) for a in line] for line in operands
    ]
    graph = b.finish([b.emit(name, *values) for values in inputs])
    arrays = [a for pair in operands for a in pair]
    for got, want in zip(run_mlir(graph, arrays), interpret(graph, arrays), strict=True):
        if ops.get(name).precision == "approx":
            np.testing.assert_allclose(got, want, rtol=RELATIVE[got.dtype.name], atol=1e-7)
        else:
            np.testing.assert_array_equal(got, want, strict=True)
            if want.dtype.kind == "f" and name not in ("max", "min"):  # either zero may win
                mine, other = (np.signbit(np.where(np.isnan(x), 0, x)) for x in (got, want))
                np.testing.assert_array_equal(mine, other)


def test_polynomials() -> None:
    names = [*approx.TABLE, "gelu", "silu"]
    graph = build(lambda b, x: tuple(b.emit(n, x, approx="poly") for n in names), f32(97))
    check(graph, np.linspace(-4, 4, 97, dtype=np.float32))


@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_cast(source: t.DType) -> None:
    x = sample(TensorType(source, (3, 5)), 0, 0, 100)
    check(build(lambda b, v: tuple(b.emit("cast", v, dtype=d) for d in DTYPES),
                TensorType(source, (3, 5))), x)  # fmt: skip


def test_constants_of_every_size_and_dtype() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 100, n).astype(d.numpy) for d in DTYPES for n in (0, 3, 300)]
    graph = build(lambda b: tuple(b.constant(a) for a in (*arrays, np.float32(-2), arrays[2])))
    assert len(large_constants(graph)) == len(DTYPES)
    check(graph)


def test_indices_outside_are_clamped() -> None:
    where = np.array([-1, -9, 7, 2], np.int64)
    check(build(_one("take", axis=0), f32(5, 2), i64(4)), sample(f32(5, 2), 0), where)


def test_integer_division_never_traps() -> None:
    least = np.iinfo(np.int64).min
    names = ("floordiv", "truncdiv", "mod", "fmod")
    graph = build(lambda b, x, y: tuple(b.emit(n, x, y) for n in names), i64(4), i64(4))
    arrays = np.array([least, 5, -7, 7]), np.array([-1, 0, 2, -2])
    floored, cut, _, _ = check(graph, *arrays)
    assert floored.tolist() == [least, 0, -4, -4]
    assert cut.tolist() == [least, 0, -3, -3]


@contextmanager
def temporary(record: ops.Op) -> Iterator[str]:
    """Register an op for the time of a test; gives its name."""
    ops.register(record)
    try:
        yield record.name
    finally:
        del ops.OPS[record.name]


def test_nested_reduction_becomes_loops() -> None:
    """A reduction inside an expression, here the sum of squared distances to the row's mean."""

    def compute(c: ops.Call) -> Compute:
        (rows,) = e.axes(3)
        outer, inner = e.Axis("j", 4), e.Axis("k", 4)
        total = e.reduce("sum", [inner], e.Load(0, (e.index(rows), e.index(inner)), t.f32))
        apart = e.Load(0, (e.index(rows), e.index(outer)), t.f32) - total * 0.25
        return Compute((rows,), e.reduce("sum", [outer], apart * apart))

    record = ops.Op(
        "row_scatter", ("x",), lambda c: f32(3), lambda c, x: x.var(axis=1) * 4, compute
    )
    with temporary(record) as name:
        graph = build(_one(name), f32(3, 4))
        assert "scf.for" in str(to_mlir(graph))
        check(graph, sample(f32(3, 4), 0))


@pytest.mark.parametrize("name", ["isnan", "isinf"])
def test_predicates(name: str) -> None:
    """Scalar functions that no op's definition uses yet."""

    def compute(c: ops.Call) -> Compute:
        (axis,) = e.axes(len(SPECIAL))
        x = e.Load(0, (e.index(axis),), t.f32)
        return Compute((axis,), e.apply(name, x, dtype=t.bool_))

    record = ops.Op("probe", ("x",), lambda c: c.types[0].with_dtype(t.bool_),
                    lambda c, x: FUNCTIONS[name](x), compute)  # fmt: skip
    with temporary(record) as probe:
        check(build(_one(probe), f32(len(SPECIAL))), np.array(SPECIAL, np.float32))


def test_unknown_function_is_an_error() -> None:
    def compute(c: ops.Call) -> Compute:
        return Compute((), e.apply("bessel", e.Load(0, (), t.f32)))

    record = ops.Op("bessel", ("x",), lambda c: f32(), lambda c, x: x, compute)
    with temporary(record) as name, pytest.raises(Unsupported, match="'bessel' on float32"):
        to_mlir(build(_one(name), f32()))


def fused_body() -> Graph:
    """relu(x @ w + bias) with a large constant inside."""
    b = Builder("dense_relu")
    x, bias = b.input(f32(4, 16)), b.input(f32(8))
    w = b.constant(sample(f32(16, 8), 5), "w")
    product = b.emit("dot_general", x, w, lhs_contract=(1,), rhs_contract=(0,))
    return b.finish([b.emit("relu", product + bias)])


def test_kernel_is_a_private_function() -> None:
    body = fused_body()
    graph = build(
        lambda b, x, *biases: tuple(b.emit("kernel", x, v, body=body) for v in biases),
        f32(4, 16), f32(8), f32(8),
    )  # fmt: skip
    text = str(to_mlir(graph))
    assert text.count("func.func private @dense_relu(") == 1
    assert text.count("call @dense_relu(") == 2
    assert [b.array.shape for b in large_constants(graph)] == [(16, 8)]
    check(graph, *(sample(ty, k) for k, ty in enumerate(graph.input_types)))
    check(body, *(sample(ty, k) for k, ty in enumerate(body.input_types)))


def test_transformer_block() -> None:
    """Self-attention with residual and layer norm, then the GELU feed-forward, as in MiniLM."""
    tokens, width, heads = 6, 16, 2

    def linear(b: Builder, x: Value, out: int, seed: int) -> Value:
        w = b.constant(sample(f32(out, x.shape[-1]), seed, -0.3, 0.3))  # type: ignore[arg-type]
        return b.emit("dot_general", x, w, lhs_contract=(1,), rhs_contract=(1,)) + b.constant(
            sample(f32(out), seed + 1)
        )

    def split(b: Builder, x: Value) -> Value:
        return b.transpose(b.reshape(x, (tokens, heads, width // heads)), (1, 0, 2))

    def make(b: Builder, x: Value) -> Value:
        q, k, v = (split(b, linear(b, x, width, s)) for s in (1, 3, 5))
        scores = b.emit("dot_general", q, k, lhs_batch=(0,), rhs_batch=(0,), lhs_contract=(2,),
                        rhs_contract=(2,)) * 0.35  # fmt: skip
        weights = b.emit("softmax", scores, axis=2)
        mixed = b.emit("dot_general", weights, v, lhs_batch=(0,), rhs_batch=(0,),
                       lhs_contract=(2,), rhs_contract=(1,))  # fmt: skip
        joined = b.reshape(b.transpose(mixed, (1, 0, 2)), (tokens, width))
        ones, zeros = (b.constant(np.full(width, n, np.float32)) for n in (1, 0))
        h = b.emit("layer_norm", x + linear(b, joined, width, 7), ones, zeros, dims=1)
        wide = b.emit("gelu", linear(b, h, 32, 9))
        return b.emit("layer_norm", h + linear(b, wide, width, 11), ones, zeros, dims=1)

    graph = build(make, f32(tokens, width))
    assert len(large_constants(graph)) == 6
    check(graph, sample(f32(tokens, width), 0))


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed: int) -> None:
    """Kernels, layouts and constants as the generator combines them."""
    graph = generate(seed, Settings(symbols=()))
    check(graph, *random_inputs(graph, seed))


def test_half_precision() -> None:
    def make(b: Builder, x: Value) -> tuple[Value, ...]:
        return b.emit("exp", x) * x, b.emit("reduce_max", x, axes=(0,)), b.cast(x, t.f32)

    line = np.linspace(-3, 3, 13)
    check(build(make, TensorType(t.f16, (13,))), line.astype(np.float16))
    brain = line.astype(ml_dtypes.bfloat16)
    graph = build(make, TensorType(t.bf16, (13,)))
    product, top, wide = run_mlir(graph, [brain.view(np.uint16)])
    np.testing.assert_array_equal(wide, brain.astype(np.float32))
    assert top.view(ml_dtypes.bfloat16) == 3
    got = product.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_allclose(got, np.exp(wide) * wide, rtol=2**-7)


def test_layouts_do_not_change_meaning() -> None:
    image = TensorType(t.f32, (2, 3, 4, 5))
    graph = build(lambda b, x: b.emit("relu", b.emit("relayout", x, layout=(0, 2, 3, 1))), image)
    check(graph, sample(image, 0))


def test_outputs_may_be_inputs_and_constants() -> None:
    graph = build(lambda b, x: (x, x, b.constant(np.arange(4, dtype=np.int32))), f32(2, 2))
    check(graph, sample(f32(2, 2), 0))


def test_symbolic_sizes_are_dynamic_dimensions() -> None:
    n = symbol("n", 1, 64)
    wide = TensorType(t.f32, (n, 4))
    graph = build(
        lambda b, x, w, image: (
            b.emit("softmax", b.emit("dot_general", x, w, lhs_contract=(1,), rhs_contract=(0,)),
                   axis=1),
            b.emit("concat", x, x, axis=0),
            b.emit("iota", shape=(n * 2 + 1,)),
            b.emit("reduce_sum", x, axes=(0,)),
            b.emit("conv", image, b.reshape(x, (n, 4, 1, 1)), stride=(1, 1), low=(0, 1),
                   high=(0, 0), dilation=(1, 1)),
        ),
        wide, f32(4, 3), f32(1, 4, 3, 3),
    )  # fmt: skip
    text = str(to_mlir(graph))
    assert "func.func @main(%arg0: tensor<?x4xf32>" in text
    program = MlirProgram(graph)
    for size in (1, 5):
        arrays = [sample(f32(size, 4), 1), sample(f32(4, 3), 2), sample(f32(1, 4, 3, 3), 3)]
        for got, want in zip(program(arrays), interpret(graph, arrays), strict=True):
            assert compare(got, want).agrees


def test_unknown_size_is_named() -> None:
    n = symbol("batch", 1, 64)
    graph = build(lambda b, x: b.emit("relu", x), TensorType(t.f32, (n * 2, 4)))
    with pytest.raises(UnsupportedSymbol, match=r"2\*batch"):
        to_mlir(graph)


def test_decomposition_that_needs_a_size_is_an_error() -> None:
    n = symbol("n", 1, 64)
    graph = build(_one("rms_norm", dims=1, eps=1e-6), TensorType(t.f32, (3, n)))
    with pytest.raises(Unsupported, match=r"mean .* symbolic"):
        to_mlir(graph)


def test_opaque_op_is_an_error() -> None:
    graph = build(
        lambda b, x: b.emit("aten", x, target="aten.sort.default", arguments="{}",
                            dtypes=("float32",), shapes=((3,),)),
        f32(3),
    )  # fmt: skip
    with pytest.raises(UnsupportedOp, match=r"aten\.sort"):
        to_mlir(graph)


def test_complex_is_an_error() -> None:
    graph = build(lambda b, x: x, TensorType(t.c64, (3,)))
    with pytest.raises(Unsupported, match="complex64"):
        to_mlir(graph)


def test_verifier_reports_a_broken_module() -> None:
    module = to_mlir(build(_one("relu"), f32(3)))
    function = module.body.operations[0]
    function.regions[0].blocks[0].operations[-1].erase()
    with pytest.raises(VerifyError, match="MLIR module"):
        verify_mlir(module)


def test_source_locations_travel() -> None:
    b = Builder()
    x = b.input(f32(3))
    with b.at("model.py:7"):
        y = b.emit("relu", x)
    module = to_mlir(b.finish([y]))
    assert "model.py:7" in module.operation.get_asm(enable_debug_info=True)


def test_package_does_not_load_mlir() -> None:
    """The IR starts without the bindings."""
    code = "import sys, plait.ir.op as o; o.load_all(); print('torch_mlir' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
