"""Elementary functions in terms of arithmetic: WebAssembly has none of them.

Each function takes and gives `Scalar`s, so what it needs is shared, hoisted and vectorised like
any other expression. They are branch-free and made for four lanes at a time. NaN gives NaN and
infinities give their limits. Bounds are of the relative error against the exact result in f32,
measured over the whole range by tests/kernels/test_math.py; results below 1.7e-38 (1.4 times the
smallest normal number) may be flushed to zero.

Polynomials of exp, log, sine, arcsine and arctangent: Cephes (S. Moshier, single precision).
Rational forms of erf and tanh: our own minimax fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..scalar import Op, Scalar, Type, binary, const, rebuild, select, unary


def expand(root: Scalar) -> Scalar:
    """`root` without the operators that the target has no instruction for."""
    done: dict[Scalar, Scalar] = {}

    def visit(node: Scalar) -> Scalar:
        new = done.get(node)
        if new is None:
            args = [visit(a) for a in node.args]
            same = all(a is b for a, b in zip(args, node.args, strict=True))
            new = node if same else rebuild(node, args)
            rule = _RULES.get(new.op)
            if rule is not None and new.args[0].type is Type.F32:
                new = rule(*new.args)
            done[node] = new
        return new

    return visit(root)


def _horner(x: Scalar, coefficients: Sequence[float]) -> Scalar:
    """The polynomial with these coefficients, highest power first."""
    total: Scalar = const(coefficients[0])
    for c in coefficients[1:]:
        total = total * x + c
    return total


def _bits(x: Scalar) -> Scalar:
    return unary(Op.BITS_I32, x)


def _float(bits: Scalar) -> Scalar:
    return unary(Op.BITS_F32, bits)


def _abs(x: Scalar) -> Scalar:
    return unary(Op.ABS, x)


def _less(a: Scalar, b: Scalar | float) -> Scalar:
    return binary(Op.LT, a, b)


def _more(a: Scalar, b: Scalar | float) -> Scalar:
    return binary(Op.LT, b, a)


def _clamp(x: Scalar, low: float, high: float) -> Scalar:
    return binary(Op.MIN, binary(Op.MAX, x, low), high)


def _signed(magnitude: Scalar, sign_of: Scalar) -> Scalar:
    """`magnitude`, which is not negative, with the sign of `sign_of`."""
    sign = binary(Op.BAND, _bits(sign_of), const(-(1 << 31)))
    return _float(binary(Op.BOR, _bits(magnitude), sign))


_MAGIC = 12582912.0
"""1.5 * 2**23: adding it rounds to an integer, which the low bits then hold."""

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4


def exp(x: Scalar) -> Scalar:
    """Relative error below 2e-7; below -86.98 the result is 0, above 88.73 infinity."""
    # 2 * 2**(n - 1), so that the largest n still has a finite scale.
    p, scale = _exp_parts(_clamp(x, -87.3, 89.0), 126)
    return (p + p) * scale


def exp_of_negative(x: Scalar) -> Scalar:
    """`exp` for x <= 0 or NaN, a little cheaper: what a softmax needs.

    At the clamp the scale is 0. Just above, it would be 2**-126 and the results subnormal numbers,
    which processors take many cycles to make, for every position that a mask hides.
    """
    p, scale = _exp_parts(binary(Op.MAX, x, -88.0), 127)
    return p * scale


def _exp_parts(x: Scalar, bias: int) -> tuple[Scalar, Scalar]:
    """(p, 2**(n + bias - 127)) with exp(x) = p * 2**n."""
    # The exponent's bias is rounded along; a shift by 23 drops all other bits.
    magic = _MAGIC + bias
    shifted = x * math.log2(math.e) + magic
    n = shifted - magic
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    # Even and odd powers by themselves: fewer additions wait for each other.
    z = r * r
    odd = _horner(z, (1.9875691500e-4, 8.3334519073e-3, 1.6666665459e-1))
    even = _horner(z, (1.3981999507e-3, 4.1665795894e-2, 5.0000001201e-1))
    return (odd * r + even) * z + (r + 1.0), _float(binary(Op.SHL, _bits(shifted), const(23)))


def log(x: Scalar) -> Scalar:
    """Relative error below 2e-7, near 1 too; log(0) = -inf, negative numbers give NaN."""
    tiny = _less(x, 1.17549435e-38)
    normal = select(tiny, x * 8388608.0, x)
    # The mantissa is taken in [sqrt(1/2), sqrt(2)).
    e = binary(Op.SAR, _bits(normal) - 0x3F3504F3, const(23))
    f = _float(_bits(normal) - binary(Op.SHL, e, const(23))) - 1.0
    n = unary(Op.TO_F32, e) - select(tiny, 23.0, const(0.0))
    z = f * f
    p = _horner(f, (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1,
                    1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1,
                    3.3333331174e-1))  # fmt: skip
    y = p * f * z + n * _LN2_LOW
    y = y - z * 0.5
    y = f + y
    y = y + n * _LN2_HIGH
    y = select(_less(x, const(math.inf)), y, x)  # inf and NaN stay
    y = select(binary(Op.EQ, x, const(0.0)), const(-math.inf), y)
    return select(_less(x, const(0.0)), const(math.nan), y)


def _log1p(x: Scalar) -> Scalar:
    """log(1 + x) for x >= 0, without the loss of x's low bits."""
    u = x + 1.0
    correction = (x - (u - 1.0)) / u
    return log(u) + select(_less(x, const(1e8)), correction, const(0.0))


