"""The memory plan: valid, tight, in place where it may be; and a validator that sees faults."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plait.ir.builder import Builder, Value
from plait.ir.errors import PlanError
from plait.ir.graph import Graph
from plait.ir.types import LINE_BYTES
from plait.passes.context import Context
from plait.passes.memory import (
    Block,
    MemoryPlan,
    Planner,
    Storage,
    in_place_operand,
    live_bound,
    pack,
)
from plait.passes.memory_check import check_plan
from plait.passes.pipeline import parse_pipeline
from tests.passes.graphs import TARGET, Make, build, random_graphs, run

X = (4, 16)  # 256 bytes of float32
SQUARE = (16, 16)
PLAN = "layout,fuse,select"


def dot(b: Builder, x: Value, w: Value) -> Value:
    return b.emit("dot_general", x, w, lhs_contract=(x.rank - 1,), rhs_contract=(0,))


def planned(make: Make, *shapes: tuple[int, ...]) -> tuple[Graph, MemoryPlan]:
    graph = run(PLAN, build(make, *shapes))
    plan = Planner(graph).run()
    check_plan(graph, plan)
    return graph, plan


def results(graph: Graph, plan: MemoryPlan) -> list[Storage]:
    """The storage of every kernel's first result, in order."""
    numbers = [graph.first_result[k] for k, n in enumerate(graph.nodes) if n.op == "kernel"]
    return [plan.storage[v] for v in numbers]


def test_inputs_constants_and_outputs_are_outside_the_arena() -> None:
    graph, plan = planned(lambda b, x, w: dot(b, x, w), X, SQUARE)
    assert [s.space for s in plan.storage] == ["input", "input", "output"]
    assert (plan.size, plan.bound) == (0, 0)
    del graph


def test_a_chain_of_products_takes_turns() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        for _ in range(5):
            x = dot(b, x, w)
        return x

    graph, plan = planned(make, X, SQUARE)
    assert plan.size == plan.bound == 512, "two values live at any step"
    assert results(graph, plan)[-1] == Storage("output", 0)
    assert all(b.offset % LINE_BYTES == 0 for b in plan.blocks)


def test_elementwise_kernels_write_over_their_operand() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        mean = b.emit("reduce_sum", y := dot(b, x, w), axes=(1,), keepdims=True)
        return dot(b, y - mean, w)

    graph, plan = planned(make, X, SQUARE)
    product, centred, _ = results(graph, plan)
    assert product == centred and product.space == "arena"
    assert plan.size == 256


def test_not_over_an_operand_that_is_read_later() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        y = dot(b, x, w)
        z = b.emit("exp", b.emit("reduce_sum", y, axes=(1,), keepdims=True) + y)
        return dot(b, z, w) + y

    graph, plan = planned(make, X, SQUARE)
    product, other, _ = results(graph, plan)[:3]
    assert product != other


def _two_outputs(b: Builder, x: Value, w: Value) -> list[Value]:
    """One kernel gives p and q, both of which read y."""
    y, r = dot(b, x, w), b.emit("tanh", x)
    return [dot(b, y * r, w), dot(b, y + r, w)]


def test_only_the_last_output_may_take_the_place_of_a_shared_operand() -> None:
    graph, plan = planned(_two_outputs, X, SQUARE)
    k = next(k for k, n in enumerate(graph.nodes) if len(n.types) == 2)
    assert in_place_operand(graph, k, 0) == []
    assert set(in_place_operand(graph, k, 1)) == set(graph.nodes[k].operands)
    first, last = graph.results(k)
    y = next(v for v in graph.nodes[k].operands if plan.storage[v].space == "arena")
    assert plan.storage[last] == plan.storage[y] != plan.storage[first]


def _transposed(b: Builder, x: Value, w: Value) -> Value:
    y = dot(b, x, w)
    return dot(b, y + b.transpose(y, (1, 0)), w)


def _sliced(b: Builder, x: Value, w: Value) -> Value:
    y = dot(b, x, w)
    first = b.emit("slice", y, start=(0, 0), step=(1, 1), size=(1, 16))
    return dot(b, y + first, w)


def _product(b: Builder, x: Value, w: Value) -> Value:
    return dot(b, dot(b, dot(b, x, w), w), w)


@pytest.mark.parametrize("make", [_transposed, _sliced, _product])
def test_not_over_an_operand_that_is_read_elsewhere(make: Make) -> None:
    graph, plan = planned(make, SQUARE, SQUARE)
    homes = results(graph, plan)
    assert homes[0] != homes[1]


