"""The benchmark that races all candidates of a kernel."""

from __future__ import annotations

import pytest

from benchmarks import space


def test_a_line_for_each_candidate_the_fastest_first(capsys: pytest.CaptureFixture[str]) -> None:
    space.main(["minilm projection", "--most", "3", "--rounds", "2"])
    name, head, *lines = capsys.readouterr().out.splitlines()
    assert name == "minilm projection" and head.split() == ["us", "GFLOP/s", "estimate", "schedule"]
    times = [float(line.split()[0]) for line in lines]
    assert len(times) == 3 and times == sorted(times)
    assert all("gemm{" in line and 0.01 < float(line.split()[2]) < 100 for line in lines)


def test_an_unknown_shape(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        space.main(["no such shape"])
    assert "known: resnet stem" in capsys.readouterr().err
