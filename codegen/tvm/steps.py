"""The C function that runs the steps of a module: calls of kernels, and copies.

    steps(frame: void *, begin: int32, end: int32)

Kernels in a part for each thread share threads: a region starts them once, and they go through its
steps in phases, whose parts they claim.  Of a kernel in more parts, threads take one after another.
Every thread sees the same phases, also when a kernel has failed: the steps after it do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import tvm
from tvm import tirx

from plait.codegen import frame as f
from plait.codegen.plan import Call, Copy, ModulePlan, PointerArg
from plait.codegen.tvm.build import as_c_function
from plait.codegen.tvm.loops import sequence
from plait.codegen.tvm.phases import Phases
from plait.codegen.tvm.sharing import taken

PrimExpr = Any
Stmt = Any
Step = Call | Copy
INT32 = tvm.ir.PrimType("int32")


def regions(steps: Sequence[Step], threads: int) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of steps, in order: those that share threads, and the others singly.

    A range of several starts and ends with a step of several parts.
    """
    parts = [_parts(step) for step in steps]
    parts = [0 if n > threads else n for n in parts]
    first = 0
    while first < len(steps):
        last = end = first + 1
        while parts[first] > 1 and end < len(steps) and parts[end] > 0:
            end += 1
            if parts[end - 1] > 1:
                last = end
        yield first, last
        first = last


def _parts(step: Step) -> int:
    """Calls of a step that any threads may do; 0 of a copy, or if it starts threads by itself."""
    return step.parts if isinstance(step, Call) else 0


def build_steps(plan: ModulePlan) -> Any:
    """The function; what it returns is in the frame, since a C function of TVM's can return but 0.

    The frame's word of status is 0 if all steps ran, -1 if a kernel failed.
    """
    return _Steps(plan).build()


class _Steps:
    """Builds the function of a plan."""

    def __init__(self, plan: ModulePlan) -> None:
        self.plan = plan
        self.layout = f.FrameLayout(len(plan.inputs) + len(plan.outputs))
        self.frame = tirx.Var("frame", "handle")
        self.begin, self.end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
        self.words = tirx.decl_buffer((self.layout.size,), "int64", name="words")
        self.places = {
            "input": 0,
            "output": len(plan.inputs),
            "arena": self.layout.arena,
            "weights": self.layout.weights,
        }

    def build(self) -> Any:
        params = [self.frame, self.begin, self.end]
        stmts = [tirx.DeclBuffer(self.words, data=self.frame), self._status(0)]
        for first, last in regions(self.plan.steps, self.plan.threads):
            parts = _parts(self.plan.steps[first])
            if parts < 2:
                stmts.append(self._alone(first))
            elif parts <= self.plan.threads:
                stmts.append(self._region(first, last))
            else:
                stmts.append(self._taken(first))
        body = tirx.SeqStmt([*stmts, tirx.Return(_int(0))])
        return as_c_function(tirx.PrimFunc(params, body, ret_type=INT32).with_attr("s_tir", True))

    def _alone(self, i: int) -> Stmt:
        """A step outside of any region; nothing follows one that failed."""
        step = self.plan.steps[i]
        if isinstance(step, Copy):
            return self._if_wanted(i, i + 1, tirx.Evaluate(self._copy(step)))
        failed = tirx.SeqStmt([self._status(-1), tirx.Return(_int(0))])
        return self._if_wanted(i, i + 1, tirx.IfThenElse(self._call(step) != 0, failed, None))

    def _region(self, first: int, last: int) -> Stmt:
        """Steps [first, last), which threads go through together."""
        phases = Phases(max(map(_parts, self.plan.steps[first:last])))
        own, body = tirx.Var("own", "int32"), list[Stmt]()
        for i in range(first, last):
            step = self.plan.steps[i]
            assert isinstance(step, Call)
            work = partial(self._part, step)
            phase = phases.run(_int(i - first), step.parts, own, work)
            body.append(self._if_wanted(i, i + 1, phase))
        threads = tirx.For(own, _int(0), _int(phases.parts), tirx.ForKind.PARALLEL, sequence(body))
        shared = phases.around(threads, tirx.max(self.begin - first, _int(0)))
        return self._if_wanted(first, last, tirx.SeqStmt([shared, self._unless_failed()]))

    def _taken(self, i: int) -> Stmt:
        """A step whose parts threads take as they go."""
        step = self.plan.steps[i]
        assert isinstance(step, Call)

        def call(part: PrimExpr) -> Stmt:
            return tirx.IfThenElse(self._call(step, part) != 0, self._status(-1), None)

        stmts = [taken(step.parts, call), self._unless_failed()]
        return self._if_wanted(i, i + 1, tirx.SeqStmt(stmts))

    def _unless_failed(self) -> Stmt:
        """Nothing follows a kernel that failed."""
        failed = self.words[self.layout.status] != _long(0)
        return tirx.IfThenElse(failed, tirx.Return(_int(0)), None)

    def _part(self, step: Call, part: PrimExpr) -> Stmt:
        """A part of a kernel, or the whole of one that has no parts; nothing after a failure."""
        call = self._call(step, *([part] if step.parts > 1 else []))
        runs = self.words[self.layout.status] == _long(0)
        return tirx.IfThenElse(runs, tirx.IfThenElse(call != 0, self._status(-1), None), None)

    def _if_wanted(self, first: int, last: int, work: Stmt) -> Stmt:
        """Work for some of the steps [first, last), if any of them is to run."""
        return tirx.IfThenElse(tirx.all(self.begin < last, first < self.end), work, None)

    def _call(self, call: Call, *more: PrimExpr) -> Any:
        args = (self._pointer(a) for a in call.args)
        return tirx.call_extern("int32", call.symbol, *args, *more)

    def _copy(self, copy: Copy) -> Any:
        to, source = self._pointer(copy.dst), self._pointer(copy.src)
        return tirx.call_extern("handle", "memcpy", to, source, _long(copy.nbytes))

    def _pointer(self, p: PointerArg) -> PrimExpr:
        base = tirx.reinterpret("handle", self.words[self.places[p.space] + p.index])
        if p.byte_offset == 0:
            return base
        return tirx.handle_add_byte_offset(base, _long(p.byte_offset))

    def _status(self, value: int) -> Stmt:
        return tirx.BufferStore(self.words, _long(value), [self.layout.status])


def _int(value: int) -> Any:
    return tirx.IntImm("int32", value)


def _long(value: int) -> Any:
    return tirx.IntImm("int64", value)
