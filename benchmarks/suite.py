"""The speed suite: Plait against its peers on the model zoo, float32, in one interleaved run.

    python -m benchmarks.suite [--models NAMES] [--batch N] [--rounds N] [--write-readme]

Every model runs in a process of its own. Each round runs every candidate once, in rotating order;
what is printed are medians and, against the fastest peer, the ratio with a 95 % bootstrap interval.
A candidate whose outputs do not agree with eager is not timed. Results go to
`benchmarks/results/batch1.json`, and with `--write-readme` into the table of `README.md`. The exit
code is 1 if a model was not measured with Plait or a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.report import report
from plait.ir import knobs

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results"
README: Final = ROOT / "README.md"
PLOTS: Final = ROOT / "docs"
MODELS: Final = (
    "mlp", "lstm", "gru", "minilm", "bert_base", "gpt2", "vit_s", "resnet18", "resnet50",
    "mobilenet_v2", "convnext_t", "swin_t", "efficientnet_b0", "densenet121", "vgg16",
    "whisper_tiny", "t5_small", "gpt2_decode", "crepe_tiny", "crepe_full", "mtcnn_pnet",
    "mtcnn_rnet", "mtcnn_onet",
)  # fmt: skip
PEERS: Final = ("eager", "inductor", "openvino", "onnxruntime")
OURS: Final = "plait"
BEST: Final = "the best peer"
# The geometric mean of the speed over a peer must be at least this, by batch.
MEAN_BARS: Final = {
    1: {"eager": 1.5, "inductor": 1.1, BEST: 1.3},
    8: {"eager": 1.0, "inductor": 1.0, BEST: 1.15},
}
# Not one sample but so many: frames of sound, candidate boxes of a picture.
SEVERAL: Final = "`crepe_*`: four frames, `mtcnn_rnet`, `mtcnn_onet`: four boxes"


def measure(name: str, rounds: int, threads: int, batch: int = 1) -> dict[str, Any]:
    """Build, check and time all candidates on one model; the result as plain data."""
    from benchmarks import peers
    from benchmarks.zoo import ZOO
    from plait.ir.agreement import compare as agree
    from plait.runtime.bench import compare

    entry = ZOO[name]()
    given = entry.batched(batch)
    calls: dict[str, Callable[[], Any]] = {}
    row: dict[str, Any] = {"model": name, "weights": entry.kind, "absent": {}, "build_seconds": {}}
    reference = peers.eager(entry.model, given, threads)()
    for peer, build in {**peers.PEERS, OURS: peers.plait}.items():
        start = time.perf_counter()
        try:
            call = build(entry.model, given, threads)
            results = call()
        except Exception as error:  # a peer may fail in any way; the table must say so
            row["absent"][peer] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        row["build_seconds"][peer] = time.perf_counter() - start
        verdicts = [agree(got, want) for got, want in zip(results, reference, strict=True)]
        wrong = [verdict.reason for verdict in verdicts if not verdict.agrees]
        if wrong:
            row["absent"][peer] = wrong[0]
        else:
            calls[peer] = call
    timing = compare(calls, rounds=rounds)
    row["seconds"] = {peer: timing.median(peer) for peer in calls}
    rivals = {peer: timing.median(peer) for peer in calls if peer != OURS}
    if OURS in calls:
        best = min(rivals, key=rivals.__getitem__)
        row["best_peer"] = best
        row["speedup"] = dict(
            zip(("median", "low", "high"), timing.speedup(OURS, best), strict=True)
        )
        row["speedup_eager"] = timing.speedup(OURS, "eager")[0]
    return row


def measure_apart(name: str, rounds: int, threads: int, batch: int) -> dict[str, Any]:
    """`measure` in a process of its own, so that no model's threads or memory disturb the next."""
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        command = [sys.executable, "-m", "benchmarks.suite", "--one", name, result.name]
        command += ["--rounds", str(rounds), "--threads", str(threads), "--batch", str(batch)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return {"model": name, "weights": "", "absent": {OURS: lines[-1]}, "seconds": {}}
        row: dict[str, Any] = json.loads(Path(result.name).read_text())
        return row


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table: milliseconds, the fastest in bold, and the ratio."""
    head = ["model", *PEERS, OURS, "Plait is faster than the best peer by"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in results["rows"]:
        seconds = row["seconds"]
        fastest = min(seconds.values(), default=0.0)
        cells = [_cell(seconds.get(peer), fastest) for peer in (*PEERS, OURS)]
        lines.append(f"| {row['model']} | " + " | ".join([*cells, _ratio(row)]) + " |")
    host = results["host"]
    means = "; ".join(
        f"{geometric_mean(results, peer):.2f}× {peer}"
        for peer in (*PEERS, BEST)
        if _ratios(results, peer)
    )
    lines.append(f"\n**Geometric mean of the speed: {means}.**")
    lines.append(
        f"\nMilliseconds per run, median of {results['rounds']} interleaved rounds, "
        f"batch {results['batch']} (samples are single but for {SEVERAL}), float32, "
        f"{results['threads']} threads, {host['model']} with {host['cores']} cores; the ratio with "
        "its 95 % interval, below 1 where Plait loses. A dash: not installed, failed, or results "
        "that do not agree with eager (`benchmarks/results` says which)."
    )
    return "\n".join(lines)


def _measured(results: dict[str, Any], peer: str) -> list[dict[str, Any]]:
    """The rows in which both Plait and a peer have a time."""
    return [r for r in results["rows"] if OURS in r["seconds"] and peer in r["seconds"]]


def _ratios(results: dict[str, Any], peer: str) -> list[float]:
    """How many times as fast as a peer Plait is, for the models that both ran."""
    if peer == BEST:
        return [r["speedup"]["median"] for r in results["rows"] if "speedup" in r]
    return [r["seconds"][peer] / r["seconds"][OURS] for r in _measured(results, peer)]


def geometric_mean(results: dict[str, Any], peer: str) -> float:
    """Geometric mean of the speed over a peer."""
    ratios = _ratios(results, peer)
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan


def bars(results: dict[str, Any]) -> bool:
    """Print each bar beside what was found; whether all hold. A row without Plait holds none."""
    held = []
    for row in results["rows"]:
        found = row.get("speedup", {}).get("median", math.nan)
        held.append(report(f"{row['model']}: speed over {BEST}", found, 1, "x", "at least"))
    for peer, bar in MEAN_BARS.get(results["batch"], {}).items():
        found, what = geometric_mean(results, peer), f"geometric mean of the speed over {peer}"
        held.append(report(what, found, bar, "x", "at least"))
    return all(held)


def plot(results: dict[str, Any], path: Path) -> None:
    """A bar for each model and peer: how many times as fast Plait is (log scale, 1 = equal)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "plait"
    import matplotlib.pyplot as plt

    peers = [p for p in PEERS if _measured(results, p)]
    names = [r["model"] for r in results["rows"]]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(names) + 1.2), layout="constrained")
    height = 0.8 / max(1, len(peers))
    for k, peer in enumerate(peers):
        rows = _measured(results, peer)
        places = [names.index(r["model"]) + (k - (len(peers) - 1) / 2) * height for r in rows]
        ratios = _ratios(results, peer)
        bars = axes.barh(places, ratios, height * 0.92, label=f"over {peer}")
        axes.bar_label(bars, [f"{x:.2f}" for x in ratios], fontsize=7, padding=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.5, 1, 2, 4, 8], ["0.5×", "1×", "2×", "4×", "8×"])
    what = "speed of Plait over its peers, float32"
    axes.set_xlabel(f"{what}, batch {results['batch']}, {results['threads']} threads")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def _cell(seconds: float | None, fastest: float) -> str:
    if seconds is None:
        return "–"
    text = f"{seconds * 1e3:.3g}"
    return f"**{text}**" if seconds == fastest else text


