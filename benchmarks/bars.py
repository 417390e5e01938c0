"""The bars beside raw speed: compile time, launch overhead, memory, start-up of the command line.

    python -m benchmarks.bars [--models resnet50,bert_base]

Each measurement runs in a process of its own.  Printed beside each bar is what was found.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.measuring import apart, best
from benchmarks.report import report

SCRIPT: Final = "benchmarks.bars"
CALLS: Final = 300  # of which an average is taken
LAUNCHES: Final = 10_000  # the same where a call is only a microsecond or two


def compile_seconds(name: str) -> dict[str, float]:
    """Seconds from the captured graph to a linked callable, with whatever the cache holds."""
    from benchmarks.zoo import ZOO
    from plait.frontend.export import capture
    from plait.runtime.compiler import compile_graph

    entry = ZOO[name]()
    graph = capture(entry.model, entry.example_args, name=name).graph
    start = time.perf_counter()
    module = compile_graph(graph)
    compiled = time.perf_counter()
    module.load()
    return {"compile": compiled - start, "total": time.perf_counter() - start}


def launch_overhead(_: str) -> dict[str, float]:
    """Microseconds of a call of the 3x256 MLP above its kernels: artifact, and torch.compile."""
    import torch

    import plait
    from benchmarks.zoo import ZOO

    entry = ZOO["mlp"]()
    (x,) = entry.example_args
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlp.plait"
        plait.compile(entry.model, entry.example_args).save(path)
        model = plait.load(path)
        array = x.numpy()
        whole = best(lambda: model(array), CALLS)
        kernels = _kernel_seconds(model, array)
    with torch.no_grad():
        result = entry.model(x)
        compiled = _torch_seconds(entry.model, x, "plait")
        empty, reading = (_dynamo_seconds(entry.model, x, result, touch) for touch in (False, True))
    return {
        "dynamo": empty * 1e6,
        "dynamo, cold": reading * 1e6,
        "kernels": kernels * 1e6,
        "artifact": (whole - kernels) * 1e6,
        "torch.compile": (compiled - kernels) * 1e6,
    }


def _dynamo_seconds(model: Any, x: Any, result: Any, touch: bool) -> float:
    """What Dynamo's guards and frames cost around a backend that computes nothing, or only reads
    as many bytes as the model has weights (the time of the reading taken off)."""
    import numpy as np

    weights = np.ones(sum(p.numel() for p in model.parameters()), np.float32)

    def read() -> None:
        if touch:
            weights.max()

    def backend(gm: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            read()
            return (result,)

        return run

    return _torch_seconds(model, x, backend) - best(read, CALLS)


def _torch_seconds(model: Any, x: Any, backend: Any) -> float:
    import torch

    torch._dynamo.reset()
    fast = torch.compile(model, backend=backend)
    fast(x)
    return best(lambda: fast(x), CALLS)


def _kernel_seconds(model: Any, *arrays: Any) -> float:
    """Time inside the kernels of one run: a run of all steps less a run of none."""
    frame, _outputs = _checked_frame(model, arrays)
    whole = best(lambda: model._run(frame.address, 0, len(model.plan.steps)), LAUNCHES)
    return whole - best(lambda: model._run(frame.address, 0, 0), LAUNCHES)


def _checked_frame(model: Any, arrays: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A frame that points to the arrays and to new outputs, and those."""
    import numpy as np

    from plait.codegen.frame import ITEMS, REFUSED

    model(*arrays)  # sets the threads
    outputs = tuple([np.empty(t.shape, t.numpy) for t in model.outputs])
    frame = model._take_frame()
    if model._check(frame.address, id(arrays) + ITEMS, id(outputs) + ITEMS) == REFUSED:
        raise SystemExit("the arrays are not what the model takes")
    return frame, outputs


