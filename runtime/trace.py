"""A profile as a trace: the JSON event format that Perfetto and Chrome's tracing page read.

Complete events, `X`, have a start and a duration in microseconds.  Each round has one for the run
as a whole, then one for the run step by step that encloses one for each step.
"""

from __future__ import annotations

from typing import Any

from plait.runtime.profile import Profile, Step

_THREAD = {"pid": 1, "tid": 1}


def trace(profile: Profile) -> dict[str, Any]:
    """The trace as plain data for JSON; the work of each step is in its event's `args`."""
    events = [_name("process_name", f"plait: {profile.name}"), _name("thread_name", "runs")]
    arguments = [{"step": index, **_arguments(step)} for index, step in enumerate(profile.steps)]
    for row in range(profile.rounds):
        events.append(_event("run", "run", profile.run_starts[row], profile.run_seconds[row]))
        events[-1]["args"] = {"round": row}
        starts, seconds = profile.step_starts[row], profile.step_seconds[row]
        if len(starts):
            span = starts[-1] + seconds[-1] - starts[0]
            events.append(_event("run step by step", "steps", starts[0], span))
            events[-1]["args"] = {"round": row}
        for index, step in enumerate(profile.steps):
            kind = "kernel" if step.symbol else "copy"
            events.append(_event(step.name, kind, starts[index], seconds[index]))
            events[-1]["args"] = arguments[index]
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _name(what: str, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", **_THREAD, "args": {"name": name}}


def _event(name: str, category: str, start: float, seconds: float) -> dict[str, Any]:
    """`start` and `seconds` in seconds; nanoseconds are kept, since steps are short."""
    times = {"ts": round(float(start) * 1e6, 3), "dur": round(float(seconds) * 1e6, 3)}
    return {"name": name, "cat": category, "ph": "X", **_THREAD, **times}


def _arguments(step: Step) -> dict[str, Any]:
    return {
        "symbol": step.symbol,
        "schedule": step.schedule,
        "operands": list(step.operands),
        "results": list(step.results),
        "flops": step.flops,
        "bytes": step.nbytes,
        "location": step.location,
    }
