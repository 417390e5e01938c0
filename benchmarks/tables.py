"""The results of the speed suite for people: Markdown tables and a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

OURS: Final = "plait"
BEST: Final = "the best peer"
# Not one sample but so many: frames of sound, candidate boxes of a picture.
SEVERAL: Final = "`crepe_*`: four frames, `mtcnn_rnet`, `mtcnn_onet`: four boxes"

Results = Mapping[str, Any]


def peers(results: Results) -> list[str]:
    """The peers that were tried, in the order of the rows."""
    return [name for name in results["peers"] if name != OURS]


def section(results: Results, picture: str) -> str:
    """Everything that README.md shows of a run."""
    return "\n".join(
        [
            f"![Speed of Plait over its peers]({picture})\n",
            table(results),
            "\n<details>\n<summary>What building took</summary>\n",
            costs(results),
            "\n</details>",
        ]
    )


def table(results: Results) -> str:
    """Milliseconds as a Markdown table, the fastest in bold; the ratio; what was not timed."""
    names = [*peers(results), OURS]
    lines = _head(["model", *names, "Plait is faster than the best peer by"])
    for row in results["rows"]:
        seconds = row["seconds"]
        fastest = min(seconds.values(), default=0.0)
        fewer = row.get("fewer_rounds", {})
        cells = [_milliseconds(seconds.get(k), fastest, fewer.get(k)) for k in names]
        lines.append(f"| {row['model']} | " + " | ".join([*cells, ratio(row)]) + " |")
    means = "; ".join(
        f"{geometric_mean(results, peer):.2f}× {peer}"
        for peer in (*peers(results), BEST)
        if ratios(results, peer)
    )
    lines.append(f"\n**Geometric mean of the speed: {means}.**")
    lines.append(
        f"\nMilliseconds per run, median of {_rounds(results)} interleaved rounds, "
        f"batch {results['batch']} (samples are single but for {SEVERAL}), float32, "
        f"{_machines(results)}; the ratio is that of the two medians, below 1 where Plait loses, "
        "and in brackets the median of the ratios within the rounds, where both ran beside each "
        "other, with its 95 % interval, a bootstrap over the rounds and so a coarse one. Each "
        "model is a run of its own, some beside busy neighbours: compare within a row. A dash: "
        f"not timed{', see below' if _absent(results) else ''}.{_few(results)}"
        f"{_versions(results)}"
    )
    return "\n".join([*lines, *_absent(results)])


def costs(results: Results) -> str:
    """Seconds and memory of building each candidate, as a Markdown table."""
    names = [*peers(results), OURS]
    lines = _head(["model", *names])
    for row in results["rows"]:
        built, peaks = row["build_seconds"], row.get("peak_bytes", {})
        cells = [_cost(built.get(name), peaks.get(name)) for name in names]
        lines.append(f"| {row['model']} | " + " | ".join(cells) + " |")
    lines.append(
        f"\nSeconds · MB, batch {results['batch']}: from the loaded model to the first results in "
        "a process of its own, with empty caches and with the compiler's imports; and how far the "
        "resident memory of that process rose in building and two runs (the C++ compilers that "
        "Inductor starts are not in it). A dash: not recorded."
    )
    return "\n".join(lines)


def _head(names: list[str]) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]


def _rounds(results: Results) -> str:
    """How many rounds the rows have: each its own number."""
    found = [row["rounds"] for row in results["rows"] if row["seconds"]] or [0]
    low, high = min(found), max(found)
    return f"{low}" if low == high else f"{low} to {high} (by model, see `benchmarks/results`)"


def _machines(results: Results) -> str:
    """Threads and CPU of the rows; several where rows were recorded elsewhere."""
    found = [
        f"{row['threads']} threads, {row['host']['model']} with {row['host']['cores']} cores"
        for row in results["rows"]
        if row["seconds"]
    ]
    return " or ".join(dict.fromkeys(found))


def _few(results: Results) -> str:
    """What a number behind a time means, if there is one."""
    if not any(row.get("fewer_rounds") for row in results["rows"]):
        return ""
    return (
        " A number in brackets: so many rounds only, since a run of this peer took more than ten "
        "times as long as one of the fastest peer."
    )


def _versions(results: Results) -> str:
    """The packages' versions; several of one if rows differ."""
    found: dict[str, list[str]] = {}
    for row in results["rows"]:
        for package, version in row.get("versions", {}).items():
            if version not in found.setdefault(package, []):
                found[package].append(version)
    listed = ", ".join(f"{package} {'/'.join(each)}" for package, each in found.items())
    return f" With {listed}." if listed else ""


