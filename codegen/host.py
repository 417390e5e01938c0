"""The machine this process runs on: CPU model, instruction sets, cores, caches, memory.

Read from `/proc` and `/sys`, so it needs no library; where they are missing (not Linux) the fields
that cannot be known are empty or 0, and no code is generated for features that were not seen.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# The instruction sets that a template or a check asks about, by their names in /proc/cpuinfo.
KNOWN_FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl",
    "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Host:
    """One machine.

    `features` are the members of `KNOWN_FEATURES` that the CPU has, sorted. `cores` counts physical
    cores, `cpus` the logical CPUs this process may use. Cache sizes (`l1d`, `l2`, `l3`) and
    `memory` are in bytes.
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


def _cpuinfo() -> list[dict[str, str]]:
    """One mapping per logical CPU."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return []
    blocks = path.read_text(errors="replace").strip().split("\n\n")
    pairs = [[line.partition(":") for line in block.splitlines()] for block in blocks]
    return [{key.strip(): value.strip() for key, _, value in lines} for lines in pairs]


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
    blocks = _cpuinfo()
    first = blocks[0] if blocks else {}
    flags = set((first.get("flags") or first.get("Features", "")).split())
    physical = {(block.get("physical id"), block.get("core id")) for block in blocks}
    known_cores = all("core id" in block for block in blocks)
    logical = len(blocks) or os.cpu_count() or 1
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return Host(
        model=first.get("model name") or platform.processor() or "unknown",
        architecture=platform.machine(),
        features=tuple(sorted(flags & set(KNOWN_FEATURES))),
        cores=len(physical) if blocks and known_cores else logical,
        cpus=cpus,
        l1d=_cache_size(1, "Data"),
        l2=_cache_size(2, "Unified"),
        l3=_cache_size(3, "Unified"),
        memory=_memory(),
    )
