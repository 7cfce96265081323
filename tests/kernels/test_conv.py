"""Convolutions on every executor against float64.

Tolerance: as for products, K = taps times channels of a group; K stays below 800 here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import scalar as sc
from pywebgpu.codegen.dims import Dim, symbol
from pywebgpu.codegen.scalar import Op
from pywebgpu.codegen.spec import Conv, Storage, View
from pywebgpu.packing import pack_conv, pack_depthwise
from tests.kernels.harness import check, executors, some, space

F32 = Storage.F32


@dataclass(frozen=True)
class Case:
    batch: int
    size: tuple[int, int]
    cin: int
    cout: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def reach(self, i: int) -> int:
        return (self.kernel[i] - 1) * self.dilation[i] + 1


def make(
    case: Case, dynamic: bool = False, nchw_in: bool = False, nchw_out: bool = False
) -> tuple[Conv, list[Any], list[int], int]:
    """The spec, random operands, arguments and number of outputs."""
    rng = np.random.default_rng()
    sizes = (case.batch, *case.size)
    n, h, w = (symbol(f"a{i}") if dynamic else s for i, s in enumerate(sizes))

    def out(i: int, size: Dim) -> Dim:
        pads = case.pads[i] + case.pads[i + 2]
        return (size + (pads - case.reach(i))) // case.stride[i] + 1

    oh, ow = out(0, h), out(1, w)
    cin, cout = case.cin, case.cout
    x = View((cin * h * w, w, 1, h * w) if nchw_in else (h * w * cin, w * cin, cin, 1))
    to = (cout * oh * ow, ow, 1, oh * ow) if nchw_out else (oh * ow * cout, ow * cout, cout, 1)
    final = sc.binary(Op.MAX, sc.acc() + sc.load(2, sc.axis(3)), -0.25)
    spec = Conv(
        n, (h, w), (oh, ow), cin, cout, case.groups, case.kernel, case.stride, case.dilation,
        case.pads[:2], x, View(to), final, (F32,) * 3, F32, 3,
    )  # fmt: skip
    weight = rng.standard_normal((cout, cin // case.groups, *case.kernel)).astype(np.float32)
    packed = pack_depthwise(weight) if spec.depthwise else pack_conv(weight, case.groups)
    image = rng.standard_normal((case.batch * case.size[0] * case.size[1] * cin,))
    count = case.batch * cout
    for i in range(2):
        count *= (case.size[i] + case.pads[i] + case.pads[i + 2] - case.reach(i)) // case.stride[
            i
        ] + 1
    bias = rng.standard_normal(cout)
    return spec, [image, packed, bias], list(sizes), count


def check_case(executor: str, case: Case, pick: int | None = None, **layout: bool) -> None:
    """`pick`: see `harness.some`."""
    spec, operands, args, count = make(case, **layout)
    all_ = space(executor, spec)
    candidates = some(executor, all_, pick)
    check(executor, spec, operands, args, count, rtol=1e-5, atol=2e-4, candidates=candidates)


CASES = {
    "3x3": Case(1, (8, 8), 4, 8, 1, (3, 3), pads=(1, 1, 1, 1)),
    "strided, batch, odd channels": Case(2, (7, 9), 3, 5, 1, (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    "1x1": Case(1, (5, 6), 8, 16, 1, (1, 1)),
    "1x1 strided": Case(1, (9, 9), 8, 16, 1, (1, 1), (2, 2)),
    "groups, dilated": Case(1, (12, 11), 6, 9, 3, (3, 2), (1, 2), (2, 1), (2, 0, 1, 1)),
    "1-D": Case(1, (1, 300), 4, 6, 1, (1, 5), (1, 2), (1, 2), (0, 4, 0, 4)),
    "first layer": Case(1, (20, 20), 3, 24, 1, (7, 7), (2, 2), pads=(3, 3, 3, 3)),
    "one channel": Case(1, (6, 6), 1, 4, 1, (3, 3), pads=(1, 1, 1, 1)),
    "one of everything": Case(1, (1, 1), 1, 1, 1, (1, 1)),
    "no padding": Case(2, (9, 8), 8, 8, 1, (3, 3)),
    "no batch": Case(0, (4, 4), 4, 4, 1, (3, 3)),
    "depthwise": Case(1, (10, 10), 8, 8, 8, (3, 3), pads=(1, 1, 1, 1)),
    "depthwise, odd": Case(2, (9, 13), 6, 6, 6, (5, 3), (2, 2), (1, 2), (2, 2, 2, 2)),
    "depthwise 1-D": Case(1, (1, 400), 5, 5, 5, (1, 7), pads=(0, 3, 0, 3)),
    "depthwise, window larger than the image": Case(1, (2, 2), 4, 4, 4, (5, 5), pads=(2, 2, 2, 2)),
    "depthwise, many rows": Case(1, (70, 90), 3, 3, 3, (3, 3), (1, 1), pads=(1, 1, 1, 1)),
    "depthwise, a border longer than what lies before": Case(
        1, (7, 7), 576, 576, 576, (5, 5), pads=(2, 2, 2, 2)
    ),
    "depthwise, padded behind": Case(1, (16, 16), 4, 4, 4, (3, 3), (2, 2), pads=(0, 0, 1, 1)),
}


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", list(CASES))
def test_convolution(executor: str, case: str, dynamic: bool) -> None:
    check_case(executor, CASES[case], 0 if dynamic else None, dynamic=dynamic)


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize(("nchw_in", "nchw_out"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    "case",
    ["first layer", "groups, dilated", "1x1", "depthwise, odd", "depthwise, many rows",
     "depthwise, window larger than the image", "depthwise 1-D", "one channel", "no batch"],
)  # fmt: skip
def test_channels_first_at_the_graph_edge(
    executor: str, case: str, nchw_in: bool, nchw_out: bool
) -> None:
    check_case(executor, CASES[case], nchw_in=nchw_in, nchw_out=nchw_out)


@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("case", ["3x3", "1x1", "groups, dilated", "depthwise, odd"])
def test_input_among_other_channels(executor: str, case: str) -> None:
    """The input is a slice of the channels of a wider tensor."""
    spec, operands, args, count = make(CASES[case])
    x, wide = spec.x, spec.cin + 3
    assert all(isinstance(s, int) for s in x.strides)
    strides = tuple(int(str(s)) // spec.cin * wide for s in x.strides[:3])
    spec = dataclasses.replace(spec, x=View((*strides, 1), 2))
    image = np.full((operands[0].size // spec.cin, wide), 9.0)
    image[:, 2:-1] = operands[0].reshape(-1, spec.cin)
    candidates = some(executor, space(executor, spec), 0)
    check(
        executor, spec, [image, *operands[1:]], args, count, rtol=1e-5, atol=2e-4,
        candidates=candidates,
    )  # fmt: skip


pair = st.tuples(st.integers(1, 4), st.integers(1, 4))


@pytest.mark.parametrize("executor", executors())
@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(st.integers(1, 17), st.integers(1, 23)),
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 11)),
    depthwise=st.booleans(),
    kernel=pair,
    stride=pair,
    dilation=pair,
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    dynamic=st.booleans(),
    nchw=st.tuples(st.booleans(), st.booleans()),
    pick=st.integers(0, 11),
)
def test_any_shape(
    executor: str,
    size: tuple[int, int],
    groups: int,
    channels: tuple[int, int],
    depthwise: bool,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    pads: tuple[int, int, int, int],
    dynamic: bool,
    nchw: tuple[bool, bool],
    pick: int,
) -> None:
    cin, cout = (channels[0] * groups, channels[1] * groups)
    if depthwise:
        groups = cout = cin
    case = Case(1, size, cin, cout, groups, kernel, stride, dilation, pads)
    assume(all(size[i] + pads[i] + pads[i + 2] >= case.reach(i) for i in range(2)))
    check_case(executor, case, pick, dynamic=dynamic, nchw_in=nchw[0], nchw_out=nchw[1])
