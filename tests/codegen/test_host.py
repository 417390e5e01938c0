"""What the machine record claims must agree with the system."""

from __future__ import annotations

import os

from plait.codegen.cpu import host_features
from plait.codegen.host import host


def test_host_is_plausible() -> None:
    machine = host()
    assert machine.cpus == len(os.sched_getaffinity(0))
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.memory > 1 << 28
    assert machine.l1d <= machine.l2 or machine.l2 == 0
    assert set(machine.features) == host_features()
