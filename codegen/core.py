"""The vectors of a CPU core, and the core that kernels are being made for.

Choosing a schedule and making its code go by the same core, from the cost model down to the last
loop over lanes; `making_for` says which for all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Core:
    """Vectors of `lanes` float32, in so many `registers`.

    Two multiply-adds of them begin in each cycle; where one does, two of its clock are a cycle.

    name: in schedules, which decide the code.
    latency: cycles from a multiply-add's operand to its result.
    most_rows: of a register tile of products; each row takes a register for its address too.
    addressed_rows: of a tile of a convolution that may lie at no fixed distances; more are slower.
    far_bytes: from the last-level cache in a cycle, while one register tile follows another.
    memory_bytes: from memory in a cycle, for all threads together, read on and on.
    asked: cycles in which a vector of images arrives, from the last-level cache and from memory,
        where windows ask for rows ahead of time.
    asked_beyond: bytes of images and of nests; less is found sooner without asking.
    l2_cycles: in which L2 delivers a vector.
    line_cycles, row_cycles: what a vector of weights and a row cost in each step of a product,
        beside their multiply-adds.
    deep: what a panel costs that is larger than a third of L2, as a part of the time for each L2.
    deep_rows: over the rows of a tile, what is added to that for panels of products that several
        tiles pass by: the more rows, the more arithmetic hides it.
    exposed: the part of the rows' way from the last-level cache that no arithmetic hides; half as
        much of the weights' first way; of later ones, asked for ahead of time, a quarter; but all
        of it where filtered convolutions read panels of many planes in turn.
    refill: cycles for each row of a tile that L1 has no way for, where rows lie a multiple of its
        sets apart and are fetched from L2 again and again.
    doubt: estimates of products that differ by less, as a part of them, say nothing.
    near_bytes: of scratch that threads write and then all of them read which costs nothing more.
    kept_bytes: of scratch that is written and then read which the last-level cache, shared with
        others, keeps; more passes through memory.
    held_bytes: the largest panel of weights of a convolution that L2 keeps from one tile to the
        next, beside its images: all of 512 KiB where they pass quickly, 5/8 of 1 MiB.
    block_bytes: of a convolution's images, which L2 is to keep while all panels of weights pass by;
        0: all positions pass by each panel.
    ahead: elements between what is asked for and what is read, in a stream from memory.
    once_ahead: the same for windows that do not overlap, whose pixels are asked for into L1; 0:
        they are asked for as others are.
    rows_ahead: the same for rows that are read more than once, at their last reading; 0 where the
        hardware sees by itself what comes next, and asking keeps it from that.
    claimed: steps for each row of a register tile, at the end of its sum, in which the lines that
        it goes to are asked for, if results come from the last-level cache; 0 if they are not.
    past_bytes: the largest result that is stored into the caches, larger ones go past them; 0: all.
    tiles_ask: whether register tiles ask for the pixels or rows of the next one, and for the lines
        of their results and of what is added to them.
    staggers: whether rows of which each element takes work are in flight together, each in a phase
        of its own.
    aligns_stacks: whether vectors that do not fit the registers are kept from crossing lines and
        pages, which costs a register for addresses.
    """

    name: str
    lanes: int
    registers: int
    most_rows: int
    addressed_rows: int
    far_bytes: int
    memory_bytes: float
    asked: tuple[float, float]
    asked_beyond: int
    latency: int = 4
    l2_cycles: float = 1.0
    line_cycles: float = 0.0
    row_cycles: float = 0.0
    deep: float = 0.0
    deep_rows: float = 0.0
    exposed: float = 0.0
    refill: float = 0.0
    doubt: float = 0.0
    near_bytes: int = 1 << 20
    kept_bytes: int = 32 << 20
    held_bytes: int = 512 * 1024
    block_bytes: int = 0
    ahead: int = 256
    once_ahead: int = 0
    rows_ahead: int = 512
    claimed: int = 0
    past_bytes: int = 0
    tiles_ask: bool = False
    staggers: bool = False
    aligns_stacks: bool = False


# Fitted to AMD Milan, where the caches keep up, and to Intel Cascade Lake, where they do not.
AVX2: Final = Core(name="avx2", lanes=8, registers=16, most_rows=7, addressed_rows=6, far_bytes=64,
                   memory_bytes=5.0, asked=(6.0, 14.0), asked_beyond=8 << 20, deep_rows=1.0,
                   kept_bytes=4 << 20, block_bytes=256 * 1024, tiles_ask=True)  # fmt: skip
AVX512: Final = Core(name="avx512", lanes=16, registers=32, most_rows=10, addressed_rows=14,
                     far_bytes=9, memory_bytes=7.5, l2_cycles=2.2, line_cycles=0.4, row_cycles=0.05,
                     deep=0.45, exposed=0.6, doubt=0.03, held_bytes=640 * 1024, asked=(7.5, 13.0),
                     asked_beyond=2 << 20, claimed=4)  # fmt: skip
# AMD Zen 4: half as many multiply-adds in a cycle of its clock, and caches that keep up.
ZEN4: Final = Core(name="zen4", lanes=16, registers=32, most_rows=10, addressed_rows=14, latency=2,
                   far_bytes=20, memory_bytes=16.0, l2_cycles=0.5, line_cycles=0.2, deep=0.2,
                   exposed=0.3, refill=1.0, near_bytes=0, kept_bytes=10 << 20,
                   held_bytes=640 * 1024, asked=(3.0, 9.0), asked_beyond=8 << 20, ahead=3072,
                   once_ahead=256, rows_ahead=0, claimed=4, past_bytes=16 << 20,
                   staggers=True, aligns_stacks=True)  # fmt: skip
CORES: Final = {core.name: core for core in (AVX2, AVX512, ZEN4)}
# What 512-bit code needs: the arithmetic, its 256-bit and 128-bit forms, and float logic.
_WIDE = frozenset({"avx512f", "avx512vl", "avx512dq", "avx512bw"})
# Extensions that together tell AMD Zen 4: what it has, and what those that came later have too.
_ZEN4, _LATER = frozenset({"avx512bf16", "avx512vbmi2"}), frozenset({"avx512fp16", "avxvnni"})
_current: ContextVar[Core] = ContextVar("core", default=AVX2)


def core() -> Core:
    """The core that kernels are being made for."""
    return _current.get()


def simd() -> int:
    """Float32 elements of its vectors."""
    return _current.get().lanes


@contextmanager
def making_for(chosen: Core) -> Iterator[None]:
    """What is chosen and made inside is for this core."""
    token = _current.set(chosen)
    try:
        yield
    finally:
        _current.reset(token)


def core_with(features: Iterable[str]) -> Core:
    """The core of a CPU with these features, by LLVM's names."""
    given = set(features)
    if not given >= _WIDE:
        return AVX2
    return ZEN4 if given >= _ZEN4 and not given & _LATER else AVX512
