"""Pipelines as text, failures that say where they happened, and the hook around passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from plait.ir.arrays import random_inputs
from plait.ir.errors import ParseError, PassFailure, PassMismatch, UnknownName, VerifyError
from plait.ir.graph import Graph
from plait.passes.canonicalize import Canonicalize
from plait.passes.context import Context
from plait.passes.fuse import Fuse
from plait.passes.hooks import Dump, ReferenceCheck, Timing, verify_each
from plait.passes.pipeline import (
    DEFAULT_PIPELINE,
    PASSES,
    Event,
    Pass,
    Pipeline,
    parse_pipeline,
    register_pass,
)
from tests.passes.graphs import TARGET, build, ops_of


@dataclass(frozen=True)
class Keep(Pass):
    """Changes nothing."""

    name = "keep"

    def apply(self, graph: Graph, context: Context) -> Graph:
        return graph


@dataclass(frozen=True)
class Break(Pass):
    """Fails in the way that is asked for."""

    name = "break"
    how: str = "raise"

    def apply(self, graph: Graph, context: Context) -> Graph:
        if self.how == "raise":
            raise ZeroDivisionError("by zero")
        if self.how == "refuse":
            raise VerifyError("is odd", where="node 3")
        if self.how == "meaning":
            return build(lambda b, x: x - 1.0, (2,))
        return build(lambda b, x: b.reshape(x, (2, 1)), (2,))


@pytest.fixture(autouse=True)
def passes() -> Iterator[None]:
    """The two passes of this file are known while its tests run."""
    parse_pipeline("")  # the others are registered first
    before = dict(PASSES)
    register_pass(Keep)
    register_pass(Break)
    yield
    PASSES.clear()
    PASSES.update(before)


GRAPH = build(lambda b, x: x + 1.0, (2,))


def run(text: str, *hooks: object) -> Graph:
    return parse_pipeline(text).run(GRAPH, Context(TARGET), hooks)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [DEFAULT_PIPELINE, "", "keep", "keep,keep", "canonicalize{fold=false},fuse{limit=3},layout"],
)
def test_round_trip(text: str) -> None:
    assert str(parse_pipeline(text)) == text
    assert parse_pipeline(str(parse_pipeline(text))) == parse_pipeline(text)


def test_options_and_spaces() -> None:
    found = parse_pipeline(" canonicalize { fold=false } , fuse{ limit=7}")
    assert found.passes == (Canonicalize(fold=False), Fuse(limit=7))
    assert str(parse_pipeline("fuse{limit=64}")) == "fuse", "a default is not written"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("canonicalise", "unknown pass 'canonicalise', did you mean 'canonicalize'?"),
        ("fuse{limits=3}", "unknown option of pass fuse 'limits', did you mean 'limit'?"),
    ],
)
def test_unknown_names_suggest(text: str, expected: str) -> None:
    with pytest.raises(UnknownName) as caught:
        parse_pipeline(text)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("text", ["fuse{limit=many}", "canonicalize{fold=1}", "fuse;order", "a b"])
def test_malformed_text(text: str) -> None:
    with pytest.raises(ParseError):
        parse_pipeline(text)


def test_malformed_text_says_where() -> None:
    with pytest.raises(ParseError, match=r"column 6: not a pass: '!'"):
        parse_pipeline("keep,!")


def test_failure_names_the_pass_and_the_pipeline() -> None:
    with pytest.raises(PassFailure, match="pass 'break' failed: ZeroDivisionError: by zero") as e:
        run("keep,break,keep")
    assert e.value.__notes__ == ["pipeline: keep,break,keep"]
    assert isinstance(e.value.__cause__, ZeroDivisionError)


def test_own_errors_keep_their_class() -> None:
    with pytest.raises(VerifyError, match="is odd") as e:
        run("keep,break{how=refuse}")
    assert e.value.__notes__ == ["in pass break{how=refuse} (number 1 of keep,break{how=refuse})"]


def test_a_pass_without_a_target_says_so() -> None:
    with pytest.raises(PassFailure, match="pass 'layout' needs a target"):
        parse_pipeline("layout").run(GRAPH, Context())


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match="'keep' is registered twice"):
        register_pass(Keep)


def test_hooks_run_in_order_after_each_pass() -> None:
    seen: list[tuple[str, int, str]] = []

    def hook(name: str) -> object:
        return lambda event: seen.append((name, event.index, event.applied.name))

    run("keep,canonicalize", hook("a"), hook("b"))
    assert seen == [
        ("a", 0, "keep"), ("b", 0, "keep"), ("a", 1, "canonicalize"), ("b", 1, "canonicalize"),
    ]  # fmt: skip


def test_hooks_see_before_and_after() -> None:
    events: list[Event] = []
    after = run("layout,fuse", events.append)
    assert events[0].before is GRAPH and events[1].after is after
    assert events[0].after is events[1].before
    assert ops_of(after) == ["kernel"]


def test_timing_and_dumps(tmp_path: Path) -> None:
    timing = Timing()
    run("keep,layout,fuse", timing, Dump(tmp_path / "dump"))
    assert [name for name, _ in timing.seconds] == ["keep", "layout", "fuse"]
    assert all(seconds >= 0 for _, seconds in timing.seconds)
    written = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert written == ["00-input.txt", "03-fuse.txt"], "passes that change nothing are left out"
    assert (tmp_path / "dump" / "00-input.txt").read_text() == str(GRAPH)


def test_verify_each() -> None:
    run("keep,layout,fuse", verify_each)
    with pytest.raises(VerifyError, match="pass break: the outputs changed"):
        run("break{how=shape}", verify_each)


def test_reference_check_names_the_pass() -> None:
    inputs = random_inputs(GRAPH)
    run("layout,fuse,canonicalize", ReferenceCheck(inputs))
    with pytest.raises(PassMismatch, match="pass 'break' changed output 0: it differs by"):
        run("layout,fuse,break{how=meaning}", ReferenceCheck(inputs))


def test_pipelines_are_values() -> None:
    assert Pipeline((Keep(),)) == parse_pipeline("keep")
