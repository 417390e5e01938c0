"""The seven root folders are one package, import each other in one order, and stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each folder may import from plait. A folder always sees itself.
MAY_IMPORT: dict[str, set[str]] = {
    "ir": set(),
    "passes": {"ir"},
    "costmodel": {"ir"},
    "codegen": {"ir", "passes"},
    "runtime": {"ir", "passes", "codegen", "costmodel"},
    "frontend": {"ir", "passes", "codegen", "costmodel", "runtime"},
    "fuzz": {"ir", "passes", "codegen", "costmodel", "runtime", "frontend", "cli"},
}
FOLDERS = sorted(MAY_IMPORT)

# Libraries that cost seconds to import, and the modules that exist for one of them. Every other
# module imports them inside the function that needs them.
HEAVY: dict[str, list[str]] = {
    "torch": ["frontend/*.py"],
    "torchvision": [],
    "transformers": [],
    "tvm": ["codegen/tvm/*.py"],
    "tvm_ffi": ["codegen/tvm/*.py"],
    "tvm_ffi_orcjit": [],
    "triton": ["codegen/triton/*.py"],
    "torch_mlir": ["ir/mlir/*.py"],
    "sklearn": [],
    "scipy": [],
    "pandas": [],
}


def sources(folder: str) -> Iterator[Path]:
    yield from sorted((ROOT / folder).rglob("*.py"))


def imports_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every import of a module with its line, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run on import, looking through `if` and `try` but not into functions."""
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        node = todo.pop()
        if is_type_checking(node):
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                todo.extend(getattr(node, field, []))


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT / "tests",
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_link_is_present(folder: str) -> None:
    link = ROOT / "src" / "plait" / folder
    assert link.is_symlink(), f"src/plait/{folder} is no link: check out with core.symlinks=true"
    assert link.readlink() == Path("../..") / folder
    assert (link / "__init__.py").is_file()


def test_pyright_lists_every_link() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    listed = set(config["pyright"]["include"])
    assert {f"src/plait/{folder}" for folder in FOLDERS} <= listed
    assert set(FOLDERS) <= set(config["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"])


@pytest.mark.slow
def test_every_module_imports_under_one_name() -> None:
    code = f"""
import importlib, pkgutil, sys
import plait
for info in pkgutil.walk_packages(plait.__path__, "plait."):
    if not info.name.endswith("__main__"):
        importlib.import_module(info.name)
bare = [name for name in {FOLDERS!r} if name in sys.modules]
assert not bare, f"imported without plait: {{bare}}"
missing = [name for name in {FOLDERS!r} if "plait." + name not in sys.modules]
assert not missing, f"not in the package: {{missing}}"
"""
    run_python(code)


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_in_one_order(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder}
    wrong = []
    for path in sources(folder):
        for line, name in imports_of(ast.parse(path.read_text())):
            parts = name.split(".")
            if parts[0] == "plait" and len(parts) > 1 and parts[1] in {*FOLDERS, "cli"}:
                if parts[1] not in allowed:
                    wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
            elif parts[0] in FOLDERS:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name} without plait")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("pattern", sorted({p for allowed in HEAVY.values() for p in allowed}))
def test_exceptions_are_for_modules_that_exist(pattern: str) -> None:
    assert any(ROOT.glob(pattern))


def test_skips_say_what_is_missing() -> None:
    """A bare `importorskip` leaves only a module's name in the report."""
    bare = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        for call in (node for node in nodes if isinstance(node, ast.Call)):
            skips = ast.unparse(call.func) == "pytest.importorskip"
            if skips and all(keyword.arg != "reason" for keyword in call.keywords):
                bare.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not bare, "\n".join(bare)


@pytest.mark.parametrize("folder", [*FOLDERS, "src/plait/cli"])
def test_no_heavy_import_at_top(folder: str) -> None:
    wrong = []
    for path in sources(folder):
        name = path.relative_to(ROOT).as_posix()
        for node in top_level(ast.parse(path.read_text())):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            for library in {module.split(".")[0] for module in modules} & set(HEAVY):
                if not any(fnmatch(name, pattern) for pattern in HEAVY[library]):
                    wrong.append(f"{name}:{node.lineno} imports {library} at its top")
    assert not wrong, "\n".join(wrong)


def test_help_loads_no_heavy_library() -> None:
    code = """
import sys
from plait.cli.main import main
sys.argv = ["plait", "--help"]
code = main()
assert code == 0, code
heavy = {"torch", "tvm", "tvm_ffi", "triton", "torch_mlir", "numpy"} & set(sys.modules)
assert not heavy, f"plait --help imports {heavy}"
"""
    assert "doctor" in run_python(code)


def test_pure_packages_load_no_heavy_library() -> None:
    code = """
import sys
import plait.ir, plait.passes, plait.costmodel, plait.codegen, plait.runtime, plait.fuzz
heavy = {"torch", "tvm", "tvm_ffi", "triton", "torch_mlir"} & set(sys.modules)
assert not heavy, f"a package imports {heavy}"
"""
    run_python(code)