def _absent(results: Results) -> list[str]:
    """A line for each candidate that is not in every row: why."""
    lines = []
    for name in (*peers(results), OURS):
        reasons = [
            f"{row['model']}: {row['absent'][name]}"
            for row in results["rows"]
            if name in row["absent"]
        ]
        if reasons:
            lines.append(f"* Without {name}: {'; '.join(reasons)}.")
    return ["", *lines] if lines else []


def measured(results: Results, peer: str) -> list[dict[str, Any]]:
    """The rows in which both Plait and a peer have a time."""
    return [r for r in results["rows"] if OURS in r["seconds"] and peer in r["seconds"]]


def ratios(results: Results, peer: str) -> list[float]:
    """How many times as fast as a peer Plait is, for the models that both ran."""
    if peer == BEST:
        return [of_medians(row) for row in results["rows"] if "speedup" in row]
    return [r["seconds"][peer] / r["seconds"][OURS] for r in measured(results, peer)]


def geometric_mean(results: Results, peer: str) -> float:
    """Geometric mean of the speed over a peer; NaN without a model that both ran."""
    found = ratios(results, peer)
    return math.exp(sum(map(math.log, found)) / len(found)) if found else math.nan


def plot(results: Results, path: Path) -> None:
    """A bar for each model and peer: how many times as fast Plait is (log scale, 1 = equal)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "plait"
    import matplotlib.pyplot as plt

    shown = [p for p in peers(results) if measured(results, p)]
    names = [r["model"] for r in results["rows"]]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(names) + 1.2), layout="constrained")
    height = 0.8 / max(1, len(shown))
    for k, peer in enumerate(shown):
        rows = measured(results, peer)
        places = [names.index(r["model"]) + (k - (len(shown) - 1) / 2) * height for r in rows]
        found = ratios(results, peer)
        bars = axes.barh(places, found, height * 0.92, label=f"over {peer}")
        axes.bar_label(bars, [f"{x:.2f}" for x in found], fontsize=7, padding=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.5, 1, 2, 4, 8], ["0.5×", "1×", "2×", "4×", "8×"])
    what = "speed of Plait over its peers, float32"
    axes.set_xlabel(f"{what}, batch {results['batch']}")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def _milliseconds(seconds: float | None, fastest: float, rounds: int | None) -> str:
    if seconds is None:
        return "–"
    text = f"{seconds * 1e3:.3g}" + (f" ({rounds})" if rounds else "")
    return f"**{text}**" if seconds == fastest else text


def _cost(seconds: float | None, peak: int | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} · {'–' if peak is None else f'{peak / 1e6:.0f}'}"


def ratio(row: Mapping[str, Any]) -> str:
    """The speed over the best peer, by medians and by rounds, the latter with its interval."""
    if "speedup" not in row:
        return "–"
    found = row["speedup"]
    by_rounds = f"{found['median']:.2f}, {found['low']:.2f}–{found['high']:.2f}"
    return f"{of_medians(row):.2f}× ({by_rounds})"


def of_medians(row: Mapping[str, Any]) -> float:
    """The median of the best peer over that of Plait, for a row that has both."""
    best: float = row["seconds"][row["best_peer"]]
    return best / row["seconds"][OURS]


def worst(row: Mapping[str, Any]) -> float:
    """The lower of the two ratios to the best peer; NaN for a row without."""
    return min(of_medians(row), row["speedup"]["median"]) if "speedup" in row else math.nan
