"""CPU targets by name and instruction-set features, and what the CPU at hand offers.

Features carry LLVM's names ("avx2", "sse4.2").  The CPU at hand is read from `/proc/cpuinfo`, so
that an artifact can be checked with neither LLVM nor TVM installed.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from plait.codegen.core import Core, core_with

# LLVM feature -> flag of /proc/cpuinfo.  Only features that compiled arithmetic may use.
_X86_FLAGS = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "popcnt": "popcnt",
    "movbe": "movbe",
    "avx": "avx",
    "f16c": "f16c",
    "fma": "fma",
    "avx2": "avx2",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "lzcnt": "abm",
    "adx": "adx",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512bitalg": "avx512_bitalg",
    "avx512ifma": "avx512ifma",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avxvnni": "avx_vnni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "gfni": "gfni",
    "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq",
}


@dataclass(frozen=True)
class CpuTarget:
    """What object code is built for: machine ("x86_64"), LLVM CPU name, features it may use."""

    machine: str
    mcpu: str
    features: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.machine}-{self.mcpu}"

    @property
    def core(self) -> Core:
        """The vectors that kernels for it are made of."""
        return core_with(self.features)

    def to_json(self) -> dict[str, Any]:
        return {"machine": self.machine, "mcpu": self.mcpu, "features": list(self.features)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> CpuTarget:
        features = tuple(str(f) for f in data["features"])
        return CpuTarget(str(data["machine"]), str(data["mcpu"]), features)

    def missing(self) -> tuple[str, ...]:
        """What the CPU at hand lacks to run this code: nothing, features, or the machine itself."""
        if self.machine != platform.machine():
            return (self.machine,)
        return tuple(sorted(set(self.features) - host_features()))


def checked_features(features: set[str]) -> tuple[str, ...]:
    """Those of LLVM's features that decide whether code runs; tuning hints are dropped."""
    return tuple(sorted(features & _X86_FLAGS.keys()))


@cache
def host_features() -> frozenset[str]:
    """The features of the CPU at hand, by LLVM's names; empty where they cannot be read."""
    flags = set(_cpuinfo().get("flags", "").split())
    return frozenset(name for name, flag in _X86_FLAGS.items() if flag in flags)


def host_core() -> Core:
    """The vectors of the CPU at hand."""
    return core_with(host_features())


@cache
def host_cpu_model() -> str:
    """The CPU's name as its maker gives it ("AMD EPYC 7B13"), or "unknown"."""
    return _cpuinfo().get("model name", "unknown")


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of `/proc/cpuinfo`; empty on a system without it."""
    source = Path("/proc/cpuinfo")
    if not source.exists():
        return {}
    first = source.read_text().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
