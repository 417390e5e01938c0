"""A compiled module as a Python callable: numpy in, numpy out.

The call is optimistic: native code compares the arrays with the plan, where they lie as Python
objects, or as what they give by DLPack, before it runs anything.  Only when it refuses does Python
look at them, to bring them into the expected form where that is lossless in meaning (a view, an
unusual dtype object) or to say in one sentence what is wrong.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plait.codegen import frame as f
from plait.codegen.plan import ModulePlan, TensorSpec, aligned_empty
from plait.ir.errors import InputMismatch, UsageError
from plait.ir.knobs import thread_count
from plait.runtime.loader import Library
from plait.runtime.results import maker

Array = NDArray[Any]
_running: list[None] = []  # one item for each run in flight, in any thread
os.register_at_fork(after_in_child=_running.clear)


class _Frame(NamedTuple):
    """The memory of a run in flight: what `plait.codegen.frame` describes, and the arena."""

    address: int
    words: Array
    arena: Array


class CompiledModel:
    """A linked module, its weights and its memory.  Safe to call from many threads at once.

    Parallel loops use `threads` threads; while other runs are in flight they run in their caller's
    thread alone, since more threads than cores only get in each other's way.
    """

    def __init__(
        self,
        plan: ModulePlan,
        library: Library,
        weights: Array | None = None,
        threads: int | None = None,
    ) -> None:
        """`weights`: the blob of `plan.weights` (uint8, aligned), kept alive and never written."""
        self.plan = plan
        self.threads = thread_count(threads)
        self._library, self._share = library, library.pool.use
        self._weights = np.empty(0, np.uint8) if weights is None else weights
        if self._weights.nbytes < plan.weights_bytes:
            raise UsageError(
                f"{plan.name}: expected {plan.weights_bytes} bytes of weights, "
                f"got {self._weights.nbytes}"
            )
        self._main = library.function(plan.main_symbol)
        self._run = library.function(plan.run_symbol)
        # It reads objects that another Python thread may change, so it keeps the lock.
        self._check = library.function(plan.check_symbol, keep_lock=True)
        self._end = len(plan.steps)
        # -1: arrays lie elsewhere in their objects here, so `check` is never called.
        self._checked = len(plan.inputs) if arrays_lie_as_expected() else -1
        self._frames: list[_Frame] = []
        self._new_outputs = [maker(t) for t in plan.outputs]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.plan.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.plan.outputs

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        """Run on arrays in the order of `inputs`; returns new arrays in the order of `outputs`.

        Raises `InputMismatch` naming the input whose dtype or shape is not the expected one.
        """
        results = tuple([new() for new in self._new_outputs])
        if len(arrays) == self._checked:
            frame = self._take_frame()
            _running.append(None)
            try:
                items = id(arrays) + f.ITEMS, id(results) + f.ITEMS
                if self._check(frame.address, *items) != f.REFUSED:
                    self._share(self.threads if len(_running) == 1 else 1)
                    if self._run(frame.address, 0, self._end):
                        raise _no_memory(self.plan)
                    return results
            finally:
                del _running[-1:]  # nothing, in a process that was forked during the call
                self._frames.append(frame)
        self.run_into(arrays, results)
        return results

    def run(self, named: Mapping[str, Array]) -> dict[str, Array]:
        """Run on arrays by name.  Raises `InputMismatch` for a missing or an unknown name."""
        names = [t.name for t in self.inputs]
        for spec in self.inputs:
            if spec.name not in named:
                raise InputMismatch(name=spec.name, expected=str(spec), got="nothing")
        for name in named:
            if name not in names:
                raise InputMismatch(name=name, expected=f"one of {names}", got="an unknown name")
        results = self(*(named[name] for name in names))
        return {t.name: r for t, r in zip(self.outputs, results, strict=True)}

    def run_into(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Run on anything that speaks DLPack, results into `outputs`, which must be dense.

        With arrays kept from call to call as `tvm_ffi` tensors this is the cheapest way to run.
        """
        frame = self._take_frame()
        _running.append(None)
        try:
            self._share(self.threads if len(_running) == 1 else 1)
            try:
                failed = self._main(*inputs, *outputs, frame.address, 0, self._end)
            except Exception:
                # `main` refuses before it writes anything, so it may be called again.
                again = self._normalised(inputs)
                self._check_outputs(outputs)
                failed = self._main(*again, *outputs, frame.address, 0, self._end)
            if failed:
                raise _no_memory(self.plan)
        finally:
            del _running[-1:]
            self._frames.append(frame)

    def run_steps(
        self, inputs: Sequence[Array], around: Callable[[int, Callable[[], object]], None]
    ) -> tuple[Array, ...]:
        """Run step by step; `around(i, go)` must call `go()`, which runs `plan.steps[i]`.

        It may time it: a step run this way costs a microsecond more than inside a whole run, and
        two if it shares threads with others there.
        """
        arrays = self._normalised(inputs)
        results = [new() for new in self._new_outputs]
        frame = self._take_frame()
        self._share(self.threads)

        def go(i: int) -> None:
            if self._main(*arrays, *results, frame.address, i, i + 1):
                raise _no_memory(self.plan)

        try:
            for i in range(self._end):
                around(i, partial(go, i))
        finally:
            self._frames.append(frame)
        return tuple(results)

    def release_memory(self) -> None:
        """Give back the arenas that no run is using, and the memory kept for large results."""
        self._frames.clear()
        self._new_outputs = [maker(t) for t in self.plan.outputs]

    def _take_frame(self) -> _Frame:
        try:
            return self._frames.pop()
        except IndexError:
            return self._new_frame()

    def _new_frame(self) -> _Frame:
        arena = aligned_empty(self.plan.arena_bytes)
        specs = [*self.plan.inputs, *self.plan.outputs]
        layout = f.FrameLayout(len(specs))
        words = np.zeros(layout.size, np.int64)
        words[layout.arena], words[layout.weights] = address(arena), address(self._weights)
        words[layout.type] = id(np.ndarray)
        words[layout.dtypes :] = [id(spec.numpy) for spec in specs]
        return _Frame(address(words), words, arena)

    def _normalised(self, inputs: Sequence[Any]) -> list[Array]:
        """The inputs as dense, writable arrays; raises `InputMismatch` at the first wrong one."""
        if len(inputs) != len(self.inputs):
            expected = f"{len(self.inputs)} inputs ({', '.join(t.name for t in self.inputs)})"
            raise UsageError(f"{self.plan.name}: expected {expected}, got {len(inputs)}")
        return [_normalise(t, a) for t, a in zip(self.inputs, inputs, strict=True)]

    def _check_outputs(self, outputs: Sequence[Any]) -> None:
        if len(outputs) != len(self.outputs):
            expected = f"{len(self.outputs)} outputs"
            raise UsageError(f"{self.plan.name}: expected {expected}, got {len(outputs)}")
        for spec, array in zip(self.outputs, outputs, strict=True):
            # Not only numpy: torch writes its dtypes as `torch.float32`.
            dtype, shape = str(array.dtype).rpartition(".")[2], tuple(array.shape)
            if dtype not in (spec.dtype, spec.numpy.name) or shape != spec.shape:
                got = f"{dtype}[{', '.join(map(str, shape))}]"
                raise UsageError(f"output {spec.name!r}: expected {spec}, got {got}")
            if isinstance(array, np.ndarray) and not array.flags.carray:
                raise UsageError(f"output {spec.name!r}: expected a dense, writable array")


