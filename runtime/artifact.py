"""`model.plait`: a compiled model in one file that runs with no torch, no TVM compiler, no linker.

An uncompressed zip:

    manifest.json          format, producer, ABI, one record per target, SHA-256 of every member
    weights.safetensors    all weights, 64-byte aligned in the file, used where they are mapped
    lib/<target>/<n>.o     object code: the kernels of a target and its `main`
    lib/<target>/pool.o    the threads that help with parallel loops
    samples.safetensors    sample inputs `input.<name>` and their expected outputs `output.<name>`
    ir/<stage>.txt         the IR after each stage, as text that parses

Nothing in it is ever unpickled.  The same content gives the same bytes.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from plait.codegen.cpu import CpuTarget
from plait.codegen.plan import ModulePlan, TensorSpec, place_weights
from plait.ir.errors import (
    ArtifactError,
    CorruptArtifact,
    NewerArtifact,
    PlanError,
    TargetMismatch,
)
from plait.runtime import tensorfile
from plait.runtime.alignedzip import AlignedZipWriter, Piece, read_directory
from plait.runtime.executor import CompiledModel
from plait.runtime.files import replacing
from plait.runtime.loader import Library

FORMAT_VERSION = _OLDEST_READ = 4  # until 3 object code was for the threads of TVM
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
SAMPLES = "samples.safetensors"
_KIND = "plait-model"
# Packages whose binary interface the object code is built against.
_ABI_PACKAGES = ("apache-tvm", "apache-tvm-ffi")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TargetCode:
    """The code for one CPU: its plan, its objects, ELF files in link order, and its threads'."""

    target: CpuTarget
    plan: ModulePlan
    objects: tuple[bytes, ...]
    pool: bytes


@dataclass(frozen=True)
class Contents:
    """What an artifact is made of.

    `weights` are by the names of the plans' weights, which all targets share; `ir` by stage.
    """

    name: str
    code: tuple[TargetCode, ...]
    weights: Arrays = field(default_factory=dict[str, NDArray[Any]])
    samples_in: Arrays = field(default_factory=dict[str, NDArray[Any]])
    samples_out: Arrays = field(default_factory=dict[str, NDArray[Any]])
    ir: Mapping[str, str] = field(default_factory=dict[str, str])


def abi() -> dict[str, str]:
    """The versions, major and minor, of the binary interfaces of this installation."""
    return {name: ".".join(_version(name).split(".")[:2]) for name in _ABI_PACKAGES}


def write_artifact(path: Path, contents: Contents) -> None:
    """Write the artifact; never half a file at `path`."""
    with replacing(path) as file:
        _write(file, _members(contents), _manifest(contents))


@dataclass(frozen=True)
class _Build:
    """The build for one CPU: as `TargetCode`, with the names of its objects."""

    cpu: CpuTarget
    plan: ModulePlan
    objects: tuple[str, ...]
    pool: str


