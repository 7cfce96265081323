"""Random inputs that models can make sense of, and arrays from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from pywebgpu.errors import InputError
from pywebgpu.feeds import (
    bind_dims,
    concrete_shape,
    input_spec,
    load_feed,
    random_feeds,
    table_rows,
)


def test_dims_are_chosen_defaulted_and_checked() -> None:
    specs = [
        input_spec("input_ids", "tensor(int64)", ["batch", "seq"]),
        input_spec("attention_mask", "tensor(int64)", ["batch", "past + seq"]),
        input_spec("past", "tensor(float)", ["batch", 4, "past", "unk__1"]),
        input_spec("odd", "tensor(float)", ["image size"]),
    ]
    dims = bind_dims(specs, {"seq": 5})
    assert dims == {"batch": 1, "seq": 5, "past": 8, "unk__1": 1, "image size": 1}
    assert concrete_shape(specs[1], dims) == (1, 13)
    assert concrete_shape(specs[3], dims) == (1,)
    with pytest.raises(InputError, match=r"no input has this dimension.*batch, seq"):
        bind_dims(specs, {"length": 3})
    with pytest.raises(InputError, match="negative"):
        bind_dims(specs, {"seq": -1})


@pytest.mark.parametrize(
    ("text", "value"),
    [("2*seq", 14), ("(seq + 3) // 4", 2), ("seq - 1", 6), ("max(seq, 9)", 9), ("seq % 4", 3)],
)
def test_size_expressions(text: str, value: int) -> None:
    spec = input_spec("x", "tensor(float)", [text])
    assert bind_dims([spec], {"seq": 7}) == {"seq": 7}
    assert concrete_shape(spec, {"seq": 7}) == (value,)


def test_token_ids_stay_inside_the_table_they_index() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["ids"], ["ids32"], to=TensorProto.INT32),
            helper.make_node("Gather", ["table", "ids32"], ["rows"]),
            helper.make_node("Gather", ["wide", "column"], ["columns"], axis=1),
        ],
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 40]),
            helper.make_tensor_value_info("column", TensorProto.INT64, [9]),
        ],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, None)],
        [
            helper.make_tensor("table", TensorProto.FLOAT, [3, 2], [0.0] * 6),
            helper.make_tensor("wide", TensorProto.FLOAT, [1, 5], [0.0] * 5),
        ],
    )
    rows = table_rows(helper.make_model(graph))
    assert rows == {"ids": 3, "column": 5}
    spec = input_spec("ids", "tensor(int64)", ["batch", 40])
    ids = random_feeds([spec], {"batch": 2}, rows=rows)["ids"]
    assert ids.dtype == np.int64
    assert ids.shape == (2, 40)
    assert set(ids.ravel()) == {0, 1, 2}


def test_masks_are_ones_then_zeros_and_the_same_seed_gives_the_same_values() -> None:
    specs = [
        input_spec("attention_mask", "tensor(int64)", [4, 9]),
        input_spec("position_ids", "tensor(int64)", [4, 9]),
        input_spec("token_type_ids", "tensor(int64)", [4, 9]),
        input_spec("x", "tensor(float16)", [3]),
        input_spec("flag", "tensor(bool)", [5]),
        input_spec("scalar", "tensor(float)", []),
    ]
    feeds = random_feeds(specs, {}, seed=1)
    mask = feeds["attention_mask"]
    assert (np.diff(mask, axis=1) <= 0).all()
    assert mask[0].all()
    assert (mask.sum(axis=1) >= 5).all()
    assert (feeds["position_ids"] == np.arange(9)).all()
    assert set(np.unique(feeds["token_type_ids"])) <= {0, 1}
    assert feeds["x"].dtype == np.float16
    assert feeds["flag"].dtype == bool
    assert feeds["scalar"].shape == ()
    again = random_feeds(specs, {}, seed=1)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)


def test_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    name, array = load_feed(f"x={tmp_path / 'a.npy'}")
    assert name == "x"
    assert array.tolist() == [0, 1, 2]
    np.savez(tmp_path / "b.npz", a=array)
    (tmp_path / "empty.npy").touch()
    for option in ("x", "=a.npy", "x=", f"x={tmp_path}", f"x={tmp_path / 'b.npz'}"):
        with pytest.raises(InputError):
            load_feed(option)
    with pytest.raises(InputError, match="cannot be read as an array"):
        load_feed(f"x={tmp_path / 'empty.npy'}")