@cache
def arrays_lie_as_expected() -> bool:
    """Whether this Python and this numpy keep arrays where `plait.codegen.frame` says.

    Numpy's part is its stable binary interface; the header of an object is longer in some builds of
    CPython, and an object's `id` is its address in CPython alone.
    """
    if sys.implementation.name != "cpython" or object.__basicsize__ != f.TYPE * 8 + 8:
        return False
    pair = (object(), object())
    items = (ctypes.c_int64 * 2).from_address(id(pair) + f.ITEMS)
    if tuple(items) != tuple(map(id, pair)):
        return False
    array = np.zeros((2, 3), np.float32)
    words = (ctypes.c_int64 * (f.FLAGS + 1)).from_address(id(array))
    shape = (ctypes.c_int64 * 2).from_address(words[f.DIMENSIONS])
    low = 0xFFFFFFFF
    found = (words[f.TYPE], words[f.DATA], words[f.RANK] & low, words[f.DTYPE])
    wanted = (id(np.ndarray), address(array), 2, id(np.dtype(np.float32)))
    flags = words[f.FLAGS] & low
    return found == wanted and tuple(shape) == (2, 3) and flags == array.flags.num


def _no_memory(plan: ModulePlan) -> MemoryError:
    """What a kernel that fails has met: it asks for nothing but scratch."""
    return MemoryError(f"{plan.name}: a kernel could not get the memory of its scratch")


def address(array: Array) -> int:
    """Where the array's data starts."""
    return int(array.ctypes.data)


def _normalise(spec: TensorSpec, value: Any) -> Array:
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    if array.dtype.name == spec.dtype != spec.numpy.name:
        array = array.view(spec.numpy)  # bfloat16 of ml_dtypes, carried as uint16
    if array.dtype != spec.numpy or array.shape != spec.shape:
        got = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
        raise InputMismatch(name=spec.name, expected=str(spec), got=got)
    if not array.flags.carray:
        return array.copy(order="C")
    return array
