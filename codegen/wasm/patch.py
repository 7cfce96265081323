"""Copies a part of a convolution's input, with zeros around it: loops then know no borders."""

from __future__ import annotations

from ..dims import Dim
from ..spec import Conv
from .asm import I32, V128, Function, Int, Local, Module, affine, imax, imin
from .product import (
    Frame,
    copy_floats,
    copy_plane,
    copy_rows,
    fill_zero,
    offset_of,
    size,
    transpose,
)


def slack(spec: Conv) -> int:
    """Bytes past a patch that copying it may write: the end of a cache line, or three pixels."""
    return max(64, 3 * 4 * spec.cin)


def copy_patch(module: Module, spec: Conv, rows: Dim, columns: Dim) -> Function:
    """(frame, target, b, y, x): the rows x columns inputs from where the window of output y, x
    begins, as [row][column][channel]. May write as much as `slack` past the end."""
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
    if x_stride == 1 and spec.cin % 4 == 0:
        f.push(source, target, count, channel)
        f.call(_copy_planes(module, spec.cin))
        return
    f.push(source, target, count, across, spec.cin, channel, spec.cin * 4)
    f.call(copy_plane(module))


def _copy_planes(module: Module, channels: int) -> Function:
    """(source, target, pixels, bytes from channel to channel): target[pixel][channel].

    Takes four channels of four pixels at a time, so up to three pixels more than there are.
    """

    def build(f: Function) -> None:
        source, target, count, stride = f.params
        c, x, to = f.locals(I32, 3)
        planes = f.locals(I32, 4)
        with f.loop_range(c, 0, channels, 4):
            for n, plane in enumerate(planes):
                f.assign(plane, planes[n - 1] + stride if n else source)
            f.assign(to, target)
            with f.loop_range(x, 0, count, 4), f.scope():
                rows = f.locals(V128, 4)
                for row, plane in zip(rows, planes, strict=True):
                    f.v128_load(addr=plane)
                    f.set(row)
                    f.assign(plane, plane + 16)
                for n, pixel in enumerate(transpose(f, rows)):
                    f.store(to, pixel, n * channels * 4)
                f.assign(to, to + channels * 16)
            f.assign(source, source + stride * 4)
            f.assign(target, target + 16)

    return module.helper(f"copy_planes_{channels}", [I32] * 4, [], build)
