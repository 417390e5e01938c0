"""What a kernel allocates while it runs, beside the memory of its operands and results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from plait.codegen.plan import align
from plait.codegen.tvm.build import STACK_BYTES, buffer_bytes

Stmt = Any
POOL_BYTES = 4096  # what TVM's pools round a buffer up to


@dataclass(frozen=True)
class Workspace:
    """The most bytes that a kernel holds at once, from the threads' pools of scratch.

    `shared` by all threads of the kernel, and in each of them `thread` more.
    """

    shared: int
    thread: int

    def total(self, threads: int) -> int:
        """Bytes with so many threads, if all of them are in their part at once."""
        return self.shared + threads * self.thread


def workspace(func: Any) -> Workspace:
    """The scratch of a kernel, given the PrimFunc that its template builds."""
    return Workspace(*_most(func.body))


def _most(stmt: Stmt) -> tuple[int, int]:
    """The most bytes held at once outside of parallel loops, and in an iteration of one.

    A buffer is held to the end of the sequence that it is allocated in.
    """
    if isinstance(stmt, tirx.AllocBuffer):
        return _nbytes(stmt.buffer), 0
    shared = thread = held = 0
    for part in _parts(stmt):
        own, each = _most(part)
        shared, thread = max(shared, held + own), max(thread, each)
        held += own if isinstance(part, tirx.AllocBuffer) else 0
    parallel = isinstance(stmt, tirx.For) and stmt.kind == tirx.ForKind.PARALLEL
    return (0, shared + thread) if parallel else (shared, thread)


def _parts(stmt: Stmt) -> list[Stmt]:
    """The statements inside one, in order."""
    if isinstance(stmt, tirx.SeqStmt):
        return list(stmt.seq)
    inside = (getattr(stmt, name, None) for name in ("body", "then_case", "else_case"))
    return [part for part in inside if part is not None]


def _nbytes(buffer: Any) -> int:
    """Bytes of a buffer in the pools, 0 for one on the stack."""
    size = buffer_bytes(buffer)
    return align(size, POOL_BYTES) if size >= STACK_BYTES else 0
