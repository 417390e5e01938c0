"""The operator matrix: what it calls wrong, and that it outlives its workers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import op_matrix
from benchmarks.op_matrix import Row, Worker, compare, distance, page

NAN, INF = float("nan"), float("inf")

SCRIPT = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    name = line.strip()
    if name == "crash":
        os.abort()
    if name == "hang":
        time.sleep(60)
    print(json.dumps({"name": name, "status": "native"}), flush=True)
"""


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([NAN, INF], [NAN, INF], 0.0),
        ([NAN, 1.0], [1.0, 1.0], INF),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([], [], 0.0),
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1, 3], INF),
    ],
)
def test_distance(a: list[float], b: list[float], expected: float) -> None:
    assert distance(torch.tensor(a), torch.tensor(b)) == expected


def test_float64_judges_what_differs_from_eager() -> None:
    exact = [torch.tensor([1.0, 1e-3], dtype=torch.float64)]
    bad = [torch.tensor([1.01, 1e-3])]
    good = [torch.tensor([1.0, 1e-3])]
    assert not compare(good, bad, lambda: exact)
    assert "result 0 differs" in compare(bad, good, lambda: exact)


def test_types_and_counts_must_match() -> None:
    one = torch.tensor([1.0])
    assert "eager has 1" in compare([one, one], [one], list)
    assert "torch.float64" in compare([one.double()], [one], list)


def test_a_worker_that_dies_or_hangs_costs_one_row(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT)
    args = op_matrix.parser().parse_args(["--timeout", "2"])
    worker = Worker(args)
    worker.command = [sys.executable, str(script)]
    found = [worker.run(name).status for name in ("a", "crash", "b", "hang", "c")]
    worker.close()
    assert found == ["native", "crash", "native", "timeout", "native"]


def test_page_counts_outcomes() -> None:
    args = op_matrix.parser().parse_args([])
    rows = [Row("add", "native"), Row("sort", "fallback", fallbacks={"aten.sort.default": "x"})]
    text = page(rows, args)
    assert "1 of 2 operators" in text
    assert "| sort | fallback | `aten.sort.default` |" in text


def test_the_recorded_matrix_has_nothing_wrong(repo_root: Path) -> None:
    rows = json.loads((repo_root / "docs" / "op_matrix.json").read_text())["rows"]
    wrong = [r["name"] for r in rows if r["status"] in ("mismatch", "error", "timeout", "crash")]
    assert not wrong
    assert sum(r["status"] == "native" for r in rows) >= 428
