"""Files that are written aside and renamed, so that no reader ever finds half of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

PARTIAL = ".partial"  # how the name of a file ends that is being written


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` once the body ends well, else vanishes.

    It is made at once, so that an `OSError` for a place that cannot be written comes before the
    body.  Each writer has a file of its own; of several at once the last to finish wins.
    """
    temporary = path.with_name(f".{path.name}.{token_hex(8)}{PARTIAL}")
    with temporary.open("xb") as file:
        try:
            yield file
            file.flush()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
