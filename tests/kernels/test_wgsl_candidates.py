"""Every WGSL candidate of every family against NumPy, odd sizes drawn by hypothesis, with what
the adapter offers ("wgpu") and with what every device does ("wgpu-floor")."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pywebgpu.codegen import wgsl
from pywebgpu.codegen.caps import WgslCaps
from pywebgpu.codegen.dims import evaluate
from pywebgpu.codegen.scalar import axis, load
from pywebgpu.codegen.spec import Blocks, Map, ReduceOp, RowOp, Storage
from pywebgpu.codegen.wgsl.blocks import FewBlocks
from pywebgpu.codegen.wgsl.product import Tile, multiplies_half
from tests.kernels import harness
from tests.kernels.cases import (
    Case,
    attention_case,
    batched_case,
    conv_case,
    epilogue_case,
    map_case,
    matmul_case,
    one_of_each,
    prologue_case,
    reduce_case,
    row_case,
    statistics_case,
)

pytestmark = pytest.mark.wgpu
each = pytest.mark.parametrize("executor", ["wgpu", "wgpu-floor"])
few = settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
small = st.integers(1, 9)
middle = st.integers(1, 70)
seeds = st.integers(0, 1000)
flags = st.booleans()


def check(executor: str, case: Case, tolerance: float = 1e-5, seed: int | None = None) -> None:
    """Sums of n terms may differ by some n roundings of their largest partial sum.

    seed: draws three candidates, the default among them; None: all.
    """
    found = harness.space(executor, case.spec)
    if seed is not None:
        found = list(
            dict.fromkeys([found[0], found[seed % len(found)], found[seed // 7 % len(found)]])
        )
    harness.check(
        executor, case.spec, case.operands, case.args, case.out_size,
        rtol=tolerance, atol=tolerance, candidates=found,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "case"), [pytest.param(*c, id=c[0]) for c in one_of_each()])
def test_one_of_each(name: str, case: Case) -> None:
    """All candidates of the lowest limits, then those that only this adapter allows."""
    floor = harness.space("wgpu-floor", case.spec)
    found = dict.fromkeys([*floor, *harness.space("wgpu", case.spec)])
    harness.check(
        "wgpu", case.spec, case.operands, case.args, case.out_size,
        rtol=1e-4, atol=1e-4, candidates=list(found),
    )  # fmt: skip


def check_every_form(case: Case, half: bool) -> None:
    """One candidate of each kind of knobs, split and whole."""
    found = harness.space("wgpu" if half else "wgpu-floor", case.spec)
    forms = {(type(knobs), getattr(knobs, "splits", 1) > 1): knobs for knobs in found}
    assert len(forms) >= 3
    tolerance = 2e-2 if half else 2e-4
    harness.check(
        "wgpu", case.spec, case.operands, case.args, case.out_size,
        rtol=tolerance, atol=tolerance, candidates=list(forms.values()),
    )  # fmt: skip


@each
@few
@given(st.lists(small, min_size=1, max_size=4), flags, flags, seeds)
def test_map(executor: str, sizes: list[int], beside: bool, dynamic: bool, seed: int) -> None:
    check(executor, map_case(tuple(sizes), beside, dynamic=dynamic, seed=seed), seed=seed)


@pytest.mark.parametrize("half", [False, True])
def test_map_with_two_outputs(half: bool) -> None:
    """Vectors and single elements; an operand that one of them reads as vectors, the other not."""
    case = map_case((6, 8, 12), beside=True, half=half)
    check("wgpu" if half else "wgpu-floor", case, 2e-3 if half else 1e-5)


@each
@few
@given(small, middle, small, st.sampled_from(ReduceOp), flags, flags, seeds)
def test_reduce(
    executor: str, n: int, length: int, more: int, op: ReduceOp, first: bool, dynamic: bool,
    seed: int,
) -> None:  # fmt: skip
    if op is ReduceOp.PROD:
        length, more = min(length, 9), min(more, 3)
    case = reduce_case((n, 3), (length, more), op, first, dynamic=dynamic, seed=seed)
    check(executor, case, 2e-5, seed)


@each
@few
@given(small, middle, small, st.sampled_from(RowOp), flags, flags, seeds)
def test_row(
    executor: str, n: int, length: int, more: int, op: RowOp, first: bool, dynamic: bool, seed: int
) -> None:
    check(
        executor,
        row_case((n, 3), (length, more), op, first, dynamic=dynamic, seed=seed),
        1e-4,
        seed,
    )


@each
@few
@given(middle, middle, middle, flags, seeds)
def test_matmul(executor: str, m: int, n: int, k: int, dynamic: bool, seed: int) -> None:
    check(executor, matmul_case(m, n, k, dynamic=dynamic, seed=seed), 5e-5, seed)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("m", "n"), [(150, 140), (33, 70)])
def test_an_epilogue_of_many_values(m: int, n: int, dynamic: bool) -> None:
    """Tiles of 8 x 8 and 8 x 4 values a thread, whose epilogue is a loop over rows."""
    case = matmul_case(m, n, 40, heavy=True, dynamic=dynamic)
    tiles = [Tile(128, 64, 16, 8, 8), Tile(64, 64, 16, 8, 8), Tile(64, 64, 8, 8, 4)]
    for tile in tiles:
        (one,) = wgsl.render(case.spec, tile).passes
        assert one.code.count("put4(z, i32(row)") == tile.tn // 4
    harness.check(
        "wgpu", case.spec, case.operands, case.args, case.out_size,
        rtol=1e-4, atol=1e-4, candidates=tiles,
    )  # fmt: skip


@each
@few
@given(
    middle, middle, middle, st.sampled_from([None, RowOp.LAYER, RowOp.RMS]), flags, flags, flags,
    seeds,
)  # fmt: skip
def test_prologue(
    executor: str, m: int, n: int, k: int, norm: RowOp | None, keep: bool, shared: bool,
    dynamic: bool, seed: int,
) -> None:  # fmt: skip
    case = prologue_case(m, n, k, norm, keep, shared, dynamic=dynamic, seed=seed)
    check(executor, case, 2e-4, seed)


@pytest.mark.parametrize(
    ("norm", "half"),
    [(None, False), (RowOp.LAYER, False), (RowOp.RMS, False), (RowOp.LAYER, True)],
)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 24, 512), (40, 24, 256)])
def test_prologue_in_every_form(norm: RowOp | None, half: bool, m: int, n: int, k: int) -> None:
    """Few rows, direct tiles, staged tiles, split or not, with the second output."""
    case = prologue_case(m, n, k, norm, norm is not None, half=half)
    check_every_form(case, half)


@pytest.mark.parametrize(
    ("m", "n", "k", "norm", "keep", "half"),
    [
        (1, 24, 512, RowOp.LAYER, True, False),
        (40, 260, 256, RowOp.RMS, True, False),
        (17, 1284, 300, RowOp.LAYER, False, False),
        (40, 64, 256, RowOp.LAYER, True, True),
    ],
)
def test_epilogue_in_every_form(
    m: int, n: int, k: int, norm: RowOp, keep: bool, half: bool
) -> None:
    """Few rows, direct tiles, staged tiles, split or not: all end in the pass over rows."""
    case = epilogue_case(m, n, k, norm, keep, half=half, dynamic=m > 1)
    check_every_form(case, half)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "k", "norm"),
    [(1, 32, 512, RowOp.LAYER), (70, 96, 40, RowOp.LAYER), (40, 128, 33, RowOp.RMS)],
)
def test_statistics(m: int, n: int, k: int, norm: RowOp, half: bool) -> None:
    """Every candidate of the lowest limits: tiles that end within the result, or beyond it."""
    case = statistics_case(m, n, k, norm, half=half, dynamic=m > 1)
    found = harness.space("wgpu" if half else "wgpu-floor", case.spec)
    assert len({type(knobs) for knobs in found}) >= (3 if m > 8 else 2)
    assert not any(getattr(knobs, "splits", 1) > 1 for knobs in found)
    tolerance = 2e-2 if half else 2e-4
    harness.check(
        "wgpu", case.spec, case.operands, case.args, case.out_size,
        rtol=tolerance, atol=tolerance, candidates=found,
    )  # fmt: skip


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("make", [statistics_case, epilogue_case])
def test_rows_of_a_product_in_blocks(make: Callable[..., Case], half: bool) -> None:
    case = make(40, 96, 256, RowOp.RMS, blocks=Blocks(4, 32, zeros=True), half=half, dynamic=True)
    assert not any(isinstance(k, FewBlocks) for k in harness.space("wgpu", case.spec))
    check_every_form(case, half)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "k", "norm"), [(70, 40, 256, RowOp.LAYER), (33, 128, 96, RowOp.RMS)]
)
def test_given_statistics(m: int, n: int, k: int, norm: RowOp, half: bool) -> None:
    """In every form; each workgroup stores its share of the normalised rows."""
    check_every_form(prologue_case(m, n, k, norm, True, given=True, half=half, dynamic=True), half)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("norm", [None, RowOp.LAYER, RowOp.RMS])
@pytest.mark.parametrize(
    ("m", "n", "k", "blocks"),
    [(1, 24, 512, Blocks(4, 32)), (3, 70, 260, Blocks(8, 16, True)), (8, 9, 96, Blocks(4, 96))],
)
def test_prologue_before_blocks(
    m: int, n: int, k: int, blocks: Blocks, norm: RowOp | None, half: bool
) -> None:
    """Codes for weights: the form of few rows, which comes first, and one of every other form."""
    case = prologue_case(m, n, k, norm, norm is not None, True, blocks, half=half)
    found = harness.space("wgpu" if half else "wgpu-floor", case.spec)
    few = [knobs for knobs in found if isinstance(knobs, FewBlocks)]
    assert found[0] is few[0]
    others = {(type(k), getattr(k, "splits", 1) > 1): k for k in found if k not in few}
    assert others
    scale = np.abs(case.operands[0]).max() * k**0.5
    harness.check(
        "wgpu", case.spec, case.operands, case.args, case.out_size,
        rtol=2e-2 if half else 2e-4, atol=(2e-2 if half else 1e-5) * scale,
        candidates=[*few[:2], *others.values()],
    )  # fmt: skip


def test_statistics_survive_a_mean_far_from_zero() -> None:
    """Where the plain sum of squares would lose every digit of the variance."""
    case = prologue_case(8, 16, 384, RowOp.LAYER, keep=True)
    case.operands[0][:] = case.operands[0] * 0.2 + 50.0
    check("wgpu", case, 5e-3, seed=1)


@each
@few
@given(st.integers(1, 20), st.integers(1, 40), st.sampled_from([8, 10, 64]), flags, seeds)
def test_turned_queries(
    executor: str, q_len: int, kv_len: int, size: int, dynamic: bool, seed: int
) -> None:
    case = attention_case(
        2, 4, 2, q_len, kv_len, size, size, turned=True, dynamic=dynamic, seed=seed
    )
    check(executor, case, 5e-5, seed)


@each
@few
@given(st.lists(st.integers(1, 3), max_size=2), middle, middle, middle, flags, flags, flags, seeds)
def test_batched(
    executor: str, batch: list[int], m: int, n: int, k: int, a_t: bool, b_t: bool, dynamic: bool,
    seed: int,
) -> None:  # fmt: skip
    check(
        executor,
        batched_case(tuple(batch), m, n, k, a_t, b_t, dynamic=dynamic, seed=seed),
        5e-5,
        seed,
    )


@each
@few
@given(
    st.integers(1, 2), st.tuples(st.integers(5, 12), st.integers(5, 12)),
    st.sampled_from([(3, 5, 1), (4, 8, 1), (8, 12, 4), (6, 6, 6), (8, 8, 8), (6, 9, 3), (1, 1, 1)]),
    st.sampled_from([(1, 1), (3, 3), (1, 5), (5, 3)]),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)), flags, flags, seeds,
)  # fmt: skip
def test_conv(
    executor: str, batch: int, size: tuple[int, int], channels: tuple[int, int, int],
    kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int], first: bool,
    dynamic: bool, seed: int,
) -> None:  # fmt: skip
    case = conv_case(
        batch, size, *channels, kernel, stride, (1, 1), pad, first, dynamic=dynamic, seed=seed
    )
    check(executor, case, 5e-5, seed)


@each
@few
@given(
    st.integers(1, 2), st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1)]), st.integers(1, 40),
    st.integers(1, 70), st.sampled_from([(8, 8), (64, 64), (10, 7), (24, 36), (128, 128)]), flags,
    st.sampled_from(["", "some", "rows"]), flags, flags, seeds,
)  # fmt: skip
def test_attention(
    executor: str, batch: int, heads: tuple[int, int], q_len: int, kv_len: int,
    dims: tuple[int, int], causal: bool, mask: str, zero: bool, dynamic: bool, seed: int,
) -> None:  # fmt: skip
    case = attention_case(
        batch, *heads, q_len, kv_len, *dims, causal, mask, zero, dynamic=dynamic, seed=seed
    )
    check(executor, case, 5e-5, seed)


@pytest.mark.parametrize("name", ["map", "matmul", "batched", "conv", "depthwise", "attention"])
def test_half_storage(name: str) -> None:
    """f16 buffers: read as f32, computed as f32, rounded once; or products whose short sums are
    in f16, some ten roundings off."""
    cases = {
        "map": lambda: map_case((6, 8), half=True),
        "matmul": lambda: matmul_case(20, 24, 40, half=True),
        "batched": lambda: batched_case((2,), 9, 20, 8, False, True, half=True),
        "conv": lambda: conv_case(1, (9, 9), 8, 12, 1, (3, 3), half=True),
        "depthwise": lambda: conv_case(1, (9, 9), 8, 8, 8, (3, 3), half=True),
        "attention": lambda: attention_case(1, 2, 2, 9, 20, 16, 16, half=True),
    }
    case = cases[name]()
    kernel = wgsl.render(case.spec, harness.space("wgpu", case.spec)[0])
    assert kernel.features == ("shader-f16",)
    found = harness.space("wgpu", case.spec)
    exact = [k for k in found if not multiplies_half(k)]
    for tolerance, candidates in ((2e-3, exact[:6]), (2e-2, [k for k in found if k not in exact])):
        harness.check(
            "wgpu", case.spec, case.operands, case.args, case.out_size,
            rtol=tolerance, atol=tolerance, candidates=candidates[:6],
        )  # fmt: skip


def test_grid_beyond_one_dimension() -> None:
    """More workgroups than a dispatch allows along one axis."""
    count = 65536 * 64 + 5
    spec = Map((count,), load(0, axis(0)) * 2.0, axis(0), (Storage.F32,), Storage.F32)
    knobs = [k for k in wgsl.space(spec, WgslCaps()) if k.workgroup == 64 and k.repeat == 1][-1:]
    x = np.arange(count, dtype=np.float32)
    harness.check("wgpu", spec, [x], (), count, candidates=knobs)


def test_what_is_bound_is_used() -> None:
    """A pipeline's automatic layout leaves out bindings that its shader does not use."""
    made = [
        (f"{norm}", prologue_case(5, 8, 8, norm, norm is not None)) for norm in (None, RowOp.RMS)
    ]
    made += [
        ("given", prologue_case(5, 8, 32, RowOp.LAYER, True, given=True)),
        ("statistics", statistics_case(5, 32, 8, RowOp.LAYER)),
    ]
    made += [("beside", map_case((6, 8), beside=True))]
    for name, case in [*one_of_each(), *made]:
        for knobs in wgsl.space(case.spec, WgslCaps()):
            for one in wgsl.render(case.spec, knobs).passes:
                names = re.findall(r"@binding\(\d+\) var<[^>]+> (\w+)", one.code)
                assert len(names) == len(one.bindings)
                for bound in names:
                    assert len(re.findall(rf"\b{bound}\b", one.code)) > 1, (name, bound)


