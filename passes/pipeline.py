"""Passes, pipelines as text, and the one hook around every pass."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeAlias, TypeVar

from plait.ir.errors import ParseError, PassFailure, PlaitError, UnknownName
from plait.ir.graph import Graph
from plait.ir.logs import logger
from plait.passes.context import Context

_log = logger(__name__)

DEFAULT_PIPELINE = (
    "canonicalize,fold-batch-norm,raise-attention,decompose,canonicalize,layout,legalize-math,"
    "fuse,select,stripe,place,order,allocate"
)


@dataclass(frozen=True)
class Pass:
    """A transformation of graphs; the fields of a subclass are its options.

    `leaves` names the verifier's stage that holds after it.  `apply` gives a new graph with
    the same inputs, the same outputs in number and type, and the same meaning.
    """

    name: ClassVar[str]
    leaves: ClassVar[str] = "any"

    def apply(self, graph: Graph, context: Context) -> Graph:
        raise NotImplementedError

    def __str__(self) -> str:
        options = [
            f"{f.name.replace('_', '-')}={_show(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return self.name + ("{" + " ".join(options) + "}" if options else "")


@dataclass(frozen=True)
class Event:
    """What the hook sees after a pass."""

    index: int
    applied: Pass
    before: Graph
    after: Graph
    seconds: float
    context: Context


Hook: TypeAlias = Callable[[Event], None]
PASSES: dict[str, type[Pass]] = {}
P = TypeVar("P", bound=type[Pass])


def register_pass(cls: P) -> P:
    """Class decorator: make a pass known by its name."""
    if cls.name in PASSES:
        raise ValueError(f"pass {cls.name!r} is registered twice")
    PASSES[cls.name] = cls
    return cls


@cache
def load_all() -> None:
    """Import every module of this package, so that its passes are registered."""
    import plait.passes as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"plait.passes.{module.name}")


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes, with the text form `a,b{option=value other=value}`."""

    passes: tuple[Pass, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def run(self, graph: Graph, context: Context, hooks: Sequence[Hook] = ()) -> Graph:
        """Apply the passes in order; each hook is called after each pass.

        A failure inside a pass is raised with the pass's name and the pipeline in its notes.
        """
        for k, step in enumerate(self.passes):
            began = time.perf_counter()
            try:
                after = step.apply(graph, context)
            except PlaitError as error:
                error.add_note(f"in pass {step} (number {k} of {self})")
                raise
            except Exception as error:
                failure = PassFailure(name=step.name, message=f"{type(error).__name__}: {error}")
                failure.add_note(f"pipeline: {self}")
                raise failure from error
            seconds = time.perf_counter() - began
            _log.debug("%s, in %.3f s:\n%s", step, seconds, after)
            for hook in hooks:
                hook(Event(k, step, graph, after, seconds, context))
            graph = after
        return graph


_ITEM = re.compile(r"\s*([a-z][a-z0-9-]*)\s*(?:\{([^}]*)\})?\s*(,|$)")


def parse_pipeline(text: str) -> Pipeline:
    """Parse the text form; unknown passes and options are errors that suggest a name."""
    load_all()
    passes: list[Pass] = []
    at = 0
    while at < len(text):
        found = _ITEM.match(text, at)
        if found is None:
            raise ParseError(f"not a pass: {text[at:]!r}", line=1, column=at + 1)
        passes.append(_make(found.group(1), found.group(2) or ""))
        at = found.end()
    return Pipeline(tuple(passes))


def _make(name: str, options: str) -> Pass:
    if name not in PASSES:
        raise UnknownName("pass", name, list(PASSES))
    cls = PASSES[name]
    fields = {f.name.replace("_", "-"): f for f in dataclasses.fields(cls)}
    given: dict[str, Any] = {}
    for word in options.split():
        key, _, value = word.partition("=")
        if key not in fields:
            raise UnknownName(f"option of pass {name}", key, list(fields))
        given[fields[key].name] = _parse_value(value, fields[key].default, key)
    return cls(**given)


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse_value(text: str, default: Any, key: str) -> Any:
    """An option's value in the type of its default."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text]
        return type(default)(text)
    except (ValueError, KeyError):
        kind = type(default).__name__
        raise ParseError(f"option {key}={text!r} is not of type {kind}", line=1, column=1) from None
