"""What a step of a recurrent layer is estimated to take, by its register tiles and threads."""

from __future__ import annotations

from plait.codegen.core import simd
from plait.codegen.tiles import TILE_CYCLES, ceil_div, step_cycles
from plait.passes.packing import GatePanels

KEPT_BYTES = 24 << 10  # a panel up to so large stays in L1 while tiles of rows pass over it
L2_CYCLES = 0.5  # more for a vector of weights that comes from L2
ALL_CYCLES = 2.0  # in which one comes from beyond L2
UPDATE_CYCLES = 50  # of the cell's formula for a vector of units
HIDDEN_CYCLES = 200  # of a chunk's formulas, behind the products of the next
MEETING_CYCLES = 4_000  # between steps, until all threads have come


def layer_step_cycles(
    batch: int, rows: int, units: int, gates: int, mr: int, nr: int, parts: int
) -> float:
    """Cycles of the busiest thread in a step: of all chunks if it has some rows for itself."""
    chunk = GatePanels(gates, nr, simd()).units
    apart = rows < batch
    tiles = [mr] * (rows // mr) + ([rows % mr] if rows % mr else [])
    kept = len(tiles) > 1 and 4 * units * nr <= KEPT_BYTES

    def panel(vectors: int) -> float:
        # All weights come from the last-level cache, behind the multiply-adds of enough rows.
        far = max(0, ALL_CYCLES - mr / 2) if apart else 0 if kept else L2_CYCLES
        far *= vectors
        return sum(units * (step_cycles(n, vectors) + far) + TILE_CYCLES for n in tiles)

    def cycles(size: int) -> float:
        """Of a chunk with `size` units."""
        panels = (live_vectors(p, nr, chunk, size) for p in range(gates * chunk // nr))
        products = sum(panel(len(live)) for live in panels if live)
        update = rows * ceil_div(size, simd()) * UPDATE_CYCLES
        return products + max(0, update - HIDDEN_CYCLES)

    whole, rest = divmod(units, chunk)
    if apart or parts == 1:
        return whole * cycles(chunk) + (cycles(rest) if rest else 0.0)
    return ceil_div(units, chunk * parts) * cycles(chunk) + MEETING_CYCLES


def live_vectors(panel: int, nr: int, chunk: int, size: int) -> list[int]:
    """The vectors of a panel that hold units below `size` of the `chunk` units of a chunk."""
    return [u for u in range(nr // simd()) if (panel * nr + u * simd()) % chunk < size]
