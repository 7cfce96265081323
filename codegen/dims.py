"""Sizes known only at run time: integer expressions over named symbols.

A `Dim` is a Python int, or an `Expr` when a symbol such as "batch" is in it. An `Expr` is kept as
a polynomial with integer coefficients over atoms (symbols, or calls of `//`, `%`, `min`, `max`),
so equal sums and products compare equal whatever the order they were built in, and an exact
division such as `(batch * seq * 384) // 384` cancels. Symbols stand for sizes: integers >= 0.

The JSON form is what both runtimes evaluate: an int, a symbol's name, or `[op, a, b, ...]` with
op one of `+ * // % min max` (n-ary for `+ * min max`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

DimJson = int | str | list["DimJson"]


@dataclass(frozen=True, slots=True)
class Call:
    """An atom that is not a symbol: `op` applied to dims it could not be simplified through."""

    op: str
    args: tuple[Dim, ...]


Atom = str | Call
Monomial = tuple[Atom, ...]


def _atom_key(atom: Atom) -> tuple[int, str]:
    return (0, atom) if isinstance(atom, str) else (1, repr(atom))


def _monomial_key(monomial: Monomial) -> tuple[tuple[int, str], ...]:
    return tuple(_atom_key(atom) for atom in monomial)


@dataclass(frozen=True, slots=True)
class Expr:
    """A non-constant polynomial: `terms` maps sorted monomials to non-zero coefficients."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        return _polynomial([*_terms(self), *_terms(other)])

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return _polynomial([(m, -c) for m, c in self.terms])

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: Dim) -> Dim:
        return (-self) + other

    def __mul__(self, other: Dim) -> Dim:
        return _polynomial(
            [(ma + mb, ca * cb) for ma, ca in self.terms for mb, cb in _terms(other)]
        )

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __rmod__(self, other: Dim) -> Dim:
        return mod(other, self)

    def __str__(self) -> str:
        return dim_str(self)


Dim = int | Expr


def symbol(name: str) -> Expr:
    """The dim that a run binds to `name`."""
    return Expr((((name,), 1),))


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(dim, Expr):
        return dim.terms
    return (((), dim),) if dim else ()


