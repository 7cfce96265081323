"""What can be proved about sizes without knowing them: bounds, order, equality.

Symbols stand for sizes, so every one is >= 0. All answers are safe: "not provable" is `None`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..codegen.dims import (
    Atom,
    Call,
    Dim,
    Expr,
    atom_dim,
    ceildiv,
    dim_max,
    dim_min,
    floordiv,
    mod,
    product,
    replace_atoms,
    symbol,
)

_DEPTH = 6  # nested min / max that a proof looks through


def _monomials(dim: Dim) -> list[tuple[tuple[Atom, ...], int]]:
    if isinstance(dim, Expr):
        return list(dim.terms)
    return [((), dim)] if dim else []


def _atom_bounds(atom: Atom, least: int, depth: int) -> tuple[int | None, int | None]:
    if isinstance(atom, str):
        return least, None
    args = [(lower(a, least, depth - 1), upper(a, least, depth - 1)) for a in atom.args]
    lows, highs = [a[0] for a in args], [a[1] for a in args]
    if atom.op == "min":
        low = None if None in lows else min(x for x in lows if x is not None)
        return low, min((x for x in highs if x is not None), default=None)
    if atom.op == "max":
        high = None if None in highs else max(x for x in highs if x is not None)
        return max((x for x in lows if x is not None), default=None), high
    if atom.op == "//" and lows[1] is not None and lows[1] >= 1:
        low = None
        if lows[0] is not None:
            if lows[0] < 0:
                low = lows[0] // lows[1]
            else:
                low = 0 if highs[1] is None else lows[0] // highs[1]
        high = None if highs[0] is None or highs[0] < 0 else highs[0] // lows[1]
        return low, high
    if atom.op == "%" and lows[1] is not None and lows[1] >= 1:
        return 0, None if highs[1] is None else highs[1] - 1
    return None, None


def _naive_lower(dim: Dim, least: int, depth: int) -> int | None:
    total = 0
    for monomial, coefficient in _monomials(dim):
        low, high = 1, 1  # of the product of the atoms; high None: unbounded
        bounded: int | None = high
        for atom in monomial:
            a_low, a_high = _atom_bounds(atom, least, depth)
            if a_low is None or a_low < 0:
                return None
            low *= a_low
            bounded = None if bounded is None or a_high is None else bounded * a_high
        if coefficient > 0:
            total += coefficient * low
        elif bounded is None:
            return None
        else:
            total += coefficient * bounded
    return total


def lower(dim: Dim, least: int = 0, depth: int = _DEPTH) -> int | None:
    """A value that `dim` is never below; None when none was found. Symbols are >= `least`."""
    if isinstance(dim, int):
        return dim
    best = _naive_lower(dim, least, depth)
    if depth <= 0:
        return best
    # -min(a, b) >= -a and max(a, b) >= a: replace such a call by each of its arguments in turn,
    # so that s - min(s, 512) is seen to be >= 0. Likewise a >= a - (a // n) for n >= 1.
    for monomial, coefficient in dim.terms:
        if len(monomial) != 1 or not isinstance(monomial[0], Call):
            continue
        call = monomial[0]
        candidates: list[Dim] = []
        if (call.op == "min" and coefficient < 0) or (call.op == "max" and coefficient > 0):
            candidates = list(call.args)
        elif call.op == "//" and isinstance(call.args[1], int) and call.args[1] > 0:
            # a - (n-1) <= n * (a // n) <= a
            divisor = call.args[1]
            if coefficient % divisor == 0:
                whole = coefficient // divisor
                if whole < 0:
                    scaled = call.args[0] * whole
                else:
                    scaled = (call.args[0] - (divisor - 1)) * whole
                rest = dim - atom_dim(call) * coefficient
                found = lower(rest + scaled, least, depth - 1)
                if found is not None and (best is None or found > best):
                    best = found
            elif coefficient < 0 and at_least(call.args[0], 0, least, depth - 1):
                candidates = [call.args[0]]
        for candidate in candidates:
            swapped = dim - atom_dim(call) * coefficient + candidate * coefficient
            found = lower(swapped, least, depth - 1)
            if found is not None and (best is None or found > best):
                best = found
    return best


def upper(dim: Dim, least: int = 0, depth: int = _DEPTH) -> int | None:
    """A value that `dim` is never above; None when none was found."""
    if isinstance(dim, int):
        return dim
    low = lower(-dim, least, depth)
    return None if low is None else -low


def at_least(a: Dim, b: Dim, least: int = 0, depth: int = _DEPTH) -> bool:
    """Whether a >= b is certain."""
    low = lower(a - b, least, depth)
    return low is not None and low >= 0


def less(a: Dim, b: Dim) -> bool | None:
    """a < b: certain, impossible, or unknown."""
    if at_least(b, a + 1):
        return True
    return False if at_least(a, b) else None


def equal(a: Dim, b: Dim) -> bool | None:
    """a == b: certain, impossible, or unknown."""
    if a == b:
        return True
    if at_least(a, b + 1) or at_least(b, a + 1):
        return False
    return None


def smallest(a: Dim, b: Dim) -> Dim:
    """min(a, b), without the call where the order is certain."""
    if at_least(b, a):
        return a
    return b if at_least(a, b) else dim_min(a, b)


def largest(a: Dim, b: Dim) -> Dim:
    """max(a, b), without the call where the order is certain."""
    if at_least(a, b):
        return a
    return b if at_least(b, a) else dim_max(a, b)


def rewrite(dim: Dim, new: Mapping[Atom, Dim]) -> Dim:
    """`dim` with atoms replaced, also inside calls, simplified again."""
    if isinstance(dim, int) or not new:
        return dim

    def replace(atom: Atom) -> Dim:
        if atom in new:
            return new[atom]
        if isinstance(atom, str):
            return symbol(atom)
        args = [rewrite(a, new) for a in atom.args]
        made: Dim
        if atom.op == "//":
            made = floordiv(args[0], args[1])
        elif atom.op == "%":
            made = mod(args[0], args[1])
        else:
            made = args[0]
            for a in args[1:]:
                made = smallest(made, a) if atom.op == "min" else largest(made, a)
        atoms = _monomials(made)
        if len(atoms) == 1 and len(atoms[0][0]) == 1 and atoms[0][1] == 1:
            return new.get(atoms[0][0][0], made)
        return made

    return replace_atoms(dim, replace)


def lone_atom(dim: Dim) -> Atom | None:
    """The atom, if `dim` is nothing but one."""
    if isinstance(dim, Expr) and len(dim.terms) == 1:
        monomial, coefficient = dim.terms[0]
        if len(monomial) == 1 and coefficient == 1:
            return monomial[0]
    return None


def mentions(dim: Dim, atom: Atom) -> bool:
    """Whether `atom` occurs anywhere in `dim`."""
    if isinstance(dim, int):
        return False
    return any(
        a == atom or (isinstance(a, Call) and any(mentions(arg, atom) for arg in a.args))
        for monomial, _ in dim.terms
        for a in monomial
    )


__all__ = [
    "at_least",
    "ceildiv",
    "equal",
    "floordiv",
    "largest",
    "less",
    "lone_atom",
    "lower",
    "mentions",
    "product",
    "rewrite",
    "smallest",
    "upper",
]
