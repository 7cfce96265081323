"""Types of products, convolutions, pooling, normalisation, resizing and recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..codegen.dims import Dim, ceildiv, floordiv, product
from ..errors import UnsupportedError
from ..graph import DType, Shape, TensorType
from . import symbolic
from .registry import DataDependent, Site, infers, like


@infers("MatMul", "MatMulInteger", "QLinearMatMul")
def infer_matmul(site: Site) -> TensorType:
    second = 3 if site.node.op == "QLinearMatMul" else 1
    a, b = site.input(0), site.input(second)
    shape = matmul_shape(site, a.shape, b.shape)
    if site.node.op == "MatMulInteger":
        return TensorType(DType.I32, shape)
    if site.node.op == "QLinearMatMul":
        return TensorType(site.input(7).dtype, shape)
    if a.dtype is not b.dtype:
        raise site.error("the two inputs differ in type", got=f"{a} and {b}", expected="one type")
    return like(a, shape)


def matmul_shape(site: Site, a: Shape, b: Shape) -> Shape:
    if not a or not b:
        raise site.error("an input is a scalar", expected="rank 1 or more")
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    site.same(left[-1], right[-2])
    out = [*site.broadcast(left[:-2], right[:-2])]
    if len(a) > 1:
        out.append(left[-2])
    if len(b) > 1:
        out.append(right[-1])
    return tuple(out)


@infers("Gemm")
def infer_gemm(site: Site) -> TensorType:
    a, b = site.input(0), site.input(1)
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise site.error("inputs must be matrices", got=f"{a} and {b}", expected="rank 2")
    m, k = a.shape[::-1] if site.attr("transA", 0) else a.shape
    k2, n = b.shape[::-1] if site.attr("transB", 0) else b.shape
    site.same(k, k2)
    if site.has(2):
        site.broadcast(site.shape(2), (m, n))
    return like(a, (m, n))


def windows(site: Site, sizes: Sequence[Dim], kernel: Sequence[int]) -> list[Dim]:
    """Output sizes of a sliding window: ONNX's rules for Conv and pooling."""
    rank = len(sizes)
    strides = site.attr("strides") or [1] * rank
    dilations = site.attr("dilations") or [1] * rank
    pads = site.attr("pads") or [0] * (2 * rank)
    auto = site.attr("auto_pad", "NOTSET")
    if len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank:
        raise site.error(
            "strides, dilations or pads do not fit the input's rank",
            got=f"strides {strides}, dilations {dilations}, pads {pads}",
            expected=f"{rank} spatial axes",
        )
    out: list[Dim] = []
    for i, size in enumerate(sizes):
        stride, reach = strides[i], (kernel[i] - 1) * dilations[i] + 1
        for what, value in (("stride", stride), ("dilation", dilations[i]), ("kernel", kernel[i])):
            if not 1 <= value < 2**31:
                raise site.error(f"a {what} is out of range", got=value, expected="1 to 2147483647")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            out.append(ceildiv(size, stride))
            continue
        room = size - reach + (0 if auto == "VALID" else pads[i] + pads[i + rank])
        if symbolic.at_least(-room, 1):
            raise site.error("the window is larger than its padded input", got=reach, expected=size)
        if site.attr("ceil_mode", 0) and auto == "NOTSET":
            count = ceildiv(room, stride) + 1
            # The last window must start inside the input or its left padding.
            if isinstance(count, int) and isinstance(size, int):
                if (count - 1) * stride >= size + pads[i]:
                    count -= 1
            else:
                last = floordiv(size + pads[i] - 1, stride) + 1
                count = symbolic.smallest(count, last)
            out.append(count)
        else:
            out.append(floordiv(room, stride) + 1)
    return out


