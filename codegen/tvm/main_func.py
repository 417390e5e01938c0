"""The functions of a module that call its kernels, in one object, named after `main_symbol`.

    main(input 0, ..., output 0, ..., frame: int64, begin: int32, end: int32)
    check(frame: int64, inputs: int64, outputs: int64)
    run(frame: int64, begin: int32, end: int32)

`main` takes DLTensors and checks rank, shape, dtype and dense row-major strides before any kernel
runs.  Numpy arrays take long to become DLTensors: `check` is given the places of the items of two
tuples of arrays, compares these with the plan as the Python objects they are, and `run` runs on
those that it found good.  Both go by way of a frame, of `plait.codegen.frame`, to a C function of
the steps.

Every kernel argument is `base + byte offset`.  Of the plan's steps, those from `begin` up to (not
including) `end` run: profiling and debugging run a module step by step through the very code that
runs it whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from plait.codegen import frame as f
from plait.codegen.cpu import CpuTarget
from plait.codegen.plan import ModulePlan, TensorSpec
from plait.codegen.tvm.build import MAIN_OPT_LEVEL, compile_object
from plait.codegen.tvm.steps import INT32, build_steps

PrimExpr = Any
Stmt = Any
_DATA_FIELD = 1  # TVMStructFieldKind's kDLTensorData


def build_main(plan: ModulePlan) -> Any:
    """The `main` of a plan, a PrimFunc over DLTensors."""
    tensors = [
        *(_buffer(t, f"in{i}") for i, t in enumerate(plan.inputs)),
        *(_buffer(t, f"out{i}") for i, t in enumerate(plan.outputs)),
    ]
    frame, given, declared, words = _given_frame(plan)
    begin, end = _range()
    notes = [_put_pointer(frame, k, b.data) for k, b in enumerate(tensors)]
    body = [*declared, *notes, *_go(plan, frame, words, begin, end)]
    return _function([*tensors, given, begin, end], body)


def build_run(plan: ModulePlan) -> Any:
    """The function that runs the steps on the data that a frame names."""
    frame, given, declared, words = _given_frame(plan)
    begin, end = _range()
    return _function([given, begin, end], [*declared, *_go(plan, frame, words, begin, end)])


def build_check(plan: ModulePlan) -> Any:
    """The function that compares array objects with the plan, and notes where their data is.

    The tuples hold as many as the plan has: the caller sees to that.  It returns 0, or `REFUSED`.
    """
    specs = [*plan.inputs, *plan.outputs]
    layout = _layout(plan)
    _, given, declared, words = _given_frame(plan)
    tuples = [tirx.Var(name, "int64") for name in ("inputs", "outputs")]
    stmts, objects = list(declared), list[PrimExpr]()
    for number, count in zip(tuples, (len(plan.inputs), len(plan.outputs)), strict=True):
        items = tirx.Var("items", "handle")
        reading, held = _memory(items, max(count, 1), "int64")
        stmts += [tirx.Bind(items, tirx.reinterpret("handle", number)), reading]
        objects += [held[k] for k in range(count)]
    for k, (spec, at) in enumerate(zip(specs, objects, strict=True)):
        fields = tirx.Var("fields", "handle")
        wide, array = _memory(fields, f.FLAGS + 1, "int64")
        # Rank and flags are C integers, and what lies beside them is not defined.
        narrow, array32 = _memory(fields, 2 * f.FLAGS + 1, "int32")
        stmts += [
            tirx.Bind(fields, tirx.reinterpret("handle", at)),
            wide,
            _refuse([array[f.TYPE] != words[layout.type]]),
            narrow,
            _refuse([array[f.DTYPE] != words[layout.dtypes + k],
                     array32[2 * f.RANK] != len(spec.shape),
                     tirx.bitwise_and(array32[2 * f.FLAGS], _int(f.READY)) != f.READY]),
        ]  # fmt: skip
        if spec.shape:
            shape = tirx.Var("shape", "handle")
            reading, sizes = _memory(shape, len(spec.shape), "int64")
            stmts += [
                tirx.Bind(shape, tirx.reinterpret("handle", array[f.DIMENSIONS])),
                reading,
                _refuse([sizes[d] != _long(n) for d, n in enumerate(spec.shape)]),
            ]
        stmts.append(tirx.BufferStore(words, array[f.DATA], [k]))
    return _function([given, *tuples], [*stmts, tirx.Return(_int(0))])


def compile_main(plan: ModulePlan, target: CpuTarget) -> bytes:
    """The object of a plan's functions, exported under the symbols of the plan."""
    plan.check()
    functions = {
        plan.main_symbol: build_main(plan),
        plan.check_symbol: build_check(plan),
        plan.run_symbol: build_run(plan),
        plan.steps_symbol: build_steps(plan),
    }
    return compile_object(functions, target, MAIN_OPT_LEVEL)


