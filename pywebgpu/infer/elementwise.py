"""Types of operators that work element by element, with NumPy's broadcasting."""

from __future__ import annotations

from ..codegen.dims import Dim, mod, product
from ..errors import UnsupportedError
from ..graph import DType, TensorType
from ..onnx_types import dtype_of
from . import elements as el
from . import symbolic
from .registry import Site, infers, like

_UNARY = (
    *("Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Sqrt", "Reciprocal", "Exp", "Log", "Erf"),
    *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"),
    *("Tanh", "Sigmoid", "Relu", "LeakyRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu"),
    *("HardSigmoid", "HardSwish", "Mish", "Softplus", "Softsign", "Shrink", "Swish"),
    *("Identity", "BitwiseNot", "Not", "Softmax", "LogSoftmax", "Hardmax", "LpNormalization"),
    *("CumSum", "CumProd", "Trilu", "LRN", "InstanceNormalization", "GroupNormalization"),
    "MeanVarianceNormalization",
)
_ALONG_AXIS = ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization")


def _float_to_int_safe(site: Site) -> None:
    if site.node.op in ("Floor", "Ceil", "Round", "Identity", "Relu"):
        el.pointwise(site, lambda a: a if site.node.op != "Relu" else symbolic.largest(a, 0))
    elif site.node.op == "Neg":
        el.pointwise(site, lambda a: -a)
    elif site.node.op == "Abs":
        el.pointwise(site, el.absolute)
    elif site.node.op == "Not":
        el.pointwise(site, lambda a: int(not a) if isinstance(a, int) else None)


@infers(*_UNARY)
def infer_unary(site: Site) -> TensorType:
    x = site.input(0)
    if site.node.op in _ALONG_AXIS:
        site.axis(site.attr("axis", -1), len(x.shape))
    elif site.node.op in ("CumSum", "CumProd"):
        if product(site.shape(1)) != 1:
            raise site.error("the axis is not one number", got=site.input(1))
        site.axis(site.ints(1, "the axis")[0], len(x.shape))
    elif site.node.op == "Trilu" and len(x.shape) < 2:
        raise site.error("the input is no matrix", got=x, expected="rank 2 or more")
    elif site.node.op == "LRN":
        site.count("size")
    elif site.node.op in ("InstanceNormalization", "GroupNormalization"):
        if len(x.shape) < 2:
            raise site.error("the input has no channels", got=x, expected="rank 2 or more")
        for i in (1, 2):
            site.same(site.ranked(i, 1).shape[0], x.shape[1])
        if site.node.op == "GroupNormalization":
            groups = site.count("num_groups")
            rest = mod(x.shape[1], groups)
            if isinstance(rest, int) and rest:
                raise site.error("the groups do not divide the channels", got=groups, expected=x)
    if len(site.node.inputs) == 1:
        _float_to_int_safe(site)
    return x


@infers("PRelu", "CastLike", "Clip", "Dropout")
def infer_like_first(site: Site) -> TensorType | list[TensorType]:
    x = site.input(0)
    if site.node.op == "Dropout":
        ratio = site.array(1)
        drops = ratio is None or bool(ratio.any())
        if site.has(2) and site.value(2) != (0,) and drops:
            raise UnsupportedError(
                "dropout in training mode is not supported",
                where=site.node.where(),
                remedy="Export the model in evaluation mode (model.eval())",
            )
        if len(site.node.outputs) > 1:
            return [x, like(x, x.shape, DType.BOOL)]
    elif site.node.op == "Clip" and any(product(site.shape(i)) != 1 for i in (1, 2) if site.has(i)):
        raise site.error("a limit is not one number", got=[site.node.inputs[1:]])
    elif site.node.op == "CastLike":
        to = site.input(1).dtype
        if site.graph.known(site.node.inputs[0]) is not None:
            array = el.elements(site, 0)
            el.know(site, array)
        return like(x, x.shape, to)
    elif site.node.op == "Clip" and el.any_symbolic(site):
        bounds = [el.elements(site, i) for i in (1, 2)]
        array = el.elements(site, 0)
        given = [site.has(1), site.has(2)]
        if array is not None and all(
            b is not None or not g for b, g in zip(bounds, given, strict=True)
        ):
            out = array.ravel().copy()
            for i, item in enumerate(out):
                for bound, pick in zip(bounds, (symbolic.largest, symbolic.smallest), strict=True):
                    if bound is not None:
                        item = pick(item, bound.ravel()[0])
                out[i] = item
            el.know(site, out)
    return x


