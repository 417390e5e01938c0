"""The machine this process runs on, for people: cores, caches, memory.

Read from `/proc` and `/sys`, so it needs no library; where they are missing (not Linux) a size that
cannot be known is 0. What object code may use is decided by `plait.codegen.cpu`.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from plait.codegen.cpu import host_cpu_model, host_features
from plait.ir.knobs import available_cpus


@dataclass(frozen=True)
class Host:
    """One machine.

    `features` are instruction sets by LLVM's names, sorted. `cores` counts physical cores, `cpus`
    the logical CPUs this process may use. Cache sizes (`l1d`, `l2`, `l3`) and `memory` are in
    bytes.
    """

    model: str
    architecture: str
    features: tuple[str, ...]
    cores: int
    cpus: int
    l1d: int
    l2: int
    l3: int
    memory: int


def _physical_cores() -> int:
    """Distinct (package, core) pairs of the system's topology, or the logical count without one."""
    pairs = set()
    for topology in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
        package, core = topology / "physical_package_id", topology / "core_id"
        if package.is_file() and core.is_file():
            pairs.add((package.read_text().strip(), core.read_text().strip()))
    return len(pairs) or os.cpu_count() or 1


def _cache_size(level: int, kind: str) -> int:
    """Bytes of the first CPU's cache of a level; `kind` is Data or Unified."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            found = (index / "level").read_text().strip(), (index / "type").read_text().strip()
            size = (index / "size").read_text().strip()
        except OSError:
            continue  # A container may hide single entries; the size then stays unknown.
        if found == (str(level), kind):
            return int(size.rstrip("KM")) << (20 if size.endswith("M") else 10)
    return 0


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


@cache
def host() -> Host:
    """This machine; read once per process."""

    return Host(
        model=host_cpu_model(),
        architecture=platform.machine(),
        features=tuple(sorted(host_features())),
        cores=_physical_cores(),
        cpus=available_cpus(),
        l1d=_cache_size(1, "Data"),
        l2=_cache_size(2, "Unified"),
        l3=_cache_size(3, "Unified"),
        memory=_memory(),
    )