def launch_cost(_: str) -> dict[str, float]:
    """Nanoseconds of the parts of a call with four inputs and one output, kernels left out."""
    import numpy as np

    from plait.codegen.frame import ITEMS
    from plait.ir import types as t
    from plait.ir.builder import Builder
    from plait.ir.types import TensorType
    from plait.runtime.compiler import compile_graph

    b = Builder("sum")
    v, w, x, y = (b.input(TensorType(t.f32, (4, 16))) for _ in range(4))
    model = compile_graph(b.finish([v + w + x + y])).load(threads=2)
    arrays = tuple([np.ones((4, 16), np.float32) for _ in range(4)])
    frame, outputs = _checked_frame(model, arrays)
    whole = best(lambda: model(*arrays), LAUNCHES)
    nothing = best(lambda: None, LAUNCHES)
    parts = {
        "outputs": lambda: tuple([new() for new in model._new_outputs]),
        "checks and pointers": lambda: model._check(
            frame.address, id(arrays) + ITEMS, id(outputs) + ITEMS
        ),
        "threads": lambda: model._share(2),
        "call of no step": lambda: model._run(frame.address, 0, 0),
    }
    found = {name: best(part, LAUNCHES) - nothing for name, part in parts.items()}
    found["above the kernels"] = whole - _kernel_seconds(model, *arrays)
    return {name: seconds * 1e9 for name, seconds in found.items()}


def memory(name: str) -> dict[str, float]:
    """Bytes of the planned arena and of eager's peak."""
    from benchmarks.zoo import ZOO
    from plait.cli.explain import plan
    from plait.frontend.export import capture

    entry = ZOO[name]()
    planned = plan(capture(entry.model, entry.example_args))
    return {"arena": planned["arena_bytes"], "eager": planned["eager_peak_bytes"]}


MEASURES: Final[dict[str, Callable[[str], dict[str, float]]]] = {
    "compile": compile_seconds,
    "overhead": launch_overhead,
    "launch": launch_cost,
    "memory": memory,
}


def help_seconds() -> float:
    """The best of five runs of `plait --help`."""
    command = [Path(sys.executable).parent / "plait", "--help"]
    return best(lambda: subprocess.run(command, capture_output=True, check=True), rounds=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="resnet50,bert_base", help="for compile times")
    parser.add_argument("--memory", default="all", help="zoo names, or all")
    parser.add_argument(
        "--one", nargs=3, metavar=("MEASURE", "MODEL", "FILE"), help=argparse.SUPPRESS
    )
    given = parser.parse_args()
    if given.one:
        measure, name, file = given.one
        Path(file).write_text(json.dumps(MEASURES[measure](name)))
        return
    held = [report("plait --help", help_seconds(), 0.4, "s")]
    for name in given.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            cold = apart(SCRIPT, ["compile", name], cache=Path(folder))
            warm = apart(SCRIPT, ["compile", name], cache=Path(folder))
        held.append(report(f"{name}: compile after export, cold", cold["total"], 5, "s"))
        held.append(report(f"{name}: compile after export, cached", warm["total"], 1, "s"))
    launch = apart(SCRIPT, ["launch", ""])
    checks = launch["checks and pointers"]
    for part, spent in launch.items():
        print(f"{f'four inputs: {part}':<46} {spent:8.0f} ns")
    held.append(report("four inputs: checks and pointers", checks / 1000, 2, "us"))
    cost = apart(SCRIPT, ["overhead", "mlp"])
    print(f"{'mlp: its kernels':<46} {cost['kernels']:8.2f} us")
    print(f"{'mlp: torch.compile around an empty backend':<46} {cost['dynamo']:8.2f} us")
    print(f"{'mlp: the same, weights read in between':<46} {cost['dynamo, cold']:8.2f} us")
    held.append(report("mlp: a call above them, artifact", cost["artifact"], 5, "us"))
    held.append(report("mlp: a call above them, torch.compile", cost["torch.compile"], 30, "us"))
    from benchmarks.zoo import ZOO

    for name in ZOO if given.memory == "all" else given.memory.split(","):
        found = apart(SCRIPT, ["memory", name])
        megabytes = found["arena"] / 1e6, found["eager"] / 1e6
        held.append(report(f"{name}: arena, against eager's peak", *megabytes, "MB"))
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
