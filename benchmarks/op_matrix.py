"""Which of torch's operators compile: runs torch's own operator tests through the backend.

Every operator of ``op_db`` that supports float32 on the CPU runs its first samples through
``torch.compile(backend="plait")`` in a worker process, so that a crash or an endless loop costs one
row. Writes ``docs/op_matrix.json`` and ``docs/op_matrix.md``.

    python -m benchmarks.op_matrix [--samples N] [--only REGEX] [--executor interpreter] [--grad]
"""

from __future__ import annotations

import argparse
import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
# From best to worst; the row of an operator is that of its worst sample.
STATUSES: Final = {
    "native": "every operator lowered, results right",
    "fallback": "some operators run by torch inside the compiled graph, results right",
    "eager": "the whole graph run by torch",
    "uncaptured": "Dynamo hands no graph to any backend",
    "mismatch": "results differ from eager",
    "error": "compilation or the call raised",
    "timeout": "no answer in time",
    "crash": "the process died",
}


# Operators whose results have no defined values.
UNSPECIFIED: Final = frozenset(
    {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
)


@dataclass
class Row:
    """The outcome of one operator."""

    name: str
    status: str
    samples: int = 0
    fallbacks: dict[str, str] = field(default_factory=dict)  # operator left to torch: reason
    message: str = ""
    seconds: float = 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the matrix; exit code 1 when an operator is wrong or brings the compiler down."""
    args = parser().parse_args(argv)
    if args.worker:
        return serve(args)
    names = [n for n in operator_names() if re.search(args.only, n)]
    rows = run_all(names, args)
    write(rows, args)
    counts = Counter(row.status for row in rows)
    print(f"{counts['native']} of {len(rows)} operators native; {dict(counts)}")
    return int(any(counts[s] for s in ("mismatch", "error", "timeout", "crash")))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--samples", type=int, default=1, help="samples per operator")
    options.add_argument("--only", default="", help="regular expression on operator names")
    options.add_argument("--executor", default="native", choices=("native", "interpreter"))
    options.add_argument("--grad", action="store_true", help="also compare gradients")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--timeout", type=float, default=60.0, help="seconds per operator")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "op_matrix")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return options


def operator_names() -> list[str]:
    """The operators by their full names, in the order of op_db."""
    return list(_operators())


def _operators() -> dict[str, Any]:
    import torch
    from torch.testing._internal import common_methods_invocations as invocations

    # Dynamo does not trace the wrapper that seeds random operators; the runner seeds them itself.
    invocations.__dict__["wrapper_set_seed"] = _unseeded
    chosen = [op for op in invocations.op_db if torch.float32 in op.supported_dtypes("cpu")]
    return {op.full_name if hasattr(op, "full_name") else op.formatted_name: op for op in chosen}


def _unseeded(op: Any, *args: Any, **kwargs: Any) -> Any:
    return op(*args, **kwargs)


class Worker:
    """A process that runs operators by name; replaced when it dies, hangs or has grown old."""

    LIFE: Final = 60  # operators; torch keeps what it traced

    def __init__(self, args: argparse.Namespace) -> None:
        flags = ["--samples", str(args.samples), "--executor", args.executor]
        flags += ["--grad"] if args.grad else []
        self.command = [sys.executable, "-m", "benchmarks.op_matrix", "--worker", *flags]
        self.timeout = args.timeout
        self.process: subprocess.Popen[str] | None = None
        self.age = 0

    def run(self, name: str) -> Row:
        """The operator's row, whatever happens to the process."""
        if self.age >= self.LIFE:
            self.close()
        process = self._started()
        self.age += 1
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(self.timeout, process.kill)
        began = time.monotonic()
        timer.start()
        try:
            process.stdin.write(name + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        seconds = time.monotonic() - began
        if line:
            return Row(**json.loads(line))
        process.wait()
        self.process = None
        if seconds >= self.timeout:
            return Row(name, "timeout", message=f"over {self.timeout:.0f} s", seconds=seconds)
        return Row(name, "crash", message=f"exit code {process.returncode}", seconds=seconds)

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None:
            self.age = 0
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert self.process.stdout is not None
            self.process.stdout.readline()  # the worker says when its imports are done
        return self.process

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def run_all(names: Sequence[str], args: argparse.Namespace) -> list[Row]:
    """Run all operators over the workers; rows in the order of the names."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    rows: dict[str, Row] = {}

    def drain() -> None:
        worker = Worker(args)
        try:
            while True:
                name = waiting.get_nowait()
                rows[name] = worker.run(name)
                done = f"{len(rows)}/{len(names)} {name}: {rows[name].status}"
                print(f"\r\033[K{done}", end="", file=sys.stderr)
        except queue.Empty:
            worker.close()

    threads = [threading.Thread(target=drain) for _ in range(args.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(file=sys.stderr)
    return [rows[name] for name in names]


def serve(args: argparse.Namespace) -> int:
    """Answer names on stdin with rows on stdout; all other output goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    operators = _operators()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        row = run_operator(operators[line.strip()], line.strip(), args)
        print(json.dumps(asdict(row)), file=answers, flush=True)
    return 0


def run_operator(op: Any, name: str, args: argparse.Namespace) -> Row:
    """Compile and compare the operator's first samples."""
    import torch

    began = time.monotonic()
    row = Row(name, "native")
    grad = args.grad and op.supports_autograd
    torch.manual_seed(0)
    try:
        for sample in op.sample_inputs("cpu", torch.float32, requires_grad=grad):
            status, fallbacks, message = run_sample(op, sample, args.executor, grad)
            row.samples += 1
            row.fallbacks |= fallbacks
            ranks = list(STATUSES)
            if ranks.index(status) > ranks.index(row.status):
                row.status, row.message = status, message
            if row.samples == args.samples:
                break
    except Exception as error:
        row.status, row.message = "error", _first_line(error)
    row.seconds = round(time.monotonic() - began, 3)
    return row


def run_sample(op: Any, sample: Any, executor: str, grad: bool) -> tuple[str, dict[str, str], str]:
    """Status, operators left to torch with the reasons, and a message for one sample."""
    import torch
    from torch._dynamo.exc import BackendCompilerFailed

    from plait.frontend import dynamo

    def call(inputs: Any, args: Any, kwargs: Any) -> Any:
        return op.get_op()(inputs, *args, **kwargs)

    try:
        expected = evaluate(call, sample, grad)
    except Exception as error:
        return "uncaptured", {}, f"eager raises: {_first_line(error)}"
    torch._dynamo.reset()
    dynamo.forget()
    compiled = torch.compile(call, backend="plait", options={"executor": executor})
    try:
        found = evaluate(compiled, sample, grad)
    except Exception as error:
        kind = "error" if dynamo.recent() else "uncaptured"
        if "plait" in _first_line(error) or isinstance(error, BackendCompilerFailed):
            kind = "error"
        return kind, {}, _first_line(error)
    graphs = list(dynamo.recent())
    fallbacks = {f.target: f.reason for graph in graphs for f in graph.fallbacks}
    message = ""
    if op.name not in UNSPECIFIED:
        message = compare(found, expected, lambda: evaluate(call, _double(sample), grad))
    if message:
        return "mismatch", fallbacks, message
    eager = [graph.reason_eager for graph in graphs if graph.reason_eager]
    if eager:
        return "eager", fallbacks, eager[0]
    if not graphs:
        return "uncaptured", {}, "no graph"
    return ("fallback" if fallbacks else "native"), fallbacks, ""


def evaluate(function: Any, sample: Any, grad: bool) -> list[Any]:
    """The tensors that a call gives, and the gradients of a weighted sum, from copies."""
    import torch
    from torch.utils import _pytree as pytree

    def fresh(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return x.detach().clone().requires_grad_(x.requires_grad)

    tree = pytree.tree_map(fresh, (sample.input, sample.args, sample.kwargs))
    torch.manual_seed(0)
    with torch.set_grad_enabled(grad):
        results = [x for x in pytree.tree_leaves(function(*tree)) if isinstance(x, torch.Tensor)]
    if grad:
        leaves = [x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]
        wanted = [x for x in leaves if x.requires_grad]
        roots = [r for r in results if r.requires_grad and r.dtype.is_floating_point]
        if roots and wanted:
            along = [torch.linspace(0.5, 1.5, r.numel()).to(r).view(r.shape) for r in roots]
            grads = torch.autograd.grad(roots, wanted, along, allow_unused=True)
            results += [g for g in grads if g is not None]
    return [r.detach() for r in results]


def _double(sample: Any) -> Any:
    import torch

    def widen(x: Any) -> Any:
        narrow = isinstance(x, torch.Tensor) and x.dtype == torch.float32
        if not narrow:
            return torch.float64 if x is torch.float32 else x
        return x.detach().double().requires_grad_(x.requires_grad)

    return sample.transform(widen)


def compare(found: list[Any], expected: list[Any], wide: Callable[[], list[Any]]) -> str:
    """Why the results do not agree with eager's, or nothing.

    `plait.ir.agreement` decides; where float results differ by more than its bars, the float64
    results that `wide` gives are the judge, as far as the operator runs in float64 at all.
    """
    from plait.ir import agreement

    if len(found) != len(expected):
        return f"{len(found)} results, eager has {len(expected)}"
    judges: list[Any] | None = None
    for k, (got, want) in enumerate(zip(found, expected, strict=True)):
        if got.shape != want.shape or got.dtype != want.dtype:
            return (
                f"result {k} is {got.dtype}{list(got.shape)}, eager {want.dtype}{list(want.shape)}"
            )
        ours, theirs = _array(got), _array(want)
        verdict = agreement.compare(ours, theirs)
        if not verdict.agrees and want.dtype.is_floating_point | want.dtype.is_complex:
            try:
                judges = wide() if judges is None else judges
                verdict = agreement.compare(ours, theirs, _array(judges[k]))
            except Exception as error:  # whatever an operator may raise in another dtype
                return f"result {k} {verdict.reason}; no judge: {_first_line(error)}"
        if not verdict.agrees:
            return f"result {k} {verdict.reason}"
    return ""


def _array(tensor: Any) -> Any:
    """The tensor's elements for numpy, which knows no sparse tensors and no complex halves."""
    import torch

    from plait.frontend.tensors import dense
    from plait.ir.ops.aten import to_numpy

    wide = tensor.to(torch.complex64) if tensor.dtype == torch.complex32 else tensor
    return to_numpy(dense(wide.to_dense()))


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def write(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """The rows as JSON and as a page."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    data = {"schema": 1, "executor": args.executor, "samples": args.samples, "grad": args.grad}
    text = json.dumps({**data, "rows": [asdict(row) for row in rows]}, indent=1)
    args.out.with_suffix(".json").write_text(text + "\n")
    args.out.with_suffix(".md").write_text(page(rows, args))


def page(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """The Markdown page: counts, the operators left to torch, and every operator."""
    counts = Counter(row.status for row in rows)
    asked = Counter(target for row in rows for target in row.fallbacks)
    what = "forward and gradients" if args.grad else "forward"
    lines = [
        "# Operator matrix",
        "",
        f"{counts['native']} of {len(rows)} operators of torch's test suite that support float32 "
        f"on the CPU compile with nothing left to torch ({what}, first {args.samples} sample(s), "
        f"{args.executor} executor). Written by `make matrix`; results agree in the "
        "sense of `plait.ir.agreement`.",
        "",
        "| outcome | operators | meaning |",
        "|---|---|---|",
        *(f"| {s} | {counts[s]} | {meaning} |" for s, meaning in STATUSES.items()),
        "",
        "## ATen operators run by torch",
        "",
        ", ".join(f"`{t}` ({n})" for t, n in asked.most_common()) or "none",
        "",
        "## Every operator",
        "",
        "| operator | outcome | left to torch, or why |",
        "|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: r.name):
        detail = ", ".join(f"`{t}`" for t in row.fallbacks)
        reason = row.message.replace("|", "\\|")
        lines.append(f"| {row.name} | {row.status} | {'; '.join(filter(None, (detail, reason)))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
