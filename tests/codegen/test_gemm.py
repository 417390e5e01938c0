"""Matrix products against float64, on shapes that fill tiles and shapes that do not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import tirx

from plait.codegen.core import AVX2, AVX512, Core, simd
from plait.codegen.plan import Call, ModulePlan, PointerArg, TensorSpec
from plait.codegen.schedule import Schedule
from plait.codegen.tiles import LINE, GemmShape, Tile, ceil_div, choose_tile
from plait.codegen.tvm.build import assembly, compile_kernel, host_target, named_target
from plait.codegen.tvm.gemm import Gemm, _Nest, gemm_loops
from plait.codegen.tvm.loops import Ahead, kernel, prefetch, put
from plait.codegen.tvm.main_func import compile_main
from plait.codegen.tvm.pointers import over_pointers
from plait.codegen.tvm.pool import pool_object
from plait.codegen.tvm.target import cpu_target
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Graph, Node
from plait.ir.types import TensorType
from plait.runtime.executor import CompiledModel
from plait.runtime.loader import Library
from tests.codegen.graphs import both_cores, call, only_kernel

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A product with the buffers that it reads and writes, the output last."""

    gemm: Gemm
    buffers: list[Any]

    def func(self) -> Any:
        return over_pointers(kernel(self.buffers, [gemm_loops(self.gemm)]))


def flat(name: str, size: int) -> Any:
    return tirx.decl_buffer((size,), "float32", name=name)


def run(case: Case, inputs: list[Array], out_shape: tuple[int, ...]) -> Array:
    """Compile, call, and return the output."""
    target = host_target()
    code = compile_kernel(case.func(), "k_gemm", target)
    specs = [TensorSpec(f"x{i}", "float32", x.shape) for i, x in enumerate(inputs)]
    args = (*(PointerArg("input", i) for i in range(len(inputs))), PointerArg("output"))
    plan = ModulePlan(
        "gemm",
        tuple(specs),
        (TensorSpec("out", "float32", out_shape),),
        (Call("k_gemm", args),),
    )
    model = CompiledModel(plan, Library([code, compile_main(plan, target)], pool_object(target)))
    result: Array = model(*inputs)[0]
    return result


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def pack_panels(matrix: Array, nr: int) -> Array:
    """A `[k, n]` matrix as panels `[ceil(n / nr), k, nr]`, the last one padded with zeros."""
    k, n = matrix.shape
    padded = np.zeros((k, ceil_div(n, nr) * nr), matrix.dtype)
    padded[:, :n] = matrix
    return np.ascontiguousarray(padded.reshape(k, -1, nr).transpose(1, 0, 2))


def case(shape: GemmShape, tile: Tile, rhs: str) -> tuple[Case, list[Array], Array]:
    """relu(a @ b * scale) + residual, its inputs and its value in float64."""
    batch, m, n, k = shape.batch, shape.m, shape.n, shape.k
    a, residual, scale = random(0, batch, m, k), random(1, batch, m, n), random(2, n)
    if rhs == "packed":
        matrix = random(3, k, n)
        b, right = pack_panels(matrix, tile.nr), matrix
    else:
        b = random(3, batch, n, k) if rhs == "any" else random(3, batch, k, n)
        right = b.swapaxes(1, 2) if rhs == "any" else b
    names = [("a", a), ("b", b), ("scale", scale), ("residual", residual)]
    fa, fb, fs, fr = operands = [flat(name, x.size) for name, x in names]
    out = flat("out", batch * m * n)
    loads = {
        "packed": lambda _, panel, s, lane: fb[(panel * k + s) * tile.nr + lane],
        "rows": lambda p, s, column: fb[(p * k + s) * n + column],
        "any": lambda p, s, column: fb[(p * n + column) * k + s],
    }
    zero = tirx.const(0.0, "float32")
    gemm = Gemm(
        shape,
        tile,
        lambda p, i, s: fa[(p * m + i) * k + s],
        loads[rhs],
        lambda acc, p, i, j: tirx.max(acc * fs[j], zero) + fr[(p * m + i) * n + j],
        lambda value, p, i, j: put(out, (p * m + i) * n + j, value),
        rhs,  # type: ignore[arg-type]
        fb if rhs == "packed" else None,
        lambda p, i, j: prefetch(out, (p * m + i) * n + j, write=True),
    )
    want = np.maximum(a.astype(np.float64) @ right * scale, 0) + residual
    return Case(gemm, [*operands, out]), [a, b, scale, residual], want


