"""What scripts that measure models share: processes of their own, rows on record, the best time."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from plait.codegen.core import AVX2
from plait.codegen.cpu import host_core
from plait.ir import knobs

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results"
MODELS: Final = (
    "mlp", "lstm", "gru", "minilm", "bert_base", "gpt2", "vit_s", "resnet18", "resnet50",
    "mobilenet_v2", "convnext_t", "swin_t", "efficientnet_b0", "densenet121", "vgg16",
    "whisper_tiny", "t5_small", "gpt2_decode", "crepe_tiny", "crepe_full", "mtcnn_pnet",
    "mtcnn_rnet", "mtcnn_onet",
)  # fmt: skip


class MeasurementFailed(SystemExit):
    """A process that measures ended with an error: what it wrote to stderr is the message.

    Not caught, it ends the program that asked, too.
    """


def apart(
    module: str, names: Sequence[str], options: Sequence[object] = (), cache: Path | None = None
) -> Any:
    """What a script measures in a process of its own, with this kernel cache if given one.

    The script is asked by `--one NAMES FILE` to write one measurement, as JSON, into a file.
    Raises `MeasurementFailed` if it ends with another exit code than 0.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        command = [sys.executable, "-W", "ignore", "-m", module, *map(str, options)]
        command += ["--one", *names, result.name]
        env = {**os.environ, **({knobs.CACHE_DIR.name: str(cache)} if cache else {})}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            told = done.stderr.strip() or f"exit code {done.returncode}"
            raise MeasurementFailed(f"{module} of {' '.join(names).strip()} failed:\n{told}")
        return json.loads(Path(result.name).read_text())


def on_this_kind(stem: str) -> str:
    """The name of results of CPUs like this one: those of other vectors are not comparable."""
    return stem if host_core() == AVX2 else f"{stem}-avx512"


def keep(file: Path, new: dict[str, Any]) -> None:
    """Write results to a file, in place of the rows that it has of the same models."""
    old = json.loads(file.read_text()) if file.exists() else {"rows": []}
    file.write_text(json.dumps(updated(old, new), indent=1) + "\n")


def updated(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new results with those rows of the old ones whose models they lack, in usual order."""
    rows = {row["model"]: row for row in (*old["rows"], *new["rows"])}
    return {**new, "rows": [rows[name] for name in MODELS if name in rows]}


def chosen(parser: argparse.ArgumentParser, text: str) -> list[str]:
    """The models of a comma-separated list; an unknown one ends the program (code 2)."""
    found = [name for name in text.split(",") if name]
    if unknown := set(found) - set(MODELS):
        parser.error(f"unknown models: {', '.join(sorted(unknown))}; known: {', '.join(MODELS)}")
    return found


def best(call: Callable[[], object], calls: int = 1, rounds: int = 10) -> float:
    """Seconds of a call: the least of `rounds` averages over `calls` calls each."""
    averages = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        averages.append((time.perf_counter() - start) / calls)
    return min(averages)