def _function(params: Sequence[Any], stmts: Sequence[Stmt]) -> Any:
    body = tirx.SeqStmt(list(stmts)) if len(stmts) > 1 else stmts[0]
    return tirx.PrimFunc(list(params), body, ret_type=INT32).with_attr("s_tir", True)


def _layout(plan: ModulePlan) -> f.FrameLayout:
    return f.FrameLayout(len(plan.inputs) + len(plan.outputs))


def _go(plan: ModulePlan, frame: Any, words: Any, begin: Any, end: Any) -> list[Stmt]:
    """Run the steps, and return how that went."""
    call: Any = tirx.call_extern("int32", plan.steps_symbol, frame, begin, end)
    status = words[_layout(plan).status].astype("int32")
    # Threads that could not start leave no status.
    return [tirx.IfThenElse(call != 0, tirx.Return(_int(-1)), None), tirx.Return(status)]


def _refuse(conditions: Sequence[PrimExpr]) -> Stmt:
    return tirx.IfThenElse(tirx.any(*conditions), tirx.Return(_int(f.REFUSED)), None)


def _memory(pointer: PrimExpr, size: int, dtype: str) -> tuple[Stmt, Any]:
    """A declaration of memory, and the buffer that stands for it."""
    buffer = tirx.decl_buffer((size,), dtype, name="words")
    return tirx.DeclBuffer(buffer, data=pointer), buffer


def _put_pointer(frame: Any, word: int, pointer: PrimExpr) -> Stmt:
    """Write a pointer, which TVM does for fields of a DLTensor only; `data` is the first."""
    place = tirx.handle_add_byte_offset(frame, _long(8 * word))
    return tirx.Evaluate(tirx.tvm_struct_set(place, 0, _DATA_FIELD, pointer))


def _given_frame(plan: ModulePlan) -> tuple[Any, Any, list[Stmt], Any]:
    """A frame's pointer, the parameter that gives it, what declares it, and its words.

    The parameter is a number, which Python passes in a third of the time of a pointer.
    """
    frame, given = tirx.Var("frame", "handle"), tirx.Var("address", "int64")
    declared, words = _memory(frame, _layout(plan).size, "int64")
    return frame, given, [tirx.Bind(frame, tirx.reinterpret("handle", given)), declared], words


def _range() -> tuple[Any, Any]:
    return tirx.Var("begin", "int32"), tirx.Var("end", "int32")


def _int(value: int) -> Any:
    return tirx.IntImm("int32", value)


def _long(value: int) -> Any:
    return tirx.IntImm("int64", value)


def _buffer(spec: TensorSpec, name: str) -> Any:
    # Only the element's own alignment is asked for: numpy promises no more than 16 bytes.
    itemsize = spec.numpy.itemsize
    dtype = "bool" if spec.dtype == "bool" else spec.numpy.name
    strides = None
    if spec.nbytes == 0:  # numpy and torch give empty tensors strides of their own: take any
        strides = [tirx.Var(f"{name}_stride{d}", "int32") for d in range(len(spec.shape))]
    return tirx.decl_buffer(spec.shape, dtype, name=name, strides=strides, data_alignment=itemsize)
