"""`InferenceSession` on the desktop: a model or a bundle on the GPU (wgpu) or the CPU (wasmtime).

The names are ONNX Runtime's, so that moving over is a change of import. In a page's Python the
class of the same name in `executors/browser.py` takes its place.
"""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .build import (
    NO_WINNERS,
    WasmCode,
    fitting_variants,
    wasm_code,
    wgsl_kernels,
    wgsl_tests,
)
from .bundle import Bundle
from .codegen.caps import WGSL_VARIANTS
from .codegen.dims import dim_str
from .codegen.wgsl.kernel import WgslKernel
from .compile import Compiled
from .errors import DeviceError, InputError, PywebgpuError
from .executors.base import Executor, typed_feeds
from .plan import NodeArg, Plan, Port, node_arg
from .records import Record, Winners, load_records
from .self_test import SelfTest
from .specialise import Specialising, compile_or_wait, key_of

if TYPE_CHECKING:
    from .executors.gpu_tensor import GpuTensor
    from .executors.wgpu_executor import Profile
    from .tune_session import Tuning

Array = np.ndarray[Any, Any]

PROVIDERS = ("webgpu", "wasm")

SPECIALISATIONS = 4
"""A session keeps this many compilations of a model with specialised inputs, each with its weights:
those used last."""


def _node_arg(port: Port) -> NodeArg:
    shape = [d if isinstance(d, int) else dim_str(d) for d in port.shape]
    return node_arg(port.name, port.dtype.value, shape)


class _Code:
    """Where a session's plan, code and weights come from: generated now, or read."""

    def __init__(self, source: Compiled | Bundle, winners: Winners = NO_WINNERS) -> None:
        self.source, self.winners = source, winners
        self.plan: Plan = source.plan if isinstance(source, Compiled) else source.plan()

    def wgsl(self, variant: str = "default") -> list[WgslKernel]:
        # A bundle's own code is generated again where records are to choose it.
        if isinstance(self.source, Bundle) and not self.winners.records:
            return self.source.wgsl_kernels(variant)
        return wgsl_kernels(self.plan, self.winners, variant)

    def self_tests(self, variant: str) -> list[SelfTest]:
        if isinstance(self.source, Bundle) and not self.winners.records:
            return self.source.self_tests(variant)
        return wgsl_tests(self.plan, self.winners, variant)

    def variants(self) -> list[tuple[str, Sequence[str]]]:
        """(name, needs) of the WGSL variants, the preferred first."""
        if isinstance(self.source, Bundle) and not self.winners.records:
            return [*self.source.wgsl_variants()]
        return [(v.name, v.needs) for v in WGSL_VARIANTS]

    def wasm(self, variant: str) -> WasmCode:
        if isinstance(self.source, Bundle) and not self.winners.records:
            return self.source.wasm_code(variant)
        return wasm_code(self.plan, [variant], winners=self.winners)

    def weights(self) -> bytes:
        if isinstance(self.source, Bundle):
            return self.source.weights()
        return b"".join(self.source.weight_chunks())


