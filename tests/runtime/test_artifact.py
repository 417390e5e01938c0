"""Artifacts: what is written is read back, and what is damaged or foreign is refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors

from plait.codegen.plan import ModulePlan
from plait.ir.errors import (
    ArtifactError,
    CorruptArtifact,
    NewerArtifact,
    PlanError,
    TargetMismatch,
)
from plait.runtime import artifact as module
from plait.runtime.artifact import Artifact, Contents, write_artifact


def rewrite(source: Path, target: Path, edit: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an artifact whose members went through `edit`."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def edit_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, bytes]], None]:
    def edit(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        change(manifest)
        members["manifest.json"] = json.dumps(manifest).encode()

    return edit


def test_round_trip(small_artifact: Path, small_contents: Contents) -> None:
    artifact = Artifact.open(small_artifact)
    code = small_contents.code[0]
    assert artifact.targets == (code.target,)
    assert artifact.plan() == artifact.plan(code.target) == code.plan
    assert artifact.stages == ("import", "fuse")
    assert artifact.ir_text("fuse") == small_contents.ir["fuse"]
    for name, array in artifact.weights().items():
        np.testing.assert_array_equal(array, small_contents.weights[name])
    inputs, outputs = artifact.samples()
    results = artifact.load().run(inputs)
    for name, want in outputs.items():
        np.testing.assert_allclose(results[name], want, rtol=1e-6, atol=1e-6)


def test_the_weights_are_aligned_and_safetensors_reads_them(
    small_artifact: Path, small_contents: Contents
) -> None:
    artifact = Artifact.open(small_artifact)
    for name in artifact.manifest["sha256"]:
        assert artifact.member(name).ctypes.data % 64 == 0
    for array in artifact.weights().values():
        assert array.ctypes.data % 64 == 0
    theirs = load_safetensors(artifact.member("weights.safetensors").tobytes())
    for name, array in small_contents.weights.items():
        np.testing.assert_array_equal(theirs[name], array)


def test_the_same_content_gives_the_same_bytes(
    small_artifact: Path, small_contents: Contents, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "again.plait", small_contents)
    assert (tmp_path / "again.plait").read_bytes() == small_artifact.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.plait"]


def test_a_failed_write_leaves_the_old_file(
    small_artifact: Path, small_contents: Contents, tmp_path: Path
) -> None:
    path = tmp_path / "model.plait"
    path.write_bytes(small_artifact.read_bytes())
    wrong = replace(small_contents, weights={**small_contents.weights, "w": np.zeros(3)})
    with pytest.raises(PlanError, match="weight 'w'"):
        write_artifact(path, wrong)
    assert path.read_bytes() == small_artifact.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model.plait"]


def test_two_writers_at_once_do_not_mix(
    small_artifact: Path, small_contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second writer starts, and ends, while the first has its file open."""
    path = tmp_path / "model.plait"
    other = replace(small_contents, ir={"import": "the other's"})
    manifest, entered = module._manifest, list[int]()

    def interrupted(contents: Contents) -> dict[str, Any]:
        entered.append(len(entered))
        if len(entered) == 1:
            write_artifact(path, other)
            assert Artifact.open(path).stages == ("import",)
        return manifest(contents)

    monkeypatch.setattr(module, "_manifest", interrupted)
    write_artifact(path, small_contents)
    assert path.read_bytes() == small_artifact.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model.plait"]


def test_a_plan_is_parsed_once(small_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse, parsed = ModulePlan.from_json, list[str]()

    def counted(data: dict[str, Any]) -> ModulePlan:
        parsed.append(data["name"])
        return parse(data)

    monkeypatch.setattr(ModulePlan, "from_json", counted)
    artifact = Artifact.open(small_artifact)
    assert artifact.load().plan is artifact.plan()
    assert len(parsed) == 1


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no such file"):
        Artifact.open(tmp_path / "none.plait")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.6, 0.9, -100, -1])
def test_truncated(small_artifact: Path, tmp_path: Path, keep: float) -> None:
    data = small_artifact.read_bytes()
    size = int(len(data) * keep) if 0 < keep < 1 else int(keep) % len(data)
    path = tmp_path / "short.plait"
    path.write_bytes(data[:size])
    with pytest.raises(CorruptArtifact, match=r"short\.plait: the file is damaged"):
        Artifact.open(path)


