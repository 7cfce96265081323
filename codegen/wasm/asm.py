"""A typed assembler for WebAssembly binaries.

One method per instruction on `Function`, named as in the specification with `.` as `_`; every call
appends bytes and checks the value stack at once, so that a mistake is reported where it is made.
On top of that a little arithmetic on addresses (`Int`), loops, and locals that can be reused.

What this is not: an optimiser. Engines allocate registers and schedule; what they are given here
is constant offsets in immediates and values kept in locals. Whoever emits a hot loop decides what
lies outside of it.

    module = Module(Target())
    f = module.function("scale", [I32, I32])
    pointer, count = f.params
    i = f.local(I32)
    with f.loop_range(i, 0, count, 4):
        f.push(pointer + i * 4)
        f.v128_load(addr=pointer + i * 4)
        f.f32x4_const(2.0)
        f.f32x4_mul()
        f.v128_store()
    module.export("scale", f)
    binary = module.encode()

Instruction codes: WebAssembly core specification 3.0 (appendix "Index of Instructions") and the
threads proposal.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


class ValType(enum.Enum):
    """Types of values on the stack and in locals; the value is the type's code."""

    I32 = 0x7F
    I64 = 0x7E
    F32 = 0x7D
    V128 = 0x7B


I32, I64, F32, V128 = ValType.I32, ValType.I64, ValType.F32, ValType.V128


class AsmError(Exception):
    """An emitter made code that would not validate."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which instructions a module may use."""

    relaxed: bool = False
    """Relaxed SIMD: fused multiply-add and short dot products."""
    threads: bool = False
    """Shared memory: the barrier between steps is real."""

    @property
    def name(self) -> str:
        """The variant's name in a bundle: `simd`, `simd-threads`, `relaxed`, ..."""
        return ("relaxed" if self.relaxed else "simd") + ("-threads" if self.threads else "")


def uleb(value: int) -> bytes:
    """Unsigned LEB128."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sleb(value: int) -> bytes:
    """Signed LEB128."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


def _sized(content: bytes | bytearray) -> bytes:
    return uleb(len(content)) + content


def _vector(items: Sequence[bytes]) -> bytes:
    return uleb(len(items)) + b"".join(items)


# --- integer expressions ------------------------------------------------------------------------