def _ratio(row: dict[str, Any]) -> str:
    if "speedup" not in row:
        return "–"
    ratio = row["speedup"]
    return f"{ratio['median']:.2f}× ({ratio['low']:.2f}–{ratio['high']:.2f})"


def write_readme(text: str, batch: int) -> None:
    """Replace what stands between the markers of a batch in README.md."""
    begin, end = f"<!-- bench {batch}:begin -->", f"<!-- bench {batch}:end -->"
    before, _, rest = README.read_text().partition(begin)
    _, _, after = rest.partition(end)
    README.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def run(
    models: list[str],
    rounds: int,
    threads: int,
    batch: int,
    keep: Callable[[dict[str, Any]], object] = lambda results: None,
) -> dict[str, Any]:
    """Measure the models one after another, telling and keeping each result as it comes."""
    from dataclasses import asdict

    from plait.codegen.host import host

    rows: list[dict[str, Any]] = []
    head = {"batch": batch, "rounds": rounds, "threads": threads, "host": asdict(host())}
    for name in models:
        print(f"{name}: ", end="", flush=True)
        row = measure_apart(name, rounds, threads, batch)
        rows.append(row)
        times = ", ".join(f"{peer} {value * 1e3:.3g} ms" for peer, value in row["seconds"].items())
        print(f"{times or 'nothing measured'}; {_ratio(row)}", flush=True)
        for peer, reason in row["absent"].items():
            print(f"  without {peer}: {reason}", flush=True)
        keep({**head, "rows": rows})
    return {**head, "rows": rows}


def updated(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old results with the rows of the new ones in place of their own."""
    rows = {row["model"]: row for row in (*old["rows"], *new["rows"])}
    return {**new, "rows": [rows[name] for name in MODELS if name in rows]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated zoo names")
    parser.add_argument("--batch", type=int, default=1, help="how often each sample is repeated")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=knobs.NUM_THREADS.get())
    parser.add_argument("--write-readme", action="store_true")
    parser.add_argument("--update", action="store_true", help="keep the other models' results")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, file = given.one
        row = measure(name, given.rounds, given.threads, given.batch)
        Path(file).write_text(json.dumps(row))
        return
    file = RESULTS / f"batch{given.batch}.json"
    old = json.loads(file.read_text()) if given.update and file.exists() else {"rows": []}

    def keep(new: dict[str, Any]) -> None:
        file.write_text(json.dumps(updated(old, new), indent=1) + "\n")

    run(given.models.split(","), given.rounds, given.threads, given.batch, keep)
    results = json.loads(file.read_text())
    picture = f"speed_batch{given.batch}.svg"
    text = f"![Speed of Plait over its peers](docs/{picture})\n\n{table(results)}"
    print(f"\n{text}\n")
    held = bars(results)
    if given.write_readme:
        write_readme(text, given.batch)
    plot(results, PLOTS / picture)
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
