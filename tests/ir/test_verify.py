"""The verifier refuses each kind of damage, names the node and shows the IR around it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plait.fuzz.generate import Settings, generate
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.errors import TypeRuleError, UnknownName, VerifyError
from plait.ir.graph import Attrs, Graph, Node
from plait.ir.text import show_node
from plait.ir.types import TensorType
from plait.ir.verify import STAGES, verify

Damage = Callable[[Graph, int], Node | None]


def unknown_attribute(graph: Graph, k: int) -> Node | None:
    return graph.nodes[k].with_attrs(colour="red")


def missing_attribute(graph: Graph, k: int) -> Node | None:
    attrs = dict(graph.nodes[k].attrs)
    return replace(graph.nodes[k], attrs=Attrs(dict(list(attrs.items())[1:]))) if attrs else None


def attribute_of_the_wrong_kind(graph: Graph, k: int) -> Node | None:
    for name, value in graph.nodes[k].attrs.items():
        if isinstance(value, tuple) and value:
            return graph.nodes[k].with_attrs(**{name: "row"})
    return None


def wrong_dtype(graph: Graph, k: int) -> Node | None:
    first, *rest = graph.nodes[k].types
    other = t.i16 if first.dtype != t.i16 else t.f32
    return replace(graph.nodes[k], types=(first.with_dtype(other), *rest))


def wrong_shape(graph: Graph, k: int) -> Node | None:
    first, *rest = graph.nodes[k].types
    return replace(graph.nodes[k], types=(TensorType(first.dtype, (*first.shape, 7)), *rest))


def wrong_result_count(graph: Graph, k: int) -> Node | None:
    types = graph.nodes[k].types
    return replace(graph.nodes[k], types=(*types, types[0])) if k + 1 == len(graph.nodes) else None


def operand_after_use(graph: Graph, k: int) -> Node | None:
    operands = graph.nodes[k].operands
    own = graph.first_result[k]
    return replace(graph.nodes[k], operands=(*operands[:-1], own)) if operands else None


def operand_below_zero(graph: Graph, k: int) -> Node | None:
    operands = graph.nodes[k].operands
    return replace(graph.nodes[k], operands=(-1, *operands[1:])) if operands else None


def too_many_operands(graph: Graph, k: int) -> Node | None:
    node = graph.nodes[k]
    if not graph.inputs or node.op in ("concat", "aten"):
        return None
    return replace(node, operands=(*node.operands, *([0] * 6)))


def bad_layout(graph: Graph, k: int) -> Node | None:
    first, *rest = graph.nodes[k].types
    types = (first.with_layout((0,) * (first.rank + 1)), *rest)
    return replace(graph.nodes[k], types=types)


def unknown_op(graph: Graph, k: int) -> Node | None:
    return replace(graph.nodes[k], op=graph.nodes[k].op + "x")


MESSAGES: dict[Damage, str] = {
    unknown_attribute: r"unknown attribute of \w+ 'colour'",
    missing_attribute: r"attributes are missing|attribute '\w+' is required",
    attribute_of_the_wrong_kind: r"\w+: ",
    wrong_dtype: r"has type \S+.*, its type rule gives ",
    wrong_shape: r"has type \S+.*, its type rule gives ",
    wrong_result_count: r"has type \S+.*, its type rule gives ",
    operand_after_use: r"operand %\d+ is not defined before its use",
    operand_below_zero: r"operand %-1 is not defined before its use",
    too_many_operands: r"takes operands \(.*\), got \d+|the body has \d+ inputs",
    bad_layout: r"layout \([0, ]+\) does not permute \d+ dimensions",
    unknown_op: r"unknown op '\w+x', did you mean ",
}


@pytest.mark.parametrize("damage", MESSAGES, ids=lambda d: d.__name__)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_damage_is_refused(damage: Damage, seed: int) -> None:
    graph = generate(seed, Settings(nodes=6))
    choices = [(k, node) for k in range(len(graph.nodes)) if (node := damage(graph, k)) is not None]
    assume(choices)
    k, node = Random(seed).choice(choices)
    damaged = replace(graph, nodes=(*graph.nodes[:k], node, *graph.nodes[k + 1 :]))
    with pytest.raises(VerifyError) as caught:
        verify(damaged)
    assert str(caught.value).startswith(f"node {k} ({node.op})")
    assert re.search(MESSAGES[damage], str(caught.value))
    if node.loc:
        assert node.loc in str(caught.value)
    assert any("-> " + show_node(damaged, k) in note for note in caught.value.__notes__)


def kernel_graph(schedule: str = "") -> Graph:
    inner = Builder("body")
    x = inner.input(TensorType(t.f32, (4,)))
    body = inner.finish([inner.emit("exp", x)])
    b = Builder()
    y = b.input(TensorType(t.f32, (4,)))
    return b.finish([b.emit("kernel", y, body=body, schedule=schedule)])


def test_damage_in_a_body_names_kernel_and_node() -> None:
    graph = kernel_graph()
    body = graph.nodes[0].attrs["body"]
    broken = replace(body, nodes=(unknown_attribute(body, 0),))
    damaged = replace(graph, nodes=(graph.nodes[0].with_attrs(body=broken),))
    with pytest.raises(VerifyError, match=r"node 0 \(kernel\): in the kernel's body: node 0 \(exp\)"
                       ) as caught:  # fmt: skip
        verify(damaged)
    assert len(caught.value.__notes__) == 2


def test_a_kernel_has_the_layouts_of_its_body() -> None:
    graph = kernel_graph()
    inner = Builder("body")
    x = inner.input(TensorType(t.f32, (4, 3), (1, 0)))
    body = inner.finish([x])
    b = Builder()
    b.emit("kernel", b.input(TensorType(t.f32, (4, 3), (1, 0))), body=body)
    plain = replace(b.nodes[0], types=(TensorType(t.f32, (4, 3)),))
    damaged = replace(graph, inputs=tuple(b.inputs), nodes=(plain,))
    with pytest.raises(
        VerifyError, match=r"has type float32\[4, 3\], its type rule gives .*{1, 0}"
    ):
        verify(damaged)


@pytest.mark.parametrize(
    ("stage", "schedule", "reason"),
    [
        ("imported", "", "kernels appear only after fusion"),
        ("selected", "", "the kernel has no schedule"),
        ("fused", "", ""),
        ("selected", "row", ""),
    ],
)
def test_stages_hold_kernels_to_account(stage: str, schedule: str, reason: str) -> None:
    graph = kernel_graph(schedule)
    if not reason:
        verify(graph, stage)
        return
    with pytest.raises(VerifyError) as caught:
        verify(graph, stage)
    assert str(caught.value) == (
        f"node 0 (kernel): does not belong to stage {stage!r}: {reason}"
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["fused", "selected"])
def test_computation_outside_kernels_is_refused_after_fusion(stage: str) -> None:
    b = Builder()
    with b.at("model.py:7"):
        out = b.input(TensorType(t.f32, (2,))) + 1
    with pytest.raises(VerifyError, match=rf"node 1 \(add\) from model.py:7: .*stage '{stage}'"):
        verify(b.finish([out]), stage)
    assert stage in STAGES


def test_outputs_and_inputs_are_checked() -> None:
    graph = kernel_graph()
    with pytest.raises(VerifyError, match="graph main: output %9 does not exist"):
        verify(replace(graph, outputs=(9,)))
    twisted = replace(graph.inputs[0], type=TensorType(t.f32, (4,), (3,)))
    with pytest.raises(
        VerifyError, match=r"input %0 of graph main: layout \(3,\) does not permute"
    ):
        verify(replace(graph, inputs=(twisted,)))


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "message"),
    [
        ("add", [(2, 3), (4,)], {}, "add: dimension -1 has sizes 3 and 4"),
        ("reshape", [(2, 3)], {"shape": (4, 2)}, r"reshape: cannot view \(2, 3\) as \(4, 2\)"),
        ("reshape", [(2, 3)], {"shape": (-2, -3)}, "the result would have the size -2"),
        ("reverse", [(2, 3)], {"axes": (-1,)}, r"reverse: axes \(-1,\) do not fit rank 2"),
        ("concat", [(2,), (3,)], {"axis": -1}, "concat: axis -1 does not fit rank 1"),
        ("iota", [], {"shape": (2,), "axis": 1}, "iota: axis 1 does not fit rank 1"),
        ("slice", [(4,)], {"start": (-1,), "step": (1,), "size": (2,)}, "start -1 is negative"),
        ("slice", [(4,)], {"start": (1,), "step": (2,), "size": (3,)}, "leave a dimension of 4"),
        ("pad", [(3,), ()], {"low": (-2,), "high": (-2,)}, "would have the size -1"),
        ("argmax", [()], {"axis": 0}, "argmax: axis 0 does not fit rank 0"),
        ("argmax", [(0,)], {"axis": 0}, "argmax: an empty dimension has no extreme element"),
        ("layer_norm", [(2, 3)], {"dims": 3}, "cannot normalise 3 dimensions of rank 2"),
        ("group_norm", [(3,)], {"groups": 1}, r"group_norm: needs \[N, C, \*D\], got rank 1"),
        ("group_norm", [(1, 3)], {"groups": 0}, "group_norm: cannot form 0 groups"),
        ("softmax", [(1, 3)], {"axis": 2}, "softmax: axis 2 does not fit rank 2"),
        ("attention", [(1, 2, 3), (1, 2, 3), (1, 3, 3)], {}, "attention: k and v differ in length"),
        ("attention", [(3, 2, 3), (2, 2, 3), (2, 2, 3)], {}, "3 query heads are no multiple of 2"),
        ("attention", [(3, 1, 2, 3), (2, 1, 2, 3), (2, 1, 2, 3)], {}, "batch dimensions differ"),
        ("lstm", [(2, 3, 8), (4, 2), (4, 2), (8, 2)], {}, "lstm: gates and state differ in batch"),
        ("dot_general", [(2, 3), (3,)], {"lhs_contract": (2,), "rhs_contract": (0,)},
         r"dot_general: contract dimensions \(2,\) and \(0,\) do not fit"),
        ("dot_general", [(2, 2), (2, 2)], {"lhs_contract": (1, 1), "rhs_contract": (0, 1)},
         r"dimensions \(1, 1\) occur twice"),
        ("conv", [(1, 2, 5), (3, 2, 3)],
         {"stride": (0,), "low": (0,), "high": (0,), "dilation": (1,)}, "stride .* not positive"),
        ("conv", [(1, 2, 1), (3, 2, 3)],
         {"stride": (1,), "low": (0,), "high": (0,), "dilation": (1,)}, "would have the size -1"),
        ("add", [(1,)], {}, r"add: takes operands \(a, b\), got 1"),
    ],
)  # fmt: skip
def test_type_rules_refuse_in_one_sentence(
    op: str, shapes: list[tuple[int, ...]], attrs: dict[str, object], message: str
) -> None:
    b = Builder()
    operands = [b.input(TensorType(t.f32, shape)) for shape in shapes]
    with pytest.raises(TypeRuleError, match=message):
        b.emit_all(op, operands, attrs)


def test_names_are_suggested() -> None:
    b = Builder()
    x = b.input(TensorType(t.f32, (2, 3)))
    with pytest.raises(UnknownName, match="unknown op 'softmx', did you mean 'softmax'"):
        b.emit("softmx", x, axis=1)
    with pytest.raises(UnknownName, match="attribute of softmax 'axes', did you mean 'axis'"):
        b.emit("softmax", x, axes=1)
    with pytest.raises(TypeRuleError, match="softmax: attribute 'axis' is required"):
        b.emit("softmax", x)
