"""Spells a `Scalar` graph as WGSL: statements for what is shared, then one expression.

WGSL leaves more open than a model may: `erf` does not exist, `sin` is only promised near zero,
`tanh` may overflow, `min` may drop a NaN, infinities cannot be written down. The helper functions
below close these gaps; a shader carries the ones it calls.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..scalar import Op, Scalar, Type, walk
from ..spec import Storage

WGSL_TYPE = {Type.F32: "f32", Type.I32: "i32", Type.BOOL: "bool"}
ELEMENT = {Storage.F32: "f32", Storage.F16: "f16", Storage.I32: "i32", Storage.I8: "i32"}
"""What a buffer is an array of; an i32 holds four I8."""

# Long enough to keep ordinary expressions whole, short enough to read.
_LONGEST_EXPRESSION = 160

# name: (names of the helpers it calls, text). Bit patterns pass through a `let`, because WGSL
# refuses a constant expression whose value is not finite.
_HELPERS: dict[str, tuple[tuple[str, ...], str]] = {
    "bits_to_f32": ((), "fn bits_to_f32(x: u32) -> f32 {\n  let bits = x;\n"
                        "  return bitcast<f32>(bits);\n}"),
    "is_nan": ((), "fn is_nan(x: f32) -> bool {\n"
                   "  return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;\n}"),
    "is_inf": ((), "fn is_inf(x: f32) -> bool {\n"
                   "  return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u;\n}"),
    "min_nan": (("is_nan",), "fn min_nan(a: f32, b: f32) -> f32 {\n"
                "  return select(select(min(a, b), b, is_nan(b)), a, is_nan(a));\n}"),
    "max_nan": (("is_nan",), "fn max_nan(a: f32, b: f32) -> f32 {\n"
                "  return select(select(max(a, b), b, is_nan(b)), a, is_nan(a));\n}"),
    "sign_nan": (("is_nan",), "fn sign_nan(x: f32) -> f32 {\n"
                 "  return select(sign(x), x, is_nan(x));\n}"),
    # Long division in base two: each difference of neighbours within a factor of two is exact.
    "rem_f32": (("is_inf", "is_nan", "bits_to_f32"), """\
fn rem_f32(a: f32, b: f32) -> f32 {
  if (is_nan(b) || is_nan(a) || is_inf(a) || b == 0.0f) {
    return bits_to_f32(0x7fc00000u);
  }
  let least = abs(b);
  var rest = abs(a);
  var part = least;
  while (part <= rest * 0.5f) {
    part *= 2.0f;
  }
  loop {
    if (rest >= part) {
      rest -= part;
    }
    if (part <= least) {
      break;
    }
    part *= 0.5f;
  }
  return select(rest, -rest, a < 0.0f);
}"""),
    "mod_f32": (("rem_f32",), """\
fn mod_f32(a: f32, b: f32) -> f32 {
  let r = rem_f32(a, b);
  return select(r, r + b, r != 0.0f && (r < 0.0f) != (b < 0.0f));
}"""),
    "mod_i32": ((), """\
fn mod_i32(a: i32, b: i32) -> i32 {
  let r = select(a % b, 0, b == 0);
  return select(r, r + b, r != 0 && (r < 0) != (b < 0));
}"""),
    "div_i32": ((), "fn div_i32(a: i32, b: i32) -> i32 {\n  return select(a / b, 0, b == 0);\n}"),
    "rem_i32": ((), "fn rem_i32(a: i32, b: i32) -> i32 {\n  return select(a % b, 0, b == 0);\n}"),
    "to_i32": (("is_nan",), """\
fn to_i32(x: f32) -> i32 {
  // 2147483520 is the largest f32 below 2^31: the conversion itself never saturates.
  let whole = i32(clamp(select(x, 0.0f, is_nan(x)), -2147483648.0f, 2147483520.0f));
  return select(whole, 2147483647, x >= 2147483648.0f);
}"""),
    # SwiftShader takes minutes to compile this with a few selects or a conversion to i32 more.
    "pow_f32": (("is_nan", "is_inf", "bits_to_f32"), """\
