"""Selection: schedules from the target, and packed weights whose bodies mean what they did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plait.codegen.target import Target, Template, single
from plait.ir.builder import Builder, Value
from plait.ir.errors import Unsupported
from plait.ir.graph import Graph
from plait.ir.verify import verify
from plait.passes.select import Selection
from tests.passes.graphs import TARGET, build, ops_of, random_graphs, run, same_meaning


def normal(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def packing(form: str, block: int, operand: int = 1) -> Target:
    """A target that packs one operand wherever it is constant."""

    def choose(body: Graph, constant: tuple[bool, ...], threads: int) -> Selection:
        packed = len(constant) > operand and constant[operand]
        return Selection(
            "packed" if packed else "plain", {operand: (form, block)} if packed else {}
        )

    template = Template("any", single(choose), lambda body, schedule: None)
    return replace(TARGET, load=lambda: (template,))


def dot(b: Builder, x: Value, w: Any, contract: int = 0) -> Value:
    return b.emit("dot_general", x, b.constant(w, "w"), lhs_contract=(x.rank - 1,),
                  rhs_contract=(contract,))  # fmt: skip


def conv(b: Builder, x: Value, w: Any, groups: int = 1) -> Value:
    return b.emit("conv", x, b.constant(w, "w"), stride=(1, 1), low=(0, 0), high=(0, 0),
                  dilation=(1, 1), groups=groups)  # fmt: skip


def lstm(b: Builder, x: Value, h: Value, c: Value, w: Any) -> Value:
    return b.emit_all("lstm", (x, h, c, b.constant(w, "w")), {"reverse": False})[0]


CASES: dict[str, tuple[Any, tuple[tuple[int, ...], ...], str, int, int]] = {
    "panels": (lambda b, x: dot(b, x, normal(7, 20)), ((3, 7),), "panels", 8, 1),
    "transposed": (lambda b, x: dot(b, x, normal(20, 7), 1), ((3, 7),), "panels", 8, 1),
    "few columns": (lambda b, x: dot(b, x, normal(7, 2)), ((3, 7),), "panels", 16, 1),
    "vector": (lambda b, x: dot(b, x, normal(7)), ((3, 7),), "panels", 8, 1),
    "rank 3": (lambda b, x: dot(b, x, normal(5, 7, 6), 1), ((3, 7),), "panels", 8, 1),
    "conv": (lambda b, x: conv(b, x, normal(10, 3, 2, 2)), ((2, 3, 5, 4),), "conv", 8, 1),
    "groups": (lambda b, x: conv(b, x, normal(10, 2, 2, 2), 2), ((2, 4, 5, 4),), "conv", 4, 1),
    "depthwise": (lambda b, x: conv(b, x, normal(6, 1, 3, 3), 6), ((2, 6, 5, 4),),
                  "depthwise", 0, 1),
    "narrow": (lambda b, x: conv(b, x, normal(2, 16, 2, 2)), ((2, 16, 5, 4),), "narrow", 8, 1),
    "gates": (lambda b, x, h, c: lstm(b, x, h, c, normal(20, 5)),
              ((4, 3, 20), (3, 5), (3, 5)), "gates8", 4, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_packed_kernel_means_the_same(name: str) -> None:
    make, shapes, form, block, operand = CASES[name]
    before = build(make, *shapes)
    after = run("fuse,select", before, packing(form, block, operand))
    verify(after, "selected")
    same_meaning(before, after)
    (kernel,) = [n for n in after.nodes if n.op == "kernel"]
    assert kernel.attrs["schedule"] == "packed"
    (blob,) = [n.attrs["value"] for n in after.nodes if n.op == "constant"]
    assert blob.name == f"w#{form}{block}"
    movement = {"reshape", "transpose", "slice"}
    body = [n.op for n in kernel.attrs["body"].nodes]
    assert set(body[:-1]) <= movement, "only movement stands before the anchor"


def test_operands_that_are_no_constants_stay() -> None:
    dims = {"lhs_contract": (1,), "rhs_contract": (0,)}
    before = build(lambda b, x, w: b.emit("dot_general", x, w, **dims), (3, 7), (7, 20))
    after = run("fuse,select", before, packing("panels", 8))
    assert [n.attrs["schedule"] for n in after.nodes] == ["plain"]
    same_meaning(before, after)


def test_shared_weights_are_packed_once() -> None:
    w = normal(7, 7)
    before = build(lambda b, x: dot(b, dot(b, x, w), w), (3, 7))
    after = run("canonicalize,fuse,select", before, packing("panels", 8))
    assert ops_of(after) == ["constant", "kernel", "kernel"]
    same_meaning(before, after)


def test_without_a_template_the_body_is_shown() -> None:
    graph = build(lambda b, x: b.emit("exp", x), (3, 7))
    with pytest.raises(Unsupported, match="target plain has no template for a kernel of exp") as e:
        run("fuse,select", graph, replace(TARGET, load=lambda: ()))
    assert "exp(%0)" in e.value.__notes__[0]


def test_random_graphs_get_schedules() -> None:
    for seed, graph in random_graphs(range(20)):
        after = run("layout,fuse,select", graph)
        verify(after, "selected")
        same_meaning(graph, after, seed)
