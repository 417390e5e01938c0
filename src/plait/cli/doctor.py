"""`plait doctor`: is this machine and this installation fit, and for what?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from plait import __version__
from plait.cli import output
from plait.codegen.host import host
from plait.ir import knobs
from plait.ir.errors import EnvironmentProblem, PlaitError

if TYPE_CHECKING:
    from rich.console import Console

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"
_STYLE = {OK: "green", WARN: "yellow", FAIL: "red", SKIP: "dim"}

# Distribution, what it serves, and the versions that work ("" for any).
PACKAGES: list[tuple[str, str, str]] = [
    ("numpy", "base", ""),
    ("ml-dtypes", "base", ""),
    ("apache-tvm", "runtime", "0.27.0.post1"),
    ("apache-tvm-ffi", "runtime", "0.1.14.post1"),
    ("apache-tvm-ffi-orcjit", "runtime", "0.1."),
    ("torch", "compile", "2.13."),
    ("torch-mlir", "compile", "20261001"),
    ("triton", "compile", "3.9."),
]


@dataclass(frozen=True)
class Check:
    """One line of the report; `detail` is a sentence or a value."""

    name: str
    status: str
    detail: str


def _versions() -> Iterator[Check]:
    """Each package's version against the range that is known to work."""
    for name, serves, wanted in PACKAGES:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            status = FAIL if serves == "base" else SKIP
            yield Check(name, status, f"not installed; needed to {_purpose(serves)}")
            continue
        if found.startswith(wanted):
            yield Check(name, OK, found)
        else:
            yield Check(name, WARN, f"{found}, but only {wanted}* is tried and tested")


def _purpose(serves: str) -> str:
    return {"base": "start", "runtime": "run artifacts", "compile": "compile models"}[serves]


def _python() -> Iterator[Check]:
    good = sys.version_info >= (3, 11)
    yield Check("python", OK if good else FAIL, f"{platform.python_version()} ({sys.executable})")


def _cpu() -> Iterator[Check]:
    """The CPU targets need AVX2 and FMA; everything else is information."""
    machine = host()
    yield Check("cpu", OK, f"{machine.model} ({machine.architecture})")
    missing = sorted({"avx2", "fma"} - set(machine.features))
    detail = " ".join(machine.features) or "none seen"
    if missing:
        detail += f"; without {' and '.join(missing)} the kernels are slow"
    yield Check("instruction sets", WARN if missing else OK, detail)
    yield Check("cores", OK, f"{machine.cores} cores, {machine.cpus} CPUs usable")
    sizes = [output.format_bytes(size) for size in (machine.l1d, machine.l2, machine.l3)]
    yield Check("caches", OK, "L1d {}, L2 {}, L3 {}".format(*sizes))
    enough = machine.memory >= 2 << 30
    yield Check("memory", OK if enough else WARN, output.format_bytes(machine.memory))


def _cache() -> Iterator[Check]:
    """The cache folder, or the nearest parent that exists, must be writable."""
    from plait.runtime.cache import KernelCache

    folder = knobs.CACHE_DIR.get()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        yield Check("cache", FAIL, f"{nearest} is a file, expected a folder")
        return
    free = shutil.disk_usage(nearest).free
    writable = os.access(nearest, os.W_OK)
    detail = f"{folder}, {output.format_bytes(KernelCache().nbytes())} used, "
    detail += f"{output.format_bytes(free)} free"
    if not writable:
        detail += f"; {nearest} is not writable, so every compile starts anew"
    yield Check("cache", OK if writable and free > 1 << 28 else WARN, detail)


def _gpu() -> Iterator[Check]:
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    detail = f"{len(devices)} NVIDIA device(s)" if devices else "none; CPU targets only"
    yield Check("gpu", OK if devices else SKIP, detail)


def _self_test() -> Iterator[Check]:
    """Compile and run one small graph, and compare it with the reference interpreter."""
    from plait.cli.selftest import NotPossible, self_test

    try:
        detail = self_test()
    except NotPossible as reason:
        yield Check("self-test", SKIP, str(reason))
        return
    except PlaitError as error:
        yield Check("self-test", FAIL, str(error))
        return
    yield Check("self-test", OK, detail)


SECTIONS: list[tuple[str, list[Callable[[], Iterator[Check]]]]] = [
    ("Machine", [_cpu, _gpu]),
    ("Packages", [_python, _versions]),
    ("Working order", [_cache, _self_test]),
]


def _run_sections() -> list[tuple[str, list[Check]]]:
    with output.working("checking"):
        return [
            (title, [check for source in sources for check in source()])
            for title, sources in SECTIONS
        ]


def _knob_rows() -> list[dict[str, Any]]:
    return [
        {"name": knob.name, "value": str(knob.get()), "source": knob.source(), "help": knob.help}
        for knob in knobs.KNOBS.values()
    ]


def _draw(where: Console, sections: list[tuple[str, list[Check]]]) -> None:
    where.print(f"[bold]plait {__version__}[/bold]")
    for title, checks in sections:
        where.print(f"\n[bold]{title}[/bold]")
        for check in checks:
            mark = f"[{_STYLE[check.status]}]{check.status:<4}[/]"
            where.print(f"  {mark}  {check.name:<22} ", end="")
            where.print(check.detail, markup=False)
    where.print("\n[bold]Settings[/bold]")
    for row in _knob_rows():
        where.print(f"  {row['name']:<20} {row['value']} ({row['source']})", markup=False)


def doctor(as_json: output.JsonFlag = False) -> None:
    """Check the machine, the packages, the cache and a small compile; exit 6 if something fails."""
    sections = _run_sections()
    failed = [check for _, checks in sections for check in checks if check.status == FAIL]
    data = {
        "version": __version__,
        "healthy": not failed,
        "host": asdict(host()),
        "checks": [
            {"section": title, **asdict(check)} for title, checks in sections for check in checks
        ],
        "knobs": _knob_rows(),
    }
    output.emit("doctor", data, lambda where: _draw(where, sections), as_json)
    if failed:
        raise typer.Exit(EnvironmentProblem.exit_code)
