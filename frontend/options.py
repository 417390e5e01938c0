"""The options of ``torch.compile(backend="plait")``, validated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from plait.ir.errors import UnknownName, UsageError


class Options(BaseModel):
    """What a user may set with ``options={...}``; the fields are the documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    freeze: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Treat parameters and buffers of an inference graph as constants, packed once. "
        "auto: before every call their identity, version counters and a sample of their elements "
        "are compared, and a change packs them anew. always: only their identity is compared, new "
        "values in the same tensors are not seen. never: they are read at every call. True and "
        "False mean always and never.",
    )
    fallback: Literal["allow", "error"] = Field(
        "allow",
        description="What to do with an operator that has no lowering: run torch's, or refuse.",
    )
    executor: Literal["native", "interpreter"] = Field(
        "native",
        description="Machine code, or the slow reference interpreter, to tell a wrong kernel from "
        "a wrong graph.",
    )
    pipeline: str = Field("", description="The pass pipeline as text; empty for the default.")
    threads: int | None = Field(None, ge=1, description="Threads of compiled code.")
    verify_passes: bool = Field(
        False, description="Interpret the graph before and after every pass and compare."
    )

    @field_validator("freeze", mode="before")
    @classmethod
    def _bool_as_word(cls, value: Any) -> Any:
        return ("never", "always")[bool(value)] if value in (0, 1) else value


# Names that torch gives meaning to. They differ in nothing here: a compiled call has no launch
# overhead left to reduce, and schedules are measured by `plait tune` alone, whose records hold.
MODES: Final = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "lite")


def resolve(mode: str | None, options: Mapping[str, Any] | None) -> Options:
    """The options in force; every mode that torch knows is accepted and changes none of them.

    Raises `UnknownName`, which suggests the nearest name, and `UsageError` for a bad value.
    """
    if mode is not None and mode not in MODES:
        raise UnknownName("mode", mode, list(MODES))
    given = dict(options or {})
    for name in given:
        if name not in Options.model_fields:
            raise UnknownName("option", name, list(Options.model_fields))
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"option {first['loc'][0]!r}: {first['msg']}") from None
