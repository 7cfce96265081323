"""Matmul: batched products through views, or with a packed constant."""

from __future__ import annotations

import functools
from typing import Any

from .. import scalar as sc
from ..caps import WgslCaps
from ..dims import Dim, product
from ..scalar import Op, Scalar, Type
from ..spec import Matmul, Storage, View
from . import blocks, epilogue, int8, product_space, prologue, statistics
from . import product as core
from . import product_operands as operands
from .kernel import WgslKernel
from .module import Module, dim_multiple, runs_along

Tile = core.Tile
Matrix = core.Matrix
Few = core.Few
Direct = core.Direct
FewBlocks = blocks.FewBlocks


def Knobs(**fields: Any) -> core.Knobs | FewBlocks:  # the family has several kinds of knobs
    """Knobs from their JSON form."""
    if "panels" in fields:
        return FewBlocks(**fields)
    return core.knobs_from(fields)


def space(spec: Matmul, caps: WgslCaps) -> list[core.Knobs | FewBlocks]:
    p = product_of(spec)
    found: list[core.Knobs | FewBlocks] = list(product_space.space(p, caps))
    if prologue.prepares(spec):
        fitting = [knobs for knobs in found if _has_room(spec, knobs, caps)]
        if caps.emulated and isinstance(p.m, int) and p.m <= 8:
            # A CPU switches threads at every barrier of the statistics.
            fitting.sort(key=lambda knobs: _rows_and_threads(knobs)[1])
        found = [*fitting]
    # Few rows of codes have a form of their own, which has no whole rows of the result.
    if spec.blocks is None or spec.statistics is not None or spec.epilogue is not None:
        return found
    few = [knobs for knobs in blocks.few(p, caps) if not p.prepares or _has_room(spec, knobs, caps)]
    if isinstance(p.m, int) and p.m <= 8:
        return [*few, *found]
    return [*found[:16], *few[:3], *found[16:]]


def _rows_and_threads(knobs: core.Knobs | FewBlocks) -> tuple[int, int]:
    """Of a workgroup."""
    if isinstance(knobs, FewBlocks):
        return knobs.rows, knobs.threads
    return core.rows_and_threads(knobs)


def _has_room(spec: Matmul, knobs: core.Knobs | FewBlocks, caps: WgslCaps) -> bool:
    """For the statistics of its rows, in workgroup memory."""
    more = prologue.storage(spec, *_rows_and_threads(knobs))
    own = knobs.storage if isinstance(knobs, FewBlocks) else product_space.storage(knobs)
    return own + more <= caps.max_workgroup_storage


def render(spec: Matmul, knobs: core.Knobs | FewBlocks) -> WgslKernel:
    batch = split(sc.axis(0), spec.batch)
    rank = len(batch)
    a, b = _index(spec.a, batch), _index(spec.b, batch) if spec.b else None
    half = core.multiplies_half(knobs)
    guarded = frozenset(range(spec.weights)) | prologue.operands(spec)

    def define_a(module: Module, name: str = "a") -> None:
        if spec.prologue is not None:
            wide = not isinstance(knobs, Few)
            prologue.define_a(module, spec, wide, half, *_rows_and_threads(knobs))
            return
        vector = runs_along(a, 2) and dim_multiple(spec.k, 4) and not isinstance(knobs, Few)
        operands.define_a(module, a, None, spec.k, vector, half, name)

    def loads(module: Module) -> None:
        define_a(module)
        if spec.blocks is not None:
            assert isinstance(spec.k, int), "a packed constant has a static K"
            blocks.define_b(module, spec.blocks, spec.k, half)
        elif b is None:
            operands.define_b_panels(module, spec.n, spec.k, False, half)
        else:
            operands.define_b(module, b, runs_along(b, 2) and dim_multiple(spec.n, 4), half)

    def axis(node: Scalar) -> Scalar | None:
        if node.op is not Op.AXIS:
            return None
        number = int(node.value or 0)
        return batch[number] if number < rank else sc.axis(1 + number - rank)

    exact = spec.operands[1] is Storage.I8 and spec.operands[0] is Storage.I32
    acc_type = Type.I32 if exact else Type.F32

    def put(module: Module, put4: str = "put4") -> None:
        module.puts(
            sc.transform(spec.final, axis), _index(spec.out, batch), ("z", "m", "n"), acc_type,
            lane=2, lane_size=spec.n, guarded=guarded, put4=put4,
        )  # fmt: skip
        if spec.statistics is not None:
            statistics.define_store(module, spec)

    def module() -> Module:
        return Module(spec.operands, spec.output, spec.n_args)

    if isinstance(knobs, FewBlocks):
        assert spec.blocks is not None
        made = module()
        define_a(made)
        put(made)
        return blocks.render_few(product_of(spec), spec.blocks, knobs, made, "matmul_blocks")
    if spec.blocks is None and spec.operands[1] is Storage.I8:
        return int8.render(product_of(spec), knobs, "matmul", module, define_a, put)
    finish = None
    if spec.epilogue is not None:
        finish = functools.partial(epilogue.finish, spec=spec)
    return core.render(product_of(spec), knobs, core.Pieces("matmul", module, loads, put, finish))


_HEAVY = (Op.ERF, Op.TANH, Op.EXP)


def split(flat: Scalar, shape: tuple[Dim, ...]) -> list[Scalar]:
    """Coordinates of a row-major element number."""
    found: list[Scalar] = []
    for i in reversed(range(len(shape))):
        if i == 0:
            found.append(flat)
            break
        found.append(sc.binary(Op.UMOD, flat, sc.dim(shape[i])))
        flat = sc.binary(Op.UDIV, flat, sc.dim(shape[i]))
    return found[::-1]


def _index(view: View, batch: list[Scalar]) -> Scalar:
    """Element number over AXIS (z, row, column)."""
    total = sc.dim(view.offset)
    for coordinate, stride in zip([*batch, sc.axis(1), sc.axis(2)], view.strides, strict=True):
        if stride != 0:
            total = total + coordinate * sc.dim(stride)
    return total


def product_of(spec: Matmul) -> core.Product:
    """What the forms of a product need to know of it."""
    rank = len(spec.batch)
    if spec.b is None:
        order = core.Order.PANEL
    else:
        order = core.Order.N if spec.b.strides[rank + 1] == 1 else core.Order.K
        if 1 not in spec.b.strides[rank:]:
            order = core.Order.N
    return core.Product(
        z=product(spec.batch),
        m=spec.m,
        n=spec.n,
        k=spec.k,
        a_along_k=spec.a.strides[rank] != 1 or spec.a.strides[rank + 1] == 1,
        b=order,
        half=spec.operands[0] is Storage.F16
        and (spec.blocks is not None or spec.operands[1] is Storage.F16),
        prepares=prologue.prepares(spec),
        heavy=any(node.op in _HEAVY for node in sc.walk([spec.final])),
        twice=spec.epilogue is not None,
        statistics=spec.statistics is not None,
    )
