"""What a desktop session does where its GPU fails: devices lost, memory that is not there, shaders
that a driver refuses. And how a GPU is chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pywebgpu import session as session_module
from pywebgpu.cli import app
from pywebgpu.codegen.spec import family
from pywebgpu.codegen.wgsl.kernel import WgslKernel
from pywebgpu.errors import DeviceError, InputError
from pywebgpu.executors import wgpu_check
from pywebgpu.executors.wgpu_adapter import list_adapters
from pywebgpu.export import export
from pywebgpu.self_test import SelfTest
from pywebgpu.session import InferenceSession
from tests.executors_seen import record_executor

pytestmark = pytest.mark.wgpu
DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
Array = np.ndarray[Any, Any]


@pytest.fixture
def session() -> InferenceSession:
    try:
        return InferenceSession(DIGITS, providers=["webgpu"])
    except DeviceError as error:
        pytest.skip(str(error))


def device_of(session: InferenceSession) -> Any:
    executor: Any = session._executor
    return executor.gpu.device


def image(seed: int) -> dict[str, Array]:
    return {"image": np.random.default_rng(seed).random((2, 1, 8, 8), np.float32)}


def test_a_lost_device_is_replaced_and_the_run_repeated(session: InferenceSession) -> None:
    (want,) = session.run(None, image(1))
    for _ in range(2):
        old = device_of(session)
        old.destroy()
        (found,) = session.run(None, image(1))
        np.testing.assert_allclose(found, want, 1e-5)
        assert device_of(session) is not old
    record_executor("wgpu")
    session.close()


def test_tensors_are_lost_with_their_device(session: InferenceSession) -> None:
    (want,) = session.run(None, image(2))
    resident = session.upload(image(2))
    device_of(session).destroy()
    with pytest.raises(DeviceError, match="device was lost"):
        session.run(None, resident)
    # The session itself goes on.
    (kept,) = session.run_on_gpu(None, session.upload(image(2)))
    np.testing.assert_allclose(kept.numpy(), want, 1e-5)
    with pytest.raises(InputError, match="another session's device"):
        session.run(None, resident)


def test_too_little_memory_says_how_much_is_needed(
    session: InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor: Any = session._executor
    gpu = executor.gpu

    def refuse(**_: Any) -> Any:
        raise gpu.wgpu.GPUOutOfMemoryError("the driver has none")

    monkeypatch.setattr(gpu.device, "create_buffer", refuse)
    large = {"image": np.zeros((4096, 1, 8, 8), np.float32)}
    with pytest.raises(DeviceError) as caught:
        session.run(None, large)
    text = str(caught.value)
    assert "not enough memory" in text
    assert "bytes in all" in text
    assert "bytes needed" in text
    assert "Use smaller inputs" in text
    monkeypatch.undo()
    assert session.run(None, image(3))[0].shape == (2, 10)


def test_a_variant_that_does_not_compile_leaves_it_to_the_next(
    session: InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    (want,) = session.run(None, image(4))
    good = session_module._Code.wgsl
    broken: list[str] = []

    def wgsl(self: Any, variant: str = "default") -> list[WgslKernel]:
        kernels = good(self, variant)
        if variant not in broken:
            return kernels
        first = kernels[0].passes[0]
        bad = replace(first, code=first.code.replace("fn main", "fn 1ain"))
        return [replace(kernels[0], passes=(bad,)), *kernels[1:]]

    monkeypatch.setattr(session_module._Code, "wgsl", wgsl)
    names = [name for name, _ in session._code.variants()]
    broken += names[:-1]
    with pytest.warns(RuntimeWarning, match=r"without the \w+ shaders: kernel \w+.*not compile"):
        other = InferenceSession(DIGITS, providers=["webgpu"])
    np.testing.assert_allclose(other.run(None, image(4))[0], want, 1e-4)
    broken += names
    with (
        pytest.warns(RuntimeWarning, match="without the"),
        pytest.raises(DeviceError, match=r"kernel \w+: the shader does not compile"),
    ):
        InferenceSession(DIGITS, providers=["webgpu"])


def test_gpus_are_listed_and_chosen(session: InferenceSession) -> None:
    adapters = list_adapters()
    listed = CliRunner().invoke(app, ["info", "--devices", "--json"])
    facts = json.loads(listed.stdout)
    assert [a["name"] for a in facts["adapters"]] == [a.name for a in adapters]
    assert facts["default"] in {a.name for a in adapters}
    for adapter in facts["adapters"]:
        assert adapter["limits"]["max-storage-buffer-binding-size"] >= 128 << 20
        assert {"backend", "kind", "driver", "features", "subgroup_sizes"} <= set(adapter)
    text = CliRunner().invoke(app, ["info", "--devices"]).stdout
    assert all(a.name in text for a in adapters)
    for option in (str(adapters[0].index), adapters[0].name.split()[0], "low-power"):
        arguments = ["run", str(DIGITS), "--provider", "webgpu", "--repeat", "1", "--json"]
        ran = CliRunner().invoke(app, [*arguments, "--device", option])
        assert ran.exit_code == 0, ran.output
        assert json.loads(ran.stdout)["device"] in {a.name for a in adapters}


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--provider", "webgpu", "--device", "no such GPU"], "no such adapter"),
     (["--provider", "webgpu", "--device", "99"], "--devices` lists them"),
     (["--provider", "wasm", "--device", "0"], "Add --provider webgpu")],
)  # fmt: skip
def test_wrong_devices(session: InferenceSession, options: list[str], message: str) -> None:
    ran = CliRunner().invoke(app, ["run", str(DIGITS), *options])
    assert ran.exit_code != 0
    assert message in str(ran.exception)


def test_families_are_tried_once_on_a_gpu(
    session: InferenceSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each family that a plan uses; a second session finds that all is well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wgpu_check._passed.cache_clear()
    tried: list[str] = []
    run = wgpu_check._run
    monkeypatch.setattr(wgpu_check, "_run", lambda g, t: tried.append(t.family) or run(g, t))
    bundle = tmp_path / "bundle"
    export(DIGITS, bundle)
    first = InferenceSession(bundle, providers=["webgpu"])
    assert {"conv", "matmul", "reduce", "row"} <= set(tried)
    assert set(tried) <= {family(spec) for spec in first.plan.on_gpu.kernels}
    once = len(tried)
    wgpu_check._passed.cache_clear()
    InferenceSession(bundle, providers=["webgpu"])
    assert len(tried) == once
    assert json.loads((tmp_path / "pywebgpu" / "self-tests.json").read_text())


@pytest.mark.parametrize("kind", ["matmul", "row"])
def test_a_wrong_driver_is_named(
    session: InferenceSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A test that expects something else stands for a driver that computes something else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wgpu_check._passed.cache_clear()
    good = session_module._Code.self_tests
    wrong: list[str] = []

    def tests(self: Any, variant: str) -> list[SelfTest]:
        return [
            replace(t, expected=(t.expected[0] + 1, *t.expected[1:]))
            if t.family == kind and variant in wrong
            else t
            for t in good(self, variant)
        ]

    monkeypatch.setattr(session_module._Code, "self_tests", tests)
    names = [name for name, _ in session._code.variants()]
    wrong += names[:-1]
    with pytest.warns(RuntimeWarning, match=f"without the .* computes {kind} kernels wrongly"):
        InferenceSession(DIGITS, providers=["webgpu"]).run(None, image(1))
    wrong += names
    (tmp_path / "pywebgpu" / "self-tests.json").unlink()  # where the default has passed
    wgpu_check._passed.cache_clear()
    with pytest.warns(RuntimeWarning), pytest.raises(DeviceError, match=f"{kind} kernels wrongly"):
        InferenceSession(DIGITS, providers=["webgpu"])
    with pytest.warns(RuntimeWarning, match="running on wasm instead"):
        assert InferenceSession(DIGITS).provider == "wasm"
    wgpu_check._passed.cache_clear()
