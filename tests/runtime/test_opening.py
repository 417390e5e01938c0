"""TVM imported for a CPU alone, without traces of how."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

SCRIPT = """
import gc, os, sys
from plait.runtime.opening import open_tvm
before = dict(os.environ)
open_tvm()
from tvm.backend.loader import is_loaded
assert gc.isenabled()
assert before.items() <= os.environ.items(), "what was set is kept"
print(is_loaded("cuda"), os.environ.get("TVM_DEVICE_BACKEND_AUTOLOAD"), "torch" in sys.modules)
open_tvm()
"""


LATER = """
import sys
from plait.runtime.opening import open_tvm
open_tvm()
later = [name for name in ("tvm.relax", "tvm.s_tir.dlight") if name in sys.modules]
import tvm
assert not hasattr(tvm, "none_such") and not hasattr(tvm.s_tir, "none_such")
from tvm.s_tir import dlight, meta_schedule
import tvm.s_tir.dlight.gpu
print(later, tvm.relax.Function.__name__, dlight is tvm.s_tir.dlight, dlight.gpu.Matmul.__name__)
"""


def test_packages_that_compiling_does_not_use_are_imported_when_somebody_asks() -> None:
    command = [sys.executable, "-c", LATER]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] Function True Matmul"


@pytest.mark.parametrize(
    ("given", "printed"), [(None, "False None"), ("1", "True 1"), ("0", "False 0")]
)
def test_back_ends_are_loaded_only_for_who_asks(given: str | None, printed: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TVM_DEVICE_BACKEND_AUTOLOAD"}
    if given is not None:
        env["TVM_DEVICE_BACKEND_AUTOLOAD"] = given
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{printed} False"
