"""ONNX files from what PyTorch users have: a function that makes a module, a `transformers` folder.

torch and transformers are optional extras and imported only here, when they are asked for. What
their exporter writes goes through the same compiler, and the same checks, as any other ONNX file.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError

Shapes = Mapping[str, Any] | Sequence[Any] | None

EXAMPLE_BATCH, EXAMPLE_LENGTH = 2, 7
"""Sizes of the example inputs that a transformers model is traced with; no axis of 1, since the
exporter takes such a size for fixed."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What torch.onnx needs. `inputs`: a tuple for positional arguments, a mapping for keywords.
    `shapes`: which axes are free, as torch.export's `dynamic_shapes`."""

    module: Any
    inputs: tuple[Any, ...] | dict[str, Any]
    shapes: Shapes = None
    outputs: tuple[str, ...] | None = None


def write_torch(reference: str, path: Path) -> None:
    """Call the factory that `reference` names ("module:function" or "file.py:function") and write
    the module that it returns as ONNX.

    The factory takes no arguments and returns (module, inputs) or (module, inputs, dynamic_shapes).

    Raises:
        InputError: torch is missing, there is no such factory, it fails or returns something
            else, or the exporter cannot trace the module.
    """
    _require("torch", "torch")
    _require("onnxscript", "torch")
    where = f"--from torch {reference}"
    with _quiet():
        made = _called(_factory(reference, where), where)
        _write(_checked(made, where), path, where)


def write_transformers(folder: Path, path: Path) -> None:
    """Write the model in a folder that `save_pretrained` made as ONNX; batch and sequence are free.

    Raises:
        InputError: torch or transformers is missing, the folder holds no model, or its kind needs
            inputs that are not known here.
    """
    _require("torch", "torch")
    _require("onnxscript", "torch")
    _require("transformers", "transformers")
    where = f"--from transformers {folder}"
    if not (folder / "config.json").is_file():
        raise InputError(
            "holds no transformers model: it has no config.json",
            where=where,
            remedy="Name a folder that save_pretrained wrote.",
        )
    with _quiet():
        model = _pretrained(folder, where)
        traced = _transformers_call(model, where)
        try:
            _write(traced, path, where)
        except InputError:
            # Some architectures trace only with attention spelt out.
            model.set_attn_implementation("eager")
            _write(traced, path, where)


