"""What kernels allocate while they run, told without running them."""

from __future__ import annotations

from ctypes import c_int, c_uint64, c_void_p
from typing import Any

import pytest

pytest.importorskip("tvm", reason="TVM comes with the compile extra")

from tvm import tirx

from plait.codegen.plan import align
from plait.codegen.tvm.blocks import ZERO, scratch
from plait.codegen.tvm.build import STACK_BYTES
from plait.codegen.tvm.loops import flat, loop, put, sequence
from plait.codegen.tvm.target import cpu_target
from plait.codegen.tvm.workspace import POOL_BYTES, Workspace, workspace
from plait.ir import types as t
from plait.ir.builder import Builder
from plait.ir.graph import Graph
from plait.ir.types import LINE_BYTES, TensorType
from plait.runtime.compiler import compile_graph
from plait.runtime.loader import native


def test_what_is_held_at_once() -> None:
    """Buffers of one after the other are not, small ones lie on the stack; in pages."""
    most = STACK_BYTES // 4
    sizes = (most + 1, most, 2 * most, 2 * most + 1, most - 1)
    shared, each, inner, other, small = (scratch(n, "s") for n in sizes)
    y = flat(TensorType(t.f32, (1,)), "y").buffer

    def using(buffer: Any) -> Any:
        return sequence([tirx.AllocBuffer(buffer), put(buffer, 0, ZERO), put(y, 0, buffer[0])])

    def part(i: Any) -> Any:
        loops = [loop(3, lambda j, b=b: using(b)) for b in (inner, other, small)]
        return sequence([tirx.AllocBuffer(each), put(each, 0, ZERO), *loops])

    parallel = loop(4, part, tirx.ForKind.PARALLEL)
    body = sequence([tirx.AllocBuffer(shared), put(shared, 0, ZERO), parallel])
    func = tirx.PrimFunc([y], body).with_attr("s_tir", True)
    found = workspace(func)
    in_pages = [align(4 * n, POOL_BYTES) for n in sizes]
    assert found == Workspace(in_pages[0], in_pages[1] + in_pages[3])
    assert found.total(threads=3) == in_pages[0] + 3 * (in_pages[1] + in_pages[3])


def product(rows: int) -> Graph:
    """Of two inputs, the second of which lies the wrong way round."""
    b = Builder()
    x, w = (b.input(TensorType(t.f32, (n, 96))) for n in (rows, 100))
    return b.finish([b.emit("dot_general", x, w, lhs_contract=(1,), rhs_contract=(1,))])


@pytest.mark.parametrize(("rows", "panels"), [(64, 1), (1, 0)])
def test_a_product_that_packs_panels(rows: int, panels: int) -> None:
    """TVM allocates only what a tile of the schedule needs: a panel for each thread."""
    (kernel,) = compile_graph(product(rows)).kernels
    nr = int(kernel.schedule.partition("nr=")[2].split()[0])
    found = workspace(cpu_target().build(kernel.body, kernel.schedule))
    assert found == Workspace(0, panels * align(4 * 96 * nr, POOL_BYTES))


def test_a_workspace_begins_on_a_line() -> None:
    """As flags do that threads look at, each on a line of its own."""
    library = native().library
    take, give = library["TVMBackendAllocWorkspace"], library["TVMBackendFreeWorkspace"]
    take.argtypes, take.restype = [c_int, c_int, c_uint64, c_int, c_int], c_void_p
    give.argtypes = [c_int, c_int, c_void_p]
    taken = [take(1, 0, nbytes, 2, 32) for nbytes in (STACK_BYTES, 5000, 100_000)]
    for address in reversed(taken):
        give(1, 0, address)
    assert [address % LINE_BYTES for address in taken] == [0, 0, 0]
