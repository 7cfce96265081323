"""F(m, 3): the transforms of Winograd's minimal filtering, and how a function applies them.

m outputs of a filter of three taps take m + 2 products instead of 3 m, of transformed signal and
transformed filter (S. Winograd, "Arithmetic Complexity of Computations", 1980). In two dimensions
each transform is applied to columns, then to rows: (m + 2)^2 products for m^2 outputs (A. Lavin
and S. Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308).

The matrices are Toom and Cook's: the polynomials of signal and filter are evaluated at m + 1 points
and infinity. The points decide what rounding costs (B. Barabasz et al., "Error Analysis and
Improving the Accuracy of Winograd Convolution for Deep Neural Networks", arXiv 1803.10986). For
m = 4 they are 0, +-a and +-1/a with a = sqrt(2), whose powers stay small: sums over 64 channels of
normal numbers are off by at most 1.3e-6 of the largest, where direct sums are by 0.8e-6 and the
usual points, +-1 and +-2, by 5.3e-6. m = 2 is off by less than direct sums, having fewer terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .asm import V128, Function, Local

Matrix = tuple[tuple[float, ...], ...]

_ROOT = math.sqrt(2)
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1 / _ROOT, -1 / _ROOT, _ROOT, -_ROOT)}


@dataclass(frozen=True, slots=True)
class Transforms:
    """output is m x (m + 2), weight (m + 2) x 3, input (m + 2) x (m + 2).

    Correlation of a signal d with a filter g: output (weight g * input d).
    """

    output: Matrix
    weight: Matrix
    input: Matrix


def transforms(m: int) -> Transforms:
    """Those of F(m, 3), for m of 2 or 4."""
    points = _POINTS[m]
    output = [[p**k for p in points] + [float(k == m - 1)] for k in range(m)]
    weight, input_ = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = math.prod(p - q for q in others)
        weight.append([p**k / scale for k in range(3)])
        input_.append([*_polynomial(others), 0.0])
    weight.append([0.0, 0.0, 1.0])
    input_.append(_polynomial(points))
    return Transforms(_exact(output), _exact(weight), _exact(input_))


def _polynomial(roots: Sequence[float]) -> list[float]:
    """Coefficients, the lowest first, of the monic polynomial with these roots."""
    found = [1.0]
    for root in roots:
        found = [a - root * b for a, b in zip([0.0, *found], [*found, 0.0], strict=True)]
    return found


def _exact(rows: Sequence[Sequence[float]]) -> Matrix:
    """What is 0 or 1 in exact arithmetic is so here."""
    return tuple(tuple(round(c, 12) for c in row) for row in rows)


Term = tuple[float, int]
"""A coefficient and the number of a value."""


class Linear:
    """y = matrix x over vector locals of a function, with few operations.

    Rows for points p and -p differ in the signs of odd elements only, and so do columns: their even
    and odd parts are computed once. The constants are set where this is made: outside of loops.
    """

    def __init__(self, f: Function, matrix: Matrix) -> None:
        self.f = f
        self._inputs = len(matrix[0])
        # Each step adds a value, a sum of terms over the inputs and the values before it.
        self._steps: list[list[Term]] = []
        if len(matrix) < self._inputs:
            rows = self._by_columns(matrix)
        else:
            rows = self._by_rows(matrix)
        self._outputs = [self._step(row) for row in rows]
        self._constants: dict[float, Local] = {}
        for coefficient in sorted({c for step in self._steps for c, _ in step if abs(c) != 1}):
            local = self._constants[coefficient] = f.local(V128)
            f.f32x4_const(coefficient)
            f.set(local)

    def _step(self, terms: list[Term]) -> int:
        """The number of a sum's value."""
        if len(terms) == 1 and terms[0][0] == 1:
            return terms[0][1]
        self._steps.append(sorted(terms, key=lambda term: term[0] != 1))
        return self._inputs + len(self._steps) - 1

    def _by_columns(self, matrix: Matrix) -> list[list[Term]]:
        rows: list[list[Term]] = [[] for _ in matrix]
        columns = list(zip(*matrix, strict=True))
        at = 0
        while at < len(columns):
            pair = at + 1 < len(columns) and _mirrored(columns[at], columns[at + 1])
            values = [at, at]
            if pair:
                values = [self._step([(1, at), (sign, at + 1)]) for sign in (1, -1)]
            for k, coefficient in enumerate(columns[at]):
                if coefficient:
                    rows[k].append((coefficient, values[k % 2]))
            at += 1 + pair
        return rows

    def _by_rows(self, matrix: Matrix) -> list[list[Term]]:
        rows: list[list[Term]] = []
        while len(rows) < len(matrix):
            row = matrix[len(rows)]
            terms = [(c, i) for i, c in enumerate(row) if c]
            if len(rows) + 1 == len(matrix) or not _mirrored(row, matrix[len(rows) + 1]):
                rows.append(terms)
                continue
            even = self._step([(c, i) for c, i in terms if i % 2 == 0])
            odd = [(c, i) for c, i in terms if i % 2]
            factor = odd[-1][0]
            value = self._step([(c / factor, i) for c, i in odd])
            rows += [[(1, even), (factor, value)], [(1, even), (-factor, value)]]
        return rows

    def apply(self, x: Sequence[Local]) -> list[Local]:
        """y, in locals of its own or of `x`."""
        f, values = self.f, list(x)
        for terms in self._steps:
            out = f.local(V128)
            (first, number), *others = terms
            now = values[number]
            if first != 1:
                f.get(now)
                if first == -1:
                    f.f32x4_neg()
                else:
                    f.get(self._constants[first])
                    f.f32x4_mul()
                f.set(out)
                now = out
            for coefficient, number in others:
                value = values[number]
                if abs(coefficient) == 1:
                    f.get(now, value)
                    (f.f32x4_add if coefficient == 1 else f.f32x4_sub)()
                else:
                    f.get(self._constants[coefficient], value)
                    f.fma(now)
                f.set(out)
                now = out
            values.append(out)
        return [values[number] for number in self._outputs]

    def square(
        self,
        size: int,
        load: Callable[[int, int], None],
        use: Callable[[int, int, Local], None],
    ) -> None:
        """matrix X matrix^T for a `size` x `size` X, whose elements `load` pushes.

        `use` gets each row, column and the element there, row by row.
        """
        f = self.f
        with f.scope():
            columns = []
            for column in range(size):
                x = f.locals(V128, size)
                for row, local in enumerate(x):
                    load(row, column)
                    f.set(local)
                columns.append(self.apply(x))
            for row, elements in enumerate(zip(*columns, strict=True)):
                with f.scope():
                    for column, element in enumerate(self.apply(elements)):
                        use(row, column, element)


def _mirrored(one: Sequence[float], other: Sequence[float]) -> bool:
    """Is `other` as `one` with the signs of odd elements changed?"""
    return one != other and all(
        b == (-a if k % 2 else a) for k, (a, b) in enumerate(zip(one, other, strict=True))
    )