fn pow_f32(x: f32, y: f32) -> f32 {
  // WGSL's pow is defined for x >= 0 only.
  let limit = bits_to_f32(select(0u, 0x7f800000u, y < 0.0f));
  let size = select(select(pow(abs(x), y), limit, x == 0.0f), 1.0f, abs(x) == 1.0f);
  let half = y * 0.5f;
  let whole = floor(y) == y;
  let odd = whole && floor(half) != half;
  let sign = select(0u, bitcast<u32>(x) & 0x80000000u, odd);
  var r = bitcast<f32>(bitcast<u32>(size) | sign);
  r = select(r, bits_to_f32(0x7fc00000u), x < 0.0f && !whole && !is_inf(x));
  r = select(r, x + y, is_nan(x) || is_nan(y));
  return select(r, 1.0f, y == 0.0f || x == 1.0f);
}"""),
    "tanh_f32": ((), """\
fn tanh_f32(x: f32) -> f32 {
  // exp of a negative number cannot overflow; near zero the series keeps the relative accuracy.
  let t = exp(-2.0f * abs(x));
  let far = (1.0f - t) / (1.0f + t);
  let s = x * x;
  let near = x * (1.0f + s * (-0.33333334f + s * (0.13333334f + s * (-0.053968254f
    + s * 0.021869488f))));
  return select(select(far, -far, x < 0.0f), near, abs(x) < 0.25f);
}"""),
    # Two Chebyshev fits: erf(x) / x in x*x on [0, 1], and -log(erfc(x)) on [0.95, 4];
    # within 1.6e-7 of erf.
    "erf_f32": (("is_nan",), """\
fn erf_f32(x: f32) -> f32 {
  let a = min(abs(x), 4.0f);
  let s = a * a;
  let near = x * (1.1283791f + s * (-0.37612349f + s * (0.11280364f + s * (-0.026716385f
    + s * (0.0049232776f + s * -0.00056541058f)))));
  let q = 0.00062211426f + a * (1.1263688f + a * (0.63849372f + a * (0.10375356f
    + a * (-0.022804604f + a * (0.0034814788f + a * (-0.00032345402f + a * 0.000013633129f))))));
  let far = 1.0f - exp(-q);
  return select(select(select(far, -far, x < 0.0f), x, is_nan(x)), near, abs(x) < 1.0f);
}"""),
    # erfc(x) = 2^-q(x) for x >= 0, q a weighted Chebyshev fit on [0, 4.2] that grows beyond it;
    # within 2.2e-7 of 1 + erf. One piece and few instructions: an epilogue holds many copies of it.
    "one_plus_erf_f32": ((), """\
fn one_plus_erf_f32(x: f32) -> f32 {
  let a = abs(x);
  let rest = exp2(-a * (1.6279086f + a * (0.9184164f + a * (0.1484816f
    + a * (-0.02825368f + a * (0.00077462906f + a * (0.001489442f
    + a * (-0.00044550773f + a * 4.5358604e-05f))))))));
  return select(2.0f - rest, rest, x < 0.0f);
}"""),
    # Reduced to a quarter turn in three steps (Cody and Waite), then Taylor series.
    "sin_quadrant": ((), """\
fn sin_quadrant(x: f32, shift: i32) -> f32 {
  let n = round(x * 0.63661977f);
  let r = ((x - n * 1.5703125f) - n * 0.00048375130f) - n * 7.5497899e-8f;
  let s = r * r;
  let sine = r + r * s * (-0.16666667f + s * (0.0083333333f + s * (-0.00019841270f
    + s * 0.0000027557319f)));
  let cosine = 1.0f + s * (-0.5f + s * (0.041666667f + s * (-0.0013888889f
    + s * (0.000024801587f - s * 2.7557319e-7f))));
  let quadrant = (i32(clamp(n, -2000000000.0f, 2000000000.0f)) + shift) & 3;
  let y = select(sine, cosine, (quadrant & 1) == 1);
  return select(y, -y, quadrant >= 2);
}"""),
    "sin_f32": (("sin_quadrant",), "fn sin_f32(x: f32) -> f32 {\n"
                "  return sin_quadrant(x, 0);\n}"),
    "cos_f32": (("sin_quadrant",), "fn cos_f32(x: f32) -> f32 {\n"
                "  return sin_quadrant(x, 1);\n}"),
    "tan_f32": (("sin_quadrant",), "fn tan_f32(x: f32) -> f32 {\n"
                "  return sin_quadrant(x, 0) / sin_quadrant(x, 1);\n}"),
    "atan_f32": ((), """\
