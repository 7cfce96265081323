"""Index arithmetic made simple: what turns chains of reshapes and transposes into strides.

A tensor's element is read at coordinates; a movement operator rewrites coordinates. After a few
of them an index is full of `//` and `%` that mostly cancel. `Space` knows the extents of the axes
an expression ranges over, brings each integer expression to the form sum(atom * coefficient) +
constant, and uses the bounds of the axes to drop the divisions that do nothing:

    (x // n) * n + x % n         = x
    (x * n + y) // n             = x      where 0 <= y < n
    (x * n + y) % n              = y      likewise
    min(x, n - 1)                = x      where x < n

Only facts that hold for every value of the symbols are used: symbols are sizes, so >= 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..codegen import scalar as sc
from ..codegen.dims import Dim, Expr, floordiv, mod, symbol
from ..codegen.scalar import Op, Scalar, Type
from ..codegen.spec import View


@dataclass(frozen=True, slots=True)
class Linear:
    """sum(atom * coefficient) + constant, with coefficients over the arguments."""

    terms: dict[Scalar, Dim] = field(default_factory=dict)
    constant: Dim = 0

    def coefficient(self, axis: int) -> Dim:
        """The factor of an axis; 0 where it does not occur."""
        return self.terms.get(sc.axis(axis), 0)

    def scaled(self, factor: Dim) -> Linear:
        if factor == 0:
            return Linear()
        terms = {atom: c * factor for atom, c in self.terms.items()}
        return Linear(terms, self.constant * factor)

    def scalar(self) -> Scalar:
        """The expression, axes first, subtractions last: equal forms give equal scalars."""
        axes = sorted((a for a in self.terms if a.op is Op.AXIS), key=lambda a: int(a.value or 0))
        atoms = [*axes, *(a for a in self.terms if a.op is not Op.AXIS)]
        total: Scalar = sc.const(0)
        minus: list[Scalar] = []
        for atom in atoms:
            c = self.terms[atom]
            if is_negative(c):
                minus.append(atom * sc.dim(-c))
            else:
                total = total + atom * sc.dim(c)
        if is_negative(self.constant):
            minus.append(sc.dim(-self.constant))
        else:
            total = total + sc.dim(self.constant)
        for term in minus:
            total = total - term
        return total


def is_nonnegative(value: Dim) -> bool:
    """Provably >= 0 for all sizes."""
    if isinstance(value, Expr):
        return all(c >= 0 for _, c in value.terms)
    return value >= 0


def is_negative(value: Dim) -> bool:
    """Provably <= 0 and not plainly 0."""
    return value != 0 and is_nonnegative(-value)


def divides(divisor: Dim, value: Dim) -> bool:
    """Provably a multiple, by the polynomial's terms."""
    return mod(value, divisor) == 0


def _sum(parts: Iterable[tuple[Linear, Dim]]) -> Linear:
    terms: dict[Scalar, Dim] = {}
    constant: Dim = 0
    for part, factor in parts:
        for atom, c in part.terms.items():
            terms[atom] = terms.get(atom, 0) + c * factor
        constant = constant + part.constant * factor
    return Linear({a: c for a, c in terms.items() if c != 0}, constant)


_ARITHMETIC = {Op.ADD, Op.SUB, Op.MUL, Op.NEG, Op.UDIV, Op.UMOD, Op.MIN, Op.MAX}


