"""The operator matrix: what it calls wrong, and that it outlives its workers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import op_matrix
from benchmarks.op_matrix import Row, Worker, compare, page, run_operator

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


def test_float64_judges_what_differs_from_eager() -> None:
    exact = [torch.tensor([1.0, 1e-3], dtype=torch.float64)]
    bad = [torch.tensor([1.01, 1e-3])]
    good = [torch.tensor([1.0, 1e-3])]
    assert not compare(good, good, list)
    assert not compare(good, bad, lambda: exact)
    assert "result 0 differs" in compare(bad, good, lambda: exact)


def test_small_differences_everywhere_are_too_much() -> None:
    want = torch.ones(1000)
    assert "on average" in compare([want + 5e-5], [want], lambda: [want.double()])


def test_an_absent_judge_is_named() -> None:
    def wide() -> list[torch.Tensor]:
        raise NotImplementedError("no float64 here")

    found = compare([torch.tensor([1.01])], [torch.tensor([1.0])], wide)
    assert "differs" in found and "no judge: NotImplementedError: no float64 here" in found


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor([1.5, NAN, INF]),
        lambda: torch.tensor([[0.0, 2.0]]).to_sparse(),
        lambda: torch.tensor([1.5]).to(torch.bfloat16),
        lambda: torch.tensor([1 + 2j]).to(torch.complex32),
        lambda: torch.randn(3, dtype=torch.complex64).conj(),
        lambda: torch.tensor([]),
        lambda: torch.tensor(True),
    ],
)
def test_results_of_all_kinds_agree_with_themselves(make: Callable[[], torch.Tensor]) -> None:
    result = make()
    assert not compare([result], [result.clone()], list)


def test_integers_must_be_equal() -> None:
    assert "1 of 2 elements" in compare([torch.tensor([1, 2])], [torch.tensor([1, 3])], list)


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


@pytest.fixture(scope="module")
def operators() -> dict[str, Any]:
    return op_matrix._operators()


RECORDED = Path(__file__).resolve().parents[2] / "docs" / "op_matrix.json"
NATIVE = [r["name"] for r in json.loads(RECORDED.read_text())["rows"] if r["status"] == "native"]


@pytest.mark.parametrize("name", NATIVE[::36])
def test_what_is_recorded_as_native_is_native(name: str, operators: dict[str, Any]) -> None:
    row = run_operator(operators[name], name, op_matrix.parser().parse_args([]))
    assert (row.status, row.message) == ("native", "")
