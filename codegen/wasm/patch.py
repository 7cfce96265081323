"""Copies a part of a convolution's input, with zeros around it: loops then know no borders."""

from __future__ import annotations

from ..dims import Dim
from ..spec import Conv
from .asm import I32, Function, Int, Local, Module, affine, imax, imin
from .product import Frame, copy_floats, copy_plane, copy_rows, fill_zero, offset_of, size


def copy_patch(module: Module, spec: Conv, rows: Dim, columns: Dim) -> Function:
    """(frame, target, b, y, x): the rows x columns inputs from where the window of output y, x
    begins, as [row][column][channel]. May write up to 64 bytes and three columns past the end."""
    f = module.function("conv_patch", Frame.types(spec, 4))
    frame, (target, image, y0, x0) = Frame.inner(spec, f)
    args = frame.args
    ih, iw, top, left = (f.hold(size(d, args)) for d in (*spec.in_size, spec.pad[0], spec.pad[1]))
    height, width = (f.hold(size(d, args)) for d in (rows, columns))
    pixel = spec.cin * 4
    y = f.value(y0 * spec.stride[0] - top)
    x = f.value(x0 * spec.stride[1] - left)
    # Columns [begin, end) of the patch lie in the image.
    begin = f.value(imax(f.value(-x), 0))
    f.assign(begin, imin(begin, width))
    end = f.value(imin(f.value(affine(iw) - x), width))
    f.assign(end, imax(end, begin))
    inside = f.value(end - begin)
    after = f.value(affine(width) - end)
    i = f.local(I32)
    with f.loop_range(i, 0, height), f.scope():
        f.push(y, ih)
        f.i32_lt_u()
        with f.if_():
            f.push(target, begin * pixel)
            f.call(fill_zero(module))
            f.assign(target, target + begin * pixel)
            source = offset_of(frame.operands[0], spec.x, [image, y, x + begin, 0], args)
            _copy_row(f, spec, frame, source, target, inside)
            f.assign(target, target + inside * pixel)
            f.push(target, after * pixel)
            f.call(fill_zero(module))
            f.assign(target, target + after * pixel)
            f.else_()
            f.push(target, affine(width) * pixel)
            f.call(fill_zero(module))
            f.assign(target, target + affine(width) * pixel)
        f.assign(y, y + 1)
    return f


def _copy_row(
    f: Function, spec: Conv, frame: Frame, source: Int, target: Local, count: Local
) -> None:
    module = f.module
    x_stride, c_stride = spec.x.strides[2], spec.x.strides[3]
    if c_stride == 1 and x_stride == spec.cin:
        f.push(source, target, count * (spec.cin * 4))
        f.call(copy_floats(module))
        return
    across, channel = (affine(size(s, frame.args)) * 4 for s in (x_stride, c_stride))
    if c_stride == 1:
        f.push(source, target, count, across, spec.cin * 4, spec.cin * 4)
        f.call(copy_rows(module))
        return
    f.push(source, target, count, across, spec.cin, channel, spec.cin * 4)
    f.call(copy_plane(module))
