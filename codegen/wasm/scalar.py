"""Spells `Scalar` expressions as vector code: four lanes along one axis, or a single lane.

A kernel says where its loops are; this file decides what is computed where. Each time the kernel
enters a loop it opens a `level` that gives values to some axes. Everything that depends on no
other axis is then computed once, ahead of what follows: splatted loads, partial addresses,
constants. What remains is computed where it is pushed, shared subexpressions once.

    lanes = Lanes(f, operands, args, rank=2, vector=1, values=[value], stores=[(out, index)])
    with lanes.level():                          # constants
        with f.loop_range(i, 0, rows), lanes.level({0: i}):
            with f.loop_range(j, 0, columns, 4), lanes.level({1: j}):
                lanes.store(0, value)

The vector axis is bound to the coordinate of lane 0. With `vector=None` the same code computes
one element in lane 0, and the other lanes hold nothing of interest. An axis may be bound to any
`IntLike`: constants end up in the offsets of loads and stores, so an unrolled tile costs no
arithmetic. An epilogue binds the accumulator too:

    for c in range(columns):
        with lanes.level({n: n0 + 4 * c}):       # a bias is loaded here, once per column
            for r in range(rows):
                with lanes.level({m: m0 + r}, acc=tile[r][c]):
                    lanes.store(0, final)

Two forms of a node exist: "v", four lanes of a v128 local (BOOL: lane masks), and "s", an i32
shared by all lanes (BOOL: 0 or 1), which is how index arithmetic is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..scalar import Op, Scalar, Type, unary
from ..spec import Storage
from .asm import I32, V128, Function, Int, IntLike, Local, affine
from .asm import imax as int_max
from .asm import imin as int_min
from .math import expand

Form = tuple[str, object]

ACC_AXIS = -1
"""Stands for the accumulator where sets of axes are kept."""


@dataclass(frozen=True, slots=True)
class _Term:
    """constant * product of factors * inner: an addend of an element index."""

    constant: int
    factors: tuple[Scalar, ...]
    inner: Scalar | None
    needs: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Access:
    """Where a load or store goes: to elements of `bytes`.

    step: elements from lane to lane, None if irregular.
    """

    pointer: Local
    bytes: int
    index: Scalar
    terms: tuple[_Term, ...]
    step: tuple[_Term, ...] | None

    @property
    def constant_step(self) -> int | None:
        if self.step is None or any(t.factors for t in self.step):
            return None
        return sum(t.constant for t in self.step)


@dataclass(slots=True)
class _State:
    """What is known at a level: values of axes, computed forms, addresses so far."""

    axes: dict[int, IntLike]
    acc: Local | None
    forms: dict[Form, IntLike]
    partial: dict[Form, tuple[Int, tuple[_Term, ...]]] = field(default_factory=dict)


class Lanes:
    """Emits expressions inside the function `f`; see the module's head.

    operands: pointer and storage of each operand (None where an operand is not loaded from).
    args: the spec's run-time arguments.
    rank: number of axes; all are bound where values are pushed.
    values: the expressions that will be pushed or stored.
    stores: (pointer, element index) of each place that will be stored to.
    """

    def __init__(
        self,
        f: Function,
        operands: Sequence[tuple[Local, Storage] | None],
        args: Sequence[IntLike],
        *,
        rank: int,
        vector: int | None = None,
        values: Sequence[Scalar] = (),
        stores: Sequence[tuple[Local, Scalar]] = (),
    ) -> None:
        self.f = f
        self.operands = operands
        self.args = args
        self.vector = vector
        self._all = frozenset(range(rank))
        self._needs: dict[Scalar, frozenset[int]] = {}
        self._pure: dict[Scalar, bool] = {}
        self._uses: dict[Form, list[Form | None]] = {}
        self._order: list[Form] = []
        self._accesses: dict[Form, _Access] = {}
        self._expanded: dict[Scalar, Scalar] = {}
        self._stores: list[Form] = []
        self._state = _State({}, None, {})
        for pointer, index in stores:
            form = self._access(pointer, index)
            self._require(form, None)
            if self._accesses[form].step is None:
                self._require(("v", index), None)
            self._stores.append(form)
        for value in values:
            self._require(("v", self.root(value)), None)

    # -- what depends on what ---------------------------------------------------------------------

    def root(self, value: Scalar) -> Scalar:
        """What is computed for one of `values`: without operators that need expanding."""
        node = self._expanded.get(value)
        if node is None:
            as_stored = unary(Op.TO_I32, value) if value.type is Type.BOOL else value
            node = self._expanded[value] = expand(as_stored)
        return node

    def needs(self, node: Scalar) -> frozenset[int]:
        """The axes that a node depends on."""
        found = self._needs.get(node)
        if found is None:
            if node.op is Op.AXIS:
                found = frozenset((int(node.value or 0),))
            elif node.op is Op.ACC:
                found = frozenset((ACC_AXIS,))
            else:
                found = frozenset().union(*map(self.needs, node.args))
            self._needs[node] = found
        return found

    def _uniform(self, node: Scalar) -> bool:
        """Is it the same in all lanes?"""
        needs = self.needs(node)
        return ACC_AXIS not in needs and self.vector not in needs

    def _integer(self, node: Scalar) -> bool:
        """Is it made from integers alone, so that scalar code can compute it?"""
        found = self._pure.get(node)
        if found is None:
            found = (
                node.type is not Type.F32
                and node.op is not Op.ACC
                and all(map(self._integer, node.args))
            )
            self._pure[node] = found
        return found

    def _access(self, pointer: Local, index: Scalar, size: int = 4) -> Form:
        form: Form = ("a", (pointer.index, index))
        if form not in self._accesses:
            terms = tuple(self._terms(index, 1, ()))
            step: tuple[_Term, ...] | None = ()
            if not self._uniform(index):
                mine = [t for t in terms if t.needs & {self.vector, ACC_AXIS}]
                regular = all(t.inner is not None and t.inner.op is Op.AXIS for t in mine)
                step = tuple(mine) if regular else None
            self._accesses[form] = _Access(pointer, size, index, terms, step)
        return form

    def _terms(self, node: Scalar, constant: int, factors: tuple[Scalar, ...]) -> Iterator[_Term]:
        if node.op is Op.CONST:
            yield _Term(constant * int(node.value or 0), factors, None, frozenset())
        elif node.op in (Op.ADD, Op.SUB):
            yield from self._terms(node.args[0], constant, factors)
            sign = 1 if node.op is Op.ADD else -1
            yield from self._terms(node.args[1], constant * sign, factors)
        elif node.op is Op.MUL and any(not self.needs(a) for a in node.args):
            factor, rest = node.args if not self.needs(node.args[0]) else node.args[::-1]
            if factor.op is Op.CONST:
                yield from self._terms(rest, constant * int(factor.value or 0), factors)
            else:
                yield from self._terms(rest, constant, (*factors, factor))
        else:
            yield _Term(constant, factors, node, self.needs(node))

    def _require(self, form: Form, user: Form | None) -> None:
        """Note that `user` (None: the kernel itself) needs `form`, and so all below it."""
        users = self._uses.setdefault(form, [])
        users.append(user)
        if len(users) > 1:
            return
        for below in self._below(form):
            self._require(below, form)
        self._order.append(form)

    def _below(self, form: Form) -> list[Form]:
        kind, node = form
        if kind == "a":
            access = self._accesses[form]
            inner = [t.inner for t in access.terms if t.inner is not None]
            factors = [factor for t in access.terms for factor in t.factors]
            return [("s", n) for n in (*inner, *factors) if n.op not in _LEAVES]
        assert isinstance(node, Scalar)
        if kind == "s":
            if node.op in _LEAVES:
                return []
            if node.op is Op.LOAD:
                return [self._load_access(node)]
            if self._integer(node):
                return [("s", a) for a in node.args]
            return [("v", node)]
        if node.op in (Op.CONST, Op.ACC):
            return []
        if node.op is Op.AXIS or (
            self._uniform(node) and self._integer(node) and node.op is not Op.LOAD
        ):
            return [("s", node)] if node.op not in _LEAVES else []
        if node.op is Op.LOAD:
            form = self._load_access(node)
            return [form] if self._accesses[form].step is not None else [("v", node.args[0])]
        if node.op in _SHIFTS and self._uniform(node.args[1]):
            return [("v", node.args[0]), ("s", node.args[1])]
        return [("v", a) for a in node.args]

    def _load_access(self, node: Scalar) -> Form:
        pointer, storage = self._operand(node)
        return self._access(pointer, node.args[0], storage.bytes)

    def _operand(self, node: Scalar) -> tuple[Local, Storage]:
        operand = self.operands[int(node.value or 0)]
        if operand is None:
            raise ValueError(f"operand {node.value} cannot be loaded from here")
        if operand[1] is Storage.F16:
            raise ValueError("f16 storage is not available in WebAssembly")
        return operand

    def _form_needs(self, form: Form) -> frozenset[int]:
        if form[0] == "a":
            return self.needs(self._accesses[form].index)
        assert isinstance(form[1], Scalar)
        return self.needs(form[1])

    # -- levels -----------------------------------------------------------------------------------

    @contextmanager
    def level(
        self,
        axes: Mapping[int, IntLike] | None = None,
        acc: Local | None = None,
        values: Mapping[Scalar, Local] | None = None,
    ) -> Iterator[None]:
        """Inside, these axes (and the accumulator) have these values.

        `values` gives lanes that the kernel itself has made for some loads.
        """
        outer = self._state
        self._state = _State(
            {**outer.axes, **(axes or {})},
            acc or outer.acc,
            {**outer.forms, **{("v", n): local for n, local in (values or {}).items()}},
            dict(outer.partial),
        )
        with self.f.scope():
            self._hoist()
            yield
        self._state = outer

    def _bound(self, needs: frozenset[int]) -> bool:
        state = self._state
        return all(a in state.axes or (a == ACC_AXIS and state.acc is not None) for a in needs)

    def _hoist(self) -> None:
        """Compute what later levels will use and what needs no axis that they bind."""
        state = self._state
        everything = self._bound(self._all)
        for form in self._order:
            if form in state.forms:
                continue
            if form[0] == "a":
                self._advance(form)
                continue
            if not self._bound(self._form_needs(form)):
                continue
            later = any(
                (not everything if user is None else not self._bound(self._form_needs(user)))
                for user in self._uses[form]
            )
            node = form[1]
            assert isinstance(node, Scalar)
            if not later or (form[0] == "s" and node.op in _LEAVES):
                continue
            if form[0] == "s":
                state.forms[form] = self.f.hold(self.integer(node))
            else:
                self._push(node, keep=True)
                self.f.drop()

    def _advance(self, form: Form) -> None:
        """Add to an address what has become known of it."""
        state, access = self._state, self._accesses[form]
        address, remaining = state.partial.get(form, (affine(access.pointer), access.terms))
        now = [t for t in remaining if self._bound(t.needs)]
        if not now:
            return
        rest = tuple(t for t in remaining if not self._bound(t.needs))
        for term in now:
            address = address + self._term(term) * access.bytes
        if rest and len(address.terms) > 1:
            address = affine(self.f.value(Int(0, address.terms))) + address.constant
        state.partial[form] = (address, rest)

    def _term(self, term: _Term) -> Int:
        value = affine(term.constant)
        for node in (*term.factors, *([term.inner] if term.inner is not None else [])):
            value = value * self.integer(node)
        return value

    def _address(self, form: Form) -> Int:
        address, rest = self._state.partial.get(form, (affine(self._accesses[form].pointer), ()))
        assert not rest, "an axis of the address is not bound here"
        return address

    # -- scalar form ------------------------------------------------------------------------------

    def integer(self, node: Scalar) -> IntLike:
        """The "s" form: an i32 expression over locals."""
        known = self._state.forms.get(("s", node))
        if known is not None:
            return known
        if node.op is Op.CONST:
            return int(node.value or 0)
        if node.op is Op.AXIS:
            return self._state.axes[int(node.value or 0)]
        if node.op is Op.ARG:
            return self.args[int(node.value or 0)]
        if node.op in (Op.ADD, Op.SUB, Op.MUL) and self._integer(node):
            a, b = affine(self.integer(node.args[0])), self.integer(node.args[1])
            return a + b if node.op is Op.ADD else a - b if node.op is Op.SUB else a * b
        result = self._scalar_code(node)
        self._state.forms[("s", node)] = result
        return result

    def _scalar_code(self, node: Scalar) -> Local:
        f = self.f
        result = f.local(I32)
        if node.op is Op.LOAD:
            form = self._load_access(node)
            load = f.i32_load8_s if self._accesses[form].bytes == 1 else f.i32_load
            load(addr=self._address(form))
        elif not self._integer(node):
            self._push(node)
            f.i32x4_extract_lane(0)
            if node.type is Type.BOOL:
                f.push(1)
                f.i32_and()
        else:
            _push_scalar(f, node.op, [f.hold(self.integer(a)) for a in node.args])
        f.set(result)
        return result

    # -- vector form ------------------------------------------------------------------------------

    def push(self, value: Scalar) -> None:
        """Push the lanes of one of `values`."""
        self._push(self.root(value))

    def _push(self, node: Scalar, keep: bool = False) -> None:
        f, form = self.f, ("v", node)
        known = self._state.forms.get(form)
        if isinstance(known, Local):
            f.get(known)
            return
        if node.op is Op.ACC:
            if self._state.acc is None:
                raise ValueError("no accumulator is bound here")
            f.get(self._state.acc)
            return
        self._vector_code(node)
        if keep or (len(self._uses.get(form, ())) > 1 and node.op is not Op.CONST):
            local = f.local(V128)
            f.tee(local)
            self._state.forms[form] = local

    def _vector_code(self, node: Scalar) -> None:
        f = self.f
        if node.op is Op.CONST:
            _push_constant(f, node)
        elif node.op is Op.LOAD:
            self._load(node)
        elif node.op is Op.AXIS and node.value == self.vector:
            f.push(self.integer(node))
            f.i32x4_splat()
            f.i32x4_const(0, 1, 2, 3)
            f.i32x4_add()
        elif self._uniform(node) and self._integer(node):
            value = affine(self.integer(node))
            f.push(-value if node.type is Type.BOOL else value)
            f.i32x4_splat()
        elif node.op in (Op.ADD, Op.SUB) and self._fused(node):
            pass
        elif node.op in _SHIFTS and self._uniform(node.args[1]):
            self._push(node.args[0])
            f.push(self.integer(node.args[1]))
            _SHIFTS[node.op](f)
        elif node.op in (Op.MIN, Op.MAX) and node.type is Type.F32:
            self._extreme(node)
        elif node.op is Op.SELECT:
            condition, yes, no = node.args
            self._push(yes)
            self._push(no)
            self._push(condition)
            f.v128_bitselect()
        elif node.type is Type.I32 and node.op in _LANEWISE:
            self._lanewise(node)
        else:
            for a in node.args:
                self._push(a)
            kind = node.args[0].type
            try:
                emit = _VECTOR[node.op, kind]
            except KeyError:
                raise ValueError(f"no vector code for {node.op.value} of {kind.value}") from None
            emit(f)

    def _fused(self, node: Scalar) -> bool:
        """a * b + c and c - a * b in one instruction, where the product has no other use."""
        if node.type is not Type.F32 or not self.f.module.target.relaxed:
            return False
        first, second = node.args
        if self._lone_product(second):
            product, other = second, first
        elif node.op is Op.ADD and self._lone_product(first):
            product, other = first, second
        else:
            return False
        for a in (*product.args, other):
            self._push(a)
        if node.op is Op.ADD:
            self.f.f32x4_relaxed_madd()
        else:
            self.f.f32x4_relaxed_nmadd()
        return True

    def _lone_product(self, node: Scalar) -> bool:
        form = ("v", node)
        return (
            node.op is Op.MUL and len(self._uses.get(form, ())) == 1
            and form not in self._state.forms
        )  # fmt: skip

    def _extreme(self, node: Scalar) -> None:
        """f32 min and max. Against a constant the one-instruction form also keeps a NaN."""
        f, (a, b) = self.f, node.args
        if a.op is Op.CONST:
            a, b = b, a
        self._push(a)
        self._push(b)
        if b.op is Op.CONST and b.value == b.value:
            (f.f32x4_pmin if node.op is Op.MIN else f.f32x4_pmax)()
        else:
            (f.f32x4_min if node.op is Op.MIN else f.f32x4_max)()

    def _lanewise(self, node: Scalar) -> None:
        """Integer operators that have no vector instruction, one lane at a time."""
        f, (a, b) = self.f, node.args
        constant = int(b.value or 0) if b.op is Op.CONST else None
        if node.op in (Op.UDIV, Op.UMOD) and constant is not None and constant > 0:
            self._push(a)
            _divide_by_constant(f, node.op, constant)
            return
        x, y = f.locals(V128, 2)
        self._push(a)
        f.set(x)
        if constant is None:
            self._push(b)
            f.set(y)
        lane_a = f.local(I32)
        lane_b = f.local(I32)
        f.get(x)
        for lane in range(4 if self.vector is not None else 1):
            f.get(x)
            f.i32x4_extract_lane(lane)
            f.set(lane_a)
            if constant is None:
                f.get(y)
                f.i32x4_extract_lane(lane)
                f.set(lane_b)
            _push_scalar(f, node.op, [lane_a, lane_b if constant is None else constant])
            f.i32x4_replace_lane(lane)

    # -- memory -----------------------------------------------------------------------------------

    def _load(self, node: Scalar) -> None:
        f = self.f
        form = self._load_access(node)
        access = self._accesses[form]
        if access.bytes == 1:
            self._load_bytes(node, form)
            return
        if access.step is None:
            self._gather(access.pointer, node.args[0])
            return
        address, step = self._address(form), access.constant_step
        if self._uniform(node):
            if self.vector is None:
                f.v128_load32_zero(addr=address)
            else:
                f.v128_load32_splat(addr=address)
        elif step == 1:
            f.v128_load(addr=address)
        else:
            f.v128_load32_zero(addr=address)
            lanes = f.local(V128)
            for lane in range(1, 4):
                f.set(lanes)
                offset = f._push_address(address + self._lane_step(access, lane))
                f.get(lanes)
                f.v128_load32_lane(lane, offset)
            f.free_local(lanes)

    def _load_bytes(self, node: Scalar, form: Form) -> None:
        """Signed bytes as four i32."""
        f, access = self.f, self._accesses[form]
        alone = self.vector is None
        if access.step is not None:
            address = self._address(form)
            if access.constant_step == 1 and not alone:
                f.v128_load32_zero(addr=address)
                f.i16x8_extend_low_i8x16_s()
                f.i32x4_extend_low_i16x8_s()
                return
            f.i32_load8_s(addr=address)
            f.i32x4_splat()
            if not alone and not self._uniform(node):
                for lane in range(1, 4):
                    f.i32_load8_s(addr=address + self._lane_step(access, lane))
                    f.i32x4_replace_lane(lane)
            return
        indexes = f.local(V128)
        self._push(node.args[0])
        f.push(access.pointer)
        f.i32x4_splat()
        f.i32x4_add()
        f.set(indexes)
        for lane in range(1 if alone else 4):
            f.get(indexes)
            f.i32x4_extract_lane(lane)
            f.i32_load8_s()
            if lane:
                f.i32x4_replace_lane(lane)
            else:
                f.i32x4_splat()
        f.free_local(indexes)

    def _lane_step(self, access: _Access, lane: int) -> Int:
        """Bytes from lane 0 to `lane`."""
        total = affine(0)
        for term in access.step or ():
            step = affine(term.constant * access.bytes * lane)
            for factor in term.factors:
                step = step * self.integer(factor)
            total = total + step
        return total

    def _gather(self, pointer: Local, index: Scalar) -> None:
        f = self.f
        indexes, lanes = f.local(V128), f.local(V128)
        self._push(index)
        f.push(2)
        f.i32x4_shl()
        f.push(pointer)
        f.i32x4_splat()
        f.i32x4_add()
        f.tee(indexes)
        f.i32x4_extract_lane(0)
        f.v128_load32_zero()
        for lane in range(1, 4 if self.vector is not None else 1):
            f.set(lanes)
            f.get(indexes)
            f.i32x4_extract_lane(lane)
            f.get(lanes)
            f.v128_load32_lane(lane)
        f.free_local(indexes, lanes)

    def store(self, number: int, value: Scalar) -> None:
        """Store the lanes of one of `values` at place `number` of `stores`."""
        f, form = self.f, self._stores[number]
        access = self._accesses[form]
        if access.step is not None and (self.vector is None or access.constant_step == 1):
            offset = f._push_address(self._address(form))
            self.push(value)
            if self.vector is None:
                f.v128_store32_lane(0, offset)
            else:
                f.v128_store(offset)
            return
        lanes = f.local(V128)
        self.push(value)
        f.set(lanes)
        if access.step is not None:
            address = self._address(form)
            for lane in range(4):
                offset = f._push_address(address + self._lane_step(access, lane))
                f.get(lanes)
                f.v128_store32_lane(lane, offset)
        else:
            indexes = f.local(V128)
            self._push(access.index)
            f.set(indexes)
            for lane in range(4 if self.vector is not None else 1):
                f.push(access.pointer)
                f.get(indexes)
                f.i32x4_extract_lane(lane)
                f.push(2)
                f.i32_shl()
                f.i32_add()
                f.get(lanes)
                f.v128_store32_lane(lane)
            f.free_local(indexes)
        f.free_local(lanes)


def _push_constant(f: Function, node: Scalar) -> None:
    """Zeros and ones aside, by a splat: engines make a vector constant anew wherever it is used,
    in three instructions of x86-64, but keep a splat like any other value."""
    if node.type is Type.F32 and node.value:
        f.f32_const(float(node.value))
        f.f32x4_splat()
    elif node.type is Type.I32 and node.value not in (0, -1):
        f.push((int(node.value or 0) + (1 << 31)) % (1 << 32) - (1 << 31))
        f.i32x4_splat()
    elif node.type is Type.F32:
        f.f32x4_const(float(node.value or 0.0))
    elif node.type is Type.I32:
        f.i32x4_const(int(node.value or 0))
    else:
        f.i32x4_const(-1 if node.value else 0)


# --- scalar operators ---------------------------------------------------------------------------


def _push_scalar(f: Function, op: Op, a: Sequence[IntLike]) -> None:
    """Push an integer or boolean operator of i32 values (BOOL: 0 or 1)."""
    if op in (Op.MIN, Op.MAX):
        f.push(int_min(a[0], a[1]) if op is Op.MIN else int_max(a[0], a[1]))
    elif op in (Op.UDIV, Op.UMOD):
        divisor = a[1] if isinstance(a[1], int) else f.hold(a[1])
        if isinstance(divisor, int):
            f.push(affine(a[0]) // divisor if op is Op.UDIV else affine(a[0]) % divisor)
        else:
            # A size of 0 divides only in code whose result is not used, but must not trap there.
            f.push(a[0], divisor, divisor)
            f.i32_eqz()
            f.i32_or()
            (f.i32_div_u if op is Op.UDIV else f.i32_rem_u)()
    elif op in (Op.DIV, Op.MOD, Op.REM):
        f.push(*a)
        f.call(_division(f, op))
    elif op is Op.NEG:
        f.push(-affine(a[0]))
    elif op in (Op.ABS, Op.SIGN):
        x = f.value(a[0])
        if op is Op.ABS:
            f.push(int_max(x, f.hold(-x)))
        else:
            f.push(x, 0)
            f.i32_gt_s()
            f.push(x, 0)
            f.i32_lt_s()
            f.i32_sub()
    elif op is Op.SELECT:
        f.push(a[1], a[2], a[0])
        f.select()
    elif op in (Op.TO_I32,):
        f.push(a[0])
    elif op is Op.TO_BOOL:
        f.push(a[0], 0)
        f.i32_ne()
    elif op is Op.NOT:
        f.push(a[0])
        f.i32_eqz()
    else:
        f.push(*a)
        try:
            emit = _SCALAR[op]
        except KeyError:
            raise ValueError(f"no integer code for {op.value}") from None
        emit(f)


_SCALAR: dict[Op, Callable[[Function], None]] = {
    Op.ADD: Function.i32_add,
    Op.SUB: Function.i32_sub,
    Op.MUL: Function.i32_mul,
    Op.EQ: Function.i32_eq,
    Op.LT: Function.i32_lt_s,
    Op.LE: Function.i32_le_s,
    Op.AND: Function.i32_and,
    Op.OR: Function.i32_or,
    Op.XOR: Function.i32_xor,
    Op.BAND: Function.i32_and,
    Op.BOR: Function.i32_or,
    Op.BXOR: Function.i32_xor,
    Op.SHL: Function.i32_shl,
    Op.SHR: Function.i32_shr_u,
    Op.SAR: Function.i32_shr_s,
}


def _division(f: Function, op: Op) -> Function:
    """A function of two i32 that never traps: x / 0 = 0, x % 0 = 0, smallest / -1 wraps."""

    def build(g: Function) -> None:
        a, b = g.params
        g.push(b)
        g.i32_eqz()
        with g.if_():
            g.push(0)
            g.return_()
        g.push(b, -1)
        g.i32_eq()
        with g.if_():
            g.push(-a if op is Op.DIV else 0)
            g.return_()
        g.push(a, b)
        if op is Op.DIV:
            g.i32_div_s()
            return
        g.i32_rem_s()
        if op is Op.MOD:  # the remainder takes the divisor's sign
            r = g.local(I32)
            g.set(r)
            g.push(r + b, r)
            g.push(r, 0)
            g.i32_ne()
            g.push(r, b)
            g.i32_xor()
            g.push(0)
            g.i32_lt_s()
            g.i32_and()
            g.select()

    return f.module.helper(f"i32_{op.value}", [I32, I32], [I32], build)


def _divide_by_constant(f: Function, op: Op, divisor: int) -> None:
    """[x] -> [x // divisor] or [x % divisor] for lanes >= 0.

    A product with the reciprocal in 64 bits, which is exact for 31-bit x (Granlund & Montgomery,
    "Division by Invariant Integers using Multiplication", theorem 4.2).
    """
    bits = (divisor - 1).bit_length()
    if 1 << bits == divisor:
        if op is Op.UDIV:
            f.push(bits)
            f.i32x4_shr_u()
        else:
            f.i32x4_const(divisor - 1)
            f.v128_and()
        return
    x, low, reciprocal = f.locals(V128, 3)
    f.set(x)
    f.i32x4_const(-(-(1 << (31 + bits)) // divisor))
    f.set(reciprocal)
    f.get(x, reciprocal)
    f.i64x2_extmul_low_i32x4_u()
    f.push(31 + bits)
    f.i64x2_shr_u()
    f.set(low)
    if op is Op.UMOD:
        f.get(x)
    f.get(low)
    f.get(x, reciprocal)
    f.i64x2_extmul_high_i32x4_u()
    f.push(31 + bits)
    f.i64x2_shr_u()
    f.i32x4_shuffle(0, 2, 4, 6)
    if op is Op.UMOD:
        f.i32x4_const(divisor)
        f.i32x4_mul()
        f.i32x4_sub()
    f.free_local(x, low, reciprocal)


# --- vector operators ---------------------------------------------------------------------------


def _sequence(*steps: Callable[[Function], None]) -> Callable[[Function], None]:
    def emit(f: Function) -> None:
        for step in steps:
            step(f)

    return emit


def _f32(value: float) -> Callable[[Function], None]:
    return lambda f: f.f32x4_const(value)


def _i32(value: int) -> Callable[[Function], None]:
    return lambda f: f.i32x4_const(value)


def _is_nan(f: Function) -> None:
    x = f.local(V128)
    f.tee(x)
    f.get(x)
    f.f32x4_ne()
    f.free_local(x)


def _remainder(round_: Callable[[Function], None]) -> Callable[[Function], None]:
    """[x, y] -> x - round(x / y) * y, in f64 so that the quotient is right, two lanes at a time."""

    def emit(f: Function) -> None:
        x, y, a, b = f.locals(V128, 4)
        f.set(y)
        f.set(x)
        for half in ((2, 3, 2, 3), (0, 1, 0, 1)):
            for whole, wide in ((x, a), (y, b)):
                f.get(whole, whole)
                f.i32x4_shuffle(*half)
                f.f64x2_promote_low_f32x4()
                f.set(wide)
            f.get(a, a, b)
            f.f64x2_div()
            round_(f)
            f.get(b)
            f.f64x2_mul()
            f.f64x2_sub()
            f.f32x4_demote_f64x2_zero()
        f.set(x)
        f.set(y)
        f.get(x, y)
        f.i32x4_shuffle(0, 1, 4, 5)
        f.free_local(x, y, a, b)

    return emit


def _sign_i32(f: Function) -> None:
    # Masks are -1: (x < 0) - (x > 0).
    x = f.local(V128)
    f.tee(x)
    f.i32x4_const(0)
    f.i32x4_lt_s()
    f.get(x)
    f.i32x4_const(0)
    f.i32x4_gt_s()
    f.i32x4_sub()
    f.free_local(x)


_SHIFTS: dict[Op, Callable[[Function], None]] = {
    Op.SHL: Function.i32x4_shl,
    Op.SHR: Function.i32x4_shr_u,
    Op.SAR: Function.i32x4_shr_s,
}
_LANEWISE = {Op.DIV, Op.MOD, Op.REM, Op.UDIV, Op.UMOD, *_SHIFTS}
_LEAVES = {Op.CONST, Op.AXIS, Op.ARG}

_F, _I, _B = Type.F32, Type.I32, Type.BOOL
_VECTOR: dict[tuple[Op, Type], Callable[[Function], None]] = {
    (Op.ADD, _F): Function.f32x4_add,
    (Op.SUB, _F): Function.f32x4_sub,
    (Op.MUL, _F): Function.f32x4_mul,
    (Op.DIV, _F): Function.f32x4_div,
    (Op.NEG, _F): Function.f32x4_neg,
    (Op.ABS, _F): Function.f32x4_abs,
    (Op.SQRT, _F): Function.f32x4_sqrt,
    (Op.FLOOR, _F): Function.f32x4_floor,
    (Op.CEIL, _F): Function.f32x4_ceil,
    (Op.ROUND, _F): Function.f32x4_nearest,
    (Op.TRUNC, _F): Function.f32x4_trunc,
    (Op.MOD, _F): _remainder(Function.f64x2_floor),
    (Op.REM, _F): _remainder(Function.f64x2_trunc),
    (Op.EQ, _F): Function.f32x4_eq,
    (Op.LT, _F): Function.f32x4_lt,
    (Op.LE, _F): Function.f32x4_le,
    (Op.ISNAN, _F): _is_nan,
    (Op.ISINF, _F): _sequence(Function.f32x4_abs, _f32(float("inf")), Function.f32x4_eq),
    (Op.TO_I32, _F): Function.i32x4_trunc_sat_f32x4_s,
    (Op.TO_BOOL, _F): _sequence(_f32(0.0), Function.f32x4_ne),
    (Op.BITS_I32, _F): lambda f: None,
    (Op.ADD, _I): Function.i32x4_add,
    (Op.SUB, _I): Function.i32x4_sub,
    (Op.MUL, _I): Function.i32x4_mul,
    (Op.NEG, _I): Function.i32x4_neg,
    (Op.ABS, _I): Function.i32x4_abs,
    (Op.MIN, _I): Function.i32x4_min_s,
    (Op.MAX, _I): Function.i32x4_max_s,
    (Op.SIGN, _I): _sign_i32,
    (Op.EQ, _I): Function.i32x4_eq,
    (Op.LT, _I): Function.i32x4_lt_s,
    (Op.LE, _I): Function.i32x4_le_s,
    (Op.BAND, _I): Function.v128_and,
    (Op.BOR, _I): Function.v128_or,
    (Op.BXOR, _I): Function.v128_xor,
    (Op.TO_F32, _I): Function.f32x4_convert_i32x4_s,
    (Op.TO_BOOL, _I): _sequence(_i32(0), Function.i32x4_ne),
    (Op.BITS_F32, _I): lambda f: None,
    (Op.EQ, _B): Function.i32x4_eq,
    (Op.AND, _B): Function.v128_and,
    (Op.OR, _B): Function.v128_or,
    (Op.XOR, _B): Function.v128_xor,
    (Op.NOT, _B): Function.v128_not,
    (Op.TO_F32, _B): _sequence(_f32(1.0), Function.v128_and),
    (Op.TO_I32, _B): _sequence(_i32(1), Function.v128_and),
}