class Space:
    """An iteration space: `extents` of AXIS 0, 1, ... over the arguments "a0", "a1", ..."""

    def __init__(self, extents: Sequence[Dim]) -> None:
        self.extents = tuple(extents)
        self._linear: dict[Scalar, Linear] = {}
        self._simple: dict[Scalar, Scalar] = {}

    @property
    def axes(self) -> tuple[Scalar, ...]:
        return tuple(sc.axis(i) for i in range(len(self.extents)))

    # -- forms ---------------------------------------------------------------------------------

    def simplify(self, node: Scalar) -> Scalar:
        """An equal expression with its index arithmetic reduced."""
        done = self._simple.get(node)
        if done is None:
            if node.type is Type.I32 and (node.op in _ARITHMETIC or node.op is Op.AXIS):
                done = self.linear(node).scalar()
            else:
                done = self._other(node)
            self._simple[node] = done
        return done

    def linear(self, node: Scalar) -> Linear:
        """The linear form of an I32 expression."""
        done = self._linear.get(node)
        if done is None:
            done = self._form(node)
            self._linear[node] = done
        return done

    def _form(self, node: Scalar) -> Linear:
        op = node.op
        if op is Op.CONST:
            return Linear({}, int(node.value or 0))
        if op is Op.ARG:
            return Linear({}, symbol(f"a{node.value}"))
        if op is Op.AXIS:
            one = self.extents[int(node.value or 0)] == 1
            return Linear() if one else Linear({node: 1})
        if op is Op.ADD or op is Op.SUB:
            a, b = (self.linear(x) for x in node.args)
            return self._rejoin(_sum([(a, 1), (b, 1 if op is Op.ADD else -1)]))
        if op is Op.NEG:
            return self.linear(node.args[0]).scaled(-1)
        if op is Op.MUL:
            return self._product(*(self.linear(x) for x in node.args))
        if op in (Op.UDIV, Op.UMOD):
            x, d = (self.linear(arg) for arg in node.args)
            if not d.terms and d.constant != 0:
                return (self.divide if op is Op.UDIV else self.remainder)(x, d.constant)
            return self._atom(sc.binary(op, x.scalar(), d.scalar()))
        if op in (Op.MIN, Op.MAX):
            return self._extreme(op, *(self.linear(x) for x in node.args))
        simple = self._other(node)
        return Linear({}, int(simple.value or 0)) if simple.op is Op.CONST else self._atom(simple)

    @staticmethod
    def _atom(node: Scalar) -> Linear:
        return Linear({node: 1})

    def _product(self, a: Linear, b: Linear) -> Linear:
        if not b.terms:
            return a.scaled(b.constant)
        if not a.terms:
            return b.scaled(a.constant)
        return self._atom(a.scalar() * b.scalar())

    def _extreme(self, op: Op, a: Linear, b: Linear) -> Linear:
        difference = _sum([(a, 1), (b, -1)])
        low, high = self.bounds(difference)
        if low is not None and is_nonnegative(low):
            return b if op is Op.MIN else a
        if high is not None and is_nonnegative(-high):
            return a if op is Op.MIN else b
        return self._atom(sc.binary(op, a.scalar(), b.scalar()))

    def _other(self, node: Scalar) -> Scalar:
        args = [self.simplify(a) for a in node.args]
        if node.op in (Op.LT, Op.LE, Op.EQ) and args[0].type is Type.I32:
            known = self._compare(node.op, *args)
            if known is not None:
                return sc.const(known)
        if node.op in (Op.AND, Op.OR):
            for x, y in (args, args[::-1]):
                if x.op is Op.CONST:
                    return y if bool(x.value) is (node.op is Op.AND) else x
        if node.op is Op.NOT and args[0].op is Op.CONST:
            return sc.const(not args[0].value)
        if node.op is Op.SELECT and args[1] is args[2]:
            return args[1]
        return sc.rebuild(node, args)

    def _compare(self, op: Op, a: Scalar, b: Scalar) -> bool | None:
        low, high = self.bounds(_sum([(self.linear(b), 1), (self.linear(a), -1)]))
        if op is Op.EQ:
            if low == 0 and high == 0:
                return True
            apart = (low is not None and is_nonnegative(low - 1)) or (
                high is not None and is_nonnegative(-high - 1)
            )
            return False if apart else None
        least = 1 if op is Op.LT else 0
        if low is not None and is_nonnegative(low - least):
            return True
        if high is not None and is_nonnegative(least - 1 - high):
            return False
        return None

    # -- bounds --------------------------------------------------------------------------------

    def bounds(self, form: Linear) -> tuple[Dim | None, Dim | None]:
        """Provable least and greatest value (None: not known)."""
        low: Dim | None = form.constant
        high: Dim | None = form.constant
        for atom, c in form.terms.items():
            least, most = self._atom_bounds(atom)
            if is_nonnegative(c):
                pass
            elif is_negative(c):
                least, most = most, least
            else:
                return None, None
            low = None if low is None or least is None else low + least * c
            high = None if high is None or most is None else high + most * c
        return low, high

    def _atom_bounds(self, atom: Scalar) -> tuple[Dim | None, Dim | None]:
        if atom.op is Op.AXIS:
            return 0, self.extents[int(atom.value or 0)] - 1
        if atom.op in (Op.UDIV, Op.UMOD):
            divisor = self.linear(atom.args[1])
            if divisor.terms:
                return 0, None
            if atom.op is Op.UMOD:
                return 0, divisor.constant - 1
            most = self.bounds(self.linear(atom.args[0]))[1]
            # (q * d - 1) // d is q - 1: the usual shape of a bound, so it should cancel.
            return 0, None if most is None else floordiv(most + 1, divisor.constant) - (
                1 if divides(divisor.constant, most + 1) else 0
            )
        if atom.op in (Op.MIN, Op.MAX):
            sides = [self.bounds(self.linear(x)) for x in atom.args]
            return self._extreme_bounds(atom.op, sides)
        if atom.op is Op.TO_I32 and atom.args[0].type is Type.BOOL:
            return 0, 1
        return None, None

    @staticmethod
    def _extreme_bounds(
        op: Op, sides: list[tuple[Dim | None, Dim | None]]
    ) -> tuple[Dim | None, Dim | None]:
        """min(a, b) is at most either's most, max(a, b) at least either's least."""
        lows, highs = [s[0] for s in sides], [s[1] for s in sides]

        def pick(values: list[Dim | None], smaller: bool, both: bool) -> Dim | None:
            known = [v for v in values if v is not None]
            if len(known) < (2 if both else 1):
                return None
            if len(known) == 1:
                return known[0]
            a, b = known
            if is_nonnegative(a - b):
                return b if smaller else a
            if is_nonnegative(b - a):
                return a if smaller else b
            return None if both else a

        if op is Op.MIN:
            return pick(lows, True, True), pick(highs, True, False)
        return pick(lows, False, False), pick(highs, False, True)

    # -- division ------------------------------------------------------------------------------

    def divide(self, x: Linear, d: Dim) -> Linear:
        """x // d for x >= 0."""
        return self._divmod(x, d)[0]

    def remainder(self, x: Linear, d: Dim) -> Linear:
        """x % d for x >= 0."""
        return self._divmod(x, d)[1]

    def _divmod(self, x: Linear, d: Dim) -> tuple[Linear, Linear]:
        if d == 1:
            return x, Linear()
        whole, rest = self._split(x, d)
        low, high = self.bounds(rest)
        if low is None or not is_nonnegative(low):
            # A negative rest would borrow from the whole part.
            if not whole.terms and whole.constant == 0:
                node = x.scalar()
                divisor = sc.dim(d)
                return (
                    self._atom(sc.binary(Op.UDIV, node, divisor)),
                    self._atom(sc.binary(Op.UMOD, node, divisor)),
                )
            whole, rest, high = Linear(), x, None
        quotient, left = self._small(rest, d, high)
        return self._rejoin(_sum([(whole, 1), (quotient, 1)])), left

    @staticmethod
    def _split(x: Linear, d: Dim) -> tuple[Linear, Linear]:
        """x = whole * d + rest, taking out the terms that d divides."""
        whole: dict[Scalar, Dim] = {}
        rest: dict[Scalar, Dim] = {}
        for atom, c in x.terms.items():
            if divides(d, c):
                whole[atom] = floordiv(c, d)
            else:
                rest[atom] = c
        if divides(d, x.constant):
            return Linear(whole, floordiv(x.constant, d)), Linear(rest)
        if isinstance(d, int) and isinstance(x.constant, int):
            q, r = divmod(x.constant, d)
            return Linear(whole, q), Linear(rest, r)
        return Linear(whole), Linear(rest, x.constant)

    def _small(self, rest: Linear, d: Dim, high: Dim | None) -> tuple[Linear, Linear]:
        """Divide what has no multiple of d in it."""
        if high is not None and is_nonnegative(d - 1 - high):
            return Linear(), rest
        # (g*a + r) // (g*e) = a // e and (g*a + r) % (g*e) = g*(a % e) + r  where 0 <= r < g
        for g in dict.fromkeys(rest.terms.values()):
            if g == 1 or not is_nonnegative(g) or not divides(g, d):
                continue
            a, r = self._split(rest, g)
            low, most = self.bounds(r)
            fits = most is not None and is_nonnegative(g - 1 - most)
            if fits and low is not None and is_nonnegative(low):
                q, m = self._divmod(a, floordiv(d, g))
                return q, self._rejoin(_sum([(m, g), (r, 1)]))
        divisor = sc.dim(d)
        if len(rest.terms) == 1 and rest.constant == 0:
            ((atom, c),) = rest.terms.items()
            if c == 1 and atom.op is Op.UDIV:  # (x // a) // b = x // (a * b)
                inner = self.linear(atom.args[1])
                if not inner.terms:
                    node = sc.binary(Op.UDIV, atom.args[0], sc.dim(inner.constant * d))
                    return self._atom(node), self._atom(sc.binary(Op.UMOD, atom, divisor))
        node = rest.scalar()
        return (
            self._atom(sc.binary(Op.UDIV, node, divisor)),
            self._atom(sc.binary(Op.UMOD, node, divisor)),
        )

    def _rejoin(self, form: Linear) -> Linear:
        """(x // d) * (d * c) + (x % d) * c = x * c."""
        again = True
        while again:
            again = False
            for atom, c in form.terms.items():
                if atom.op is not Op.UMOD:
                    continue
                d = self.linear(atom.args[1])
                if d.terms:
                    continue
                x = self.linear(atom.args[0])
                quotient = self._divmod(x, d.constant)[0]
                if len(quotient.terms) != 1 or quotient.constant != 0:
                    continue
                ((partner, unit),) = quotient.terms.items()
                if unit == 1 and form.terms.get(partner) == c * d.constant:
                    left = {a: k for a, k in form.terms.items() if a not in (atom, partner)}
                    form = _sum([(Linear(left, form.constant), 1), (x, c)])
                    again = True
                    break
        return form

    # -- whole expressions ---------------------------------------------------------------------

    def view(self, index: Scalar) -> View | None:
        """`index` as strides of the axes, or None if it is anything else."""
        form = self.linear(index)
        if any(atom.op is not Op.AXIS for atom in form.terms):
            return None
        strides = tuple(form.coefficient(i) for i in range(len(self.extents)))
        return View(strides, form.constant)

    def forms(self, roots: Iterable[Scalar]) -> list[Linear]:
        """Every linear form in the expressions: of indices, and inside their atoms."""
        found: dict[Scalar, Linear] = {}
        seen: set[Scalar] = set()

        def visit(node: Scalar) -> None:
            if node in seen:
                return
            seen.add(node)
            if node.type is Type.I32:
                form = self.linear(node)
                found[node] = form
                for atom in form.terms:
                    for a in atom.args:
                        visit(a)
            else:
                for a in node.args:
                    visit(a)

        for root in roots:
            visit(root)
        return list(found.values())


def shift_axes(node: Scalar, new: Callable[[int], Scalar]) -> Scalar:
    """`node` with AXIS i replaced by `new(i)`."""
    return sc.transform(node, lambda n: new(int(n.value or 0)) if n.op is Op.AXIS else None)


def unravel(flat: Scalar, shape: Sequence[Dim]) -> tuple[Scalar, ...]:
    """Row-major coordinates of element number `flat`."""
    coordinates: list[Scalar] = []
    for size in reversed(shape[1:]):
        coordinates.append(sc.binary(Op.UMOD, flat, sc.dim(size)))
        flat = sc.binary(Op.UDIV, flat, sc.dim(size))
    return (flat, *reversed(coordinates)) if shape else ()
