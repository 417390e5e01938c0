"""The error catalogue: one class per kind of failure, with its message and its exit code.

A user reads one sentence that names the thing at fault and what was expected.  The printed IR
around the fault, where there is one, travels as an exception note (`Exception.add_note`).
"""

from __future__ import annotations

from typing import Any, ClassVar


class PlaitError(Exception):
    """Base of all errors that Plait raises on purpose.

    A subclass states `template`, filled from the keyword arguments, and `exit_code`, which the
    command line returns.
    """

    template: ClassVar[str] = "{message}"
    exit_code: ClassVar[int] = 4

    def __init__(self, message: str = "", **fields: Any) -> None:
        self.fields = {"message": message, **fields}
        super().__init__(self.template.format(**self.fields))


class UsageError(PlaitError):
    """The request itself is wrong: a flag, an option, a file name, an input's shape."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not in a closed list; the nearest one is suggested."""

    template = "unknown {kind} {name!r}{hint}; known: {known}"

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        import difflib

        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f", did you mean {near[0]!r}?" if near else ""
        super().__init__(kind=kind, name=name, hint=hint, known=", ".join(sorted(known)))


class InputMismatch(UsageError):
    """A call's argument does not have the type that the compiled model was built for."""

    template = "input {name!r}: expected {expected}, got {got}"


class Unsupported(PlaitError):
    """An operator, a dtype or a shape that this stage cannot handle."""

    exit_code = 3


class UnsupportedOp(Unsupported):
    template = "operator {target!r} has no lowering{where}"

    def __init__(self, target: str, loc: str = "") -> None:
        super().__init__(target=target, where=f" (from {loc})" if loc else "")


class UnsupportedSymbol(Unsupported):
    template = "{stage} needs a static size, but dimension {dim!r} is symbolic"


class TypeRuleError(PlaitError):
    """An op was applied to operands that its type rule refuses."""

    template = "{op}: {message}"


class VerifyError(PlaitError):
    """The IR breaks an invariant; the printed neighbourhood is in the notes."""

    template = "{where}: {message}"


class ParseError(PlaitError):
    """Text that is not the IR's (or a pipeline's) text form."""

    template = "line {line}, column {column}: {message}"
    exit_code = 2


class RewriteLoop(PlaitError):
    template = "rewriting did not converge after {limit} rounds; last rules fired: {rules}"


class PassFailure(PlaitError):
    template = "pass {name!r} failed: {message}"


class PassMismatch(PlaitError):
    """`--verify-passes`: a pass changed the meaning of the graph."""

    template = "pass {name!r} changed output {output}: it {reason}"
    exit_code = 1


class CompileFailure(PlaitError):
    template = "code generation failed for kernel {kernel}: {message}"


class PlanError(PlaitError):
    """The memory plan is not valid; each way to be wrong has its own sentence."""


class ArtifactError(PlaitError):
    template = "{path}: {message}"
    exit_code = 5


class CorruptArtifact(ArtifactError):
    template = "{path}: the file is damaged ({message})"


class NewerArtifact(ArtifactError):
    template = "{path}: format version {found} is newer than the {supported} this Plait reads"


class TargetMismatch(ArtifactError):
    template = "{path}: built for {target}, but this CPU lacks {missing}"


class EnvironmentProblem(PlaitError):
    template = "{what} is needed but {message}"
    exit_code = 6