@pytest.mark.parametrize(("m", "parts"), [(1, 16), (384, 11), (4096, 1)])
def test_rows_of_a_run_decide_how_often_k_is_cut(m: int, parts: int) -> None:
    """36 tiles of 128 x 64 at 384 rows: eleven parts keep a large device busy, and no more."""
    spec = matmul_case(9, 768, 3072, dynamic=True).spec
    kernel = wgsl.render(spec, Tile(128, 64, 16, 8, 8, splits=16))
    (scratch,) = kernel.scratch
    assert evaluate(scratch, {"a0": m}) == parts * m * 768 * 4


def test_split_products_are_offered() -> None:
    """Long thin products are divided along k, in two passes."""
    case = matmul_case(32, 32, 1024)
    kernels = [wgsl.render(case.spec, k) for k in wgsl.space(case.spec, WgslCaps())]
    assert any(len(k.passes) == 2 for k in kernels)


def test_spaces_are_small_and_knobs_travel() -> None:
    for _, case in one_of_each():
        found = wgsl.space(case.spec, WgslCaps())
        assert 0 < len(found) <= wgsl.MOST_CANDIDATES
        assert len(set(found)) == len(found)
        for knobs in found:
            assert wgsl.knobs_from_json(case.spec, wgsl.knobs_json(knobs)) == knobs
            names = {wgsl.render(case.spec, k).name for k in found}
            assert len(names) == len(found), "a kernel's name carries its knobs"