@infers("Conv", "ConvInteger", "QLinearConv")
def infer_conv(site: Site) -> TensorType:
    x, w = site.input(0), site.input(3 if site.node.op == "QLinearConv" else 1)
    if len(x.shape) < 3 or len(w.shape) != len(x.shape):
        raise site.error("input and weight do not fit", got=f"{x} and {w}", expected="equal ranks")
    kernel = site.attr("kernel_shape") or list(w.shape[2:])
    if any(not isinstance(k, int) for k in (*kernel, w.shape[0])):
        raise UnsupportedError("the weight's shape must be static", where=site.node.where(), got=w)
    site.same(x.shape[1], w.shape[1] * site.count("group", 1))
    if site.node.op == "Conv" and site.has(2):
        site.same(site.ranked(2, 1).shape[0], w.shape[0])
    shape = (x.shape[0], w.shape[0], *windows(site, x.shape[2:], kernel))
    if site.node.op == "ConvInteger":
        return TensorType(DType.I32, shape)
    if site.node.op == "QLinearConv":
        return TensorType(site.input(7).dtype, shape)
    return like(x, shape)


@infers("ConvTranspose")
def infer_conv_transpose(site: Site) -> TensorType:
    x, w = site.input(0), site.input(1)
    rank = len(x.shape) - 2
    kernel = [int(k) for k in (site.attr("kernel_shape") or w.shape[2:]) if isinstance(k, int)]
    if len(kernel) != rank:
        raise UnsupportedError("the weight's shape must be static", where=site.node.where(), got=w)
    site.same(x.shape[1], w.shape[0])
    if site.has(2):
        site.same(site.ranked(2, 1).shape[0], w.shape[1] * site.count("group", 1))
    strides = site.attr("strides") or [1] * rank
    dilations = site.attr("dilations") or [1] * rank
    pads = site.attr("pads") or [0] * (2 * rank)
    extra = site.attr("output_padding") or [0] * rank
    fixed = site.attr("output_shape")
    lengths = [*map(len, (strides, dilations, extra, fixed or extra)), len(pads) / 2]
    if any(length != rank for length in lengths):
        raise site.error("strides, dilations, pads or output sizes do not fit the rank", got=x)
    if min(*strides, *dilations, *kernel) < 1 or min(*extra, *pads) < 0:
        raise site.error(
            "strides, dilations and kernel sizes must be at least 1, padding 0",
            got=f"strides {strides}, dilations {dilations}, pads {pads}, output_padding {extra}",
        )
    out: list[Dim] = []
    for i, size in enumerate(x.shape[2:]):
        reach = (kernel[i] - 1) * dilations[i] + 1
        if fixed:
            out.append(fixed[i])
        elif site.attr("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
            out.append(size * strides[i])
        else:
            padding = 0 if site.attr("auto_pad") == "VALID" else pads[i] + pads[i + rank]
            out.append((size - 1) * strides[i] + extra[i] + reach - padding)
    return like(x, (x.shape[0], w.shape[1] * site.attr("group", 1), *out))


@infers("MaxPool", "AveragePool", "LpPool")
def infer_pool(site: Site) -> list[TensorType]:
    x = site.input(0)
    kernel = site.attr("kernel_shape")
    if len(x.shape) < 3 or not kernel or len(kernel) != len(x.shape) - 2:
        raise site.error("kernel_shape does not fit the input", got=kernel, expected=x)
    out = like(x, (*x.shape[:2], *windows(site, x.shape[2:], kernel)))
    return [out, like(out, out.shape, DType.I64)][: max(1, len(site.node.outputs))]


@infers("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def infer_global_pool(site: Site) -> TensorType:
    x = site.input(0)
    return like(x, (*x.shape[:2], *[1] * (len(x.shape) - 2)))


@infers("LayerNormalization", "RMSNormalization")
def infer_layer_norm(site: Site) -> list[TensorType]:
    x = site.input(0)
    axis = site.axis(site.attr("axis", -1), len(x.shape))
    rest = tuple(d if i < axis else 1 for i, d in enumerate(x.shape))
    stat = TensorType(DType.F32, rest)
    return [x, stat, stat][: max(1, len(site.node.outputs))]


@infers("BatchNormalization")
def infer_batch_norm(site: Site) -> TensorType:
    if site.attr("training_mode", 0) or len(site.node.outputs) > 1:
        raise UnsupportedError(
            "batch normalisation in training mode is not supported",
            where=site.node.where(),
            remedy="Export the model in evaluation mode (model.eval())",
        )
    x = site.input(0)
    if len(x.shape) > 1:
        site.broadcast(site.shape(1), (x.shape[1],))
    return x


@infers("STFT")
def infer_stft(site: Site) -> TensorType:
    x = site.input(0)
    step = site.sizes(1, "the step between frames")[0]
    length: Dim = site.sizes(3, "the length of a frame")[0] if site.has(3) else site.shape(2)[0]
    frames = floordiv(x.shape[1] - length, step) + 1
    bins = floordiv(length, 2) + 1 if site.attr("onesided", 1) else length
    return like(x, (x.shape[0], frames, bins, 2))


@infers("Resize")
def infer_resize(site: Site) -> TensorType:
    x = site.input(0)
    rank = len(x.shape)
    axes = site.axes(site.attr("axes") or list(range(rank)), rank)
    out = list(x.shape)
    if site.has(3):
        wanted = site.sizes(3, "the new size")
        if len(wanted) != len(axes):
            raise site.error("sizes does not fit the axes", got=len(wanted), expected=len(axes))
        policy = site.attr("keep_aspect_ratio_policy", "stretch")
        for axis, size in zip(axes, wanted, strict=True):
            out[axis] = size
        if policy != "stretch":
            _keep_aspect(site, x.shape, out, axes, policy)
        return like(x, out)
    scales = site.array(2)
    if scales is None:
        known = site.value(2)
        if known is None or not all(isinstance(s, int) for s in known):
            raise DataDependent(
                "the scales are computed from data",
                where=site.node.where(),
                remedy="Export with constant scales or with sizes",
            )
        factors = [float(s) for s in known if isinstance(s, int)]
    else:
        factors = [float(s) for s in scales.ravel()]
    if len(factors) != len(axes):
        raise site.error("scales does not fit the axes", got=len(factors), expected=len(axes))
    for axis, scale in zip(axes, factors, strict=True):
        out[axis] = _scaled(site, x.shape[axis], scale)
    return like(x, out)


def _scaled(site: Site, size: Dim, scale: float) -> Dim:
    """floor(size * scale), for a symbolic size where the scale is a simple fraction."""
    if not scale > 0:
        raise site.error("a scale is out of range", got=scale, expected="more than 0")
    if isinstance(size, int):
        return site.whole(size * scale, "the new size")
    if scale > 2**31:
        raise site.error("a scale is out of range", got=scale, expected="at most 2147483648")
    for below in (1, 2, 3, 4, 5, 6, 8, 16, 32):
        above = scale * below
        if abs(above - round(above)) < 1e-6:
            return floordiv(size * round(above), below)
    raise UnsupportedError(
        "a size that is known only at run time is scaled by an odd factor",
        where=site.node.where(),
        got=scale,
        expected="a ratio of small whole numbers",
        remedy="Export with fixed input shapes",
    )


def _keep_aspect(site: Site, shape: Shape, out: list[Dim], axes: list[int], policy: str) -> None:
    before = [d for a in axes if isinstance(d := shape[a], int)]
    after = [d for a in axes if isinstance(d := out[a], int)]
    if len(before) != len(axes) or len(after) != len(axes):
        raise UnsupportedError(
            "keeping the aspect ratio needs static sizes",
            where=site.node.where(),
            remedy="Export with fixed input shapes",
        )
    ratios = [a / b for a, b in zip(after, before, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    for axis, size in zip(axes, before, strict=True):
        # Half rounds up, unlike Python's round.
        out[axis] = math.floor(scale * size + 0.5)


@infers("FlexAttention", domain="ai.onnx.preview")
def infer_flex_attention(site: Site) -> TensorType:
    q, v = site.ranked(0, 4), site.ranked(2, 4)
    return like(q, (*q.shape[:3], v.shape[3]))


@infers("LSTM", "GRU", "RNN")
def infer_recurrent(site: Site) -> list[TensorType]:
    x, w, _ = (site.ranked(i, 3) for i in range(3))
    directions, hidden = w.shape[0], site.attr("hidden_size") or site.shape(2)[-1]
    last: tuple[Dim, ...]
    if site.attr("layout", 0):
        b, t = x.shape[0], x.shape[1]
        every, last = (b, t, directions, hidden), (b, directions, hidden)
    else:
        t, b = x.shape[0], x.shape[1]
        every, last = (t, directions, b, hidden), (directions, b, hidden)
    return [like(x, every), like(x, last), like(x, last)][: len(site.node.outputs)]


def _check_scales(site: Site) -> None:
    """Scale and zero point: one, one per index of an axis, or one per block of an axis."""
    x = site.input(0)
    for i in (1, 2):
        shape = site.shape(i) if site.has(i) else ()
        if shape in ((), (1,)):
            continue
        axis = site.axis(site.attr("axis", 1), len(x.shape))
        if len(shape) == 1:
            site.same(shape[0], x.shape[axis])
        else:
            site.ranked(i, len(x.shape))


@infers("QuantizeLinear")
def infer_quantize(site: Site) -> TensorType:
    _check_scales(site)
    dtype = site.input(2).dtype if site.has(2) else site.attr("output_dtype", DType.U8)
    return like(site.input(0), site.shape(0), dtype)


@infers("DequantizeLinear")
def infer_dequantize(site: Site) -> TensorType:
    _check_scales(site)
    return like(site.input(0), site.shape(0), site.attr("output_dtype", site.input(1).dtype))


@infers("DynamicQuantizeLinear")
def infer_dynamic_quantize(site: Site) -> list[TensorType]:
    x = site.input(0)
    return [like(x, x.shape, DType.U8), like(x, ()), like(x, (), DType.U8)]


@infers("Einsum")
def infer_einsum(site: Site) -> TensorType:
    equation = site.attr("equation").replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")
    sizes: dict[str, Dim] = {}
    dots: Shape = ()
    for i, term in enumerate(terms):
        shape = site.shape(i)
        head, ellipsis, tail = term.partition("...")
        middle = len(shape) - len(head) - len(tail)
        if middle < 0 or (middle and not ellipsis):
            raise site.error("a term does not fit its input", got=term, expected=str(site.input(i)))
        if ellipsis:
            dots = site.broadcast(dots, shape[len(head) : len(head) + middle])
        letters = [*zip(head, shape, strict=False)]
        letters += [*zip(tail, shape[len(head) + middle :], strict=True)]
        for letter, dim in letters:
            known = sizes.get(letter, 1)
            sizes[letter] = dim if known == 1 else known if dim == 1 else site.same(known, dim)
    if not _:
        counts = left.replace("...", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(
            sorted(c for c in set(counts) if counts.count(c) == 1)
        )
    unknown = [c for c in right.replace("...", "") if c not in sizes]
    if unknown or len(terms) != len(site.node.inputs):
        raise site.error(
            "the equation does not fit its inputs",
            got=equation,
            expected=f"a term for each of {len(site.node.inputs)} inputs, and their letters",
        )
    head, ellipsis, tail = right.partition("...")
    out = [*(sizes[c] for c in head), *(dots if ellipsis else ()), *(sizes[c] for c in tail)]
    return like(site.input(0), out)


@infers("Attention")
def infer_attention(site: Site) -> list[TensorType]:
    q = site.ranked(0, 3, 4)
    k, v = (site.ranked(i, len(q.shape)) for i in (1, 2))
    past: Dim = site.shape(4)[2] if site.has(4) else 0
    out: tuple[Dim, ...]
    if len(q.shape) == 3:
        heads, kv_heads = site.attr("q_num_heads"), site.attr("kv_num_heads")
        if not heads or not kv_heads:
            raise site.error("q_num_heads and kv_num_heads are needed for inputs of rank 3")
        b, s = q.shape[:2]
        total = past + k.shape[1]
        k_dim, v_dim = floordiv(k.shape[2], kv_heads), floordiv(v.shape[2], kv_heads)
        out = (b, s, v_dim * heads)
    else:
        b, heads, s, _ = q.shape
        kv_heads, k_dim, v_dim = k.shape[1], k.shape[3], v.shape[3]
        total = past + k.shape[2]
        out = (b, heads, s, v_dim)
    types = [
        like(q, out),
        like(k, (b, kv_heads, total, k_dim)),
        like(v, (b, kv_heads, total, v_dim)),
        like(q, (b, heads, s, total)),
    ]
    return types[: len(site.node.outputs)]


@infers("RotaryEmbedding")
def infer_rotary(site: Site) -> TensorType:
    return site.input(0)


@infers("GridSample")
def infer_grid_sample(site: Site) -> TensorType:
    x, grid = site.input(0), site.input(1)
    return like(x, (*x.shape[:2], *grid.shape[1:-1]))


__all__ = ["matmul_shape", "product", "windows"]
