"""Conv: channels-last cross-correlation, as a product over (tap, channel) or directly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import scalar as sc
from ..caps import WgslCaps
from ..dims import Dim, ceildiv, product
from ..scalar import Op, Scalar, Type
from ..spec import Conv, Storage, View
from . import int8, product_space
from . import product as core
from . import product_operands as operands
from .kernel import WgslKernel
from .module import Module, dim_multiple, dim_text, fold_grid, unravel

Tile = core.Tile
Few = core.Few


@dataclass(frozen=True, slots=True)
class Depthwise:
    """Knobs. A thread computes `pixels` neighbours along x, of four channels when `wide`."""

    workgroup: int
    pixels: int
    wide: bool


def Knobs(**fields: Any) -> core.Knobs | Depthwise:  # the family has several kinds of knobs
    """Knobs from their JSON form."""
    if "pixels" in fields:
        return Depthwise(**fields)
    return core.knobs_from(fields)


@dataclass(frozen=True, slots=True)
class Fields:
    """What the depthwise template sees."""

    head: str
    workgroup: int
    pixels: int
    kind: str
    kernel_y: int
    kernel_x: int
    count: str
    coordinates: list[str]
    width: str
    channel: str
    put: str


def space(spec: Conv, caps: WgslCaps) -> list[core.Knobs | Depthwise]:
    if not spec.depthwise:
        return list(product_space.space(product_of(spec), caps))
    limit = min(caps.max_invocations, caps.max_workgroup_size[0])
    return [
        Depthwise(workgroup, pixels, wide)
        for wide in ((True, False) if _wide(spec) else (False,))
        for workgroup in (128, 64, 256)
        for pixels in (2, 4, 1)
        if workgroup <= limit
    ]


def render(spec: Conv, knobs: core.Knobs | Depthwise) -> WgslKernel:
    if isinstance(knobs, Depthwise):
        return _render_depthwise(spec, knobs)
    cin, cout = spec.cin // spec.groups, spec.cout // spec.groups
    z, m, k = sc.axis(0), sc.axis(1), sc.axis(2)
    pixel = _pixel(spec, m)
    taps = spec.kernel[0] * spec.kernel[1]
    grouped = spec.groups > 1
    half = core.multiplies_half(knobs)

    def define_a(module: Module, name: str = "a") -> None:
        tap = sc.binary(Op.UDIV, k, sc.const(cin)) if taps > 1 else sc.const(0)
        c = sc.binary(Op.UMOD, k, sc.const(cin)) if taps > 1 else k
        ky = sc.binary(Op.UDIV, tap, sc.const(spec.kernel[1]))
        kx = sc.binary(Op.UMOD, tap, sc.const(spec.kernel[1]))
        index, inside = _source(spec, pixel, ky, kx, z * cin + c if grouped else c)
        # Four steps of k are four channels of one tap when the channels come in fours.
        vector = not isinstance(knobs, Few) and cin % 4 == 0 and _wide_input(spec)
        operands.define_a(module, index, inside, taps * cin, vector, half, name)

    def loads(module: Module) -> None:
        define_a(module)
        operands.define_b_panels(module, cout, taps * cin, grouped, half)

    coordinates = [*pixel, z * cout + sc.axis(2) if grouped else sc.axis(2)]

    def axis(node: Scalar) -> Scalar | None:
        return coordinates[int(node.value or 0)] if node.op is Op.AXIS else None

    exact = spec.operands[1] is Storage.I8 and spec.operands[0] is Storage.I32
    acc_type = Type.I32 if exact else Type.F32

    def put(module: Module, put4: str = "put4") -> None:
        module.puts(
            sc.transform(spec.final, axis), _place(spec.out, coordinates), ("z", "m", "n"),
            acc_type, lane=2, lane_size=cout, guarded=frozenset((0, 1)), put4=put4,
        )  # fmt: skip

    def module() -> Module:
        return Module(spec.operands, spec.output, spec.n_args)

    if spec.operands[1] is Storage.I8:
        return int8.render(product_of(spec), knobs, "conv", module, define_a, put)
    return core.render(product_of(spec), knobs, core.Pieces("conv", module, loads, put))


def _pixel(spec: Conv, m: Scalar) -> list[Scalar]:
    """(batch, y, x) of pixel number `m`."""
    height, width = map(sc.dim, spec.out_size)
    row = sc.binary(Op.UDIV, m, width)
    return [sc.binary(Op.UDIV, row, height), sc.binary(Op.UMOD, row, height),
            sc.binary(Op.UMOD, m, width)]  # fmt: skip


def _source(
    spec: Conv, pixel: list[Scalar], ky: Scalar, kx: Scalar, channel: Scalar
) -> tuple[Scalar, Scalar | None]:
    """Where a tap reads, and whether that is inside the image (None: always)."""
    inside: Scalar | None = None
    places = []
    for axis, (out, k) in enumerate(((pixel[1], ky), (pixel[2], kx))):
        place = out * spec.stride[axis] + k * spec.dilation[axis] - sc.dim(spec.pad[axis])
        places.append(place)
        size, out_size = spec.in_size[axis], spec.out_size[axis]
        reach = (spec.kernel[axis] - 1) * spec.dilation[axis]
        room = size - ((out_size - 1) * spec.stride[axis] + reach + 1)
        if spec.pad[axis] == 0 and isinstance(room, int) and room >= 0:
            continue
        within = sc.binary(Op.AND, sc.binary(Op.LE, sc.const(0), place),
                           sc.binary(Op.LT, place, sc.dim(size)))  # fmt: skip
        inside = within if inside is None else sc.binary(Op.AND, inside, within)
    return _place(spec.x, [pixel[0], *places, channel]), inside


def _place(view: View, coordinates: list[Scalar]) -> Scalar:
    """Element number of (batch, y, x, channel)."""
    total = sc.dim(view.offset)
    for coordinate, stride in zip(coordinates, view.strides, strict=True):
        if stride != 0:
            total = total + coordinate * sc.dim(stride)
    return total


def _wide_input(spec: Conv) -> bool:
    """Whether channels are contiguous and every pixel starts at a multiple of four elements."""
    steps = (spec.x.offset, *spec.x.strides[:3])
    return spec.x.strides[3] == 1 and all(dim_multiple(d, 4) for d in steps)


def product_of(spec: Conv) -> core.Product:
    """Implicit GEMM: pixels times taps and channels."""
    return core.Product(
        z=spec.groups,
        m=product((spec.batch, *spec.out_size)),
        n=spec.cout // spec.groups,
        k=spec.kernel[0] * spec.kernel[1] * (spec.cin // spec.groups),
        a_along_k=spec.x.strides[3] == 1,
        b=core.Order.PANEL,
        half=spec.operands[:2] == (Storage.F16, Storage.F16),
    )


def _wide(spec: Conv) -> bool:
    return spec.cout % 4 == 0 and _wide_input(spec)


def _render_depthwise(spec: Conv, knobs: Depthwise) -> WgslKernel:
    module = Module(spec.operands, spec.output, spec.n_args)
    b, y, x, c = (sc.axis(i) for i in range(4))
    ky, kx = sc.axis(4), sc.axis(5)
    index, inside = _source(spec, [b, y, x], ky, kx, c)
    names = {sc.axis(i): name for i, name in enumerate(("b", "y", "x", "c", "ky", "kx"))}
    kind = "vec4<f32>" if knobs.wide else "f32"

    def read(operand: int, at: str) -> str:
        if knobs.wide:
            return module.element4(operand, f"u32({at}) / 4u")
        return module.element(operand, at)

    speller = module.speller(names)
    spelled = speller.spell(index, *([inside] if inside is not None else []))
    body = list(speller.lines)
    if inside is not None:
        body.append(f"if (!{spelled[1]}) {{ return {kind}(); }}")
    body.append(f"return {read(0, spelled[0])};")
    heads = ", ".join(f"{name}: i32" for name in names.values())
    module.text(f"fn x_load({heads}) -> {kind} {{", body)
    module.text(f"fn weight(tap: i32, c: i32) -> {kind} {{",
                [f"return {read(1, f'(tap * {spec.cout} + c)')};"])  # fmt: skip
    module.puts(
        spec.final, _place(spec.out, [b, y, x, c]), ("b", "y", "x", "c"), Type.F32,
        lane=3 if knobs.wide else None, lane_size=spec.cout, guarded=frozenset((0, 1)),
    )  # fmt: skip
    columns = ceildiv(spec.out_size[1], knobs.pixels)
    channels = spec.cout // 4 if knobs.wide else spec.cout
    shape: list[Dim]
    # Neighbouring threads follow the direction in which the image lies in memory.
    if spec.x.strides[3] == 1:
        shape, order = [spec.batch, spec.out_size[0], columns, channels], ["b", "y", "xs", "cs"]
    else:
        shape, order = [spec.batch, channels, spec.out_size[0], columns], ["b", "cs", "y", "xs"]
    fields = Fields(
        head=module.head(),
        workgroup=knobs.workgroup,
        pixels=knobs.pixels,
        kind=kind,
        kernel_y=spec.kernel[0],
        kernel_x=spec.kernel[1],
        count=dim_text(product(shape)),
        coordinates=unravel("number", shape, order),
        width=dim_text(spec.out_size[1]),
        channel="cs * 4" if knobs.wide else "cs",
        put="put4" if knobs.wide else "put",
    )
    grid = fold_grid(ceildiv(product(shape), knobs.workgroup))
    name = f"depthwise_{knobs.workgroup}x{knobs.pixels}{'v' if knobs.wide else ''}"
    one = module.dispatch("conv_depthwise", fields, grid)
    return WgslKernel(name, (one,), (), module.features())
