"""The wheel and the base install: pure Python, small, free of torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

LIMIT_BYTES = 2 * 1024 * 1024


def requirement_names(lines: list[str]) -> set[str]:
    return {line.split(">")[0].split("=")[0].split("<")[0].strip().lower() for line in lines}


def test_runtime_install_has_no_torch(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]
    runtime = project["dependencies"] + project["optional-dependencies"]["runtime"]
    assert not {"torch", "triton", "torch-mlir", "transformers"} & requirement_names(runtime)
    assert "apache-tvm-ffi==0.1.14.post1" in runtime


@pytest.mark.slow
def test_wheel_is_pure_and_small(repo_root: Path, tmp_path: Path) -> None:
    # A copy, so that leftovers of an earlier build in the checkout cannot get in.
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(repo_root / "src", tmp_path / "tree" / "src", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo_root / name, tmp_path / "tree" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), "."]
    subprocess.run(command, check=True, cwd=tmp_path / "tree", timeout=240)
    (wheel,) = tmp_path.glob("plait-*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < LIMIT_BYTES
    names = zipfile.ZipFile(wheel).namelist()
    assert "plait/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    compiled = [name for name in names if name.endswith((".so", ".o", ".pyd"))]
    assert not compiled
    source = {
        path.relative_to(repo_root).as_posix()
        for folder in ("ir", "passes", "costmodel", "codegen", "runtime", "frontend", "fuzz")
        for path in (repo_root / folder).rglob("*.py")
    }
    assert source <= {name.removeprefix("plait/") for name in names}