class InferenceSession:
    """One model, ready to run. Not for use from several threads at once.

    `provider` tells which of the providers runs it, `device` on what.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | Bundle | Any,
        providers: Sequence[str] = PROVIDERS,
        *,
        threads: int | None = None,
        adapter: str | int | None = None,
        power_preference: str = "high-performance",
        records: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        Args:
            model: an ONNX file or its bytes; a bundle, as a folder, a zip file or its bytes.
            providers: "webgpu" and "wasm" in the order of preference. The first that works here is
                taken, with a warning that says why those before it were not.
            threads: for wasm; by default one per processor.
            adapter: for webgpu: part of the adapter's name, or its number.
            power_preference: for webgpu: "high-performance" or "low-power".
            records: a file that `pywebgpu tune` wrote; kernels that it speaks of are generated as
                it says.

        Raises:
            ModelError, UnsupportedError, BundleError: the model cannot be read or compiled.
            InputError: an option is wrong, or the records cannot be read.
            DeviceError: none of the providers works here.
        """
        wanted = [providers] if isinstance(providers, str) else list(providers)
        _check_options(wanted, threads)
        source = _open(model)
        self._special = source if isinstance(source, Specialising) else None
        self._winners = Winners(load_records(records)) if records is not None else NO_WINNERS
        self._source = source
        code = _Code(source.nothing if isinstance(source, Specialising) else source, self._winners)
        self._plan = source.interface if isinstance(source, Specialising) else code.plan
        self._inputs, self._outputs = self._plan.inputs, self._plan.outputs
        self._options = {"adapter": adapter, "power_preference": power_preference}
        self._threads = threads
        self._code = code
        self._executor = self._start(code, wanted, threads)
        self._made: OrderedDict[object, tuple[Plan, Executor]] = OrderedDict()
        self._warned = False
        self._turn = threading.Lock()
        self._tuning: Tuning | None = None

    def _start(self, code: _Code, providers: list[str], threads: int | None) -> Executor:
        skipped: list[DeviceError] = []
        for provider in providers:
            try:
                if provider == "webgpu":
                    executor = self._webgpu(code)
                else:
                    executor = _wasm(code, threads)
            except DeviceError as error:
                skipped.append(error)
                continue
            for reason in skipped:
                warnings.warn(
                    f"running on {provider} instead: {reason}", RuntimeWarning, stacklevel=3
                )
            return executor
        if len(skipped) == 1:
            raise skipped[0]
        raise DeviceError(
            "no provider works here",
            where="InferenceSession",
            got="; ".join(map(str, skipped)),
        )

    def _webgpu(self, code: _Code) -> Executor:
        from .executors.wgpu_check import check
        from .executors.wgpu_device import Gpu, ShaderError
        from .executors.wgpu_executor import WgpuExecutor

        options: Any = self._options
        gpu = Gpu.chosen(options["adapter"], options["power_preference"])
        names = fitting_variants(code.variants(), gpu.offers())
        for name in names:
            try:
                check(gpu, code.self_tests(name))
                return WgpuExecutor(code.plan, code.wgsl(name), code.weights(), gpu=gpu)
            except ShaderError as error:
                if name == names[-1]:
                    raise
                warnings.warn(f"without the {name} shaders: {error}", RuntimeWarning, stacklevel=4)
        raise AssertionError("the last variant runs on every device")

    @property
    def provider(self) -> str:
        return self._executor.provider

    @property
    def device(self) -> str:
        return self._executor.device

    @property
    def plan(self) -> Plan:
        """What the last run played; of a model with specialised inputs, before the first run, only
        its inputs and outputs."""
        return self._plan

    @property
    def specialised(self) -> tuple[str, ...]:
        """Inputs whose values decide shapes. A run with values that were not seen lately compiles
        the model for them, which takes as long as making a session."""
        return self._special.names if self._special else ()

    def get_inputs(self) -> list[NodeArg]:
        return [_node_arg(port) for port in self._inputs]

    def get_outputs(self) -> list[NodeArg]:
        return [_node_arg(port) for port in self._outputs]

    def get_providers(self) -> list[str]:
        return [self.provider]

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Array]:
        """The named outputs (None: all), in that order. After a GPU device was lost the session
        loads its model on a new one and repeats the run, once: not where a feed lay on that device.

        Raises:
            InputError: a feed has a wrong name, shape, dtype or value.
            ModelError, UnsupportedError: the values of a specialised input do not suit the model.
            DeviceError: the device failed or has not enough memory.
        """
        with self._turn:
            results = self._surviving(
                input_feed, lambda executor, feeds: executor.run(feeds, output_names)
            )
        names = [p.name for p in self._outputs] if output_names is None else output_names
        return [results[name] for name in names]

    def _surviving(
        self, given: Mapping[str, Any], play: Callable[[Any, Mapping[str, Any]], Any]
    ) -> Any:
        """What `play(executor, feeds)` gives; once more where the device is lost meanwhile."""
        executor, feeds = self._seat(given)
        try:
            return play(executor, feeds)
        except DeviceError:
            if not executor.lost:
                raise
            self._replace(executor)
            if any(hasattr(feed, "gpu") for feed in given.values()):
                raise  # a GpuTensor is gone with its device
        return play(*self._seat(given))

    def _seat(self, given: Mapping[str, Any]) -> tuple[Executor, Mapping[str, Any]]:
        if self._special:
            return self._executor_for(self._special, given)
        return self._executor, given

    def _replace(self, lost: Executor) -> None:
        """Another executor in place of one whose device is lost; of a specialised model, all are
        made again when they are needed."""
        made = self._start(self._code, [lost.provider], self._threads)
        self._made.clear()
        self._executor = made

    def upload(self, feeds: Mapping[str, Any]) -> dict[str, GpuTensor]:
        """Some of the inputs as tensors on the GPU, to be fed again and again.

        Raises:
            InputError: the session does not run on a GPU, or a feed does not fit.
        """
        self._check_gpu("upload")
        with self._turn:
            found: dict[str, GpuTensor] = self._surviving(
                {}, lambda executor, _: executor.upload(feeds)
            )
        return found

    def run_on_gpu(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]
    ) -> list[GpuTensor]:
        """As `run`, but the outputs stay on the GPU, and nobody waits for them: `numpy()` does.

        Raises:
            InputError: as `run`, or the session does not run on a GPU.
        """
        self._check_gpu("run_on_gpu")
        with self._turn:
            results = self._surviving(
                input_feed, lambda executor, feeds: executor.run_on_gpu(feeds, output_names)
            )
        names = [p.name for p in self._outputs] if output_names is None else output_names
        return [results[name] for name in names]

    def profile(self, input_feed: Mapping[str, Any], repeats: int = 20) -> Profile:
        """Where a run's time goes on the GPU: each step `repeats` times, by timestamps.

        Raises:
            InputError: as `run`, or the session does not run on a GPU.
        """
        self._check_gpu("profile")
        with self._turn:
            found: Profile = self._surviving(
                input_feed, lambda executor, feeds: executor.profile(feeds, repeats)
            )
        return found

    def _check_gpu(self, what: str) -> None:
        if self.provider != "webgpu" or self._special:
            raise InputError(
                "needs a session on a GPU, without inputs that decide shapes",
                where=what,
                got=self.provider,
                expected="webgpu",
                remedy='InferenceSession(model, providers=["webgpu"])',
            )

    def _executor_for(
        self, special: Specialising, given: Mapping[str, Any]
    ) -> tuple[Executor, dict[str, Any]]:
        """What runs the model for these values of its deciding inputs, and the other feeds."""
        feeds = typed_feeds(self._inputs, given)
        made = self._made.pop(key_of(special.names, feeds), None)
        if made is None:
            compiled = special.compile(feeds)
            code = _Code(compiled, self._winners)
            made = compiled.plan, self._start(code, [self.provider], self._threads)
        self._made[key_of(special.names, feeds)] = made  # the last one is the latest used
        self._plan = made[0]
        if len(self._made) > SPECIALISATIONS:
            _, (_, oldest) = self._made.popitem(last=False)
            oldest.close()
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"more than {SPECIALISATIONS} values of {', '.join(special.names)}: each new "
                    "one costs a compilation, because it decides shapes",
                    RuntimeWarning,
                    stacklevel=3,
                )
        return made[1], {port.name: feeds[port.name] for port in made[0].inputs}

    async def run_async(
        self, feeds: Mapping[str, Any], output_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """The outputs by name, computed while other tasks go on. One run at a time."""
        results = await asyncio.to_thread(self.run, output_names, feeds)
        names = [p.name for p in self._outputs] if output_names is None else output_names
        return dict(zip(names, results, strict=True))

    def tune(
        self,
        *,
        budget: float = 30.0,
        dims: Mapping[str, int] | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> Tuning:
        """Find quicker kernels for this machine while the session goes on being used.

        budget: seconds. dims: sizes of symbolic dimensions. on_progress: called, in another thread,
        with the kernel in hand, how many candidates are done, and of how many. Where the handle has
        ended its records are in `records()`.

        Raises:
            InputError: an option is wrong, the session is being tuned already, or its model is
                compiled for values that it is fed.
        """
        from .tune_session import start

        if self._tuning is not None and self._tuning.state in ("running", "paused"):
            raise InputError(
                "the session is being tuned already",
                where="tune",
                remedy="Wait for the tuning, or cancel it",
            )
        if isinstance(self._source, Specialising):
            raise InputError(
                "a model that is compiled for values it is fed cannot be tuned as it runs",
                where="tune",
                got=", ".join(self.specialised),
                remedy="Export it for one value, with `pywebgpu export --value`",
            )
        self._tuning = start(
            self.plan, self.provider, dims, budget, self._turn, self._adopt, on_progress
        )
        return self._tuning

    def records(self) -> tuple[Record, ...]:
        """What tuning this session has found out: for `records.save_records`."""
        return tuple(self._tuning.records) if self._tuning is not None else ()

    def _adopt(self, winners: Winners) -> None:
        assert not isinstance(self._source, Specialising)
        code = _Code(self._source, winners)
        made = self._start(code, [self.provider], self._threads)
        with self._turn:
            self._code = code
            old, self._executor = self._executor, made
            old.close()

    @classmethod
    async def create(cls, model: Any, *args: Any, **options: Any) -> InferenceSession:
        """The constructor for code that also runs in a page, where it has to be awaited."""
        return await asyncio.to_thread(cls, model, *args, **options)

    def close(self) -> None:
        """Give threads and memory back."""
        if self._tuning is not None:
            self._tuning.cancel()
            self._tuning.wait()
        self._executor.close()
        while self._made:
            self._made.popitem()[1][1].close()

    def __enter__(self) -> InferenceSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_options(providers: list[str], threads: int | None) -> None:
    if not providers:
        raise InputError("no providers are given", where="providers", expected=PROVIDERS)
    for provider in providers:
        if provider not in PROVIDERS:
            raise InputError(
                "unknown provider",
                where="providers",
                got=repr(provider),
                expected=" or ".join(map(repr, PROVIDERS)),
            )
    if threads is not None and threads < 1:
        raise InputError("not a number of threads", where="threads", got=threads, expected=">= 1")


def _open(model: Any) -> Compiled | Bundle | Specialising:
    if isinstance(model, (Bundle, Compiled)):
        return model
    if isinstance(model, bytes):
        return Bundle.load(model) if model[:4] == b"PK\x03\x04" else compile_or_wait(model)
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if path.is_dir() or path.suffix == ".zip":
            return Bundle.load(path)
    return compile_or_wait(model)


def _wasm(code: _Code, threads: int | None) -> Executor:
    from .executors.wasmtime_executor import WasmtimeExecutor, default_threads

    count = threads if threads is not None else default_threads()
    names = ["relaxed-threads", "simd-threads"] if count > 1 else ["relaxed", "simd"]
    problem: PywebgpuError | None = None
    for name in names:
        try:
            module = code.wasm(name).module(name)
            return WasmtimeExecutor(code.plan, module, code.weights(), threads=count)
        except DeviceError as error:  # an engine without relaxed SIMD
            problem = error
    assert problem is not None
    raise problem
