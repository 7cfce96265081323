"""Types of operators that sample images or signals, where sizes decide the result's shape."""

from __future__ import annotations

from ..codegen.dims import Dim, floordiv, product
from ..graph import DType, TensorType
from .registry import Site, infers, like


@infers("HannWindow", "HammingWindow", "BlackmanWindow")
def infer_window(site: Site) -> TensorType:
    size = site.sizes(0, "the window's length")
    return TensorType(site.attr("output_datatype", DType.F32), size[:1])


@infers("MelWeightMatrix")
def infer_mel_weights(site: Site) -> TensorType:
    (bins,) = site.sizes(0, "the number of mel bins")
    (length,) = site.sizes(1, "the transform's length")
    shape = (floordiv(length, 2) + 1, bins)
    return TensorType(site.attr("output_datatype", DType.F32), shape)


@infers("Col2Im")
def infer_col2im(site: Site) -> TensorType:
    x = site.input(0)
    image = site.sizes(1, "the image's shape")
    block = site.sizes(2, "the block's shape")
    return like(x, (x.shape[0], floordiv(x.shape[1], product(block)), *image))


@infers("MaxUnpool")
def infer_max_unpool(site: Site) -> TensorType:
    x = site.input(0)
    if site.has(2):
        return like(x, site.sizes(2, "the output's shape"))
    kernel = site.attr("kernel_shape")
    rank = len(kernel)
    strides = site.attr("strides") or [1] * rank
    pads = site.attr("pads") or [0] * (2 * rank)
    sizes: list[Dim] = [
        (size - 1) * strides[i] + kernel[i] - pads[i] - pads[i + rank]
        for i, size in enumerate(x.shape[2:])
    ]
    return like(x, (*x.shape[:2], *sizes))


@infers("RoiAlign")
def infer_roi_align(site: Site) -> TensorType:
    x, rois = site.input(0), site.input(1)
    size = (site.attr("output_height", 1), site.attr("output_width", 1))
    return like(x, (rois.shape[0], x.shape[1], *size))
