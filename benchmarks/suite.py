"""The speed suite: Plait against its peers on the model zoo, float32, in one interleaved run.

    python -m benchmarks.suite [--models NAMES] [--batch N] [--rounds N] [--peers all]
                               [--write-readme]

Every model runs in a process of its own, and in it every candidate again in one of its own, which
builds with empty caches and then waits. Each round times every candidate once, in rotating order;
what is printed are medians and, against the fastest peer, the ratio with a 95 % bootstrap interval.
There are seven rounds, and up to thirty as time allows, or as many as `--rounds` says; a peer far
behind the others gets three.
A candidate whose outputs do not agree with eager is not timed.

`--peers all` adds those that take long to build or to run. Results go to
`benchmarks/results/batch1.json` (`batch1-all.json`), in place of the rows of the same models; on a
CPU with AVX-512 to `batch1-avx512.json`. With `--write-readme` they go into `README.md` too. The
exit code is 1 if a model was not measured with Plait or a bar is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.candidates import Built, Candidate, CandidateFailed
from benchmarks.measuring import (
    MODELS,
    RESULTS,
    ROOT,
    MeasurementFailed,
    apart,
    chosen,
    keep,
    on_this_kind,
)
from benchmarks.report import report
from benchmarks.tables import BEST, OURS, geometric_mean, plot, ratio, section, worst
from plait.ir import knobs
from plait.runtime.bench import Comparison, interleave

README: Final = ROOT / "README.md"
PLOTS: Final = ROOT / "docs"
PEERS: Final = ("eager", "inductor", "openvino", "onnxruntime")
SLOW_PEERS: Final = ("inductor max-autotune", "tvm", "iree")
BUILD_LIMIT: Final = 300.0  # seconds of building and two runs
SLOW_BUILD_LIMIT: Final = 180.0
MIN_ROUNDS, MAX_ROUNDS = 7, 30
ROUNDS_SECONDS: Final = 25.0  # of one model, for rounds beyond the least
SAMPLE_SECONDS: Final = 0.21  # of settling, before and beside the runs of a sample
FAR_BEHIND: Final = 10.0  # times the fastest peer's run
FAR_BEHIND_ROUNDS: Final = 3
# The geometric mean of the speed over a peer must be at least this, by batch.
MEAN_BARS: Final = {
    1: {"eager": 1.5, "inductor": 1.1, BEST: 1.3},
    8: {"eager": 1.0, "inductor": 1.0, BEST: 1.15},
}


def measure(
    name: str, rounds: int | None, threads: int, batch: int, slow_peers: bool
) -> dict[str, Any]:
    """Build, check and time all candidates on one model; the result as plain data.

    Without a number of rounds the time that they take decides.
    """
    import torch

    from benchmarks import peers
    from benchmarks.zoo import ZOO

    torch.set_num_threads(1)  # a process that is to be forked must not have started threads
    entry = ZOO[name]()
    given = entry.batched(batch)
    builders = {**peers.PEERS, **(peers.SLOW_PEERS if slow_peers else {}), OURS: peers.plait}
    absent: dict[str, str] = {}
    built: dict[str, Built] = {}
    with ExitStack() as stack:
        candidates: dict[str, Candidate] = {}
        for peer, build in builders.items():
            limit = SLOW_BUILD_LIMIT if peer in SLOW_PEERS else BUILD_LIMIT
            try:
                candidate = Candidate(partial(build, entry.model, given, threads), limit)
            except CandidateFailed as error:
                absent[peer] = str(error)
                continue
            candidates[peer] = stack.enter_context(candidate)
            built[peer] = candidate.built
        reasons = wrong(built)
        samplers = {peer: c.sample for peer, c in candidates.items() if peer not in reasons}
        runs = {peer: built[peer].run_seconds for peer in samplers}
        fewer = far_behind(runs)
        rounds = rounds or affordable({p: s for p, s in runs.items() if p not in fewer})
        timing, failed = timed(samplers, rounds, fewer)
    # No earlier: building Plait, in a fork of this process, counts its imports.
    from plait.codegen.host import host

    seconds = {peer: timing.median(peer) for peer in samplers if peer not in failed}
    row: dict[str, Any] = {
        "model": name,
        "weights": entry.kind,
        "rounds": rounds,
        "fewer_rounds": {peer: n for peer, n in fewer.items() if peer in seconds},
        "threads": threads,
        "host": dataclasses.asdict(host()),
        "versions": peers.versions(),
        "absent": {**absent, **reasons, **failed},
        "build_seconds": {peer: each.build_seconds for peer, each in built.items()},
        "peak_bytes": {peer: each.peak_bytes for peer, each in built.items()},
        "seconds": seconds,
    }
    rivals = {peer: each for peer, each in seconds.items() if peer != OURS}
    if OURS in seconds and rivals:
        best = min(rivals, key=rivals.__getitem__)
        row["best_peer"] = best
        row["speedup"] = dict(
            zip(("median", "low", "high"), timing.speedup(OURS, best), strict=True)
        )
    return row


def far_behind(runs: Mapping[str, float]) -> dict[str, int]:
    """The rounds of each peer that is many times slower than the fastest one, by a run of each."""
    peers = {peer: seconds for peer, seconds in runs.items() if peer != OURS}
    bar = FAR_BEHIND * min(peers.values(), default=0.0)
    return {peer: FAR_BEHIND_ROUNDS for peer, seconds in peers.items() if seconds > bar}


def affordable(runs: Mapping[str, float]) -> int:
    """How many rounds a model gets, by the seconds of a run of each candidate."""
    one = sum(SAMPLE_SECONDS + 2 * seconds for seconds in runs.values())
    return max(MIN_ROUNDS, min(MAX_ROUNDS, int(ROUNDS_SECONDS / max(one, SAMPLE_SECONDS))))


def timed(
    samplers: Mapping[str, Callable[[], float]], rounds: int, fewer: Mapping[str, int]
) -> tuple[Comparison, dict[str, str]]:
    """Interleaved samples, and why candidates failed: the others are then timed anew."""
    failed: dict[str, str] = {}
    asked = ""

    def asking(peer: str) -> float:
        nonlocal asked
        asked = peer
        return samplers[peer]()

    while True:
        left = {peer: partial(asking, peer) for peer in samplers if peer not in failed}
        if not left:
            return Comparison({}), failed
        try:
            return interleave(left, rounds, fewer=fewer), failed
        except CandidateFailed as error:
            failed[asked] = str(error)


def wrong(built: Mapping[str, Built]) -> dict[str, str]:
    """Of the candidates whose results do not agree with eager's, what is wrong."""
    from plait.ir.agreement import compare as agree

    if "eager" not in built:
        return {}
    reference = built["eager"].results
    found = {}
    for peer, each in built.items():
        if len(each.results) != len(reference):
            found[peer] = f"gives {len(each.results)} results, eager {len(reference)}"
            continue
        verdicts = [agree(got, want) for got, want in zip(each.results, reference, strict=True)]
        reasons = [verdict.reason for verdict in verdicts if not verdict.agrees]
        if reasons:
            found[peer] = reasons[0]
    return found