def _polynomial(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    total: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        key = tuple(sorted(monomial, key=_atom_key))
        total[key] = total.get(key, 0) + coefficient
    kept = {m: c for m, c in total.items() if c}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    return Expr(tuple(sorted(kept.items(), key=lambda item: _monomial_key(item[0]))))


def _call(op: str, *args: Dim) -> Dim:
    return Expr((((Call(op, args),), 1),))


def _divide_exactly(a: Dim, b: Dim) -> Dim | None:
    """a / b when b is a single term that divides every term of a."""
    b_terms = _terms(b)
    if len(b_terms) != 1:
        return 1 if a == b else None
    (divisor, scale), out = b_terms[0], []
    for monomial, coefficient in _terms(a):
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % scale:
            return None
        out.append((tuple(rest), coefficient // scale))
    return _polynomial(out)


def floordiv(a: Dim, b: Dim) -> Dim:
    """Floor division; x // 0 is 0, here and at run time (an empty tensor's stride, say)."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b else 0
    exact = _divide_exactly(a, b)
    return exact if exact is not None else _call("//", a, b)


def ceildiv(a: Dim, b: Dim) -> Dim:
    """The number of blocks of `b` that cover `a`."""
    return floordiv(a + b - 1, b)


def align_int(value: int, multiple: int) -> int:
    """The next multiple, for what is known."""
    return -(-value // multiple) * multiple


def align(a: Dim, multiple: int) -> Dim:
    """`a` rounded up to a multiple."""
    return ceildiv(a, multiple) * multiple


def mod(a: Dim, b: Dim) -> Dim:
    """Remainder with the sign of the divisor, as Python's; x % 0 is 0."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b if b else 0
    return 0 if _divide_exactly(a, b) is not None else _call("%", a, b)


def _extreme(op: str, pick: Callable[[Iterable[int]], int], args: tuple[Dim, ...]) -> Dim:
    constants = [a for a in args if isinstance(a, int)]
    unique: dict[Dim, None] = dict.fromkeys(a for a in args if not isinstance(a, int))
    rest: list[Dim] = list(unique)
    if constants:
        rest.append(pick(constants))
    return rest[0] if len(rest) == 1 else _call(op, *rest)


def dim_max(*args: Dim) -> Dim:
    return _extreme("max", max, args)


def dim_min(*args: Dim) -> Dim:
    return _extreme("min", min, args)


def product(dims: Iterable[Dim]) -> Dim:
    """Number of elements of a shape."""
    one: Dim = 1
    return reduce(lambda a, b: a * b, dims, one)


def symbols(dim: Dim) -> list[str]:
    """Names of the symbols in `dim`, in a stable order, each once."""
    found: dict[str, None] = {}
    for monomial, _ in _terms(dim):
        for atom in monomial:
            if isinstance(atom, str):
                found[atom] = None
            else:
                for arg in atom.args:
                    found.update(dict.fromkeys(symbols(arg)))
    return list(found)


def atoms(dim: Dim) -> list[Atom]:
    """The atoms (symbols and calls) of the polynomial, in a stable order, each once."""
    return list(dict.fromkeys(atom for monomial, _ in _terms(dim) for atom in monomial))


def atom_dim(atom: Atom) -> Dim:
    """The dim that is just this atom."""
    return Expr((((atom,), 1),))


def replace_atoms(dim: Dim, new: Callable[[Atom], Dim]) -> Dim:
    """`dim` with each atom of its polynomial replaced."""
    total: Dim = 0
    for monomial, coefficient in _terms(dim):
        total = total + product(new(atom) for atom in monomial) * coefficient
    return total


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """`dim` with symbols replaced by dims, simplified again; unknown symbols stay."""

    def new(atom: Atom) -> Dim:
        if isinstance(atom, str):
            return values.get(atom, symbol(atom))
        return _apply(atom.op, [substitute(arg, values) for arg in atom.args])

    return replace_atoms(dim, new)


def bound(dim: Dim, most: Mapping[str, Dim]) -> Dim:
    """An upper bound of `dim`, free of the symbols in `most`, which lie between 0 and theirs.

    What is subtracted counts as 0, so that the bound may be larger than need be.
    """
    if isinstance(dim, int) or not any(name in most for name in symbols(dim)):
        return dim
    total: Dim = 0
    for monomial, coefficient in dim.terms:
        varies = any(a in most for atom in monomial for a in symbols(atom_dim(atom)))
        if coefficient > 0 or not varies:
            total = total + product(_bound_atom(a, most) for a in monomial) * coefficient
    return total


def _bound_atom(atom: Atom, most: Mapping[str, Dim]) -> Dim:
    if isinstance(atom, str):
        return bound(most[atom], most) if atom in most else symbol(atom)
    if atom.op == "%":  # below the divisor, and not above what is divided
        return dim_min(*(bound(a, most) for a in atom.args))
    if atom.op == "//":
        varies = any(name in most for name in symbols(atom.args[1]))
        return floordiv(bound(atom.args[0], most), 1 if varies else atom.args[1])
    return _apply(atom.op, [bound(a, most) for a in atom.args])


def _apply(op: str, args: list[Dim]) -> Dim:
    if op == "//":
        return floordiv(*args)
    if op == "%":
        return mod(*args)
    return dim_max(*args) if op == "max" else dim_min(*args)


def evaluate(dim: Dim, values: Mapping[str, int]) -> int:
    """The int that `dim` stands for.

    Raises:
        KeyError: a symbol has no value.
    """
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, coefficient in dim.terms:
        term = coefficient
        for atom in monomial:
            term *= values[atom] if isinstance(atom, str) else _evaluate_call(atom, values)
        total += term
    return total


def _evaluate_call(call: Call, values: Mapping[str, int]) -> int:
    args = [evaluate(arg, values) for arg in call.args]
    if call.op in ("//", "%"):
        if args[1] == 0:
            return 0
        return args[0] // args[1] if call.op == "//" else args[0] % args[1]
    return max(args) if call.op == "max" else min(args)


def dim_json(dim: Dim) -> DimJson:
    """The JSON form (see the module's head)."""
    if isinstance(dim, int):
        return dim
    sums: list[DimJson] = []
    for monomial, coefficient in dim.terms:
        factors: list[DimJson] = [
            atom if isinstance(atom, str) else [atom.op, *map(dim_json, atom.args)]
            for atom in monomial
        ]
        if coefficient != 1 or not factors:
            factors.append(coefficient)
        sums.append(factors[0] if len(factors) == 1 else ["*", *factors])
    return sums[0] if len(sums) == 1 else ["+", *sums]


def dim_from_json(data: DimJson) -> Dim:
    """The inverse of `dim_json`; raises ValueError on an unknown operator."""
    if isinstance(data, int):
        return data
    if isinstance(data, str):
        return symbol(data)
    op, args = data[0], [dim_from_json(arg) for arg in data[1:]]
    if op == "+":
        zero: Dim = 0
        return reduce(lambda a, b: a + b, args, zero)
    if op == "*":
        return product(args)
    if op in ("//", "%", "min", "max"):
        return _apply(op, args)
    raise ValueError(f"unknown operator in a size expression: {op!r}")


def dim_str(dim: Dim) -> str:
    """For people: `batch*seq + 1`."""
    if isinstance(dim, int):
        return str(dim)
    parts = []
    for monomial, coefficient in dim.terms:
        factors = [a if isinstance(a, str) else _call_str(a) for a in monomial]
        if coefficient != 1 or not factors:
            factors.insert(0, str(coefficient))
        parts.append("*".join(factors))
    return " + ".join(parts)


def _call_str(call: Call) -> str:
    args = [dim_str(arg) for arg in call.args]
    if call.op in ("//", "%"):
        return f"(({args[0]}) {call.op} ({args[1]}))"
    return f"{call.op}({', '.join(args)})"
