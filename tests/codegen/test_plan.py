"""The plan: JSON form, placement of weights, and the check of its pointers."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.codegen.plan import (
    ALIGNMENT,
    Call,
    Copy,
    ModulePlan,
    PointerArg,
    TensorSpec,
    aligned_empty,
    distinct,
    gather_weights,
    place_weights,
)
from plait.ir.errors import PlanError
from plait.ir.graph import Blob


def plan(*steps: Call | Copy, arena: int = 256) -> ModulePlan:
    return ModulePlan(
        name="m",
        inputs=(TensorSpec("x", "float32", (2, 3)),),
        outputs=(TensorSpec("y", "bfloat16", ()),),
        steps=steps,
        arena_bytes=arena,
        weights=place_weights([TensorSpec("a", "int8", (3,)), TensorSpec("b", "float64", (2, 2))]),
        meta={"stage": "test"},
    )


STEPS = (
    Call("k_1", (PointerArg("input"), PointerArg("arena", 0, 128)), "first"),
    Copy(PointerArg("output"), PointerArg("weights", 0, 64), 2),
)


def test_json_round_trip() -> None:
    before = plan(*STEPS)
    after = ModulePlan.from_json(json.loads(json.dumps(before.to_json())))
    assert after == before
    assert after.main_symbol == before.main_symbol


def test_a_plan_stored_before_kernels_had_parts_is_still_linked() -> None:
    assert plan(*STEPS).main_symbol == "main_3630028987825ed100bbf389c8a0601d"
    shared = replace(plan(Call("k", (), "", 2)), threads=2)
    assert ModulePlan.from_json(json.loads(json.dumps(shared.to_json()))) == shared


def test_main_symbol_follows_the_content() -> None:
    assert plan(*STEPS).main_symbol != plan(*STEPS, arena=512).main_symbol


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Call("k", (PointerArg("input", 1),)), "there is no input 1"),
        (Call("k", (PointerArg("output", -1),)), "there is no output -1"),
        (Call("k", (PointerArg("arena", 0, 257),)), "byte 257 \\+ 0 is outside the arena of 256"),
        (Call("k", (PointerArg("arena", 0, -1),)), "byte -1"),
        (Copy(PointerArg("output"), PointerArg("input"), 4), "outside the output of 2 bytes"),
        (Copy(PointerArg("arena"), PointerArg("weights", 0, 80), 64), "outside the weights of 96"),
    ],
)
def test_a_pointer_outside_its_space_is_refused(step: Call | Copy, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(step).check()


def test_a_check_looks_at_each_weight_a_fixed_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size, looked = TensorSpec.nbytes.fget, list[str]()
    assert size is not None

    def counted(spec: TensorSpec) -> int:
        looked.append(spec.name)
        return int(size(spec))

    weights = place_weights(TensorSpec(f"w{k}", "int8", (k,)) for k in range(100))
    steps = tuple(Call("k", (PointerArg("weights", 0, w.byte_offset),)) for w in weights)
    monkeypatch.setattr(TensorSpec, "nbytes", property(counted))
    ModulePlan("m", (), (), steps, weights=weights).check()
    assert len(looked) <= 2 * len(weights)


@pytest.mark.parametrize("field", ["name", "inputs", "steps", "arena_bytes", "weights"])
def test_a_missing_field_is_named(field: str) -> None:
    data = plan(*STEPS).to_json()
    del data[field]
    with pytest.raises(PlanError, match=field):
        ModulePlan.from_json(data)


def test_an_unknown_space_and_an_unknown_dtype_are_named() -> None:
    data = plan(*STEPS).to_json()
    data["steps"][0]["args"][0][0] = "heap"
    with pytest.raises(PlanError, match="heap"):
        ModulePlan.from_json(data)
    data = plan(*STEPS).to_json()
    data["inputs"][0]["dtype"] = "float31"
    with pytest.raises(PlanError, match="float31"):
        ModulePlan.from_json(data)


@given(st.lists(st.tuples(st.sampled_from(["int8", "float32"]), st.integers(0, 70)), max_size=6))
def test_weights_are_aligned_and_do_not_overlap(shapes: list[tuple[str, int]]) -> None:
    tensors = [TensorSpec(f"w{i}", d, (n,)) for i, (d, n) in enumerate(shapes)]
    placed = place_weights(tensors)
    end = 0
    for w in placed:
        assert w.byte_offset % ALIGNMENT == 0
        assert w.byte_offset >= end
        end = w.byte_offset + w.nbytes
    arrays = {t.name: np.full(t.shape, i + 1, t.numpy) for i, t in enumerate(tensors)}
    constants = {name: [Blob(array), Blob(array.copy())] for name, array in arrays.items()}
    memory = gather_weights(placed, constants)
    for w in placed:
        place = memory[w.byte_offset : w.byte_offset + w.nbytes]
        np.testing.assert_array_equal(place.view(w.numpy).reshape(w.shape), arrays[w.name])
        for blob in constants[w.name]:
            assert blob.array.dtype == arrays[w.name].dtype
            assert blob == Blob(arrays[w.name])
            assert np.shares_memory(blob.array, place) or w.nbytes == 0
            assert not blob.array.flags.writeable


def test_constants_let_go_of_the_memory_they_were_in() -> None:
    specs = place_weights([TensorSpec("w", "float32", (9,))])
    array = np.zeros(9, np.float32)
    gone = weakref.ref(array)
    blob = Blob(array)
    del array
    gather_weights(specs, {"w": [blob]})
    assert gone() is None


def test_a_weight_of_another_shape_is_refused() -> None:
    specs = place_weights([TensorSpec("w", "float32", (2,))])
    with pytest.raises(PlanError, match=r"weight 'w': expected float32\[2\], got float32\[3\]"):
        gather_weights(specs, {"w": [Blob(np.zeros(3, np.float32))]})


@pytest.mark.parametrize("nbytes", [1, 64, 1000])
def test_aligned_memory(nbytes: int) -> None:
    memory = aligned_empty(nbytes)
    assert memory.nbytes == nbytes
    assert memory.ctypes.data % ALIGNMENT == 0


def test_names_become_distinct() -> None:
    assert distinct(["a", "b", "a", "a_2", "a"]) == ["a", "b", "a_3", "a_2", "a_4"]


@pytest.mark.parametrize("what", ["inputs", "outputs", "weights"])
def test_a_name_stands_for_one_tensor(what: str) -> None:
    (spec, *_) = getattr(plan(), what)
    with pytest.raises(PlanError, match=f"{what} share the name '{spec.name}'"):
        replace(plan(), **{what: (spec, spec)}).check()  # type: ignore[arg-type]