def _reduced_angle(x: Scalar) -> tuple[Scalar, Scalar]:
    """(quadrant as I32, rest in [-pi/4, pi/4]).

    pi/2 in three parts, of which the first two have few enough bits to be multiplied exactly.
    """
    shifted = x * (2.0 / math.pi) + _MAGIC
    n = shifted - _MAGIC
    r = x - n * 1.5703125
    r = r - n * 4.8351287841796875e-4
    r = r - n * 3.13855707645416259765625e-7
    return _bits(shifted), r - n * 6.077100506506192e-11


def _sine_and_cosine(x: Scalar, quadrants: int) -> Scalar:
    """sin(x + quadrants * pi/2)."""
    q, r = _reduced_angle(x)
    q = q + quadrants
    z = r * r
    sine = _horner(z, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)) * (z * r) + r
    cosine = _horner(z, (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2))
    cosine = cosine * (z * z) - z * 0.5 + 1.0
    odd = unary(Op.TO_BOOL, binary(Op.BAND, q, const(1)))
    flip = binary(Op.SHL, binary(Op.BAND, q, const(2)), const(30))
    return _float(binary(Op.BXOR, _bits(select(odd, cosine, sine)), flip))


def sin(x: Scalar) -> Scalar:
    """Absolute error below 2e-7 for |x| < 8000; beyond, it grows with x."""
    return _sine_and_cosine(x, 0)


def cos(x: Scalar) -> Scalar:
    """See `sin`."""
    return _sine_and_cosine(x, 1)


def tan(x: Scalar) -> Scalar:
    """Relative error below 1e-6 away from the zeros and poles; for |x| < 8000."""
    return sin(x) / cos(x)


def atan(x: Scalar) -> Scalar:
    """Relative error below 2e-7."""
    a = _abs(x)
    far, middle = _more(a, 2.414213562373095), _more(a, 0.4142135623730950)
    top = select(far, const(-1.0), select(middle, a - 1.0, a))
    bottom = select(far, a, select(middle, a + 1.0, 1.0))
    t = top / bottom
    base = select(far, const(math.pi / 2), select(middle, const(math.pi / 4), const(0.0)))
    z = t * t
    p = _horner(z, (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1))
    return _signed(base + (p * z * t + t), x)


def _arcsine_core(a: Scalar, z: Scalar) -> Scalar:
    p = _horner(z, (4.2163199048e-2, 2.4181311049e-2, 4.5470025998e-2, 7.4953002686e-2,
                    1.6666752422e-1))  # fmt: skip
    return p * (z * a) + a


def asin(x: Scalar) -> Scalar:
    """Relative error below 3e-7; NaN outside [-1, 1]."""
    a = _abs(x)
    big = _more(a, 0.5)
    z = select(big, (1.0 - a) * 0.5, a * a)
    s = _arcsine_core(select(big, unary(Op.SQRT, z), a), z)
    return _signed(select(big, math.pi / 2 - (s + s), s), x)  # a NaN with a sign is a NaN


def acos(x: Scalar) -> Scalar:
    """Relative error below 3e-7; NaN outside [-1, 1]."""
    a = _abs(x)
    big = _more(a, 0.5)
    z = select(big, (1.0 - a) * 0.5, x * x)
    s = _arcsine_core(select(big, unary(Op.SQRT, z), x), z)
    outer = select(_less(x, const(0.0)), math.pi - (s + s), s + s)
    return select(big, outer, math.pi / 2 - s)


