"""Schedule texts: the template of a kernel and its parameters, `gemm{mr=4 nr=24 outer=n}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from plait.codegen.core import AVX2, CORES, Core
from plait.ir.errors import ParseError

_FORM = re.compile(r"([a-z][a-z0-9_]*)(?:\{([^}]*)\})?")


@dataclass(frozen=True)
class Schedule:
    """A template's name and its parameters, all as words."""

    template: str
    parameters: Mapping[str, str] = field(default_factory=dict[str, str])

    def __str__(self) -> str:
        words = " ".join(f"{k}={v}" for k, v in self.parameters.items())
        return self.template + ("{" + words + "}" if words else "")

    @property
    def core(self) -> Core:
        """The core that it was chosen for; of AVX2 nothing is said."""
        return CORES[self.parameters.get("core", AVX2.name)]

    def number(self, key: str) -> int:
        return int(self.parameters[key])

    @staticmethod
    def make(template: str, **parameters: object) -> Schedule:
        return Schedule(template, {k: str(v) for k, v in parameters.items()})

    @staticmethod
    def parse(text: str) -> Schedule:
        """The schedule whose text this is, or `ParseError`."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise ParseError(f"not a schedule: {text!r}", line=1, column=1)
        words = (w.partition("=") for w in (found.group(2) or "").split())
        return Schedule(found.group(1), {k: v for k, _, v in words})
