"""The GPUs of this machine through wgpu-py: which there are, and which one is meant."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import DeviceError

REMEDY = (
    "Install a Vulkan driver for the GPU, or mesa's software one"
    " (Debian and Ubuntu: apt-get install mesa-vulkan-drivers)"
)
POWER = ("high-performance", "low-power")

# WebGPU's names and wgpu-native's: (wanted, as the adapter may list it).
_FEATURES = {
    "shader-f16": "shader-f16",
    "timestamp-query": "timestamp-query",
    "subgroups": "subgroup",
}
RAISED_LIMITS = (
    "max-storage-buffer-binding-size",
    "max-buffer-size",
    "max-compute-workgroup-storage-size",
    "max-compute-invocations-per-workgroup",
    "max-compute-workgroup-size-x",
    "max-compute-workgroup-size-y",
    "max-compute-workgroup-size-z",
    "max-storage-buffers-per-shader-stage",
)
"""Devices are asked for with as much of these as their adapter has."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """`index`, or part of `name`, chooses it. `kind`: "DiscreteGPU", "IntegratedGPU", "CPU"
    (shaders run there), ...; `limits`: of `RAISED_LIMITS`; `features`: those that kernels may use;
    `subgroup_sizes`: smallest and largest, (0, 0) where the adapter does not say."""

    index: int
    name: str
    backend: str
    kind: str
    driver: str
    limits: dict[str, int]
    features: tuple[str, ...]
    subgroup_sizes: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def wgpu_module() -> Any:
    """The `wgpu` package, imported late: it loads a driver."""
    try:
        import wgpu
    except Exception as error:  # a missing wheel, or a library that does not load
        raise DeviceError(
            f"wgpu-py cannot be loaded: {error}", where="webgpu", remedy="pip install wgpu"
        ) from error
    return wgpu


def list_adapters() -> list[AdapterInfo]:
    """Every adapter of this machine; none where there is no driver.

    Raises:
        DeviceError: wgpu-py cannot be loaded.
    """
    return [describe(adapter, index) for index, adapter in enumerate(_all())]


def describe(adapter: Any, index: int = 0) -> AdapterInfo:
    info = adapter.info
    return AdapterInfo(
        index=index,
        name=f"{info['device'] or info['description']} ({info['backend_type']})",
        backend=str(info["backend_type"]),
        kind=str(info["adapter_type"]),
        driver=str(info["description"]),
        limits={name: adapter.limits[name] for name in RAISED_LIMITS if name in adapter.limits},
        features=tuple(features(adapter)),
        subgroup_sizes=_subgroup_sizes(info),
    )


def features(adapter: Any) -> dict[str, str]:
    """What it has of the features that are asked for: WebGPU's name and the adapter's own."""
    there = set(adapter.features)
    found = {}
    for ours, theirs in sorted(_FEATURES.items()):
        if theirs in there or ours in there:
            found[ours] = theirs if theirs in there else ours
    return found


def _subgroup_sizes(info: Any) -> tuple[int, int]:
    """wgpu-py renames the fields "subgroup_*" oddly."""
    found = [next((int(v) for k, v in info.items() if k.endswith(f"group_{which}_size")), 0)
             for which in ("min", "max")]  # fmt: skip
    return found[0], found[1]


def _all() -> list[Any]:
    try:
        return list(wgpu_module().gpu.enumerate_adapters_sync())
    except RuntimeError:
        return []


def choose(power_preference: str, name: str | None = None, index: int | None = None) -> Any:
    """The adapter with that number, the first whose name contains `name`, or, without either, the
    one that the power preference means.

    Raises:
        DeviceError: there is no such adapter, or none at all.
    """
    if name is None and index is None:
        try:
            return wgpu_module().gpu.request_adapter_sync(power_preference=power_preference)
        except RuntimeError as error:
            raise DeviceError("no WebGPU adapter", where="webgpu", remedy=REMEDY) from error
    adapters = _all()
    if not adapters:
        raise DeviceError("no WebGPU adapter", where="webgpu", remedy=REMEDY)
    names = [describe(adapter).name for adapter in adapters]
    if index is not None and 0 <= index < len(adapters):
        return adapters[index]
    if index is None:
        for adapter, full in zip(adapters, names, strict=True):
            if str(name).lower() in full.lower():
                return adapter
    raise DeviceError(
        "no such adapter", where="webgpu", got=name if index is None else index,
        expected=", ".join(f"{i} or part of {full!r}" for i, full in enumerate(names)),
        remedy="`pywebgpu info --devices` lists them",
    )  # fmt: skip


def chosen_by(option: str | None) -> dict[str, Any]:
    """What a session is to be told where a user has written `option`: a number, part of a name, or
    a power preference."""
    if option is None:
        return {}
    if option in POWER:
        return {"power_preference": option}
    return {"adapter": int(option) if option.isdecimal() else option}