class Artifact:
    """An opened artifact.  Its weights stay mapped as long as it, or a model of it, lives."""

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        data: NDArray[np.uint8],
        offsets: Mapping[str, tuple[int, int]],
    ) -> None:
        """Use `Artifact.open`.  `data`: the mapped file; `offsets`: each member's part of it."""
        self.path = path
        self.manifest = manifest
        self._data = data
        self._offsets = offsets
        self._builds: tuple[_Build, ...] = ()

    @staticmethod
    def open(path: Path, check: bool = True) -> Artifact:
        """Map the file and check it: zip structure, format version, SHA-256 of every member.

        `check=False` skips the digests, which read the whole file.  Raises `ArtifactError`, or a
        subclass that says what is wrong, all with exit code 5.
        """
        try:
            with path.open("rb") as file:
                data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
                offsets, text = read_directory(file, data, MANIFEST)
        except FileNotFoundError:
            raise ArtifactError(path=path, message="there is no such file") from None
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise CorruptArtifact(path=path, message=str(error)) from error
        artifact = Artifact(path, _read_manifest(path, text), data, offsets)
        artifact._check_members(check)
        return artifact

    @property
    def targets(self) -> tuple[CpuTarget, ...]:
        return tuple(build.cpu for build in self._builds)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages whose IR is stored, in pipeline order."""
        return tuple(self.manifest["stages"])

    def ir_text(self, stage: str) -> str:
        """The IR after a stage.  Raises `ArtifactError` for a stage that the artifact lacks."""
        if stage not in self.stages:
            message = f"holds no stage {stage!r}; it has {', '.join(self.stages) or 'none'}"
            raise ArtifactError(path=self.path, message=message)
        return self.member(_stage_member(stage)).tobytes().decode()

    def samples(self) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Sample inputs and the outputs expected of them, by name; empty if none are stored."""
        if SAMPLES not in self._offsets:
            return {}, {}
        found = self._tensors(SAMPLES)
        inputs = {k[len("input.") :]: a for k, a in found.items() if k.startswith("input.")}
        outputs = {k[len("output.") :]: a for k, a in found.items() if k.startswith("output.")}
        return inputs, outputs

    def weights(self) -> dict[str, NDArray[Any]]:
        """The weights by name, read-only views of the mapped file."""
        return self._tensors(WEIGHTS)

    def member(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a member, a view of the mapped file."""
        begin, end = self._offsets[name]
        return self._data[begin:end]

    def plan(self, target: CpuTarget | None = None) -> ModulePlan:
        """The plan of a target, by default of the one that `load` would choose."""
        return self._build(target).plan

    def load(self, threads: int | None = None) -> CompiledModel:
        """Link the code for the first target that this CPU can run, and bind the weights.

        Raises `TargetMismatch` naming what the CPU lacks, or `ArtifactError` if the code was
        built against other versions of the native packages.
        """
        build = self._build(None)
        if self.manifest["abi"] != abi():
            message = f"built against {_pairs(self.manifest['abi'])}, but {_pairs(abi())} is here"
            raise ArtifactError(path=self.path, message=message)
        *objects, pool = (self.member(name).tobytes() for name in (*build.objects, build.pool))
        library = Library(objects, pool)
        _, body = tensorfile.decode(self.member(WEIGHTS))
        return CompiledModel(build.plan, library, body, threads)

    def _build(self, target: CpuTarget | None) -> _Build:
        lacking: tuple[str, ...] = ()
        for build in self._builds:
            lacking = build.cpu.missing()
            if build.cpu == target or (target is None and not lacking):
                return build
        names = ", ".join(t.name for t in self.targets)
        missing = ", ".join(lacking) if target is None else f"a build for {target.name}"
        raise TargetMismatch(path=self.path, target=names, missing=missing)

    def _tensors(self, name: str) -> dict[str, NDArray[Any]]:
        try:
            specs, body = tensorfile.decode(self.member(name))
        except ValueError as error:
            raise CorruptArtifact(path=self.path, message=f"{name}: {error}") from error
        return {s.name: tensorfile.view(s, body) for s in specs}

    def _check_members(self, digests: bool) -> None:
        """Hold the members against the manifest, and read its builds."""
        expected: Mapping[str, str] = self.manifest["sha256"]
        for name in expected.keys() - self._offsets.keys():
            raise CorruptArtifact(path=self.path, message=f"member {name} is missing")
        for name in self._offsets.keys() - expected.keys() - {MANIFEST}:
            raise CorruptArtifact(path=self.path, message=f"member {name} is not in the manifest")
        for stage in self.stages:
            if _stage_member(stage) not in expected:
                raise CorruptArtifact(path=self.path, message=f"the IR of stage {stage} is missing")
        for name, digest in expected.items() if digests else ():
            if sha256(self.member(name).data).hexdigest() != digest:
                raise CorruptArtifact(path=self.path, message=f"the SHA-256 of {name} is wrong")
        try:
            specs, _ = tensorfile.decode(self.member(WEIGHTS))
            self._builds = tuple(map(_read_build, self.manifest["targets"]))
            for build in self._builds:
                if not {*build.objects, build.pool} <= expected.keys():
                    raise ValueError("an object of a target is missing")
                if build.plan.weights != specs:
                    raise ValueError("the plan's weights are not those of the file")
        except (ValueError, KeyError, TypeError, AttributeError, PlanError) as error:
            raise CorruptArtifact(path=self.path, message=str(error)) from error


def _manifest(contents: Contents) -> dict[str, Any]:
    specs = contents.code[0].plan.weights
    if any(c.plan.weights != specs for c in contents.code):
        raise PlanError("the targets of an artifact must share one weights layout")
    return {
        "kind": _KIND,
        "format": FORMAT_VERSION,
        "name": contents.name,
        "producer": {"plait": _version("plait")},
        "abi": abi(),
        "stages": list(contents.ir),
        "targets": [
            {
                "cpu": code.target.to_json(),
                "objects": _object_names(code),
                "pool": _pool_name(code),
                "plan": code.plan.to_json(),
            }
            for code in contents.code
        ],
    }


def _stage_member(stage: str) -> str:
    return f"ir/{stage}.txt"


def _object_names(code: TargetCode) -> list[str]:
    return [f"lib/{code.target.name}/{i}.o" for i in range(len(code.objects))]


def _pool_name(code: TargetCode) -> str:
    return f"lib/{code.target.name}/pool.o"


def _members(contents: Contents) -> Iterator[tuple[str, Iterable[Piece]]]:
    yield WEIGHTS, tensorfile.encode(contents.code[0].plan.weights, contents.weights)
    for code in contents.code:
        for name, data in zip(_object_names(code), code.objects, strict=True):
            yield name, [data]
        yield _pool_name(code), [code.pool]
    samples = {f"input.{k}": a for k, a in contents.samples_in.items()}
    samples |= {f"output.{k}": a for k, a in contents.samples_out.items()}
    if samples:
        specs = place_weights(_sample_specs(contents, samples))
        yield SAMPLES, tensorfile.encode(specs, samples)
    for stage, text in contents.ir.items():
        yield _stage_member(stage), [text.encode()]


def _sample_specs(contents: Contents, samples: Arrays) -> list[TensorSpec]:
    """The samples' specs, with the dtypes that the plan gives its inputs and outputs."""
    plan = contents.code[0].plan
    known = {f"input.{t.name}": t for t in plan.inputs}
    known |= {f"output.{t.name}": t for t in plan.outputs}
    return [
        replace(known[name], name=name) if name in known else tensorfile.spec_of(name, array)
        for name, array in samples.items()
    ]


def _write(
    file: BinaryIO,
    members: Iterable[tuple[str, Iterable[Piece]]],
    manifest: dict[str, Any],
) -> None:
    """Write the members, then the manifest with their digests."""
    digests: dict[str, str] = {}
    with AlignedZipWriter(file) as archive:
        for name, pieces in members:
            digests[name] = archive.write(name, pieces)
        archive.write(MANIFEST, [json.dumps({**manifest, "sha256": digests}, indent=1).encode()])


def _read_manifest(path: Path, text: bytes) -> dict[str, Any]:
    """Parse the manifest and check its version and its fields' forms."""
    try:
        manifest = json.loads(text)
        if manifest["kind"] != _KIND:
            raise ValueError(f"its kind is {manifest['kind']!r}")
        found = int(manifest["format"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"the manifest cannot be read: {error}"
        raise CorruptArtifact(path=path, message=message) from error
    if found > FORMAT_VERSION:
        raise NewerArtifact(path=path, found=found, supported=FORMAT_VERSION)
    if found < _OLDEST_READ:
        message = f"its format {found} is no longer read: compile the model again"
        raise ArtifactError(path=path, message=message)
    for key, form in _FIELDS.items():
        if not isinstance(manifest.get(key), form):
            message = f"the manifest's field {key!r} is missing or malformed"
            raise CorruptArtifact(path=path, message=message)
    return dict(manifest)


def _read_build(record: Mapping[str, Any]) -> _Build:
    return _Build(
        CpuTarget.from_json(record["cpu"]),
        ModulePlan.from_json(record["plan"]),
        tuple(str(name) for name in record["objects"]),
        str(record["pool"]),
    )


_FIELDS: dict[str, type] = {
    "name": str,
    "producer": dict,
    "abi": dict,
    "stages": list,
    "targets": list,
    "sha256": dict,
}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _pairs(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {found}" for name, found in versions.items())
