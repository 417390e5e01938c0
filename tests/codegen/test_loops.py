"""Loop nests against the interpreter: spaces, tails, levels of reductions, kept values, types."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from plait.codegen.core import ZEN4
from plait.codegen.plan import Call, ModulePlan, PointerArg, TensorSpec
from plait.codegen.tvm.build import KernelJob, compile_many, host_target
from plait.codegen.tvm.loopnest import build_nest
from plait.codegen.tvm.loops import flat
from plait.codegen.tvm.main_func import compile_main
from plait.codegen.tvm.nest import Nest
from plait.codegen.tvm.pointers import over_pointers
from plait.codegen.tvm.pool import pool_object
from plait.codegen.tvm.rows import MAX_ROW_BYTES, Rows
from plait.codegen.tvm.target import cpu_target
from plait.fuzz.generate import random_inputs
from plait.ir import types as t
from plait.ir.builder import Builder, Value
from plait.ir.errors import Unsupported
from plait.ir.graph import Graph
from plait.ir.interp import interpret
from plait.ir.types import TensorType
from plait.runtime.compiler import compile_graph
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library
from tests.codegen.graphs import both_cores
from tests.passes.graphs import Make, Operand, build

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Case:
    """A body, and its operands: shapes of float32, or types."""

    name: str
    make: Make
    operands: tuple[Operand, ...]
    exact: bool = False


def total(b: Builder, x: Value, axes: Sequence[int] = (-1,), kind: str = "sum") -> Value:
    dims = tuple(a % x.rank for a in axes)
    return b.emit(f"reduce_{kind}", x, axes=dims, keepdims=True)


def softmax(b: Builder, x: Value, axis: int = -1) -> Value:
    y = b.emit("exp", x - total(b, x, (axis,), kind="max"))
    return y / total(b, y, (axis,))


def norm(b: Builder, x: Value, axes: Sequence[int] = (-1,)) -> Value:
    n = float(np.prod([x.type.static("norm")[a] for a in axes]))
    centred = x - total(b, x, axes) / n
    return centred * b.emit("rsqrt", total(b, centred * centred, axes) / n + 1e-5)


def _residual_norm(b: Builder, x: Value, y: Value, g: Value) -> list[Value]:
    z = x + y
    return [z, norm(b, z) * g]


def _extremes(b: Builder, x: Value) -> list[Value]:
    return [total(b, x, kind=k) for k in ("sum", "prod", "max", "min")]


def _embed(b: Builder, table: Value, ids: Value, g: Value) -> list[Value]:
    rows = b.emit("take", table, ids, axis=0)
    return [rows, norm(b, rows) * g]


def _sliced_sum(b: Builder, x: Value) -> Value:
    part = b.emit("slice", x, start=(0, 1), step=(1, 2), size=(4, 9))
    return total(b, b.emit("exp", part)) * 0.5


def _slices(b: Builder, x: Value, y: Value) -> Value:
    part = b.emit("slice", x, start=(1, 2), step=(1, 2), size=(3, 9))
    return part * y + b.emit("iota", shape=(3, 9), axis=1, dtype=t.f32)


def _mixed(b: Builder, x: Value, n: Value, p: Value) -> list[Value]:
    """One nest over several types."""
    wide = b.cast(x, t.f64) * b.cast(n, t.f64)
    chosen = b.emit("select", p, wide, -wide)
    return [chosen, b.emit("lt", b.cast(n, t.f64), chosen), b.cast(chosen, t.i64)]


def _counts(b: Builder, n: Value, p: Value) -> list[Value]:
    kept = b.emit("select", p, n, b.scalar(0, t.i64))
    return [total(b, kept), total(b, p, kind="max"), total(b, p, kind="min"), kept]


I64, BOOL, F64 = t.i64, t.bool_, t.f64


def of(dtype: t.DType, *shape: int, layout: tuple[int, ...] | None = None) -> TensorType:
    return TensorType(dtype, shape, layout)


def _pointwise_cases() -> Iterator[Case]:
    for n in (1, 7, 8, 9, 40, 45):
        yield Case(f"pointwise {n}", lambda b, x, y: b.emit("exp", x) * y, ((3, n), (n,)))
    yield Case("pointwise scalar", lambda b, x: b.emit("exp", x) + 1.0, ((),))
    yield Case("pointwise empty", lambda b, x: b.emit("exp", x), ((3, 0, 2),))
    yield Case("pointwise broadcast", lambda b, x, y: x * y, ((5, 1, 11), (3, 1)))
    yield Case("pointwise long", lambda b, x: b.emit("tanh", x), ((40_003,),))
    yield Case("pointwise wide", lambda b, x, y: b.emit("tanh", x) + y, ((70, 1_003), (1_003,)))
    last = of(t.f32, 2, 3, 4, 5, layout=(0, 2, 3, 1))
    yield Case("pointwise laid out", lambda b, x, s: b.emit("relu", x) * s, (last, (3, 1, 1)))
    yield Case("pointwise slices", _slices, ((5, 21), (3, 1)))
    yield Case("pointwise outputs", lambda b, x, y: [x * y, x + y, x], ((4, 13), (4, 1)))


def _row_cases() -> Iterator[Case]:
    for n in (1, 5, 8, 32, 43, 75):
        yield Case(f"rows softmax {n}", softmax, ((4, n),))
        yield Case(f"rows norm {n}", lambda b, x, g: norm(b, x) * g, ((3, 2, n), (n,)))
    yield Case("rows kinds", _extremes, ((5, 45),))
    yield Case("rows early output", _residual_norm, ((6, 41), (6, 41), (41,)))
    yield Case("rows after a slice", _sliced_sum, ((4, 19),))
    yield Case("rows over two", lambda b, x: norm(b, x, (-2, -1)), ((3, 5, 11),))
    yield Case("rows over all", lambda b, x: total(b, x, (0, 1, 2)), ((3, 5, 11),))
    yield Case("rows over outer and inner", lambda b, x: norm(b, x, (0, 2)), ((3, 5, 11),))
    yield Case("rows three levels", lambda b, x: norm(b, softmax(b, x)), ((4, 27),))
    yield Case("rows take", _embed, ((9, 37), of(I64, 2, 5), (37,)))
    yield Case("rows too long to keep", softmax, ((2, MAX_ROW_BYTES // 4 + 3),))
    yield Case("rows empty", lambda b, x: total(b, x), ((3, 0),))
    yield Case("rows none", softmax, ((0, 5),))
    yield Case("rows parallel", softmax, ((64, 129),))


def _column_cases() -> Iterator[Case]:
    for n in (1, 8, 31, 45, 76):
        yield Case(f"columns {n}", lambda b, x: total(b, x * x, (0,)), ((6, n),))
        yield Case(f"columns softmax {n}", lambda b, x: softmax(b, x, 0), ((6, n),))
    yield Case("columns middle", lambda b, x: norm(b, x, (-2,)), ((3, 7, 13),))
    yield Case("columns outputs", lambda b, x: [y := b.emit("exp", x), total(b, y, (1,))],
               ((3, 7, 13),))  # fmt: skip
    image = of(t.f32, 2, 19, 3, 5, layout=(0, 2, 3, 1))
    yield Case("columns of an image", lambda b, x: total(b, x, (2, 3)) * 0.1, (image,))
    yield Case("columns wide", lambda b, x: total(b, x, (1,)), ((8, 5, 600),))
    yield Case("columns from memory", lambda b, x: total(b, x, (1,)) * 0.5, ((20, 331, 320),))
    yield Case("columns many from memory", lambda b, x: total(b, x, (1,)), ((16, 67, 2048),))
    yield Case("columns empty", lambda b, x: total(b, x, (0,)), ((0, 9),))


def _type_cases() -> Iterator[Case]:
    yield Case("types float64", lambda b, x: softmax(b, x), (of(F64, 3, 29),))
    yield Case("types int64", lambda b, n: [m := n * n - 3, total(b, m), total(b, n)],
               (of(I64, 5, 21),), exact=True)  # fmt: skip
    yield Case("types bool", _counts, (of(I64, 5, 21), of(BOOL, 5, 21)), exact=True)
    yield Case("types mixed", _mixed, ((3, 19), of(I64, 19), of(BOOL, 3, 1)))


CASES = [*_pointwise_cases(), *_row_cases(), *_column_cases(), *_type_cases()]


def arguments(case: Case, body: Graph) -> list[Any]:
    rng = np.random.default_rng(len(case.name))
    found = []
    for ty in body.input_types:
        shape = ty.static("test")
        noise = rng.standard_normal(shape) if ty.dtype.is_float else rng.integers(0, 9, shape)
        values = noise > 3 if ty.dtype == BOOL else noise
        found.append(np.asarray(values).astype(ty.dtype.numpy))
    return found


def in_memory(array: Any, ty: TensorType) -> Any:
    return np.ascontiguousarray(np.transpose(array, ty.order)).reshape(-1)


class Compiled:
    """Kernels of several bodies, compiled together on two threads."""

    def __init__(self, bodies: dict[str, Graph]) -> None:
        self.bodies = bodies
        self.symbols = {name: f"k_{i}" for i, name in enumerate(bodies)}
        made = {name: over_pointers(build_nest(body)) for name, body in bodies.items()}
        jobs = [KernelJob(self.symbols[name], lambda func=func: func)
                for name, func in made.items()]  # fmt: skip
        self.code = compile_many(jobs, host_target(), 2)

    def run(self, name: str, inputs: Sequence[Any], threads: int = 2) -> list[Any]:
        """The outputs of a body, in memory order and flat."""
        body, symbol = self.bodies[name], self.symbols[name]

        def spec(what: str, dtype: str, size: int) -> TensorSpec:
            return TensorSpec(what, dtype, (max(size, 1),))

        flat = [in_memory(a, ty) for a, ty in zip(inputs, body.input_types, strict=True)]
        ins = tuple(spec(f"x{k}", a.dtype.name, a.size) for k, a in enumerate(flat))
        types = body.output_types
        sizes = [int(np.prod(ty.static("test"))) for ty in types]
        named = enumerate(zip(types, sizes, strict=True))
        outs = tuple(spec(f"y{k}", ty.dtype.name, size) for k, (ty, size) in named)
        args = [PointerArg("input", k) for k in range(len(ins))]
        args += [PointerArg("output", k) for k in range(len(outs))]
        plan = ModulePlan("one", ins, outs, (Call(symbol, tuple(args)),))
        code = [self.code[symbol].data, compile_main(plan, host_target())]
        found = CompiledModel(plan, Library(code, pool_object(host_target())), None, threads)(
            *(a if a.size else np.zeros(1, a.dtype) for a in flat)
        )
        return [a[:size] for a, size in zip(found, sizes, strict=True)]


def compiled_part(part: str) -> Compiled:
    return Compiled({c.name: build(c.make, *c.operands) for c in CASES if c.name.startswith(part)})


@both_cores
@pytest.mark.parametrize("part", ["pointwise", "rows", "columns", "types"])
def test_nests(part: str) -> None:
    """All cases of a part, on one thread and on two: bit by bit the same."""
    made = compiled_part(part)
    for case in [c for c in CASES if c.name.startswith(part)]:
        body = made.bodies[case.name]
        inputs = arguments(case, body)
        found = made.run(case.name, inputs)
        with np.errstate(all="ignore"):
            wanted = interpret(body, inputs)
        alone = made.run(case.name, inputs, threads=1)
        for got, again, want, ty in zip(found, alone, wanted, body.output_types, strict=True):
            np.testing.assert_array_equal(got, again, case.name)
            expected = in_memory(want, ty)
            if case.exact or ty.dtype.kind != "f":
                np.testing.assert_array_equal(got, expected, case.name)
            else:
                np.testing.assert_allclose(got, expected, 2e-5, 2e-5, err_msg=case.name)


def _special(b: Builder, x: Value) -> list[Value]:
    found = [total(b, x, kind=k) for k in ("max", "min", "sum")]
    return [*found, b.emit("isnan", x), b.emit("ne", x, x), b.emit("relu", x), -x]


def _guarded(b: Builder, x: Value) -> list[Value]:
    """Elements outside are never read: padding in a nest of its own."""
    low, high = (0, 3), (1, 6)
    return [b.emit("pad", x, b.scalar(-INF, t.f32), low=low, high=high)]


def _integers(b: Builder, x: Value, y: Value) -> list[Value]:
    names = ("floordiv", "truncdiv", "mod", "fmod", "shl", "shr", "max", "min")
    return [b.emit(name, x, y) for name in names]


def _floats(b: Builder, x: Value) -> list[Value]:
    """What compilers are tempted to simplify, though not for NaN, infinities and rounding."""
    zero = b.scalar(0, t.f32)
    names = ("sub", "div", "floordiv", "mod", "lt", "ge")
    found = [b.emit(name, x, x) for name in names]
    found += [(x + x) - x, (x + 1e8) - 1e8, x - (x + 1.0), x * 0.0, x * -0.0, zero / x]
    found += [b.emit("not", b.emit(name, x, zero)) for name in ("lt", "ge", "gt", "eq", "ne")]
    found += [
        b.emit("floordiv", x, b.scalar(0.1, t.f32)),
        b.emit("floordiv", b.scalar(1, t.f32), x),
    ]
    return [*found, b.emit("mod", x, b.scalar(-2, t.f32)), b.emit("isinf", x - x)]


@both_cores
def test_special_values() -> None:
    """NaN wins every comparison, infinities stay, and integers never trap."""
    i32 = np.array([[7], [-7], [0], [-(2**31)], [2**31 - 1]], np.int32)
    by = np.array([[0, -1, 1, 2, 31, 32, -5, 33, 3]], np.int32)
    x = np.zeros((4, 43), np.float32)
    x[0, 41], x[1, 3], x[2, 7], x[2, 8], x[3, 42] = NAN, NAN, INF, -INF, -0.0
    floats = np.array([NAN, INF, -INF, 1.5, -0.0, 0, -2, 7, 3], np.float32)
    bodies = {
        "rows": build(_special, (4, 43)),
        "columns": build(lambda b, x: total(b, x, (0,), kind="max"), (4, 43)),
        "guarded": build(_guarded, (4, 43)),
        "floats": build(_floats, (9,)),
        "integers": build(_integers, of(t.i32, 5, 1), of(t.i32, 1, 9)),
    }
    made = Compiled(bodies)
    given = {"floats": [floats], "integers": [i32, by]}
    for name in bodies:
        inputs = given.get(name, [x])
        with np.errstate(all="ignore"):
            wanted = interpret(bodies[name], inputs)
        for k, (got, want) in enumerate(zip(made.run(name, inputs), wanted, strict=True)):
            np.testing.assert_array_equal(got, want.reshape(-1), f"{name}, output {k}")


@both_cores
def test_extremes_keep_nan_wherever_it_stands() -> None:
    """In any vector, lane or rest of a row, on either side of a maximum of two."""

    def both(b: Builder, x: Value, y: Value) -> list[Value]:
        return [b.emit(name, p, q) for name in ("max", "min") for p, q in ((x, y), (y, x))]

    x = np.where(np.eye(43, dtype=bool), np.float32(NAN), np.float32(-INF))
    bodies = {"rows": build(_extremes, (43, 43)), "two": build(both, (43, 43), (43, 43))}
    made = Compiled(bodies)
    for found in made.run("rows", [x])[2:]:
        assert np.isnan(found).all()
    for found in made.run("two", [x, np.ones_like(x)]):
        np.testing.assert_array_equal(np.isnan(found.reshape(43, 43)), np.isnan(x))


def levels(make: Make, *shapes: tuple[int, ...]) -> Nest:
    return Nest(build(make, *shapes))


def test_levels() -> None:
    nest = levels(lambda b, x: norm(b, softmax(b, x)), (4, 27))
    assert nest.depth == 4, "maximum, sum, mean, variance"
    assert [len(nest.reductions(k)) for k in range(1, 5)] == [1, 1, 1, 1]
    assert levels(_extremes, (4, 27)).depth == 1


def test_costly_values_are_kept_between_phases() -> None:
    """The exponential of a softmax is computed once and read again; cheap values are not kept."""
    nest = levels(softmax, (4, 27))
    rows = Rows(nest, {0: 0}, 27)
    kept = [nest.body.producer(v).op for v in rows.worth_keeping(1)]  # type: ignore[union-attr]
    assert kept == ["exp"]
    plain = levels(norm, (4, 27))
    assert Rows(plain, {0: 0}, 27).worth_keeping(1) == []


def test_the_result_lends_its_memory() -> None:
    """Unless an operand, which may lie there too, is read once more afterwards."""
    assert "kept" not in build_nest(build(softmax, (4, 27))).script()
    again = build_nest(build(lambda b, x: softmax(b, x) + x, (4, 27)))
    assert "kept" in again.script()


@pytest.mark.parametrize("folded", [False, True])
def test_a_result_that_reads_another_place_lends_nothing(folded: bool) -> None:
    """The powers that are still to be read would be overwritten."""

    def make(b: Builder, x: Value) -> Value:
        y = softmax(b, x)
        turned = b.emit("reverse", y, axes=(1,))
        return y + turned if folded else turned

    graph = build(make, (5, 27))
    (x,) = random_inputs(graph, 0)
    (got,), (want,) = compile_graph(graph).load(2)(x), interpret(graph, [x])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ["max", "min"])
def test_the_literal_nan_is_kept(op: str) -> None:
    def make(b: Builder, x: Value) -> list[Value]:
        nan = b.full((3, 9), float("nan"), t.f32)
        return [b.emit(op, x, nan), b.emit(op, nan, x)]

    graph = build(make, (3, 9))
    (x,) = random_inputs(graph, 0)
    for got in compile_graph(graph).load(2)(x):
        assert np.isnan(got).all()


def test_numbers_of_a_row_are_stored_once() -> None:
    nest = levels(_sliced_sum, (4, 19))
    assert [nest.is_full(v) for v in nest.body.outputs] == [False]


def test_reductions_over_one_set_of_dimensions_alone() -> None:
    body = build(lambda b, x: [total(b, x, (0,)), total(b, x, (1,))], (4, 27))
    with pytest.raises(Unsupported, match=r"one loop nest reduces over \(0,\) and \(1,\)"):
        build_nest(body)


def test_a_nest_refuses_reductions_that_drop_their_dimensions() -> None:
    body = build(lambda b, x: b.emit("reduce_sum", x, axes=(0,), keepdims=False), (4, 4))
    with pytest.raises(Unsupported, match="a reduction in a loop nest keeps its dimensions"):
        build_nest(body)


@pytest.mark.parametrize(("images", "asks"), [(10, False), (40, True)])
def test_columns_are_whole_rows_that_are_asked_for_where_they_come_from_memory(
    images: int, asks: bool
) -> None:
    """Images of 0.4 MB each."""
    made = build_nest(build(lambda b, x: total(b, x, (1,)), (images, 196, 512))).script()
    assert ("llvm.prefetch" in made) == ("T.alloc_buffer((512,))" in made) == asks


@pytest.mark.parametrize(("rows", "asked"), [(512, 2), (4096, 4)], ids=["near", "from memory"])
def test_rows_ask_for_where_results_go_in_memory(rows: int, asked: int) -> None:
    """Lines of a block of vectors in the next row: of the operand, and of the result."""
    made = build_nest(build(softmax, (rows, 768))).script()
    assert made.count("llvm.prefetch") == asked


@pytest.mark.parametrize("core", [ZEN4], indirect=True, ids=["Zen 4"])
def test_rows_are_not_asked_for_where_the_hardware_sees_them_come() -> None:
    """One by one: of those in flight together the first phase asks."""
    for length, asks in ((768, True), (776, False)):
        made = build_nest(build(softmax, (4096, length))).script()
        assert ("llvm.prefetch" in made) == asks == ("turn" in made)


def test_which_dimension_is_innermost_decides() -> None:
    """Reduced: rows; kept: columns."""
    assert "row" in build_nest(build(softmax, (4, 27))).script()
    columns = build_nest(build(lambda b, x: softmax(b, x, 0), (4, 27))).script()
    assert "tile" in columns


@pytest.mark.parametrize("case", [
    Case("input", lambda b, x: b.emit("exp", x), ((65_536, 32_768),)),
    Case("inside", lambda b, x, y: total(b, b.emit("exp", x + y)), ((65_536, 1), (32_768,))),
    Case("product", lambda b, x, y: b.emit(
        "dot_general", x, y, lhs_contract=(1,), rhs_contract=(0,)), ((65_536, 1), (1, 32_768))),
    Case("pool", lambda b, x: b.emit(
        "max_pool", x, window=(1,), stride=(1,), low=(0,), high=(0,), dilation=(1,)),
        ((1, 65_536, 32_768),)),
], ids=lambda c: c.name)  # fmt: skip
def test_refuses_more_elements_than_int32_counts(case: Case) -> None:
    body = build(case.make, *case.operands)
    schedule = cpu_target().select(body, (False,) * len(body.inputs)).schedule
    with pytest.raises(Unsupported, match=r"2147483648 elements, but CPU kernels index at most"):
        cpu_target().build(body, schedule)
    with pytest.raises(Unsupported, match=r"2147483648 elements, but CPU kernels index at most"):
        flat(TensorType(t.u8, (2**31,)), "x")
    assert flat(TensorType(t.u8, (2**31 - 1,)), "x").at([7]).value == 7


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["max", "min"])
@pytest.mark.parametrize("fn", ["square", "exp", "tanh", "gelu", "silu"])
def test_extremes_of_what_is_computed(fn: str, kind: str, axis: int) -> None:
    def make(b: Builder, x: Value) -> Value:
        return total(b, x * x if fn == "square" else b.emit(fn, x), (axis,), kind)

    graph = build(make, (6, 41))
    x = np.random.default_rng(0).standard_normal((6, 41), np.float32)
    x[1, 3] = NAN
    (found,) = compile_graph(graph).load()(x)
    np.testing.assert_allclose(found, interpret(graph, [x])[0], rtol=1e-6, atol=1e-6)


def test_nan_is_true() -> None:
    graph = build(lambda b, x: b.cast(x, t.bool_), (9,))
    x = np.array([NAN, 0, -0.0, 1, INF, -INF, 1e-45, -NAN, -1], np.float32)
    (found,) = compile_graph(graph).load()(x)
    np.testing.assert_array_equal(found, x.astype(bool))


def test_a_value_that_only_a_branch_computes_is_not_shared() -> None:
    """A sum of a concatenation that is rolled: TVM shares parts of it where they are not known."""

    def make(b: Builder, x: Value) -> Value:
        whole = b.emit("concat", b.emit("sigmoid", x), x, axis=1)
        upper = b.emit("slice", whole, start=(1, 0), step=(1, 1), size=(2, 80))
        lower = b.emit("slice", whole, start=(0, 0), step=(1, 1), size=(1, 80))
        return total(b, b.emit("concat", upper, lower, axis=0), (0,))

    graph = build(make, (3, 40))
    x = np.random.default_rng(0).standard_normal((3, 40), np.float32)
    (found,) = compile_graph(graph).load()(x)
    np.testing.assert_allclose(found, interpret(graph, [x])[0], rtol=1e-6, atol=1e-6)


def test_long_chains_compile_in_seconds() -> None:
    """Names that stand for each other took time exponential in their number."""

    def mish(b: Builder, x: Value) -> Value:
        return x * b.emit("tanh", b.emit("log1p", b.emit("exp", x)))

    graph = build(lambda b, x: mish(b, mish(b, mish(b, x))), (5, 24))
    x = np.random.default_rng(0).standard_normal((5, 24), np.float32)
    began = time.perf_counter()
    (found,) = compile_graph(graph).load()(x)
    assert time.perf_counter() - began < 20
    np.testing.assert_allclose(found, interpret(graph, [x])[0], rtol=1e-5, atol=1e-6)
