"""Dimensions: an int, or a symbolic integer polynomial over named sizes with ranges.

`Dim = int | SymDim`.  Type rules use only `+ - *`, `//`, comparison through `equal` and bounds
through `bounds`, so that they run unchanged on ints and on symbols.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

INFINITY = 2**62


@dataclass(frozen=True, order=True)
class Symbol:
    """A named size with an inclusive range, for instance `batch` in [1, 64]."""

    name: str
    low: int = 1
    high: int = INFINITY


@dataclass(frozen=True, order=True)
class FloorDiv:
    """`numerator // denominator` where the division is not exact on the polynomial."""

    numerator: SymDim
    denominator: int


Atom: TypeAlias = Symbol | FloorDiv
Monomial: TypeAlias = tuple[Atom, ...]


def _atom_key(atom: Atom) -> str:
    return atom.name if isinstance(atom, Symbol) else f"~{atom}"


@dataclass(frozen=True, order=True)
class SymDim:
    """A polynomial with integer coefficients: `terms` maps a monomial to its coefficient."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        return _from_terms([*self.terms, *_terms(other)])

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return _from_terms((m, -c) for m, c in self.terms)

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: Dim) -> Dim:
        return (-self) + other

    def __mul__(self, other: Dim) -> Dim:
        products = [
            (tuple(sorted((*m, *n), key=_atom_key)), c * d)
            for m, c in self.terms
            for n, d in _terms(other)
        ]
        return _from_terms(products)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __str__(self) -> str:
        return " + ".join(_show_term(m, c) for m, c in self.terms).replace("+ -", "- ")


Dim: TypeAlias = int | SymDim


def symbol(name: str, low: int = 1, high: int = INFINITY) -> Dim:
    """A dimension that is the size called `name`, within [low, high]."""
    return low if low == high else SymDim((((Symbol(name, low, high),), 1),))


def as_symbol(dim: Dim) -> Symbol | None:
    """The symbol that a dimension consists of, None for any other dimension."""
    if isinstance(dim, SymDim) and len(dim.terms) == 1:
        monomial, coefficient = dim.terms[0]
        if coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], Symbol):
            return monomial[0]
    return None


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, SymDim) else ((((), dim),) if dim else ())


def _from_terms(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    total: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        total[monomial] = total.get(monomial, 0) + coefficient
    kept = [(m, c) for m, c in total.items() if c]
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    return SymDim(tuple(sorted(kept, key=lambda t: [_atom_key(a) for a in t[0]])))


def _show_term(monomial: Monomial, coefficient: int) -> str:
    names = [a.name if isinstance(a, Symbol) else f"({a.numerator})//{a.denominator}"
             for a in monomial]  # fmt: skip
    if not names:
        return str(coefficient)
    sign = {1: "", -1: "-"}.get(coefficient, f"{coefficient}*")
    return sign + "*".join(names)


def floordiv(dim: Dim, by: Dim) -> Dim:
    """`dim // by`; exact division of polynomials stays a polynomial."""
    if isinstance(dim, int) and isinstance(by, int):
        return dim // by
    if equal(dim, by):
        return 1
    if isinstance(by, int):
        if all(c % by == 0 for _, c in _terms(dim)):
            return _from_terms((m, c // by) for m, c in _terms(dim))
        assert isinstance(dim, SymDim)
        return SymDim((((FloorDiv(dim, by),), 1),))
    quotient = _divide_exact(dim, by)
    if quotient is None:
        raise ValueError(f"cannot divide {dim} by {by}")
    return quotient


def _divide_exact(dim: Dim, by: SymDim) -> Dim | None:
    """Divide by a single monomial, term by term."""
    if len(by.terms) != 1:
        return None
    divisor, scale = by.terms[0]
    result: list[tuple[Monomial, int]] = []
    for monomial, coefficient in _terms(dim):
        left = list(monomial)
        for atom in divisor:
            if atom not in left:
                return None
            left.remove(atom)
        if coefficient % scale:
            return None
        result.append((tuple(left), coefficient // scale))
    return _from_terms(result)


def equal(a: Dim, b: Dim) -> bool:
    """True when both are the same size for every value of the symbols."""
    return a == b


def product(dims: Iterable[Dim]) -> Dim:
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return result


def bounds(dim: Dim) -> tuple[int, int]:
    """Inclusive range of `dim` over its symbols' ranges (interval arithmetic)."""
    if isinstance(dim, int):
        return dim, dim
    low = high = 0
    for monomial, coefficient in dim.terms:
        ends = (coefficient, coefficient)
        for atom in monomial:
            products = [a * b for a in ends for b in _atom_bounds(atom)]
            ends = min(products), max(products)
        low, high = low + ends[0], high + ends[1]
    return max(low, -INFINITY), min(high, INFINITY)


def _atom_bounds(atom: Atom) -> tuple[int, int]:
    if isinstance(atom, Symbol):
        return atom.low, atom.high
    low, high = bounds(atom.numerator)
    return low // atom.denominator, high // atom.denominator


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The value of `dim` with each symbol's size taken from `sizes`."""
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, coefficient in dim.terms:
        factor = coefficient
        for atom in monomial:
            if isinstance(atom, Symbol):
                factor *= sizes[atom.name]
            else:
                factor *= evaluate(atom.numerator, sizes) // atom.denominator
        total += factor
    return total


def is_static(dims: Iterable[Dim]) -> bool:
    return all(isinstance(d, int) for d in dims)


def symbols_of(dims: Iterable[Dim]) -> dict[str, Symbol]:
    """All symbols that occur in `dims`, by name."""
    found: dict[str, Symbol] = {}
    for dim in dims:
        if isinstance(dim, SymDim):
            for monomial, _ in dim.terms:
                for atom in monomial:
                    if isinstance(atom, Symbol):
                        found[atom.name] = atom
                    else:
                        found.update(symbols_of([atom.numerator]))
    return found