def check(case: Case, inputs: list[Array], want: Array) -> Array:
    got = run(case, inputs, want.shape)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * case.gemm.shape.k)
    return got


SHAPES = [
    (1, 1, 1, 1),
    (1, 1, 64, 33),
    (1, 7, 9, 2),
    (1, 13, 77, 131),
    (2, 5, 40, 17),
    (3, 12, 48, 8),
    (1, 197, 24, 64),
]


@both_cores
@pytest.mark.parametrize("rhs", ["packed", "rows", "any"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value(shape: tuple[int, int, int, int], rhs: str) -> None:
    size = GemmShape(*shape)
    check(*case(size, choose_tile(size, threads=2), rhs))


@both_cores
@pytest.mark.parametrize("rhs", ["packed", "any"])
@pytest.mark.parametrize(
    "tile",
    [
        Tile(4, 24, "m"),
        Tile(6, 16),
        Tile(12, 8),
        Tile(3, 8, chunks=2),
        Tile(2, 8, chunks=3),
        Tile(1, 64),
        Tile(2, 16, blocks=3),
        Tile(3, 24, "m", blocks=2),
        Tile(4, 16, depth=2),
        Tile(2, 16, blocks=3, depth=4),
        Tile(4, 16, "m", depth=2),
        Tile(4, 16, depth=5),
        Tile(4, 16, depth=2, span=2),
        Tile(2, 16, blocks=3, depth=4, span=3),
        Tile(2, 8, blocks=2, depth=3, span=4),
        Tile(4, 16, depth=2, span=9),
        Tile(4, 16, blocks=2),
        Tile(3, 16, blocks=3, depth=2),
    ],
    ids=str,
)
def test_any_tile_has_the_same_bits(tile: Tile, rhs: str) -> None:
    size = GemmShape(1, 11, 50, 36)
    want = check(*case(size, Tile(4, 16, parallel=False), rhs))
    np.testing.assert_array_equal(check(*case(size, tile, rhs)), want)


@both_cores
@pytest.mark.parametrize("rhs", ["packed", "any"])
@pytest.mark.parametrize(
    "tile", [Tile(4, 24, "m"), Tile(6, 16), Tile(4, 16, blocks=2), Tile(3, 16, blocks=3, depth=2)],
    ids=str,
)  # fmt: skip
def test_each_result_is_written_once(tile: Tile, rhs: str) -> None:
    """Also those whose rows another tile reads too, and where whole tiles lie beyond the last."""
    size = GemmShape(1, 11, 50, 36)
    given, inputs, want = case(size, tile, rhs)
    counts = given.buffers[3]

    def count(value: Any, p: Any, i: Any, j: Any) -> Any:
        at = (p * size.m + i) * size.n + j
        return put(counts, at, counts[at] + tirx.if_then_else(value == value, 1.0, 0.0))

    gemm = replace(given.gemm, epilogue=lambda total, p, i, j: total, store=count, claim=None)
    inputs[3][:] = 0
    run(Case(gemm, given.buffers), inputs, want.shape)
    np.testing.assert_array_equal(inputs[3], 1.0)


@both_cores
@pytest.mark.parametrize("n", [16, 50])
def test_panels_packed_by_one_thread(n: int) -> None:
    """Panels of more than the kilobyte that TVM keeps on the stack."""
    size = GemmShape(1, 11, n, 301)
    check(*case(size, Tile(4, 16, parallel=False), "any"))


@both_cores
def test_transposed_operand_and_output_layout() -> None:
    """A is read as a transpose, and columns go out as (head, row, feature)."""
    size = GemmShape(1, 10, 48, 20)
    tile = choose_tile(size, threads=1)
    a, b = random(0, 20, 10), random(1, 20, 48)
    fa, fb, out = flat("a", a.size), flat("b", b.size), flat("out", 480)
    gemm = Gemm(
        size,
        tile,
        lambda _, i, k: fa[k * 10 + i],
        lambda _, panel, k, lane: fb[(panel * 20 + k) * tile.nr + lane],
        lambda acc, *_: acc,
        lambda value, _, i, j: put(out, (j // 16 * 10 + i) * 16 + j % 16, value),
        packed=fb,
    )
    want = (a.T.astype(np.float64) @ b).reshape(10, 3, 16).transpose(1, 0, 2)[None]
    check(Case(gemm, [fa, fb, out]), [a, pack_panels(b, tile.nr)], want)


@both_cores
@pytest.mark.parametrize("n", [48, 50])
def test_heavy_epilogue(n: int) -> None:
    """A polynomial with its argument bound by a let."""
    plain, inputs, _ = case(GemmShape(1, 9, n, 16), Tile(4, 3 * simd()), "packed")

    def polynomial(acc: Any, *_: Any) -> Any:
        x = tirx.Var("x", "float32")
        value = tirx.const(1.0, "float32")
        for _i in range(12):
            value = value * x * tirx.const(0.125, "float32") + tirx.const(1.0, "float32")
        return tirx.Let(x, acc, value)

    inputs[0] *= np.float32(0.1)
    x = inputs[0].astype(np.float64) @ random(3, 16, n)
    want = np.ones_like(x)
    for _i in range(12):
        want = want * x * 0.125 + 1
    check(replace(plain, gemm=replace(plain.gemm, epilogue=polynomial)), inputs, want)


@pytest.mark.parametrize(("core", "cpu", "tile", "register"),
                         [(AVX2, "x86-64-v3", Tile(4, 24, parallel=False), "%ymm"),
                          (AVX512, "x86-64-v4", Tile(12, 32, parallel=False), "%zmm")],
                         indirect=["core"])  # fmt: skip
def test_accumulators_stay_in_registers(core: Core, cpu: str, tile: Tile, register: str) -> None:
    """The reduction is multiply-adds on vector registers alone, with no store between them.

    Those of the larger tile would be more than TVM itself leaves on the stack.
    """
    count = tile.mr * tile.nr // core.lanes
    product, _, _ = case(GemmShape(1, 144, 768, 768), tile, "packed")
    text = assembly(product.func(), "k_gemm", named_target(cpu))
    lines = [line.split("#")[0] for line in text.splitlines()]
    fused = [i for i, line in enumerate(lines) if "vfmadd" in line and register in line]
    assert len(fused) >= count
    loop = lines[fused[0] : fused[count - 1]]
    assert not any("vmov" in line and line.rstrip().endswith(")") for line in loop)
    assert "AllocWorkspace" not in text


@pytest.mark.parametrize(
    ("width", "parts"), [(16, 2), (24, 5), (16, 40), (48, 2), (64, 3), (80, 3)]
)
def test_all_of_the_next_panel_is_asked_for_and_nothing_beyond_the_last(
    width: int, parts: int
) -> None:
    steps, blocks = 50, 3
    ahead = Ahead(None, blocks, steps, width, parts)
    size, line = steps * width, 16
    for block in range(blocks):
        following = ahead.after(tirx.const(block, "int32"))
        asked = {int(ahead.at(following, tirx.const(part, "int32"), tirx.const(step, "int32"))) + k
                 for part in range(parts) for step in range(steps)
                 for k in range(0, ahead.share, line)}  # fmt: skip
        first = min(block + 1, blocks - 1) * size
        assert min(asked) == first
        assert max(asked) < blocks * size
        assert {at // line for at in asked} >= {k // line for k in range(first, first + size)}


def test_panels_read_several_times_are_asked_for_in_turn() -> None:
    """After the last panel of a block of rows comes the first one again."""
    ahead = Ahead(None, 3, 50, 16, 2, times=2)
    zero = tirx.const(0, "int32")
    turns = [ahead.after(tirx.const(turn, "int32")) for turn in range(6)]
    found = [int(ahead.at(turn, zero, zero)) // 800 for turn in turns]
    assert found == [1, 2, 0, 1, 2, 2]


def test_panels_that_stay_in_the_cache_are_not_asked_for() -> None:
    assert Ahead(None, 32, 768, 24, 16).worthwhile
    assert not Ahead(None, 32, 768, 24, 1).worthwhile
    assert not Ahead(None, 2, 64, 24, 16).worthwhile


@pytest.mark.parametrize(("span", "panels"), [(1, 3), (2, 5), (3, 3), (4, 6)])
def test_parts_of_panels_that_take_turns_are_asked_for_in_the_order_of_reading(
    span: int, panels: int
) -> None:
    depth, blocks = 3, 2
    tile = Tile(4, 16, blocks=blocks, depth=depth, span=span)
    product, _, _ = case(GemmShape(1, 16, 16 * panels, 6), tile, "packed")
    groups = [range(first, min(first + span, panels)) for first in range(0, panels, span)]
    read = [(c, group, q) for _ in range(blocks) for group in groups
            for c in range(depth) for q in range(len(group))]  # fmt: skip
    nest = _Nest(product.gemm)
    for (c, group, q), (later, after, number) in pairwise(read):
        at = (tirx.const(k, "int32") for k in (group.start, len(group), c, q))
        assert int(nest._following(*at)) == after[number] * depth + later


def product(m: int, n: int, k: int, residual: bool = False) -> Graph:
    """A product with constant weights, perhaps added to what has the result's shape."""
    b = Builder()
    x = b.input(TensorType(t.f32, (m, k)))
    added = [b.input(TensorType(t.f32, (m, n)))] if residual else []
    w = b.constant(random(1, k, n), "w")
    y = b.emit("dot_general", x, w, lhs_contract=(1,), rhs_contract=(0,))
    return b.finish([sum(added, y)])


def schedule(node: Node, **changed: str | int) -> tuple[str, int]:
    """The schedule of a kernel, on one thread and changed so, and the width of its panels."""
    chosen = Schedule.parse(node.attrs["schedule"])
    parameters = {**chosen.parameters, "parallel": 0, "depth": 1, "blocks": 1, **changed}
    return str(Schedule.make("gemm", **parameters)), chosen.number("nr")


def script(graph: Graph, core: Core, **changed: str | int) -> tuple[str, int]:
    """The code of a product with such a schedule, and the width of its panels."""
    _, node = only_kernel(graph, core)
    named, width = schedule(node, **changed)
    return str(cpu_target(1, core).build(node.attrs["body"], named).script()), width


@both_cores
@pytest.mark.parametrize(("rows", "far"), [(192, True), (100, False), (3000, False)])
def test_lines_of_results_are_asked_for_as_a_sum_ends_where_they_come_from_the_last_level_cache(
    core: Core, rows: int, far: bool
) -> None:
    code, _ = script(product(rows, 800, 64), core, mr=4, outer="n")
    assert ("claimed" in code) == (far and core == AVX512)


READ, WRITTEN = "0, 2, 1)", "1, 3, 1)"  # how a line is asked for


@both_cores
@pytest.mark.parametrize(("outer", "rows"), [("m", 700), ("n", 700), ("m", 600)])
def test_rows_of_the_next_tile_are_asked_for_where_they_come_from_beyond_l2(
    core: Core, outer: str, rows: int
) -> None:
    """Panels share the rows: all of them are asked for, a line before the terms of the last."""
    code, nr = script(product(rows, 48, 200), core, mr=5, outer=outer)
    asks = core == AVX2 and outer == "m" and rows == 700
    lines = 2  # in the code: in a loop, and of the half line that is left
    assert code.count(READ) == (lines * ceil_div(5, ceil_div(48, nr)) if asks else 0)


@both_cores
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("rows", "k"), [(300, 72), (200, 72), (300, 1600)])
def test_what_a_tile_ends_with_is_asked_for_where_it_is_far_but_not_long_ahead(
    core: Core, residual: bool, rows: int, k: int
) -> None:
    """Results of 300 and 200 KiB."""
    code, nr = script(product(rows, 256, k, residual), core, mr=4, outer="n")
    asks = core == AVX2 and rows == 300 and k == 72
    assert code.count(WRITTEN) == asks
    panels = k == 1600  # of weights beyond L2 are asked for in any case
    assert code.count(READ) == (asks and residual) + panels
    if asks:
        _, begin, asked = code.partition("for m in T.unroll(4):")
        assert begin and asked.index(WRITTEN) < asked.index("T.vectorized")
        assert (f"for c in T.unroll({ceil_div(nr, LINE)}):" in code) == (nr > LINE)


@pytest.mark.parametrize("residual", [False, True])
def test_products_that_ask_have_the_same_bits(residual: bool) -> None:
    """Rows and columns that no tile divides."""
    graph = product(703, 100, 200, residual)
    lowered, node = only_kernel(graph, AVX2)
    made = [lowered.producer(v) for v in node.operands]
    given = [
        random(9, *lowered.types[v].static("test")) if found is None else found.attrs["value"].array
        for v, found in zip(node.operands, made, strict=True)
    ]
    asking, waiting = (
        call(node.attrs["body"], schedule(node, mr=mr, outer=outer, parallel=p)[0], given)
        for mr, outer, p in ((3, "m", 1), (2, "n", 0))
    )
    np.testing.assert_array_equal(asking, waiting)