def test_views_share_the_memory_of_their_source() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        y = b.reshape(b.transpose(b.reshape(dot(b, x, w), (8, 8)), (1, 0)), (64,))
        return b.emit("exp", b.reshape(dot(b, x, w) * 2.0, (64,))) + y

    graph, plan = planned(make, X, SQUARE)
    for k, node in enumerate(graph.nodes):
        if node.op in ("reshape", "transpose"):
            assert plan.storage[graph.first_result[k]] == plan.storage[node.operands[0]]


def test_an_output_that_is_a_view_is_written_in_its_place() -> None:
    graph, plan = planned(lambda b, x, w: b.reshape(dot(b, x, w), (64,)), X, SQUARE)
    assert results(graph, plan) == [Storage("output", 0)] and plan.size == 0


def test_a_value_that_is_two_outputs_has_one_home() -> None:
    def make(b: Builder, x: Value, w: Value) -> list[Value]:
        y = dot(b, x, w)
        return [y, y, x]

    _, plan = planned(make, X, SQUARE)
    assert plan.storage[2] == Storage("output", 0)


def test_the_pass_leaves_its_plan_in_the_context() -> None:
    context = Context(TARGET)
    graph = build(lambda b, x, w: dot(b, b.emit("exp", x), w), X, SQUARE)
    after = parse_pipeline(f"{PLAN},allocate").run(graph, context)
    assert context.plan is not None and context.plan.size == 256
    check_plan(after, context.plan)


def test_blocks_fill_gaps() -> None:
    blocks = [Block(128, 0, 1), Block(64, 0, 3), Block(128, 2, 3), Block(64, 4, 5)]
    offsets, size = pack(blocks)
    assert size == live_bound(blocks) == 192
    assert offsets[0] == offsets[2]
    assert pack([]) == ([], 0)


@pytest.mark.parametrize("limit", [1, 2, 64])
def test_random_graphs_have_valid_plans(limit: int) -> None:
    """Small kernels have many intermediates, and more of them in place."""
    shared = 0
    for seed, graph in random_graphs(range(60), 20):
        fused = run(f"layout,fuse{{limit={limit}}},select", graph)
        plan = Planner(fused).run()
        try:
            check_plan(fused, plan)
        except PlanError as error:
            error.add_note(f"seed {seed}")
            raise
        assert plan.bound <= plan.size <= max(2 * plan.bound, LINE_BYTES), seed
        kernels = [fused.results(k) for k, n in enumerate(fused.nodes) if n.op == "kernel"]
        homes = [plan.storage[v] for r in kernels for v in r]
        shared += sum(h.space == "arena" for h in homes) > len(plan.blocks)
    assert shared or limit > 1, "some result took the place of an operand"


# Faults, each seeded into a valid plan


def _chain(b: Builder, x: Value, w: Value) -> Value:
    y = b.reshape(dot(b, x, w), (64,))
    return dot(b, b.reshape(b.emit("exp", y * y), X), w) + dot(b, x, w)


def fault(make: Make, seed: object, message: str, *shapes: tuple[int, ...]) -> None:
    graph, plan = planned(make, *shapes)
    broken = seed(graph, plan)  # type: ignore[operator]
    assert broken != plan
    with pytest.raises(PlanError, match=message):
        check_plan(graph, broken)


def with_block(plan: MemoryPlan, number: int, **changes: int) -> MemoryPlan:
    blocks = list(plan.blocks)
    blocks[number] = replace(blocks[number], **changes)
    return replace(plan, blocks=tuple(blocks))


def with_storage(plan: MemoryPlan, value: int, home: Storage) -> MemoryPlan:
    storage = list(plan.storage)
    storage[value] = home
    return replace(plan, storage=tuple(storage))


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (lambda g, p: with_block(p, 0, offset=p.size), "block 0 leaves the arena of 512 bytes"),
        (lambda g, p: with_block(p, 0, offset=-64), "block 0 leaves the arena"),
        (lambda g, p: replace(p, size=256), "leaves the arena of 256 bytes"),
        (lambda g, p: with_block(p, 0, offset=32), "block 0 at 32 is not aligned to 64 bytes"),
        (lambda g, p: with_block(p, 0, first=9), "block 0 ends before it begins"),
        (lambda g, p: with_block(p, 0, size=64), "of 256 bytes does not fit block 0"),
        (lambda g, p: replace(p, storage=p.storage[:-1]), r"\d values have storage, the graph has"),
        (lambda g, p: with_storage(p, 2, Storage("arena", 7)), "block 7, which does not exist"),
    ],
)
def test_a_plan_out_of_shape(seed: object, message: str) -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        return dot(b, dot(b, dot(b, x, w), w), w)

    fault(make, seed, message, X, SQUARE)