_LN2 = math.log(2.0)


def sinh(x: Scalar) -> Scalar:
    """Relative error below 4e-7."""
    a = _abs(x)
    # From exp(a / 2), because sinh is finite a little further than exp is.
    e = exp(a * 0.5)
    large = (e * 0.5) * e - 0.5 / (e * e)
    z = x * x
    p = _horner(z, (2.03721912945e-4, 8.33028376239e-3, 1.66667160211e-1))
    return select(_less(a, const(1.0)), p * z * x + x, _signed(large, x))


def cosh(x: Scalar) -> Scalar:
    """Relative error below 5e-7."""
    e = exp(_abs(x) * 0.5)
    return (e * 0.5) * e + 0.5 / (e * e)


def asinh(x: Scalar) -> Scalar:
    """Relative error below 4e-7."""
    a = _abs(x)
    z = a * a
    near = _log1p(a + z / (unary(Op.SQRT, z + 1.0) + 1.0))
    return _signed(select(_less(a, const(1e9)), near, log(a) + _LN2), x)


def acosh(x: Scalar) -> Scalar:
    """Relative error below 4e-7; NaN below 1."""
    t = x - 1.0
    near = _log1p(t + unary(Op.SQRT, t * t + (t + t)))
    return select(_less(x, const(1e9)), near, log(x) + _LN2)


def atanh(x: Scalar) -> Scalar:
    """Relative error below 5e-7; NaN outside [-1, 1]."""
    a = _abs(x)
    y = _log1p((a + a) / (1.0 - a)) * 0.5
    y = select(binary(Op.EQ, a, const(1.0)), const(math.inf), y)
    z = x * x
    small = x * z * _horner(z, (1.0 / 7, 1.0 / 5, 1.0 / 3)) + x
    return select(_less(a, const(0.1)), small, _signed(y, x))


def tanh(x: Scalar) -> Scalar:
    """Relative error below 4e-7."""
    x = _clamp(x, -9.0109, 9.0109)
    z = x * x
    top = _horner(z, (1.3335658799462635e-08, 2.0595460227923468e-05, 0.0034947635140269995,
                      0.1338033229112625, 1.0))  # fmt: skip
    bottom = _horner(z, (7.768808814034855e-07, 0.0003284284030087292, 0.025873849168419838,
                         0.4671364724636078, 1.0))  # fmt: skip
    return _clamp(x * top / bottom, -1.0, 1.0)


def erf(x: Scalar) -> Scalar:
    """Relative error below 5e-7."""
    x = _clamp(x, -3.92, 3.92)
    z = x * x
    top = _horner(z, (2.0501345261436654e-06, 0.00028487504459917545, 0.003765307366847992,
                      0.05274777486920357, 0.19039936363697052, 1.1283791065216064))  # fmt: skip
    bottom = _horner(z, (3.809179906966165e-05, 0.001162458793260157, 0.014968601055443287,
                         0.11410616338253021, 0.5020697712898254, 1.0))  # fmt: skip
    return _clamp(x * top / bottom, -1.0, 1.0)