class _Arithmetic:
    """Operators shared by `Local` and `Int`; all of them build an `Int`."""

    __slots__ = ()

    def __add__(self, other: IntLike) -> Int:
        return _sum(self, other, 1)

    def __radd__(self, other: int) -> Int:
        return _sum(other, self, 1)

    def __sub__(self, other: IntLike) -> Int:
        return _sum(self, other, -1)

    def __rsub__(self, other: int) -> Int:
        return _sum(other, self, -1)

    def __neg__(self) -> Int:
        return _sum(0, self, -1)

    def __mul__(self, other: IntLike) -> Int:
        a, b = affine(self), affine(other)
        if a.terms and b.terms:
            return _call("mul", a, b)
        if not b.terms:
            a, b = b, a
        factor = a.constant
        return Int(b.constant * factor, {atom: c * factor for atom, c in b.terms.items() if factor})

    __rmul__ = __mul__

    def __floordiv__(self, other: IntLike) -> Int:
        """Unsigned division."""
        a, b = affine(self), affine(other)
        if not b.terms and b.constant == 1:
            return a
        if not (a.terms or b.terms) and b.constant:
            return Int(a.constant // b.constant, {})
        return _call("div_u", a, b)

    def __mod__(self, other: IntLike) -> Int:
        """Unsigned remainder."""
        a, b = affine(self), affine(other)
        if not b.terms and b.constant == 1:
            return Int(0, {})
        if not (a.terms or b.terms) and b.constant:
            return Int(a.constant % b.constant, {})
        return _call("rem_u", a, b)

    def __and__(self, other: IntLike) -> Int:
        return _call("and", affine(self), affine(other))

    def __rshift__(self, count: int) -> Int:
        """Logical shift right by a constant."""
        return _call("shr_u", affine(self), affine(count)) if count else affine(self)


class Local(_Arithmetic):
    """A local variable or parameter of one function. An i32 local takes part in arithmetic."""

    __slots__ = ("index", "type")

    def __init__(self, index: int, type_: ValType) -> None:
        self.index = index
        self.type = type_

    def __repr__(self) -> str:
        return f"${self.index}:{self.type.name.lower()}"


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """An operator that sums cannot be simplified through."""

    op: str
    a: Int
    b: Int


_Atom = Local | _Call


class Int(_Arithmetic):
    """An i32 that is computed where it is pushed: constant + sum of coefficient * atom."""

    __slots__ = ("constant", "terms")

    def __init__(self, constant: int, terms: dict[_Atom, int]) -> None:
        self.constant = constant
        self.terms = terms

    def __repr__(self) -> str:
        parts = [f"{c}*{atom!r}" for atom, c in self.terms.items()]
        return " + ".join([*parts, str(self.constant)])


IntLike = int | Local | Int


def _wrap(value: int) -> int:
    """The signed number with the same low 32 bits."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def affine(value: _Arithmetic | int) -> Int:
    """`value` as an `Int`."""
    if isinstance(value, Int):
        return value
    if isinstance(value, int):
        return Int(value, {})
    if isinstance(value, Local) and value.type is I32:
        return Int(0, {value: 1})
    raise AsmError(f"integer arithmetic takes ints and i32 locals, got {value!r}")


def _sum(a: _Arithmetic | int, b: _Arithmetic | int, sign: int) -> Int:
    x, y = affine(a), affine(b)
    terms = dict(x.terms)
    for atom, c in y.terms.items():
        total = terms.get(atom, 0) + sign * c
        if total:
            terms[atom] = total
        else:
            del terms[atom]
    return Int(x.constant + sign * y.constant, terms)


def _call(op: str, a: Int, b: Int) -> Int:
    return Int(0, {_Call(op, a, b): 1})


def imin(a: IntLike, b: IntLike) -> IntLike:
    """Signed minimum. Operands are pushed twice, so they should be locals or constants."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return _call("min", affine(a), affine(b))


def imax(a: IntLike, b: IntLike) -> IntLike:
    """Signed maximum; see `imin`."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return _call("max", affine(a), affine(b))


# --- instructions -------------------------------------------------------------------------------

_Emit = Callable[["Function"], None]


def _op(code: int, takes: str, gives: str) -> _Emit:
    """A plain instruction. Types by letter: i = i32, l = i64, f = f32, v = v128."""
    encoded = _opcode(code)
    want = [_LETTERS[t] for t in takes]
    give = _LETTERS[gives] if gives else None
    n = len(want)

    def emit(self: Function) -> None:
        stack = self._stack
        if stack[-n:] == want if n else True:
            if n:
                del stack[-n:]
        else:
            self._mismatch(want, hex(code))
        self._code += encoded
        if give is not None:
            stack.append(give)

    return emit


def _lane(code: int, takes: str, gives: str, lanes: int) -> Callable[[Function, int], None]:
    """An instruction with a lane number."""
    plain = _op(code, takes, gives)

    def emit(self: Function, lane: int) -> None:
        if not 0 <= lane < lanes:
            raise AsmError(f"lane {lane} is not in 0..{lanes - 1}")
        plain(self)
        self._code.append(lane)

    return emit


def _opcode(code: int) -> bytes:
    """0xNN, or prefix and number: 0xFD000 + number for SIMD, 0xFE000 + number for atomics."""
    if code < 0x100:
        return bytes((code,))
    return bytes((code >> 12,)) + uleb(code & 0xFFF)


_LETTERS = {"i": I32, "l": I64, "f": F32, "v": V128}


class _Access:
    """A load or store method: `f.v128_load(offset=0, addr=None)`.

    The address is taken from the stack, or computed from `addr`. A constant part of `addr` goes
    into the instruction's offset, unless a term is subtracted (the sum could wrap below zero).
    Stores take [address, value], so `addr` is for loads; store to a local pointer with
    `f.store(pointer, value, offset)`.
    """

    __slots__ = ("align", "code", "give", "want")

    def __init__(self, code: int, takes: str, gives: str, align: int) -> None:
        self.code = _opcode(code)
        self.want = [_LETTERS[t] for t in takes]
        self.give = _LETTERS[gives] if gives else None
        self.align = align

    def __get__(self, function: Function, owner: type) -> _BoundAccess:
        return _BoundAccess(self, function)


class _BoundAccess:
    __slots__ = ("access", "function")

    def __init__(self, access: _Access, function: Function) -> None:
        self.access = access
        self.function = function

    def __call__(
        self, offset: int = 0, addr: IntLike | None = None, lane: int | None = None
    ) -> None:
        f, access = self.function, self.access
        if addr is not None:
            if len(access.want) != 1:
                raise AsmError("addr= is for loads: a store's address lies below its value")
            offset += f._push_address(addr)
        if not 0 <= offset < 1 << 32:
            raise AsmError(f"memory offset {offset} is not an unsigned 32-bit number")
        f._take(access.want)
        # The alignment is a promise some engines check for atomics only: natural for those,
        # and the natural one elsewhere is a hint.
        f._code += access.code
        f._code.append(access.align)
        f._code += uleb(offset)
        if lane is not None:
            f._code.append(lane)
        if access.give is not None:
            f._stack.append(access.give)


class _LaneAccess(_Access):
    """`f.v128_load32_lane(lane, offset=0)`: stack [address, vector]."""

    __slots__ = ()

    def __get__(self, function: Function, owner: type) -> _BoundLaneAccess:  # type: ignore[override]
        return _BoundLaneAccess(_BoundAccess(self, function))


class _BoundLaneAccess:
    __slots__ = ("access",)

    def __init__(self, access: _BoundAccess) -> None:
        self.access = access

    def __call__(self, lane: int, offset: int = 0) -> None:
        self.access(offset, None, lane)


class Label:
    """A block, loop or if that can be branched to while it is open."""

    __slots__ = ("dead", "kind", "result", "stack")

    def __init__(self, kind: str, result: ValType | None) -> None:
        self.kind = kind
        self.result = result
        self.stack: list[ValType] = []
        self.dead = False


class Function:
    """A function under construction; made by `Module.function`."""

    def __init__(
        self,
        module: Module,
        index: int,
        name: str,
        params: Sequence[ValType],
        results: Sequence[ValType],
    ) -> None:
        self.module = module
        self.index = index
        self.name = name
        self.params = [Local(i, t) for i, t in enumerate(params)]
        self.results = list(results)
        self._locals: list[ValType] = []
        self._free: dict[ValType, list[Local]] = {t: [] for t in ValType}
        self._scopes: list[list[Local]] = []
        self._code = bytearray()
        self._labels = [Label("function", results[0] if results else None)]
        self._stack = self._labels[0].stack

    # -- checking ---------------------------------------------------------------------------------

    def _take(self, want: list[ValType]) -> None:
        stack, n = self._stack, len(want)
        if not n:
            return
        if stack[-n:] == want:
            del stack[-n:]
        else:
            self._mismatch(want, "access")

    def _mismatch(self, want: Sequence[ValType], what: str) -> None:
        # Behind an unconditional branch anything goes.
        if self._labels[-1].dead:
            del self._stack[max(0, len(self._stack) - len(want)) :]
            return
        got = [t.name.lower() for t in self._stack[-len(want) :]]
        raise AsmError(
            f"{self.name}: instruction {what} at byte {len(self._code)}: got {got} on the stack, "
            f"expected {[t.name.lower() for t in want]}"
        )

    def _die(self) -> None:
        self._stack.clear()
        self._labels[-1].dead = True

    # -- locals -----------------------------------------------------------------------------------

    def local(self, type_: ValType) -> Local:
        """A local; its value is undefined, since it may have been used before."""
        free = self._free[type_]
        if free:
            local = free.pop()
        else:
            local = Local(len(self.params) + len(self._locals), type_)
            self._locals.append(type_)
        if self._scopes:
            self._scopes[-1].append(local)
        return local

    def locals(self, type_: ValType, count: int) -> list[Local]:
        return [self.local(type_) for _ in range(count)]

    def free_local(self, *locals_: Local) -> None:
        """Give locals back for reuse. Inside `scope` not needed."""
        for local in locals_:
            if self._scopes and local in self._scopes[-1]:
                self._scopes[-1].remove(local)
            self._free[local.type].append(local)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Locals made inside are free again afterwards."""
        self._scopes.append([])
        yield
        made = self._scopes.pop()
        for local in reversed(made):
            self._free[local.type].append(local)

    def get(self, *locals_: Local) -> None:
        for local in locals_:
            self._code.append(0x20)
            self._code += uleb(local.index)
            self._stack.append(local.type)

    def set(self, local: Local) -> None:
        self._take([local.type])
        self._code.append(0x21)
        self._code += uleb(local.index)

    def tee(self, local: Local) -> None:
        self._take([local.type])
        self._code.append(0x22)
        self._code += uleb(local.index)
        self._stack.append(local.type)

    def global_get(self, name: str) -> None:
        """Push the module's variable of that name."""
        self._code.append(0x23)
        self._code += uleb(self.module.variable(name))
        self._stack.append(I32)

    def global_set(self, name: str) -> None:
        self._take([I32])
        self._code.append(0x24)
        self._code += uleb(self.module.variable(name))

    # -- integers ---------------------------------------------------------------------------------

    def push(self, *values: IntLike) -> None:
        """Push i32 values: ints, i32 locals or sums of them."""
        for value in values:
            if isinstance(value, Local):
                if value.type is not I32:
                    raise AsmError(f"push takes i32 values, got {value!r} (use get)")
                self.get(value)
            elif isinstance(value, int):
                self.i32_const(value)
            else:
                self._push_sum(value)

    def assign(self, local: Local, value: IntLike) -> None:
        """local = value, for an i32 local."""
        if value is local:
            return
        self.push(value)
        self.set(local)

    def value(self, value: IntLike) -> Local:
        """A new local that holds `value`."""
        local = self.local(I32)
        self.assign(local, value)
        return local

    def hold(self, value: IntLike) -> int | Local:
        """`value` if pushing it costs nothing, else a new local that holds it."""
        if isinstance(value, Int):
            if not value.terms:
                return value.constant
            if value.constant == 0 and len(value.terms) == 1:
                (atom, c) = next(iter(value.terms.items()))
                if c == 1 and isinstance(atom, Local):
                    return atom
            return self.value(value)
        return value

    @staticmethod
    def addr(base: IntLike, *terms: tuple[IntLike, IntLike]) -> Int:
        """base + sum of index * stride."""
        total = affine(base)
        for index, stride in terms:
            total = total + affine(index) * stride
        return total

    def _push_sum(self, value: Int) -> None:
        constant = _wrap(value.constant)
        # Terms with a common factor are summed first and scaled once.
        scaled = {a: c for a, c in value.terms.items() if c not in (1, -1)}
        factor = math.gcd(*scaled.values()) if len(scaled) > 1 else 1
        started = False
        if factor > 1:
            for atom, c in scaled.items():
                self._push_term(atom, c // factor, started)
                started = True
            self._scale(factor)
        for atom, c in sorted(value.terms.items(), key=lambda item: item[1] < 0):
            if factor == 1 or atom not in scaled:
                self._push_term(atom, c, started)
                started = True
        if not started:
            self.i32_const(constant)
        elif constant:
            self.i32_const(constant)
            self.i32_add()

    def _push_term(self, atom: _Atom, c: int, add: bool) -> None:
        subtract = add and c < 0
        if subtract:
            c = -c
        if c == -1:
            self.i32_const(0)
            self._push_atom(atom)
            self.i32_sub()
        else:
            self._push_atom(atom)
            self._scale(c)
        if add:
            if subtract:
                self.i32_sub()
            else:
                self.i32_add()

    def _scale(self, c: int) -> None:
        c = _wrap(c)
        if c == 1:
            return
        if c > 0 and c & (c - 1) == 0:
            self.i32_const(c.bit_length() - 1)
            self.i32_shl()
        else:
            self.i32_const(c)
            self.i32_mul()

    def _push_atom(self, atom: _Atom) -> None:
        if isinstance(atom, Local):
            self.get(atom)
            return
        a, b = atom.a, atom.b
        power = b.constant.bit_length() - 1 if not b.terms and b.constant > 0 else -1
        is_power = power >= 0 and b.constant == 1 << power
        self.push(a)
        if atom.op == "div_u" and is_power:
            self.i32_const(power)
            self.i32_shr_u()
        elif atom.op == "rem_u" and is_power:
            self.i32_const(b.constant - 1)
            self.i32_and()
        elif atom.op in ("min", "max"):
            self.push(b, a, b)
            if atom.op == "min":
                self.i32_lt_s()
            else:
                self.i32_gt_s()
            self.select()
        else:
            self.push(b)
            _INT_OPS[atom.op](self)

    def _push_address(self, addr: IntLike) -> int:
        """Push all of `addr` but what can be an immediate offset, which is returned."""
        value = affine(addr)
        c = value.constant
        if 0 < c < 1 << 31 and value.terms and all(k > 0 for k in value.terms.values()):
            self._push_sum(Int(0, value.terms))
            return c
        self._push_sum(value)
        return 0

    # -- control ----------------------------------------------------------------------------------

    def _open(self, code: int, kind: str, result: ValType | None) -> Label:
        self._code.append(code)
        self._code.append(result.value if result else 0x40)
        label = Label(kind, result)
        self._labels.append(label)
        self._stack = label.stack
        return label

    def _close(self, label: Label) -> None:
        if self._labels[-1] is not label:
            raise AsmError(f"{self.name}: a {label.kind} is closed out of order")
        self._check_end(label)
        self._labels.pop()
        self._code.append(0x0B)
        self._stack = self._labels[-1].stack
        if label.result is not None:
            self._stack.append(label.result)

    def _check_end(self, label: Label) -> None:
        want = [label.result] if label.result else []
        if label.stack != want and not label.dead:
            raise AsmError(
                f"{self.name}: a {label.kind} ends with {[t.name for t in label.stack]} on the "
                f"stack, expected {[t.name for t in want]}"
            )

    @contextmanager
    def block(self, result: ValType | None = None) -> Iterator[Label]:
        """Branching to it leaves it."""
        label = self._open(0x02, "block", result)
        yield label
        self._close(label)

    @contextmanager
    def loop(self) -> Iterator[Label]:
        """Branching to it repeats it; falling off its end leaves it."""
        label = self._open(0x03, "loop", None)
        yield label
        self._close(label)

    @contextmanager
    def if_(self, result: ValType | None = None) -> Iterator[Label]:
        """Takes the condition from the stack; `else_()` inside starts the other branch."""
        self._take([I32])
        label = self._open(0x04, "if", result)
        yield label
        self._close(label)

    def else_(self) -> None:
        label = self._labels[-1]
        if label.kind != "if":
            raise AsmError(f"{self.name}: else_ inside a {label.kind}")
        self._check_end(label)
        label.kind, label.dead = "else", False
        label.stack.clear()
        self._code.append(0x05)

    def _depth(self, label: Label) -> bytes:
        for depth, open_ in enumerate(reversed(self._labels)):
            if open_ is label:
                return uleb(depth)
        raise AsmError(f"{self.name}: branch to a {label.kind} that is not open")

    def br(self, label: Label) -> None:
        self._code.append(0x0C)
        self._code += self._depth(label)
        self._die()

    def br_if(self, label: Label) -> None:
        """Branch if the i32 on the stack is not 0."""
        self._take([I32])
        self._code.append(0x0D)
        self._code += self._depth(label)

    def return_(self) -> None:
        self._take(self.results)
        self._code.append(0x0F)
        self._die()

    def unreachable(self) -> None:
        self._code.append(0x00)
        self._die()

    def call(self, function: Function) -> None:
        """Call a function of the same module, whether it has a body yet or not."""
        self._take([p.type for p in function.params])
        self._code.append(0x10)
        self._code += uleb(function.index)
        self._stack.extend(function.results)

    @contextmanager
    def loop_range(
        self, i: Local, start: IntLike | None, end: IntLike, step: IntLike = 1
    ) -> Iterator[None]:
        """for (i = start; i < end; i += step), signed. `start` None: from i's present value.

        `end` and `step` are computed once, before the loop. Afterwards i is the first value that
        was not below `end`, so that a tail loop can go on from it. The body must not change i.
        A loop that runs exactly once becomes straight code.
        """
        end, step = self.hold(end), self.hold(step)
        once = certain = False
        if isinstance(start, int) and isinstance(end, int):
            certain = start < end
            once = certain and isinstance(step, int) and start + step >= end
        if start is not None:
            self.assign(i, start)
        if once:
            yield
            self.assign(i, i + step)
            return
        with self.block() as done:
            if not certain:
                self.push(i, end)
                self.i32_ge_s()
                self.br_if(done)
            with self.loop() as again:
                yield
                self.push(i + step)
                self.tee(i)
                self.push(end)
                self.i32_lt_s()
                self.br_if(again)

    # -- conveniences -----------------------------------------------------------------------------

    def madd(self, acc: Local) -> None:
        """acc += a * b for f32x4 [a, b] on the stack; fused where the target can."""
        self.fma(acc)
        self.set(acc)

    def fma(self, c: Local) -> None:
        """[a, b] -> [a * b + c], f32x4; fused where the target can."""
        if self.module.target.relaxed:
            self.get(c)
            self.f32x4_relaxed_madd()
        else:
            self.f32x4_mul()
            self.get(c)
            self.f32x4_add()

    def zero(self, local: Local) -> None:
        """local = 0, whatever its type."""
        if local.type is V128:
            self.v128_const(bytes(16))
        elif local.type is I32:
            self.i32_const(0)
        elif local.type is I64:
            self.i64_const(0)
        else:
            self.f32_const(0.0)
        self.set(local)

    def store(self, pointer: IntLike, value: Local, offset: int = 0) -> None:
        """memory[pointer + offset] = value, for a v128, f32 or i32 local."""
        offset += self._push_address(pointer)
        self.get(value)
        if value.type is V128:
            self.v128_store(offset)
        elif value.type is F32:
            self.f32_store(offset)
        else:
            self.i32_store(offset)

    # -- constants --------------------------------------------------------------------------------

    def i32_const(self, value: int) -> None:
        """Any value from -2**31 to 2**32 - 1; the upper half means the negative numbers."""
        if not -(1 << 31) <= value < 1 << 32:
            raise AsmError(f"{value} is not a 32-bit integer")
        self._code.append(0x41)
        self._code += sleb(value - (1 << 32) if value >= 1 << 31 else value)
        self._stack.append(I32)

    def i64_const(self, value: int) -> None:
        self._code.append(0x42)
        self._code += sleb(value)
        self._stack.append(I64)

    def f32_const(self, value: float) -> None:
        self._code.append(0x43)
        self._code += struct.pack("<f", value)
        self._stack.append(F32)

    def v128_const(self, value: bytes) -> None:
        if len(value) != 16:
            raise AsmError(f"v128.const takes 16 bytes, got {len(value)}")
        self._code += b"\xfd\x0c"
        self._code += value
        self._stack.append(V128)

    def f32x4_const(self, *values: float) -> None:
        """Four values, or one for all lanes."""
        self.v128_const(struct.pack("<4f", *(values * 4 if len(values) == 1 else values)))

    def i32x4_const(self, *values: int) -> None:
        lanes = values * 4 if len(values) == 1 else values
        self.v128_const(struct.pack("<4I", *(v & 0xFFFFFFFF for v in lanes)))

    def i8x16_shuffle(self, *lanes: int) -> None:
        """[a, b] -> bytes picked from a (0..15) and b (16..31)."""
        if len(lanes) != 16 or not all(0 <= lane < 32 for lane in lanes):
            raise AsmError(f"i8x16.shuffle takes 16 lanes in 0..31, got {lanes}")
        self._take([V128, V128])
        self._code += b"\xfd\x0d"
        self._code += bytes(lanes)
        self._stack.append(V128)

    def i32x4_shuffle(self, *lanes: int) -> None:
        """[a, b] -> words picked from a (0..3) and b (4..7)."""
        self.i8x16_shuffle(*(4 * lane + byte for lane in lanes for byte in range(4)))

    def drop(self) -> None:
        if self._stack:
            self._stack.pop()
        elif not self._labels[-1].dead:
            self._mismatch([I32], "drop")
        self._code.append(0x1A)

    def select(self) -> None:
        """[a, b, condition] -> [a if condition else b]: one i32 decides, also for vectors."""
        kind = self._stack[-2] if len(self._stack) > 1 else I32
        self._take([kind, kind, I32])
        if kind is V128:
            self._code += b"\x1c\x01\x7b"
        else:
            self._code.append(0x1B)
        self._stack.append(kind)

    # -- scalar instructions ----------------------------------------------------------------------

    nop = _op(0x01, "", "")
    i32_eqz = _op(0x45, "i", "i")
    i32_eq = _op(0x46, "ii", "i")
    i32_ne = _op(0x47, "ii", "i")
    i32_lt_s = _op(0x48, "ii", "i")
    i32_lt_u = _op(0x49, "ii", "i")
    i32_gt_s = _op(0x4A, "ii", "i")
    i32_gt_u = _op(0x4B, "ii", "i")
    i32_le_s = _op(0x4C, "ii", "i")
    i32_le_u = _op(0x4D, "ii", "i")
    i32_ge_s = _op(0x4E, "ii", "i")
    i32_ge_u = _op(0x4F, "ii", "i")
    f32_eq = _op(0x5B, "ff", "i")
    f32_ne = _op(0x5C, "ff", "i")
    f32_lt = _op(0x5D, "ff", "i")
    f32_gt = _op(0x5E, "ff", "i")
    f32_le = _op(0x5F, "ff", "i")
    f32_ge = _op(0x60, "ff", "i")
    i32_clz = _op(0x67, "i", "i")
    i32_ctz = _op(0x68, "i", "i")
    i32_popcnt = _op(0x69, "i", "i")
    i32_add = _op(0x6A, "ii", "i")
    i32_sub = _op(0x6B, "ii", "i")
    i32_mul = _op(0x6C, "ii", "i")
    i32_div_s = _op(0x6D, "ii", "i")
    i32_div_u = _op(0x6E, "ii", "i")
    i32_rem_s = _op(0x6F, "ii", "i")
    i32_rem_u = _op(0x70, "ii", "i")
    i32_and = _op(0x71, "ii", "i")
    i32_or = _op(0x72, "ii", "i")
    i32_xor = _op(0x73, "ii", "i")
    i32_shl = _op(0x74, "ii", "i")
    i32_shr_s = _op(0x75, "ii", "i")
    i32_shr_u = _op(0x76, "ii", "i")
    i64_add = _op(0x7C, "ll", "l")
    i64_sub = _op(0x7D, "ll", "l")
    i64_mul = _op(0x7E, "ll", "l")
    i64_div_u = _op(0x80, "ll", "l")
    f32_abs = _op(0x8B, "f", "f")
    f32_neg = _op(0x8C, "f", "f")
    f32_ceil = _op(0x8D, "f", "f")
    f32_floor = _op(0x8E, "f", "f")
    f32_trunc = _op(0x8F, "f", "f")
    f32_nearest = _op(0x90, "f", "f")
    f32_sqrt = _op(0x91, "f", "f")
    f32_add = _op(0x92, "ff", "f")
    f32_sub = _op(0x93, "ff", "f")
    f32_mul = _op(0x94, "ff", "f")
    f32_div = _op(0x95, "ff", "f")
    f32_min = _op(0x96, "ff", "f")
    f32_max = _op(0x97, "ff", "f")
    i32_wrap_i64 = _op(0xA7, "l", "i")
    i64_extend_i32_s = _op(0xAC, "i", "l")
    i64_extend_i32_u = _op(0xAD, "i", "l")
    f32_convert_i32_s = _op(0xB2, "i", "f")
    f32_convert_i32_u = _op(0xB3, "i", "f")
    i32_reinterpret_f32 = _op(0xBC, "f", "i")
    f32_reinterpret_i32 = _op(0xBE, "i", "f")

    i32_load = _Access(0x28, "i", "i", 2)
    i64_load = _Access(0x29, "i", "l", 3)
    f32_load = _Access(0x2A, "i", "f", 2)
    i32_load8_s = _Access(0x2C, "i", "i", 0)
    i32_load8_u = _Access(0x2D, "i", "i", 0)
    i32_load16_s = _Access(0x2E, "i", "i", 1)
    i32_load16_u = _Access(0x2F, "i", "i", 1)
    i32_store = _Access(0x36, "ii", "", 2)
    i64_store = _Access(0x37, "il", "", 3)
    f32_store = _Access(0x38, "if", "", 2)
    i32_store8 = _Access(0x3A, "ii", "", 0)
    i32_store16 = _Access(0x3B, "ii", "", 1)

    # -- atomics ----------------------------------------------------------------------------------

    memory_atomic_notify = _Access(0xFE000, "ii", "i", 2)
    memory_atomic_wait32 = _Access(0xFE001, "iil", "i", 2)
    i32_atomic_load = _Access(0xFE010, "i", "i", 2)
    i32_atomic_store = _Access(0xFE017, "ii", "", 2)
    i32_atomic_rmw_add = _Access(0xFE01E, "ii", "i", 2)
    i32_atomic_rmw_cmpxchg = _Access(0xFE048, "iii", "i", 2)

    # -- vectors: memory --------------------------------------------------------------------------

    v128_load = _Access(0xFD000, "i", "v", 4)
    v128_load8x8_s = _Access(0xFD001, "i", "v", 3)
    v128_load8x8_u = _Access(0xFD002, "i", "v", 3)
    v128_load16x4_s = _Access(0xFD003, "i", "v", 3)
    v128_load16x4_u = _Access(0xFD004, "i", "v", 3)
    v128_load8_splat = _Access(0xFD007, "i", "v", 0)
    v128_load16_splat = _Access(0xFD008, "i", "v", 1)
    v128_load32_splat = _Access(0xFD009, "i", "v", 2)
    v128_load64_splat = _Access(0xFD00A, "i", "v", 3)
    v128_store = _Access(0xFD00B, "iv", "", 4)
    v128_load8_lane = _LaneAccess(0xFD054, "iv", "v", 0)
    v128_load16_lane = _LaneAccess(0xFD055, "iv", "v", 1)
    v128_load32_lane = _LaneAccess(0xFD056, "iv", "v", 2)
    v128_load64_lane = _LaneAccess(0xFD057, "iv", "v", 3)
    v128_store8_lane = _LaneAccess(0xFD058, "iv", "", 0)
    v128_store16_lane = _LaneAccess(0xFD059, "iv", "", 1)
    v128_store32_lane = _LaneAccess(0xFD05A, "iv", "", 2)
    v128_store64_lane = _LaneAccess(0xFD05B, "iv", "", 3)
    v128_load32_zero = _Access(0xFD05C, "i", "v", 2)
    v128_load64_zero = _Access(0xFD05D, "i", "v", 3)

    # -- vectors: lanes ---------------------------------------------------------------------------

    i8x16_swizzle = _op(0xFD00E, "vv", "v")
    i8x16_splat = _op(0xFD00F, "i", "v")
    i16x8_splat = _op(0xFD010, "i", "v")
    i32x4_splat = _op(0xFD011, "i", "v")
    i64x2_splat = _op(0xFD012, "l", "v")
    f32x4_splat = _op(0xFD013, "f", "v")
    i8x16_extract_lane_s = _lane(0xFD015, "v", "i", 16)
    i8x16_extract_lane_u = _lane(0xFD016, "v", "i", 16)
    i8x16_replace_lane = _lane(0xFD017, "vi", "v", 16)
    i16x8_extract_lane_s = _lane(0xFD018, "v", "i", 8)
    i16x8_extract_lane_u = _lane(0xFD019, "v", "i", 8)
    i16x8_replace_lane = _lane(0xFD01A, "vi", "v", 8)
    i32x4_extract_lane = _lane(0xFD01B, "v", "i", 4)
    i32x4_replace_lane = _lane(0xFD01C, "vi", "v", 4)
    i64x2_extract_lane = _lane(0xFD01D, "v", "l", 2)
    f32x4_extract_lane = _lane(0xFD01F, "v", "f", 4)
    f32x4_replace_lane = _lane(0xFD020, "vf", "v", 4)

    # -- vectors: comparison, bits ----------------------------------------------------------------

    i8x16_eq = _op(0xFD023, "vv", "v")
    i8x16_ne = _op(0xFD024, "vv", "v")
    i8x16_gt_s = _op(0xFD027, "vv", "v")
    i16x8_eq = _op(0xFD02D, "vv", "v")
    i16x8_gt_s = _op(0xFD031, "vv", "v")
    i32x4_eq = _op(0xFD037, "vv", "v")
    i32x4_ne = _op(0xFD038, "vv", "v")
    i32x4_lt_s = _op(0xFD039, "vv", "v")
    i32x4_lt_u = _op(0xFD03A, "vv", "v")
    i32x4_gt_s = _op(0xFD03B, "vv", "v")
    i32x4_gt_u = _op(0xFD03C, "vv", "v")
    i32x4_le_s = _op(0xFD03D, "vv", "v")
    i32x4_le_u = _op(0xFD03E, "vv", "v")
    i32x4_ge_s = _op(0xFD03F, "vv", "v")
    i32x4_ge_u = _op(0xFD040, "vv", "v")
    f32x4_eq = _op(0xFD041, "vv", "v")
    f32x4_ne = _op(0xFD042, "vv", "v")
    f32x4_lt = _op(0xFD043, "vv", "v")
    f32x4_gt = _op(0xFD044, "vv", "v")
    f32x4_le = _op(0xFD045, "vv", "v")
    f32x4_ge = _op(0xFD046, "vv", "v")
    v128_not = _op(0xFD04D, "v", "v")
    v128_and = _op(0xFD04E, "vv", "v")
    v128_andnot = _op(0xFD04F, "vv", "v")
    v128_or = _op(0xFD050, "vv", "v")
    v128_xor = _op(0xFD051, "vv", "v")
    v128_bitselect = _op(0xFD052, "vvv", "v")  # [a, b, mask] -> a where mask, else b
    v128_any_true = _op(0xFD053, "v", "i")

    # -- vectors: integers ------------------------------------------------------------------------

    i8x16_abs = _op(0xFD060, "v", "v")
    i8x16_neg = _op(0xFD061, "v", "v")
    i8x16_bitmask = _op(0xFD064, "v", "i")
    i8x16_narrow_i16x8_s = _op(0xFD065, "vv", "v")
    i8x16_narrow_i16x8_u = _op(0xFD066, "vv", "v")
    i8x16_shl = _op(0xFD06B, "vi", "v")
    i8x16_shr_s = _op(0xFD06C, "vi", "v")
    i8x16_shr_u = _op(0xFD06D, "vi", "v")
    i8x16_add = _op(0xFD06E, "vv", "v")
    i8x16_add_sat_s = _op(0xFD06F, "vv", "v")
    i8x16_add_sat_u = _op(0xFD070, "vv", "v")
    i8x16_sub = _op(0xFD071, "vv", "v")
    i8x16_sub_sat_s = _op(0xFD072, "vv", "v")
    i8x16_sub_sat_u = _op(0xFD073, "vv", "v")
    i8x16_min_s = _op(0xFD076, "vv", "v")
    i8x16_min_u = _op(0xFD077, "vv", "v")
    i8x16_max_s = _op(0xFD078, "vv", "v")
    i8x16_max_u = _op(0xFD079, "vv", "v")
    i16x8_extadd_pairwise_i8x16_s = _op(0xFD07C, "v", "v")
    i16x8_extadd_pairwise_i8x16_u = _op(0xFD07D, "v", "v")
    i32x4_extadd_pairwise_i16x8_s = _op(0xFD07E, "v", "v")
    i32x4_extadd_pairwise_i16x8_u = _op(0xFD07F, "v", "v")
    i16x8_abs = _op(0xFD080, "v", "v")
    i16x8_neg = _op(0xFD081, "v", "v")
    i16x8_narrow_i32x4_s = _op(0xFD085, "vv", "v")
    i16x8_narrow_i32x4_u = _op(0xFD086, "vv", "v")
    i16x8_extend_low_i8x16_s = _op(0xFD087, "v", "v")
    i16x8_extend_high_i8x16_s = _op(0xFD088, "v", "v")
    i16x8_extend_low_i8x16_u = _op(0xFD089, "v", "v")
    i16x8_extend_high_i8x16_u = _op(0xFD08A, "v", "v")
    i16x8_shl = _op(0xFD08B, "vi", "v")
    i16x8_shr_s = _op(0xFD08C, "vi", "v")
    i16x8_shr_u = _op(0xFD08D, "vi", "v")
    i16x8_add = _op(0xFD08E, "vv", "v")
    i16x8_sub = _op(0xFD091, "vv", "v")
    i16x8_mul = _op(0xFD095, "vv", "v")
    i16x8_min_s = _op(0xFD096, "vv", "v")
    i16x8_max_s = _op(0xFD098, "vv", "v")
    i16x8_extmul_low_i8x16_s = _op(0xFD09C, "vv", "v")
    i16x8_extmul_high_i8x16_s = _op(0xFD09D, "vv", "v")
    i16x8_extmul_low_i8x16_u = _op(0xFD09E, "vv", "v")
    i16x8_extmul_high_i8x16_u = _op(0xFD09F, "vv", "v")
    i32x4_abs = _op(0xFD0A0, "v", "v")
    i32x4_neg = _op(0xFD0A1, "v", "v")
    i32x4_all_true = _op(0xFD0A3, "v", "i")
    i32x4_bitmask = _op(0xFD0A4, "v", "i")
    i32x4_extend_low_i16x8_s = _op(0xFD0A7, "v", "v")
    i32x4_extend_high_i16x8_s = _op(0xFD0A8, "v", "v")
    i32x4_extend_low_i16x8_u = _op(0xFD0A9, "v", "v")
    i32x4_extend_high_i16x8_u = _op(0xFD0AA, "v", "v")
    i32x4_shl = _op(0xFD0AB, "vi", "v")
    i32x4_shr_s = _op(0xFD0AC, "vi", "v")
    i32x4_shr_u = _op(0xFD0AD, "vi", "v")
    i32x4_add = _op(0xFD0AE, "vv", "v")
    i32x4_sub = _op(0xFD0B1, "vv", "v")
    i32x4_mul = _op(0xFD0B5, "vv", "v")
    i32x4_min_s = _op(0xFD0B6, "vv", "v")
    i32x4_min_u = _op(0xFD0B7, "vv", "v")
    i32x4_max_s = _op(0xFD0B8, "vv", "v")
    i32x4_max_u = _op(0xFD0B9, "vv", "v")
    i32x4_dot_i16x8_s = _op(0xFD0BA, "vv", "v")
    i32x4_extmul_low_i16x8_s = _op(0xFD0BC, "vv", "v")
    i32x4_extmul_high_i16x8_s = _op(0xFD0BD, "vv", "v")
    i32x4_extmul_low_i16x8_u = _op(0xFD0BE, "vv", "v")
    i32x4_extmul_high_i16x8_u = _op(0xFD0BF, "vv", "v")

    i64x2_shr_u = _op(0xFD0CD, "vi", "v")
    i64x2_add = _op(0xFD0CE, "vv", "v")
    i64x2_extmul_low_i32x4_s = _op(0xFD0DC, "vv", "v")
    i64x2_extmul_high_i32x4_s = _op(0xFD0DD, "vv", "v")
    i64x2_extmul_low_i32x4_u = _op(0xFD0DE, "vv", "v")
    i64x2_extmul_high_i32x4_u = _op(0xFD0DF, "vv", "v")

    # -- vectors: floats --------------------------------------------------------------------------

    f32x4_ceil = _op(0xFD067, "v", "v")
    f32x4_floor = _op(0xFD068, "v", "v")
    f32x4_trunc = _op(0xFD069, "v", "v")
    f32x4_nearest = _op(0xFD06A, "v", "v")
    f32x4_abs = _op(0xFD0E0, "v", "v")
    f32x4_neg = _op(0xFD0E1, "v", "v")
    f32x4_sqrt = _op(0xFD0E3, "v", "v")
    f32x4_add = _op(0xFD0E4, "vv", "v")
    f32x4_sub = _op(0xFD0E5, "vv", "v")
    f32x4_mul = _op(0xFD0E6, "vv", "v")
    f32x4_div = _op(0xFD0E7, "vv", "v")
    f32x4_min = _op(0xFD0E8, "vv", "v")
    f32x4_max = _op(0xFD0E9, "vv", "v")
    f32x4_pmin = _op(0xFD0EA, "vv", "v")  # [a, b] -> b < a ? b : a
    f32x4_pmax = _op(0xFD0EB, "vv", "v")  # [a, b] -> a < b ? b : a
    i32x4_trunc_sat_f32x4_s = _op(0xFD0F8, "v", "v")
    i32x4_trunc_sat_f32x4_u = _op(0xFD0F9, "v", "v")
    f32x4_convert_i32x4_s = _op(0xFD0FA, "v", "v")
    f32x4_convert_i32x4_u = _op(0xFD0FB, "v", "v")

    f64x2_floor = _op(0xFD075, "v", "v")
    f64x2_trunc = _op(0xFD07A, "v", "v")
    f64x2_add = _op(0xFD0F0, "vv", "v")
    f64x2_sub = _op(0xFD0F1, "vv", "v")
    f64x2_mul = _op(0xFD0F2, "vv", "v")
    f64x2_div = _op(0xFD0F3, "vv", "v")
    f32x4_demote_f64x2_zero = _op(0xFD05E, "v", "v")
    f64x2_promote_low_f32x4 = _op(0xFD05F, "v", "v")

    # -- vectors: relaxed (only when `module.target.relaxed`) --------------------------------------

    i8x16_relaxed_swizzle = _op(0xFD100, "vv", "v")
    f32x4_relaxed_madd = _op(0xFD105, "vvv", "v")  # [a, b, c] -> a * b + c
    f32x4_relaxed_nmadd = _op(0xFD106, "vvv", "v")  # [a, b, c] -> -(a * b) + c
    i32x4_relaxed_laneselect = _op(0xFD10B, "vvv", "v")
    f32x4_relaxed_min = _op(0xFD10D, "vv", "v")
    f32x4_relaxed_max = _op(0xFD10E, "vv", "v")
    i16x8_relaxed_dot_i8x16_i7x16_s = _op(0xFD112, "vv", "v")
    i32x4_relaxed_dot_i8x16_i7x16_add_s = _op(0xFD113, "vvv", "v")

    def _encode(self) -> bytes:
        if len(self._labels) != 1:
            raise AsmError(f"{self.name}: a {self._labels[-1].kind} is still open")
        if self._stack != self.results and not self._labels[0].dead:
            raise AsmError(
                f"{self.name}: ends with {[t.name for t in self._stack]} on the stack, expected "
                f"{[t.name for t in self.results]}"
            )
        runs: list[list[int]] = []
        for t in self._locals:
            if runs and runs[-1][1] == t.value:
                runs[-1][0] += 1
            else:
                runs.append([1, t.value])
        head = _vector([uleb(n) + bytes((code,)) for n, code in runs])
        return _sized(head + self._code + b"\x0b")


_INT_OPS: dict[str, _Emit] = {
    "mul": Function.i32_mul,
    "div_u": Function.i32_div_u,
    "rem_u": Function.i32_rem_u,
    "and": Function.i32_and,
    "shr_u": Function.i32_shr_u,
}

MAX_PAGES = 65536
"""An imported memory's declared maximum must be at least the provided one's: all of 4 GiB."""


_VARIABLE = b"\x7f\x01\x41\x00\x0b"  # i32, mutable, i32.const 0


class Module:
    """A module that imports its memory as `env.memory`.

    Functions are numbered as they are declared; nothing else is imported, so a number is final.
    """

    def __init__(self, target: Target | None = None, names: bool = False) -> None:
        self.target = target or Target()
        self.names = names
        self.functions: list[Function] = []
        self._exports: list[tuple[str, int]] = []
        self._custom: list[tuple[str, bytes]] = []
        self._helpers: dict[str, Function] = {}
        self._variables: dict[str, int] = {}

    def variable(self, name: str) -> int:
        """The number of the instance's i32 of that name; it is 0 at first. Other instances over the
        same memory have their own."""
        return self._variables.setdefault(name, len(self._variables))

    def function(
        self, name: str, params: Sequence[ValType] = (), results: Sequence[ValType] = ()
    ) -> Function:
        """Declare a function; it can be called at once and given its body in any order."""
        if len(results) > 1:
            raise AsmError(f"{name}: more than one result is not supported")
        f = Function(self, len(self.functions), name, params, results)
        self.functions.append(f)
        return f

    def helper(
        self,
        name: str,
        params: Sequence[ValType],
        results: Sequence[ValType],
        build: Callable[[Function], None],
    ) -> Function:
        """The module's function of that name, built by `build` when first asked for."""
        f = self._helpers.get(name)
        if f is None:
            f = self._helpers[name] = self.function(name, params, results)
            build(f)
        return f

    def export(self, name: str, function: Function) -> None:
        self._exports.append((name, function.index))

    def custom(self, name: str, content: bytes) -> None:
        """Add a custom section at the module's end."""
        self._custom.append((name, content))

    def encode(self) -> bytes:
        """The binary; raises AsmError if a function is not finished."""
        types: dict[bytes, int] = {}
        numbers = []
        for f in self.functions:
            key = (
                b"\x60"
                + _sized(bytes(p.type.value for p in f.params))
                + _sized(bytes(t.value for t in f.results))
            )
            numbers.append(uleb(types.setdefault(key, len(types))))
        # Flags: 0x01 with maximum, 0x02 shared (which needs a maximum).
        limits = b"\x03\x01" + uleb(MAX_PAGES) if self.target.threads else b"\x00\x01"
        memory = _sized(b"env") + _sized(b"memory") + b"\x02" + limits
        exports = [_sized(n.encode()) + b"\x00" + uleb(i) for n, i in self._exports]
        sections = [
            (1, _vector(list(types))),
            (2, _vector([memory])),
            (3, _vector(numbers)),
            *([(6, _vector([_VARIABLE] * len(self._variables)))] if self._variables else []),
            (7, _vector(exports)),
            (10, _vector([f._encode() for f in self.functions])),
        ]
        if self.names:
            names = [uleb(f.index) + _sized(f.name.encode()) for f in self.functions]
            sections.append((0, _sized(b"name") + b"\x01" + _sized(_vector(names))))
        for name, content in self._custom:
            sections.append((0, _sized(name.encode()) + content))
        body = b"".join(bytes((number,)) + _sized(content) for number, content in sections)
        return b"\0asm\1\0\0\0" + body
