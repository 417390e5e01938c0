"""What the machine record claims must agree with the system."""

from __future__ import annotations

import os
from pathlib import Path

from plait.codegen.host import KNOWN_FEATURES, host


def test_host_is_plausible() -> None:
    machine = host()
    assert machine.cpus == len(os.sched_getaffinity(0))
    assert machine.cores >= 1
    assert machine.memory > 1 << 28
    assert machine.l1d <= machine.l2 or machine.l2 == 0
    assert set(machine.features) <= set(KNOWN_FEATURES)


def test_features_are_those_of_the_kernel() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert all(feature in flags for feature in host().features)