fn atan_f32(x: f32) -> f32 {
  let a = abs(x);
  var z = a;
  var base = 0.0f;
  if (a > 2.4142135f) {
    z = -1.0f / a;
    base = 1.5707963f;
  } else if (a > 0.41421357f) {
    z = (a - 1.0f) / (a + 1.0f);
    base = 0.78539816f;
  }
  let s = z * z;
  let y = base + z * (1.0f + s * (-0.33332797f + s * (0.19974405f + s * (-0.13851478f
    + s * 0.079849629f))));
  return select(y, -y, x < 0.0f);
}"""),
    "asin_f32": (("atan_f32",), "fn asin_f32(x: f32) -> f32 {\n"
                 "  return atan_f32(x / sqrt((1.0f - x) * (1.0f + x)));\n}"),
    "acos_f32": (("atan_f32",), "fn acos_f32(x: f32) -> f32 {\n"
                 "  return 2.0f * atan_f32(sqrt((1.0f - x) / (1.0f + x)));\n}"),
    "log1p_f32": ((), """\
fn log1p_f32(x: f32) -> f32 {
  let s = x * (1.0f + x * (-0.5f + x * (0.33333334f + x * (-0.25f + x * 0.2f))));
  return select(log(1.0f + x), s, abs(x) < 0.05f);
}"""),
    "sinh_f32": ((), """\
fn sinh_f32(x: f32) -> f32 {
  let e = exp(0.5f * abs(x));
  let far = 0.5f * e * e - 0.5f / (e * e);
  let s = x * x;
  let near = x * (1.0f + s * (0.16666667f + s * (0.0083333333f + s * 0.00019841270f)));
  return select(select(far, -far, x < 0.0f), near, abs(x) < 0.5f);
}"""),
    "cosh_f32": ((), """\
fn cosh_f32(x: f32) -> f32 {
  let e = exp(0.5f * abs(x));
  return 0.5f * e * e + 0.5f / (e * e);
}"""),
    "asinh_f32": (("log1p_f32",), """\
fn asinh_f32(x: f32) -> f32 {
  let a = abs(x);
  let s = a * a;
  let near = log1p_f32(a + s / (1.0f + sqrt(1.0f + s)));
  let y = select(near, log(a) + 0.69314718f, a > 1.0e9f);
  return select(y, -y, x < 0.0f);
}"""),
    "acosh_f32": (("log1p_f32",), """\
fn acosh_f32(x: f32) -> f32 {
  let d = x - 1.0f;
  let near = log1p_f32(d + sqrt(d * (x + 1.0f)));
  return select(near, log(x) + 0.69314718f, x > 1.0e9f);
}"""),
    "atanh_f32": (("log1p_f32",), """\