def _require(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"needs the package {package}, which is not installed",
            where=f"--from {extra}",
            remedy=f"pip install 'pywebgpu[{extra}]'",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """stdout stays free for results; the exporter's remarks are about itself."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder was named: nothing is to be fetched
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---------------------------------------------------------------- a factory


def _factory(reference: str, where: str) -> Any:
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise InputError(
            "does not name a function",
            where=where,
            expected="module:function or file.py:function",
        )
    try:
        module = _import(place)
    except Exception as error:
        raise InputError(
            f"{place} cannot be imported: {type(error).__name__}: {error}",
            where=where,
            remedy="Run the command in the folder that it can be imported from.",
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise InputError(
            f"{place} has no function {name!r}",
            where=where,
            expected=", ".join(_functions(module)) or "a function",
        )
    return factory


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        try:
            return importlib.import_module(place)
        finally:
            sys.path.remove(os.getcwd())
    path = Path(place).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))  # what lies beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _functions(module: Any) -> list[str]:
    found = inspect.getmembers(module, inspect.isfunction)
    return [name for name, f in found if f.__module__ == module.__name__]


def _called(factory: Any, where: str) -> Any:
    try:
        return factory()
    except Exception as error:
        raise InputError(
            f"the function failed: {type(error).__name__}: {error}",
            where=where,
            remedy="It is called without arguments; set PYWEBGPU_DEBUG=1 to see where it failed.",
        ) from error


def _checked(made: Any, where: str) -> Traced:
    torch: Any = importlib.import_module("torch")
    expected = "(module, example inputs) or (module, example inputs, dynamic_shapes)"
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        size = f" of {len(made)}" if isinstance(made, tuple) else ""
        got = type(made).__name__ + size
        raise InputError(
            "the function returns something else", where=where, got=got, expected=expected
        )
    module, inputs = made[:2]
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            "the first thing that the function returns is no torch.nn.Module",
            where=where,
            got=type(module).__name__,
            expected=expected,
        )
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if isinstance(inputs, list):
        inputs = tuple(inputs)
    values = inputs.values() if isinstance(inputs, dict) else inputs
    if not isinstance(inputs, tuple | dict) or not all(isinstance(v, torch.Tensor) for v in values):
        raise InputError(
            "the example inputs are no tensors",
            where=where,
            got=type(inputs).__name__,
            expected="a tuple of tensors, or a dict of tensors by the names of forward's arguments",
        )
    return Traced(module, inputs, made[2] if len(made) == 3 else None)


# ---------------------------------------------------------------- transformers


def _pretrained(folder: Path, where: str) -> Any:
    transformers: Any = importlib.import_module("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        names = config.architectures or []
        kind = next((getattr(transformers, n) for n in names if hasattr(transformers, n)), None)
        loader = kind or transformers.AutoModel
        torch: Any = importlib.import_module("torch")
        return loader.from_pretrained(folder, dtype=torch.float32).eval()
    except Exception as error:
        raise InputError(
            f"the model cannot be loaded: {type(error).__name__}: {_first_line(error)}", where=where
        ) from error


def _transformers_call(model: Any, where: str) -> Traced:
    """The model as a module of plain tensors, with example inputs for its kind."""
    torch: Any = importlib.import_module("torch")
    arguments = inspect.signature(model.forward).parameters
    inputs, shapes = _examples(model, arguments, where)
    options: dict[str, Any] = {"return_dict": True}
    if "use_cache" in arguments:
        options["use_cache"] = False

    def forward(self: Any, **given: Any) -> Any:
        answer = self.model(**given, **options)
        return {name: value for name, value in answer.items() if isinstance(value, torch.Tensor)}

    # The exporter reads the names of the inputs off the signature.
    kinds = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in inputs]
    call = type(
        "Call", (torch.nn.Module,), {"forward": _positional(forward, list(inputs), kinds)}
    )()
    call.model = model
    return Traced(call, inputs, shapes)


def _positional(function: Any, names: list[str], kinds: list[inspect.Parameter]) -> Any:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, **dict(zip(names, args, strict=False)), **kwargs)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = inspect.Signature([own, *kinds])  # type: ignore[attr-defined]
    return forward


def _examples(
    model: Any, arguments: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs to trace with, by the name of the model's main one, and their free axes."""
    torch: Any = importlib.import_module("torch")
    config = model.config
    batch, length = EXAMPLE_BATCH, EXAMPLE_LENGTH
    main = model.main_input_name
    ids = torch.randint(0, getattr(config, "vocab_size", 2), (batch, length))
    tokens = {0: "batch", 1: "sequence"}
    vision = getattr(config, "vision_config", config)
    if main == "input_ids":
        inputs, shapes = {main: ids}, {main: tokens}
        if "attention_mask" in arguments:
            inputs["attention_mask"], shapes["attention_mask"] = torch.ones_like(ids), tokens
    elif main == "pixel_values":
        size = getattr(vision, "image_size", None) or 224
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = getattr(vision, "num_channels", 3)
        inputs = {main: torch.randn(batch, channels, height, width)}
        shapes = {main: {0: "batch"}}
    elif main == "input_features" and hasattr(config, "num_mel_bins"):
        frames = 2 * getattr(config, "max_source_positions", 1500)
        inputs = {main: torch.randn(batch, config.num_mel_bins, frames)}
        shapes = {main: {0: "batch"}}
    elif main == "input_values":
        inputs, shapes = {main: torch.randn(batch, 16000)}, {main: {0: "batch"}}
    else:
        raise InputError(
            f"{type(model).__name__} takes {main}, for which no example input is known here",
            where=where,
            remedy="Write a function that returns (module, example inputs) and use --from torch.",
        )
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in arguments:
        inputs["decoder_input_ids"] = ids[:, :4]
        shapes["decoder_input_ids"] = {0: "batch", 1: "decoder_sequence"}
    return inputs, shapes


# ---------------------------------------------------------------- both


def _write(traced: Traced, path: Path, where: str) -> None:
    torch: Any = importlib.import_module("torch")
    module = traced.module.eval()
    keywords = traced.inputs if isinstance(traced.inputs, dict) else {}
    args = () if keywords else traced.inputs
    try:
        with torch.no_grad():
            answer = module(*args, **keywords)
    except Exception as error:
        raise InputError(
            "the module does not take the example inputs: "
            f"{type(error).__name__}: {_first_line(error)}",
            where=where,
        ) from error
    outputs = _output_names(answer)
    try:
        torch.onnx.export(
            module,
            args,
            str(path),
            kwargs=keywords or None,
            output_names=outputs,
            dynamic_shapes=traced.shapes,
            dynamo=True,
            verbose=False,
        )
    except Exception as error:
        raise InputError(
            f"torch.onnx cannot export the module: {_first_line(_root(error))}",
            where=where,
            remedy="Set PYWEBGPU_DEBUG=1 for torch's own report; "
            "what it cannot trace must be written otherwise.",
        ) from error


def _output_names(answer: Any) -> list[str] | None:
    """Names for the outputs, where their structure is simple; else the exporter's."""
    torch: Any = importlib.import_module("torch")
    if isinstance(answer, torch.Tensor):
        return ["output"]
    if isinstance(answer, Mapping) and all(isinstance(v, torch.Tensor) for v in answer.values()):
        return list(answer)
    if isinstance(answer, tuple | list) and all(isinstance(v, torch.Tensor) for v in answer):
        return [f"output_{i}" for i in range(len(answer))]
    return None


def _root(error: BaseException) -> BaseException:
    """What the exporter stumbled over: its own message is a page long."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