def test_a_flipped_bit_anywhere_in_a_member(small_artifact: Path, tmp_path: Path) -> None:
    data = bytearray(small_artifact.read_bytes())
    artifact = Artifact.open(small_artifact)
    path = tmp_path / "flipped.plait"
    for begin, end in artifact._offsets.values():
        for at in {begin, (begin + end) // 2, end - 1}:
            data[at] ^= 1
            path.write_bytes(data)
            with pytest.raises(CorruptArtifact):
                Artifact.open(path)
            data[at] ^= 1


def test_random_damage_is_never_a_crash(small_artifact: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clean = small_artifact.read_bytes()
    path = tmp_path / "random.plait"
    for _ in range(200):
        data = bytearray(clean)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        try:
            Artifact.open(path)
        except ArtifactError as error:
            assert len(str(error).splitlines()) == 1


def test_a_text_file_and_a_foreign_zip(tmp_path: Path) -> None:
    path = tmp_path / "x.plait"
    path.write_text("hello, I am a model, honestly" * 10)
    with pytest.raises(CorruptArtifact, match="not a whole zip file"):
        Artifact.open(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"\x80")
    with pytest.raises(CorruptArtifact, match=r"member manifest\.json is missing"):
        Artifact.open(path)


def drop(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.update() or members.pop(name)  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("edit", "kind", "message"),
    [
        (edit_manifest(lambda m: m.update(format=5)), NewerArtifact, "format version 5 is newer"),
        (edit_manifest(lambda m: m.update(format=3)), ArtifactError, "format 3 is no longer read"),
        (edit_manifest(lambda m: m.update(kind="x")), CorruptArtifact, "its kind is 'x'"),
        (edit_manifest(lambda m: m.pop("format")), CorruptArtifact, "'format'"),
        (edit_manifest(lambda m: m.update(targets=7)), CorruptArtifact, "'targets' is missing or"),
        (edit_manifest(lambda m: m.pop("abi")), CorruptArtifact, "field 'abi' is missing"),
        (
            edit_manifest(lambda m: m["targets"][0]["plan"].pop("steps")),
            CorruptArtifact,
            "the plan is malformed",
        ),
        (
            edit_manifest(lambda m: m["targets"][0]["plan"].update(arena_bytes=64)),
            CorruptArtifact,
            "outside the arena of 64 bytes",
        ),
        (
            edit_manifest(lambda m: m["targets"][0]["plan"]["weights"].pop()),
            CorruptArtifact,
            "weights",
        ),
        (
            edit_manifest(lambda m: m["stages"].append("gone")),
            CorruptArtifact,
            "the IR of stage gone is missing",
        ),
        (drop("weights.safetensors"), CorruptArtifact, r"weights\.safetensors is missing"),
        (drop("ir/fuse.txt"), CorruptArtifact, r"ir/fuse\.txt is missing"),
        (lambda m: m.update({"extra": b""}), CorruptArtifact, "extra is not in the manifest"),
        (lambda m: m.update({"ir/fuse.txt": b"?"}), CorruptArtifact, r"SHA-256 of ir/fuse\.txt"),
    ],
)
def test_a_wrong_manifest_or_member(
    small_artifact: Path,
    tmp_path: Path,
    edit: Callable[[dict[str, bytes]], None],
    kind: type[ArtifactError],
    message: str,
) -> None:
    path = rewrite(small_artifact, tmp_path / "edited.plait", edit)
    with pytest.raises(kind, match=message) as caught:
        Artifact.open(path)
    assert caught.value.exit_code == 5
    assert str(caught.value).startswith(str(path))


def test_another_cpu(small_artifact: Path, tmp_path: Path) -> None:
    def demand(manifest: dict[str, Any]) -> None:
        manifest["targets"][0]["cpu"].update(mcpu="future", features=["avx2", "avx9000"])

    artifact = Artifact.open(rewrite(small_artifact, tmp_path / "m.plait", edit_manifest(demand)))
    with pytest.raises(TargetMismatch, match=r"built for x86_64-future, but .* lacks avx9000"):
        artifact.load()


def test_another_abi(small_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Artifact.open(small_artifact)
    monkeypatch.setattr(module, "abi", lambda: {"apache-tvm": "0.28", "apache-tvm-ffi": "0.2"})
    with pytest.raises(ArtifactError, match=r"built against apache-tvm 0\.27.* 0\.28"):
        artifact.load()


def test_the_first_target_that_fits_is_chosen(small_contents: Contents, tmp_path: Path) -> None:
    code = small_contents.code[0]
    future = replace(code, target=replace(code.target, mcpu="future", features=("avx9000",)))
    write_artifact(tmp_path / "two.plait", replace(small_contents, code=(future, code)))
    artifact = Artifact.open(tmp_path / "two.plait")
    assert [t.mcpu for t in artifact.targets] == ["future", code.target.mcpu]
    inputs, outputs = artifact.samples()
    np.testing.assert_allclose(artifact.load().run(inputs)["out"], outputs["out"], rtol=1e-5)


def test_an_unknown_stage(small_artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no stage 'x'; it has import, fuse"):
        Artifact.open(small_artifact).ir_text("x")


def test_a_model_outlives_its_artifact(small_artifact: Path) -> None:
    artifact = Artifact.open(small_artifact)
    inputs, outputs = artifact.samples()
    inputs = {k: a.copy() for k, a in inputs.items()}
    want = outputs["out"].copy()
    model = artifact.load()
    del artifact, outputs
    np.testing.assert_allclose(model.run(inputs)["out"], want, rtol=1e-6, atol=1e-6)
