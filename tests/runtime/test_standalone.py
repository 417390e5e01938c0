"""An artifact runs where nothing but numpy and the native runtime packages is installed.

The stand-in for such a machine is an isolated interpreter (`-I -S`: no site-packages, no user site,
no environment) with an empty PATH, whose path holds links to just those packages.  Its `tvm` is an
empty folder around `libtvm_runtime.so`, which raises when it is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

DISTRIBUTIONS = ("numpy", "apache-tvm-ffi", "apache-tvm-ffi-orcjit", "typing-extensions")

RUN = """
import json, sys, time
sys.path[:0] = json.loads(sys.argv[1])
start = time.perf_counter()
from pathlib import Path
import numpy as np
from plait.runtime.artifact import Artifact
artifact = Artifact.open(Path(sys.argv[2]))
model = artifact.load()
loaded = time.perf_counter()
inputs, outputs = artifact.samples()
found = model.run(inputs)
error = max(float(abs(found[k] - v).max()) for k, v in outputs.items())
foreign = sorted({"torch", "tvm", "triton", "platformdirs"} & sys.modules.keys())
print(json.dumps({"error": error, "foreign": foreign, "seconds": loaded - start}))
"""

TORCH_LATER = """
import sys
from pathlib import Path
import numpy as np
from plait.runtime.artifact import Artifact
artifact = Artifact.open(Path(sys.argv[1]))
model = artifact.load()
assert "torch" not in sys.modules, "loading an artifact imported torch"
inputs, outputs = artifact.samples()
import torch
results = model(*(torch.from_numpy(a.copy()) for a in inputs.values()))
np.testing.assert_allclose(results[0], outputs["out"], rtol=1e-6, atol=1e-6)
import tvm
np.testing.assert_allclose(artifact.load().run(inputs)["out"], outputs["out"], rtol=1e-6, atol=1e-6)
print("fine")
"""


@pytest.fixture(scope="module")
def bare_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to the packages that an artifact needs."""
    site = tmp_path_factory.mktemp("site")
    for name in DISTRIBUTIONS:
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    spec = importlib.util.find_spec("tvm")
    assert spec is not None and spec.submodule_search_locations
    (site / "tvm" / "lib").mkdir(parents=True)
    (site / "tvm" / "__init__.py").write_text("raise ImportError('the runtime imported tvm')\n")
    runtime = Path(spec.submodule_search_locations[0]) / "lib" / "libtvm_runtime.so"
    (site / "tvm" / "lib" / runtime.name).symlink_to(runtime)
    metadata = Path(str(importlib.metadata.distribution("apache-tvm").locate_file("")))
    (info,) = metadata.glob("apache_tvm-*.dist-info")
    (site / info.name).symlink_to(info)
    return site


def test_without_torch_tvm_compiler_or_path(
    small_artifact: Path, bare_site: Path, repo_root: Path
) -> None:
    paths = json.dumps([str(bare_site), str(repo_root / "src")])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", RUN, paths, str(small_artifact)],
        capture_output=True,
        text=True,
        env={"PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["error"] < 1e-5
    assert report["foreign"] == []


def test_without_the_native_packages_one_sentence_says_so(
    small_artifact: Path, bare_site: Path, repo_root: Path, tmp_path: Path
) -> None:
    for entry in bare_site.iterdir():
        if not entry.name.startswith(("tvm", "apache_tvm_ffi_orcjit")):
            (tmp_path / entry.name).symlink_to(entry)
    code = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1])\n"
        "from plait.ir.errors import EnvironmentProblem\n"
        "from plait.runtime.loader import native\n"
        "try: native()\n"
        "except EnvironmentProblem as e: print(e.exit_code, e)\n"
    )
    paths = json.dumps([str(tmp_path), str(repo_root / "src")])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, paths], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("6 libtvm_runtime.so of apache-tvm is needed"), done.stderr


def test_beside_torch_it_is_not_imported_and_may_come_later(
    small_artifact: Path, repo_root: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TORCH_LATER, str(small_artifact)],
        capture_output=True,
        text=True,
        cwd=repo_root,
        check=False,
    )
    assert done.stdout.endswith("fine\n"), done.stderr