@infers("Cast")
def infer_cast(site: Site) -> TensorType:
    to = site.attr("to")
    if not isinstance(to, DType):
        dtype_of(int(to or 0), site.node.where())  # raises: not one of ours
        raise site.error("attribute 'to' is missing")
    el.cast(site, to)
    return like(site.input(0), site.shape(0), to)


_ARITHMETIC = ["Add", "Sub", "Mul", "Div", "Mod", "Pow"]


@infers(*_ARITHMETIC, "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift")
def infer_binary(site: Site) -> TensorType:
    a, b = site.input(0), site.input(1)
    op = site.node.op
    if a.dtype is not b.dtype and op != "Pow":
        raise site.error("the two inputs differ in type", got=f"{a} and {b}", expected="one type")
    if op == "Add":
        el.pointwise(site, lambda x, y: x + y)
    elif op == "Sub":
        el.pointwise(site, lambda x, y: x - y)
    elif op == "Mul":
        el.pointwise(site, lambda x, y: x * y)
    elif op == "Div":
        el.pointwise(site, el.divide(site))
    elif op == "Mod":
        el.pointwise(site, el.modulo)
    elif op == "Pow":
        el.pointwise(site, el.power)
    return like(a, site.broadcast(a.shape, b.shape))


@infers("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor")
def infer_comparison(site: Site) -> TensorType:
    a, b = site.input(0), site.input(1)
    if a.dtype is not b.dtype:
        raise site.error("the two inputs differ in type", got=f"{a} and {b}", expected="one type")
    op = site.node.op
    if op == "Equal":
        el.pointwise(site, lambda x, y: el.flag(symbolic.equal(x, y)))
    elif op == "Less":
        el.pointwise(site, lambda x, y: el.flag(symbolic.less(x, y)))
    elif op == "Greater":
        el.pointwise(site, lambda x, y: el.flag(symbolic.less(y, x)))
    elif op == "LessOrEqual":
        el.pointwise(site, lambda x, y: el.flag(el.negate(symbolic.less(y, x))))
    elif op == "GreaterOrEqual":
        el.pointwise(site, lambda x, y: el.flag(el.negate(symbolic.less(x, y))))
    elif op == "And":
        el.pointwise(site, el.both)
    elif op == "Or":
        el.pointwise(site, el.either)
    return TensorType(DType.BOOL, site.broadcast(a.shape, b.shape))


@infers("IsNaN", "IsInf")
def infer_test(site: Site) -> TensorType:
    return like(site.input(0), site.shape(0), DType.BOOL)


@infers("Sum", "Mean", "Min", "Max")
def infer_variadic(site: Site) -> TensorType:
    inputs = [site.input(i) for i in range(len(site.node.inputs))]
    if site.node.op == "Sum":
        el.pointwise(site, lambda *args: sum(args[1:], args[0]))
    elif site.node.op in ("Min", "Max"):
        pick = symbolic.smallest if site.node.op == "Min" else symbolic.largest

        def fold(*args: Dim) -> Dim:
            out = args[0]
            for item in args[1:]:
                out = pick(out, item)
            return out

        el.pointwise(site, fold)
    return like(inputs[0], site.broadcast(*(t.shape for t in inputs)))


@infers("Where")
def infer_where(site: Site) -> TensorType:
    condition, a, b = site.input(0), site.input(1), site.input(2)
    if condition.dtype is not DType.BOOL or a.dtype is not b.dtype:
        raise site.error(
            "types do not fit", got=f"{condition}, {a}, {b}", expected="bool, then two of one type"
        )
    el.pointwise(site, el.choose)
    return like(a, site.broadcast(condition.shape, a.shape, b.shape))