fn atanh_f32(x: f32) -> f32 {
  let a = abs(x);
  let y = 0.5f * log1p_f32(2.0f * a / (1.0f - a));
  return select(y, -y, x < 0.0f);
}"""),
}  # fmt: skip

_INFIX = {
    Op.ADD: "+", Op.SUB: "-", Op.MUL: "*", Op.EQ: "==", Op.LT: "<", Op.LE: "<=",
    Op.AND: "&&", Op.OR: "||", Op.XOR: "!=", Op.BAND: "&", Op.BOR: "|", Op.BXOR: "^",
}  # fmt: skip
_CALL_F32 = {
    Op.ABS: "abs", Op.EXP: "exp", Op.LOG: "log", Op.SQRT: "sqrt", Op.RSQRT: "inverseSqrt",
    Op.FLOOR: "floor", Op.CEIL: "ceil", Op.ROUND: "round", Op.TRUNC: "trunc",
}  # fmt: skip
_HELP_F32 = {
    Op.MIN: "min_nan", Op.MAX: "max_nan", Op.SIGN: "sign_nan", Op.MOD: "mod_f32",
    Op.SIN: "sin_f32", Op.COS: "cos_f32", Op.TAN: "tan_f32", Op.ASIN: "asin_f32",
    Op.ACOS: "acos_f32", Op.ATAN: "atan_f32", Op.SINH: "sinh_f32", Op.COSH: "cosh_f32",
    Op.ASINH: "asinh_f32", Op.ACOSH: "acosh_f32", Op.ATANH: "atanh_f32", Op.TANH: "tanh_f32",
    Op.ERF: "erf_f32", Op.POW: "pow_f32", Op.ISNAN: "is_nan", Op.ISINF: "is_inf",
    Op.TO_I32: "to_i32", Op.REM: "rem_f32",
}  # fmt: skip
_CALL_I32 = {Op.ABS: "abs", Op.MIN: "min", Op.MAX: "max", Op.SIGN: "sign"}
_HELP_I32 = {Op.DIV: "div_i32", Op.MOD: "mod_i32", Op.REM: "rem_i32"}


@dataclass
class Helpers:
    """The helper functions that a shader calls, with those they call, in the order of need."""

    used: dict[str, None] = field(default_factory=dict)

    def need(self, name: str) -> str:
        needs, _ = _HELPERS[name]
        for other in needs:
            self.need(other)
        self.used[name] = None
        return name

    def text(self) -> str:
        return "\n\n".join(_HELPERS[name][1] for name in self.used)


def literal(value: int | float | bool | None, type_: Type, helpers: Helpers) -> str:
    """A WGSL expression of exactly this value and type."""
    if type_ is Type.BOOL:
        return "true" if value else "false"
    if type_ is Type.I32:
        number = int(value or 0)
        if number == -(2**31):
            return "(-2147483647i - 1i)"
        return f"{number}i" if number >= 0 else f"({number}i)"
    number_f = float(value or 0)
    if math.isfinite(number_f):
        text = f"{_shortest(number_f)}f"
        return f"({text})" if text.startswith("-") else text
    bits = struct.unpack("<I", struct.pack("<f", number_f))[0]
    return f"{helpers.need('bits_to_f32')}(0x{bits:08x}u)"


_F32_MAX = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]


def _shortest(value: float) -> str:
    """The shortest decimal that reads back as this f32."""
    packed = struct.pack("<f", value)
    for digits in range(1, 11):
        text = f"{value:.{digits}g}"
        # Rounded up, the largest f32 is past the range of f32.
        if abs(float(text)) <= _F32_MAX and struct.pack("<f", float(text)) == packed:
            break
    return text if any(c in text for c in ".e") else f"{text}.0"


class Speller:
    """Spells expressions inside one function body; `lines` are the statements they rest on.

    names: what leaves are called here (axes, the accumulator, loads that come as parameters).
    storage: element types of the operands, which are global variables in0, in1, ...
    inline: one expression and no statements, whatever its length.
    """

    def __init__(
        self,
        storage: tuple[Storage, ...],
        helpers: Helpers,
        names: Mapping[Scalar, str],
        prefix: str = "t",
        inline: bool = False,
    ) -> None:
        self.storage, self.helpers, self.prefix, self.inline = storage, helpers, prefix, inline
        self.done: dict[Scalar, str] = dict(names)
        self.named = frozenset(names)
        self.lines: list[str] = []
        self.loaded: set[int] = set()
        self.uses: dict[Scalar, int] = {}

    def spell(self, *roots: Scalar) -> list[str]:
        """One expression per root."""
        nodes = self._reachable(roots)
        for node in nodes:
            for a in _inputs(node):
                self.uses[a] = self.uses.get(a, 0) + 1
        for root in roots:
            self.uses[root] = self.uses.get(root, 0) + 1
        for node in nodes:
            if node not in self.done:
                self.done[node] = self._bind(node, self._expression(node))
        return [self.done[root] for root in roots]

    def _reachable(self, roots: Iterable[Scalar]) -> list[Scalar]:
        """Arguments before users, not looking below what has a name."""
        order: dict[Scalar, None] = {}

        def visit(node: Scalar) -> None:
            if node in order or node in self.done:
                return
            for a in _inputs(node):
                visit(a)
            order[node] = None

        for root in roots:
            visit(root)
        return list(order)

    def _bind(self, node: Scalar, text: str) -> str:
        leaf = node.op in (Op.CONST, Op.AXIS, Op.ARG, Op.ACC)
        if (
            self.inline
            or leaf
            or not (
                self.uses.get(node, 0) > 1 or node.op is Op.LOAD or len(text) > _LONGEST_EXPRESSION
            )
        ):
            return text
        name = f"{self.prefix}{len(self.lines)}"
        self.lines.append(f"let {name} = {text};")
        return name

    def _expression(self, node: Scalar) -> str:
        op = node.op
        if op is Op.CONST:
            return literal(node.value, node.type, self.helpers)
        if op is Op.ARG:
            return arg_text(int(node.value or 0))
        if op in (Op.AXIS, Op.ACC):
            raise ValueError(f"{node!r} has no value here")
        x = [self.done[a] for a in _inputs(node)]
        if all(a.op is Op.CONST for a in node.args) and op is not Op.LOAD:
            # WGSL evaluates constant expressions when it compiles, and refuses overflow and
            # division by zero there; a `let` is not a constant.
            name = f"{self.prefix}{len(self.lines)}"
            self.lines.append(f"let {name} = {x[0]};")
            x[0] = name
        if op is Op.LOAD:
            operand = int(node.value or 0)
            self.loaded.add(operand)
            text = f"in{operand}[{x[0]}]"
            if self.storage[operand] is Storage.I8:
                at = f"u32({x[0]})"
                return f"extractBits(in{operand}[{at} / 4u], {at} % 4u * 8u, 8u)"
            return f"f32({text})" if self.storage[operand] is Storage.F16 else text
        return self._operator(node, x)

    def _operator(self, node: Scalar, x: list[str]) -> str:
        op, kind = node.op, node.args[0].type
        if _after_erf(node) is not None:
            return f"{self.helpers.need('one_plus_erf_f32')}({x[0]})"
        if op in _INFIX:
            return f"({x[0]} {_INFIX[op]} {x[1]})"
        if op in (Op.UDIV, Op.UMOD):
            return f"i32(u32({x[0]}) {'/' if op is Op.UDIV else '%'} {self._unsigned(node, x[1])})"
        if op in (Op.SHL, Op.SAR):
            return f"({x[0]} {'<<' if op is Op.SHL else '>>'} (u32({x[1]}) & 31u))"
        if op is Op.SHR:
            return f"bitcast<i32>(bitcast<u32>({x[0]}) >> (u32({x[1]}) & 31u))"
        if op is Op.NEG:
            return f"(-{x[0]})"
        if op is Op.NOT:
            return f"(!{x[0]})"
        if op is Op.SELECT:
            return f"select({x[2]}, {x[1]}, {x[0]})"
        if op is Op.TO_F32:
            return f"f32({x[0]})"
        if op is Op.TO_BOOL:
            if kind is Type.F32:  # by bits: NaN is true
                return f"((bitcast<u32>({x[0]}) & 0x7fffffffu) != 0u)"
            return f"({x[0]} != 0i)"
        if op in (Op.BITS_F32, Op.BITS_I32):
            return f"bitcast<{WGSL_TYPE[node.type]}>({x[0]})"
        if op is Op.TO_I32 and kind is Type.BOOL:
            return f"i32({x[0]})"
        return self._float(node, x) if kind is Type.F32 else self._int(node, x)

    def _unsigned(self, node: Scalar, text: str) -> str:
        divisor = node.args[1]
        if divisor.op is not Op.CONST:
            return f"u32({text})"
        # Nobody runs over a tensor without elements, but its shader must compile, too.
        return f"{max(int(divisor.value or 0), 1)}u"

    def _int(self, node: Scalar, x: list[str]) -> str:
        if node.op in _CALL_I32:
            return f"{_CALL_I32[node.op]}({', '.join(x)})"
        divisor = node.args[-1]
        if divisor.op is Op.CONST and divisor.value == 0:
            return "0i"  # a literal zero divisor does not compile
        return f"{self.helpers.need(_HELP_I32[node.op])}({', '.join(x)})"

    def _float(self, node: Scalar, x: list[str]) -> str:
        op = node.op
        if op is Op.DIV:
            return f"({x[0]} / {x[1]})"
        if op in (Op.MIN, Op.MAX):
            return self._extreme(node, x)
        if op is Op.POW:
            special = self._power(node.args[0], node.args[1], x[0])
            if special:
                return special
        if op in _CALL_F32:
            return f"{_CALL_F32[op]}({x[0]})"
        return f"{self.helpers.need(_HELP_F32[op])}({', '.join(x)})"

    def _extreme(self, node: Scalar, x: list[str]) -> str:
        """With one side a number, only the other can be NaN (relu and clip: everywhere)."""
        name = "min" if node.op is Op.MIN else "max"
        for i in (0, 1):
            number = node.args[1 - i]
            if number.op is Op.CONST and not math.isnan(float(number.value or 0)):
                self.uses[node.args[i]] = self.uses.get(node.args[i], 0) + 1
                helper = self.helpers.need("is_nan")
                if not x[i].isidentifier():
                    fresh = f"{self.prefix}{len(self.lines)}"
                    self.lines.append(f"let {fresh} = {x[i]};")
                    x[i] = self.done[node.args[i]] = fresh
                return f"select({name}({x[0]}, {x[1]}), {x[i]}, {helper}({x[i]}))"
        return f"{self.helpers.need(name + '_nan')}({x[0]}, {x[1]})"

    def _power(self, base: Scalar, exponent: Scalar, text: str) -> str | None:
        """Small constant powers, exactly."""
        if exponent.op is not Op.CONST or exponent.value not in (0.5, 1.0, 2.0, 3.0, -1.0):
            return None
        if exponent.value == 0.5:
            return f"sqrt({text})"
        if exponent.value == 1.0:
            return text
        if exponent.value == -1.0:
            return f"(1.0f / {text})"
        if not text.isidentifier():
            fresh = f"{self.prefix}{len(self.lines)}"
            self.lines.append(f"let {fresh} = {text};")
            text = self.done[base] = fresh
        return "(" + " * ".join([text] * int(exponent.value)) + ")"


def _inputs(node: Scalar) -> tuple[Scalar, ...]:
    """What its expression is spelled from."""
    x = _after_erf(node)
    return node.args if x is None else (x,)


def _after_erf(node: Scalar) -> Scalar | None:
    """x of erf(x) + 1, which is half the work in one piece (Gelu)."""
    if node.op is not Op.ADD or node.type is not Type.F32:
        return None
    for erf, one in (node.args, node.args[::-1]):
        if erf.op is Op.ERF and one.op is Op.CONST and one.value == 1.0:
            return erf.args[0]
    return None


def arg_text(number: int) -> str:
    """Run-time argument `number` as an i32."""
    return f"i32(args.v[{number // 4}].{'xyzw'[number % 4]})"


def loads(*roots: Scalar) -> dict[Scalar, int]:
    """Every LOAD node below `roots` and its operand number."""
    return {n: int(n.value or 0) for n in walk(roots) if n.op is Op.LOAD}