def pow_(x: Scalar, y: Scalar) -> Scalar:
    """x**y as C's pow has it. Relative error about 1e-7 * (1 + |y * log2(m)|) where m is x's
    mantissa in [sqrt(1/2), sqrt(2)); small constant whole exponents are multiplied out."""
    if y.op is Op.CONST:
        simple = _simple_power(x, float(y.value or 0.0))
        if simple is not None:
            return simple
    a = _abs(x)
    limited = _clamp(y, -1e9, 1e9)
    tiny = _less(a, 1.17549435e-38)
    normal = select(tiny, a * 8388608.0, a)
    e = binary(Op.SAR, _bits(normal) - 0x3F3504F3, const(23))
    m = _float(_bits(normal) - binary(Op.SHL, e, const(23)))
    n = unary(Op.TO_F32, e) - select(tiny, 23.0, const(0.0))
    log2_m = log(m) * math.log2(math.e)
    # y * n exactly: twelve bits of y times n's eight, and what is left of y.
    high = _float(binary(Op.BAND, _bits(limited), const(-4096)))
    whole = unary(Op.ROUND, high * n)
    rest = (high * n - whole) + ((limited - high) * n + limited * log2_m)
    more = unary(Op.ROUND, rest)
    exponent = _clamp(whole + more, -300.0, 300.0)
    fraction = exp((rest - more) * math.log(2.0))
    # In two factors, since the exponent may exceed what one can hold.
    half = unary(Op.FLOOR, exponent * 0.5)
    result = fraction * _power_of_two(_clamp(half, -126.0, 127.0))
    result = result * _power_of_two(_clamp(exponent - half, -126.0, 127.0))

    zero = const(0.0)
    up = select(_more(y, 0.0), const(math.inf), zero)
    down = select(_more(y, 0.0), zero, const(math.inf))
    result = select(binary(Op.EQ, a, zero), down, result)
    result = select(binary(Op.EQ, a, const(math.inf)), up, result)
    whole_y = binary(Op.EQ, unary(Op.FLOOR, y), y)
    even = binary(Op.EQ, unary(Op.FLOOR, y * 0.5) * 2.0, y)
    negative = _less(_float(binary(Op.BOR, binary(Op.BAND, _bits(x), const(-(1 << 31))),
                                   const(0x3F800000))), const(0.0))  # fmt: skip
    flipped = select(binary(Op.AND, whole_y, unary(Op.NOT, even)), -result, result)
    result = select(negative, flipped, result)
    bad = binary(Op.AND, _less(x, const(0.0)), unary(Op.NOT, whole_y))
    bad = binary(Op.AND, bad, _more(x, -math.inf))
    result = select(bad, const(math.nan), result)
    result = select(unary(Op.ISNAN, x), x, select(unary(Op.ISNAN, y), y, result))
    one = binary(Op.OR, binary(Op.EQ, y, zero), binary(Op.EQ, x, const(1.0)))
    return select(one, const(1.0), result)


def _power_of_two(n: Scalar) -> Scalar:
    return _float(binary(Op.SHL, unary(Op.TO_I32, n) + 127, const(23)))


def _simple_power(x: Scalar, y: float) -> Scalar | None:
    if y == 0.5:
        return unary(Op.SQRT, x)
    if y == -0.5:
        return 1.0 / unary(Op.SQRT, x)
    if not abs(y) <= 8 or y != int(y):
        return None
    result: Scalar | None = None
    square, n = x, abs(int(y))
    while n:
        if n & 1:
            result = square if result is None else result * square
        square, n = square * square, n >> 1
    if result is None:
        return const(1.0)
    return 1.0 / result if y < 0 else result


def mod(x: Scalar, y: Scalar) -> Scalar:
    """Remainder with the divisor's sign; exact while |x / y| < 2**29."""
    r = _unless_infinite(x, y, binary(Op.MOD, x, y))
    return select(_less(r * y, const(0.0)), r + y, r)


def rem(x: Scalar, y: Scalar) -> Scalar:
    """Remainder with the dividend's sign; exact while |x / y| < 2**29."""
    return _unless_infinite(x, y, binary(Op.REM, x, y))


def _unless_infinite(x: Scalar, y: Scalar, r: Scalar) -> Scalar:
    """A finite x divided by infinity leaves x."""
    whole = binary(Op.AND, unary(Op.ISINF, y), _less(_abs(x), const(math.inf)))
    return select(whole, x, r)


def sign(x: Scalar) -> Scalar:
    """-1, 0 or 1; NaN and zeros stay as they are."""
    one = _signed(const(1.0), x)
    return select(binary(Op.LT, const(0.0), _abs(x)), one, x)


def divide(x: Scalar, y: Scalar) -> Scalar:
    """Division by a power of two is an exact, and cheaper, multiplication."""
    if y.op is Op.CONST:
        mantissa, exponent = math.frexp(float(y.value or 0.0))
        if abs(mantissa) == 0.5 and -100 < exponent < 100:
            return x * (1.0 / float(y.value or 1.0))
    return x / y


def rsqrt(x: Scalar) -> Scalar:
    """Relative error below 2e-7."""
    return 1.0 / unary(Op.SQRT, x)


_RULES: dict[Op, Callable[..., Scalar]] = {
    Op.EXP: exp,
    Op.LOG: log,
    Op.SIN: sin,
    Op.COS: cos,
    Op.TAN: tan,
    Op.ASIN: asin,
    Op.ACOS: acos,
    Op.ATAN: atan,
    Op.SINH: sinh,
    Op.COSH: cosh,
    Op.ASINH: asinh,
    Op.ACOSH: acosh,
    Op.ATANH: atanh,
    Op.TANH: tanh,
    Op.ERF: erf,
    Op.POW: pow_,
    Op.MOD: mod,
    Op.REM: rem,
    Op.SIGN: sign,
    Op.RSQRT: rsqrt,
    Op.DIV: divide,
}