def measure_apart(
    name: str, rounds: int | None, threads: int, batch: int, slow_peers: bool
) -> dict[str, Any]:
    """`measure` in a process of its own, so that no model's threads or memory disturb the next."""
    options = ["--threads", threads, "--batch", batch]
    options += ["--rounds", rounds] if rounds else []
    options += ["--peers", "all"] if slow_peers else []
    try:
        found: dict[str, Any] = apart("benchmarks.suite", [name], options)
    except MeasurementFailed as error:
        row = {"model": name, "weights": "", "absent": {OURS: str(error).splitlines()[-1]}}
        return {**row, "seconds": {}, "build_seconds": {}}
    return found


def bars(results: dict[str, Any], models: Sequence[str]) -> bool:
    """Print each bar beside what was found; whether all hold. What was not measured holds none."""
    held = []
    rows = {row["model"]: row for row in results["rows"]}
    for name in models:
        found = worst(rows.get(name, {}))
        held.append(report(f"{name}: speed over {BEST}", found, 1, "x", "at least"))
    for peer, bar in MEAN_BARS.get(results["batch"], {}).items():
        found, what = geometric_mean(results, peer), f"geometric mean of the speed over {peer}"
        held.append(report(what, found, bar, "x", "at least"))
    return all(held)


def write_readme(text: str, name: str) -> None:
    """Replace the table of a run in README.md. Raises `LookupError` where it has none."""
    found = around(name)
    if found is None:
        raise LookupError(f"README.md has no table of {name}")
    README.write_text(f"{found[0]}\n{text}\n{found[1]}")


def around(name: str) -> tuple[str, str] | None:
    """README.md up to the table of a run, and from its end on; None where it has no such table."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = README.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    return (before + begin, end + after) if found and ended else None


def run(
    models: list[str],
    rounds: int | None,
    threads: int,
    batch: int,
    slow_peers: bool,
    file: Path,
) -> list[str]:
    """Measure the models one after another, telling each result and keeping it in a file.

    Gives the names of those of which nothing was measured; what is on record of them stays.
    """
    names = [*PEERS, *(SLOW_PEERS if slow_peers else ()), OURS]
    head = {"batch": batch, "peers": names}
    lost = []
    for name in models:
        print(f"{name}: ", end="", flush=True)
        row = measure_apart(name, rounds, threads, batch, slow_peers)
        times = ", ".join(f"{peer} {value * 1e3:.3g} ms" for peer, value in row["seconds"].items())
        print(f"{times or 'nothing measured'}; {ratio(row)}", flush=True)
        for peer, reason in row["absent"].items():
            print(f"  without {peer}: {reason}", flush=True)
        if row["seconds"]:
            keep(file, {**head, "rows": [row]})
        else:
            lost.append(name)
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated zoo names")
    parser.add_argument("--batch", type=int, default=1, help="how often each sample is repeated")
    parser.add_argument("--rounds", type=int, help=f"default: {MIN_ROUNDS} or more")
    parser.add_argument("--threads", type=int, default=knobs.NUM_THREADS.get())
    parser.add_argument("--peers", choices=("usual", "all"), default="usual", help="all: slow ones")
    parser.add_argument("--write-readme", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    slow_peers = given.peers == "all"
    if given.one:
        name, file = given.one
        row = measure(name, given.rounds, given.threads, given.batch, slow_peers)
        Path(file).write_text(json.dumps(row))
        return
    stem = on_this_kind(f"batch{given.batch}{'-all' if slow_peers else ''}")
    file = RESULTS / f"{stem}.json"
    table = around(f"bench {stem}")
    if given.write_readme and table is None:
        print(f"README.md has no table of {stem}: its rows go to {file.relative_to(ROOT)} alone")

    names = chosen(parser, given.models)
    lost = run(names, given.rounds, given.threads, given.batch, slow_peers, file)
    if not file.exists():
        raise SystemExit("nothing was measured")
    results = json.loads(file.read_text())
    text = section(results, f"docs/speed_{stem}.svg")
    print(f"\n{text}\n")
    held = bars(results, names if slow_peers else MODELS) and not lost
    plot(results, PLOTS / f"speed_{stem}.svg")
    if given.write_readme and table is not None:
        write_readme(text, f"bench {stem}")
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
