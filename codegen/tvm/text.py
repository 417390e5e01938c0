"""Text of LLVM's that kernels are linked with, for what TVM's language lacks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx

Stmt = Any


def with_llvm(file: str, body: Stmt) -> Stmt:
    """A statement whose module is linked with what it needs of the text of LLVM's in `file`.

    TVM inlines all functions of the text, and defines none.
    """
    return tirx.AttrStmt(
        tvm.ir.StringImm("default"), "pragma_import_llvm", tvm.ir.StringImm(_text(file)), body
    )


@cache
def _text(file: str) -> str:
    return Path(__file__).with_name(file).read_text()
