"""A compiled module as a Python callable: numpy in, numpy out.

The call is optimistic: arguments go straight to the native `main`, which checks rank, shape, dtype
and strides before it runs anything.  Only when it refuses does Python look at them, to bring them
into the expected form where that is lossless in meaning (a view, a read-only array) or to say in
one sentence what is wrong.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.codegen.plan import ModulePlan, TensorSpec, aligned_empty
from plait.ir.errors import InputMismatch, UsageError
from plait.runtime.loader import Library, Threads, default_threads

Array = NDArray[Any]
_ALIGN_FROM = 1 << 14  # bytes; aligning a smaller result costs more than its stores gain
_thread_state = Threads()
_running: list[None] = []  # one item for each run in flight, in any thread


class CompiledModel:
    """A linked module, its weights and its memory.  Safe to call from many threads at once.

    Parallel loops use `threads` threads; while other runs are in flight they run in their caller's
    thread alone, since several pools on the same cores only get in each other's way.
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
        self.threads = default_threads() if threads is None else threads
        if self.threads < 1:
            raise UsageError(f"threads={threads}: expected at least 1")
        self._library = library
        self._weights = np.empty(0, np.uint8) if weights is None else weights
        if self._weights.nbytes < plan.weights_bytes:
            raise UsageError(
                f"{plan.name}: expected {plan.weights_bytes} bytes of weights, "
                f"got {self._weights.nbytes}"
            )
        self._weights_pointer = ctypes.c_void_p(address(self._weights))
        self._main = library.function(plan.main_symbol)
        self._end = len(plan.steps)
        self._arenas: list[tuple[ctypes.c_void_p, Array]] = []
        self._specs = [(t.shape, t.numpy, t.nbytes) for t in plan.outputs]

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
        results = [_new_output(*spec) for spec in self._specs]
        self.run_into(arrays, results)
        return tuple(results)

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
        arena = self._take_arena()
        _running.append(None)
        try:
            _thread_state.use(self.threads if len(_running) == 1 else 1)
            try:
                self._main(*inputs, *outputs, arena[0], self._weights_pointer, 0, self._end)
            except Exception:
                # `main` refuses before it writes anything, so it may be called again.
                again = self._normalised(inputs)
                self._check_outputs(outputs)
                self._main(*again, *outputs, arena[0], self._weights_pointer, 0, self._end)
        finally:
            _running.pop()
            self._arenas.append(arena)

    def run_steps(
        self, inputs: Sequence[Array], around: Callable[[int, Callable[[], object]], None]
    ) -> tuple[Array, ...]:
        """Run step by step; `around(i, go)` must call `go()`, which runs `plan.steps[i]`.

        It may time it: a step run this way costs a microsecond more than inside a whole run.
        """
        arrays = self._normalised(inputs)
        results = [_new_output(*spec) for spec in self._specs]
        arena = self._take_arena()
        _thread_state.use(self.threads)
        try:
            tensors = (*arrays, *results, arena[0], self._weights_pointer)
            for i in range(self._end):
                around(i, partial(self._main, *tensors, i, i + 1))
        finally:
            self._arenas.append(arena)
        return tuple(results)

    def release_memory(self) -> None:
        """Give back the arenas that no run is using."""
        self._arenas.clear()

    def _take_arena(self) -> tuple[ctypes.c_void_p, Array]:
        try:
            return self._arenas.pop()
        except IndexError:
            memory = aligned_empty(self.plan.arena_bytes)
            return ctypes.c_void_p(address(memory)), memory

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


def address(array: Array) -> int:
    """Where the array's data starts."""
    return int(array.ctypes.data)


def _new_output(shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> Array:
    if nbytes < _ALIGN_FROM:
        return np.empty(shape, dtype)
    return aligned_empty(nbytes).view(dtype).reshape(shape)


def _normalise(spec: TensorSpec, value: Any) -> Array:
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    if array.dtype.name == spec.dtype != spec.numpy.name:
        array = array.view(spec.numpy)  # bfloat16 of ml_dtypes, carried as uint16
    if array.dtype != spec.numpy or array.shape != spec.shape:
        got = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
        raise InputMismatch(name=spec.name, expected=str(spec), got=got)
    if not array.flags.c_contiguous or not array.flags.writeable:
        return array.copy(order="C")
    return array