def test_two_values_in_the_same_bytes() -> None:
    def seed(graph: Graph, plan: MemoryPlan) -> MemoryPlan:
        return with_block(plan, 1, offset=plan.blocks[0].offset)

    def make(b: Builder, x: Value, w: Value) -> Value:
        y = dot(b, x, w)
        z = dot(b, dot(b, x * 2.0, w), w)
        return dot(b, y, w) + z

    fault(make, seed, r"reads %\d+, but its bytes hold %\d+", X, SQUARE)


def test_a_product_in_the_place_of_its_operand() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        return dot(b, dot(b, dot(b, x, w), w), w)

    def seed(graph: Graph, plan: MemoryPlan) -> MemoryPlan:
        return with_storage(plan, 3, plan.storage[2])

    fault(make, seed, "step 1 writes %3 over %2, which it reads elsewhere too", X, SQUARE)


def test_the_first_output_in_the_place_of_a_shared_operand() -> None:
    def seed(graph: Graph, plan: MemoryPlan) -> MemoryPlan:
        k = next(k for k, n in enumerate(graph.nodes) if len(n.types) == 2)
        first, last = graph.results(k)
        swapped = with_storage(plan, first, plan.storage[last])
        return with_storage(swapped, last, plan.storage[first])

    fault(_two_outputs, seed, r"writes %\d over %\d, which it reads elsewhere too", X, SQUARE)


def test_a_result_over_a_part_of_its_operand() -> None:
    def make(b: Builder, x: Value, w: Value) -> Value:
        return dot(b, dot(b, dot(b, x, w), w), w)

    def seed(graph: Graph, plan: MemoryPlan) -> MemoryPlan:
        moved = with_block(plan, 1, offset=plan.blocks[0].offset + 64)
        return replace(moved, size=plan.size + 64)

    fault(make, seed, "over a part of its operand", X, SQUARE)


def test_two_results_in_the_same_bytes() -> None:
    def seed(graph: Graph, plan: MemoryPlan) -> MemoryPlan:
        k = next(k for k, n in enumerate(graph.nodes) if len(n.types) == 2)
        first, last = graph.results(k)
        return with_storage(plan, last, plan.storage[first])

    fault(_two_outputs, seed, r"step \d writes two results to the same bytes", X, SQUARE)


def test_a_view_elsewhere() -> None:
    def seed(graph: Graph, plan: MemoryPlan) -> MemoryPlan:
        k = next(k for k, n in enumerate(graph.nodes) if n.op == "reshape")
        return with_storage(plan, graph.first_result[k], Storage("arena", 1))

    fault(_chain, seed, "is a view of %2, but they have different storage", X, SQUARE)


def test_a_view_that_is_none() -> None:
    """A transpose whose result has another order in memory cannot share it."""
    graph = build(lambda b, x: b.transpose(x, (1, 0)), X)
    plan = MemoryPlan((Storage("input", 0), Storage("input", 0)), (), 0, 0)
    with pytest.raises(PlanError, match="%1 is no view of %0: elements lie at other addresses"):
        check_plan(graph, plan)


def test_a_value_that_is_gone() -> None:
    """A block that is given to another value while its own is still to be read."""

    def make(b: Builder, x: Value, w: Value) -> list[Value]:
        y = dot(b, x, w)
        z = dot(b, y, w)
        return [dot(b, dot(b, z, w), w) + y, b.emit("exp", dot(b, y, w))]

    def seed(graph: Graph, plan: MemoryPlan) -> MemoryPlan:
        y, home = 2, plan.storage[2]
        last = max(k for k, n in enumerate(graph.nodes) if y in n.operands)
        others = [graph.first_result[k] for k in range(1, last) if y not in graph.nodes[k].operands]
        free = [v for v in others if plan.storage[v].space == "arena" and plan.storage[v] != home]
        return with_storage(plan, free[0], home)

    fault(make, seed, r"step \d \(kernel\) reads %2, but its bytes hold %\d", X, SQUARE)
