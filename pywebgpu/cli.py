"""The `pywebgpu` command: one function per subcommand, each a thin layer over a library function.

Library modules are imported inside the commands, so that `--help` and `serve` start at once and
work without the packages that only the compiler needs.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .cli_records import records_app
from .console import (
    EXIT_USER_ERROR,
    ProgressFunction,
    human_bytes,
    human_ms,
    print_facts,
    print_json,
    progress_bar,
    run_guarded,
)
from .errors import InputError

if TYPE_CHECKING:
    from .check import CheckReport, LargeBuffer

app = typer.Typer(
    name="pywebgpu",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(records_app)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; no progress bar.")]
SourceArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="An ONNX file, or what --from says.")
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--value",
        metavar="NAME=VALUE",
        help="Fix an input to a number or a JSON list, so that it is one no more; repeatable.",
    ),
]


class Source(enum.StrEnum):
    """What MODEL names."""

    onnx = "onnx"
    torch = "torch"
    transformers = "transformers"


From = Annotated[
    Source,
    typer.Option(
        "--from",
        help="What MODEL is: an ONNX file; module:function, which returns a torch module and "
        "example inputs; a folder of transformers' save_pretrained.",
    ),
]


Device = Annotated[
    str | None,
    typer.Option(
        metavar="GPU",
        help="For webgpu: a number or part of a name that `info --devices` lists, or low-power or "
        "high-performance.",
    ),
]


class Provider(enum.StrEnum):
    """Where a model runs."""

    webgpu = "webgpu"
    wasm = "wasm"


class Storage(enum.StrEnum):
    """How a bundle stores floats."""

    f32 = "f32"
    f16 = "f16"


class Quantization(enum.StrEnum):
    """What constants become."""

    int8 = "int8"
    int4 = "int4"


class PyodideSource(enum.StrEnum):
    """Where a built site gets Pyodide from."""

    local = "local"
    cdn = "cdn"
    none = "none"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pywebgpu {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Compile ONNX models into their own small runtimes for the browser.

    \b
    A first tour:
      pywebgpu check model.onnx                what will run where, before anything is built
      pywebgpu export model.onnx -o bundle     compile it
      pywebgpu run bundle --provider wasm      run it here
      pywebgpu site model.onnx -o site         a static site that answers in the browser
      pywebgpu serve site                      look at it

    Set PYWEBGPU_DEBUG=1 to see tracebacks.
    """


def main() -> None:
    """Entry point of the `pywebgpu` script."""
    sys.exit(run_guarded(app))


def _existing(path: Path, what: str) -> Path:
    """`path`, or a clear error when nothing is there."""
    if not path.exists():
        raise InputError(f"no such {what}", where=str(path), remedy="Check the path.")
    return path


@contextmanager
def _onnx_file(model: str, source: Source, say: ProgressFunction) -> Iterator[Path]:
    """The ONNX file that MODEL is, or is exported to for as long as the block runs."""
    if source is Source.onnx:
        yield _existing(Path(model), "ONNX file")
        return
    from .from_torch import write_torch, write_transformers

    name = model.rpartition(":")[2] if source is Source.torch else Path(model).resolve().name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        say(f"exporting from {source.value}", 0, 0)
        if source is Source.torch:
            write_torch(model, path)
        else:
            write_transformers(_existing(Path(model), "folder"), path)
        yield path


def _gpu_options(device: str | None, provider: Provider) -> dict[str, Any]:
    """What a session and the tuner take for a `--device` that was given."""
    if device is None:
        return {}
    if provider is not Provider.webgpu:
        raise InputError(
            "a GPU is for the webgpu provider", where=f"--device {device}", got=provider.value,
            remedy="Add --provider webgpu",
        )  # fmt: skip
    from .executors.wgpu_adapter import chosen_by

    return chosen_by(device)


def _parse_dims(options: list[str]) -> dict[str, int]:
    """`NAME=N` options as a mapping."""
    dims = {}
    for option in options:
        name, _, size = option.rpartition("=")
        if not name or not size.isdecimal():
            raise InputError(
                "not a size", where=f"--dim {option}", expected="NAME=N with an integer N >= 0"
            )
        dims[name] = int(size)
    return dims


@app.command()
def check(
    model: SourceArgument, source: From = Source.onnx, value: Values = None, json: Json = False
) -> None:
    """Say what of a model will run where, what will not and why. Builds nothing.

    Exit code 0: the model can be exported; 2: it cannot, for the reasons given.

    \b
    Examples:
      pywebgpu check model.onnx
      pywebgpu check model.onnx --json
      pywebgpu check --from torch mynet.py:make
    """
    from .check import check as check_model
    from .feeds import parse_value

    values = dict(map(parse_value, value or []))
    with progress_bar(json) as progress, _onnx_file(model, source, progress) as path:
        report = dataclasses.replace(check_model(path, values=values), model=model)
    if json:
        print_json(report.to_json())
    else:
        _print_check(report)
    if not report.ok:
        first = report.unsupported[0]
        more = f" (and {count - 1} more)" if (count := len(report.unsupported)) > 1 else ""
        print(
            f"pywebgpu: error: {model}: cannot be compiled: {first.node}: {first.reason}{more}",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_USER_ERROR)


def _print_check(report: CheckReport) -> None:
    """The report for people: ports, what runs, what does not, what to know."""
    total = sum(report.operators.values())
    print(f"{report.model}: {sum(report.nodes.values())} nodes as exported")
    for kind, ports in (("input", report.inputs), ("output", report.outputs)):
        for port in ports:
            print(f"  {kind:<6} {port.name}: {port.dtype}[{', '.join(map(str, port.shape))}]")
    print(f"  weights {human_bytes(report.weight_bytes)}")
    if report.ok:
        print(f"Runs whole, on webgpu and on wasm: {total} operators, before they become kernels")
        for name, count in report.operators.items():
            print(f"  {count:>4}  {name}")
    else:
        print("Does not run:")
        for refusal in report.unsupported:
            print(f"  {refusal.node}: {refusal.reason}")
            if refusal.remedy:
                print(f"    {refusal.remedy}")
        if report.blocked:
            print(f"Not judged, since they follow one of these: {len(report.blocked)} nodes")
    for buffer in report.large_buffers:
        print(f"Note: {_large_text(buffer)}")
    for text in report.size_checks:
        print(f"Checked at run time: {text}")
    for text in report.remarks:
        print(f"Note: {text}")


def _large_text(buffer: LargeBuffer) -> str:
    from .compile import MAX_BINDING

    limit = human_bytes(MAX_BINDING)
    size = human_bytes(buffer.bytes)
    if buffer.whole:
        return (
            f"a weight of {buffer.name} takes {size} in one piece: on WebGPU this needs a device "
            f"that binds as much at once (all bind {limit}); wasm runs it anywhere"
        )
    if buffer.weight:
        return f"'{buffer.name}' takes {size}: a GPU gets what is more than {limit} in parts"
    return (
        f"'{buffer.name}' takes {size}; some devices bind no more than {limit} at once, "
        "and run it on wasm only"
    )


@app.command()
def export(
    model: SourceArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="BUNDLE", help="The folder to write.")
    ],
    source: From = Source.onnx,
    value: Values = None,
    records: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="What `tune` found out, to generate kernels by."),
    ] = None,
    records_for: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="A device as `records show` names it: its records count, or the nearest one's.",
        ),
    ] = None,
    dtype: Annotated[
        Storage, typer.Option(help="How floats are stored; f16 is for WebGPU with shader-f16.")
    ] = Storage.f32,
    quantize: Annotated[
        Quantization | None,
        typer.Option(
            help="int8: constants and products in bytes; int4: weights only. Says what it cost."
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A node or constant not to quantise; repeatable."),
    ] = None,
    feed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE.npy",
            help="An input's values to judge a quantised or f16 model by; else random ones. "
            "Repeatable.",
        ),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Size of a symbolic dimension there; repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Compile a model into a bundle: manifest, wasm, WGSL and weights.

    The same model gives the same bytes every time. The folder appears only when it is complete.

    With --from torch, MODEL is module:function or file.py:function. The function takes no arguments
    and returns (module, example inputs) or (module, example inputs, dynamic_shapes), the last as
    torch.export has it: {"x": {0: "batch"}} leaves the first axis of x free. PyTorch's exporter
    makes an ONNX file of it. Needs pip install 'pywebgpu[torch]' or 'pywebgpu[transformers]'.

    \b
    Examples:
      pywebgpu export model.onnx -o bundle
      pywebgpu export model.onnx -o bundle --json
      pywebgpu export --from torch mypackage.nets:small -o bundle
      pywebgpu export --from torch mynet.py:make -o bundle
      pywebgpu export --from transformers saved-model/ -o bundle
      pywebgpu export model.onnx -o bundle --value k=[5]     for one value of an input that
                                                             decides shapes
      pywebgpu export model.onnx -o bundle --records records.json
      pywebgpu export model.onnx -o bundle --records records.json \\
          --records-for "browser wasm relaxed-simd, registers=32; speed 2^6"
      pywebgpu export model.onnx -o bundle --dtype f16       half the bytes, WebGPU only; says
                                                             what f16 cannot hold
      pywebgpu export model.onnx -o bundle --quantize int8   a quarter of the bytes, and what
                                                             that costs in accuracy
      pywebgpu export model.onnx -o bundle --quantize int4   weights of products in 4 bits
      pywebgpu export model.onnx -o bundle --quantize int8 --feed image=digits.npy --keep conv1
    """
    from .export import export as export_model
    from .feeds import load_feed, parse_value

    values = dict(map(parse_value, value or []))
    with progress_bar(json) as progress, _onnx_file(model, source, progress) as path:
        report = export_model(
            path,
            out,
            progress=progress,
            values=values,
            records=records,
            records_for=records_for,
            dtype=dtype.value,
            quantize=None if quantize is None else quantize.value,
            keep=keep or [],
            feeds=dict(load_feed(option) for option in feed or []),
            dims=_parse_dims(dim or []),
        )
    if json:
        print_json(report.to_json())
    else:
        print(report)


@app.command()
def tune(
    model: Annotated[Path, typer.Argument(help="An ONNX file or a bundle.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE.json", help="The records; added to if there."),
    ],
    provider: Annotated[
        Provider, typer.Option(help="webgpu: this machine's GPU; wasm: its CPU.")
    ] = Provider.wasm,
    device: Device = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="How long to measure.")] = 20.0,
    dim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Size of a symbolic dimension; repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure a model's kernels in other forms on this machine, and record which are the quickest.

    Each candidate's result is checked before its time counts, and the default is kept unless
    another wins by 3 %. `export --records` and a session's `records=` use what was found. Leave the
    machine alone meanwhile.

    \b
    Examples:
      pywebgpu tune model.onnx -o records.json
      pywebgpu tune model.onnx --provider webgpu --budget 60 --dim batch=8 -o records.json
    """
    from .records import load_records, merge, save_records
    from .tune_desktop import print_report, tune_model

    _existing(model, "model or bundle")
    before = load_records(out) if out.exists() else ()
    chosen = _gpu_options(device, provider)
    with progress_bar(json) as progress:
        report = tune_model(
            model,
            provider.value,
            dims=_parse_dims(dim or []),
            budget_s=budget,
            progress=progress,
            **chosen,
        )
    save_records(out, merge(before, report.records))
    if json:
        print_json({**report.to_json(), "records": str(out)})
    else:
        print_report(report)
        print(f"Wrote {out}; use it with `pywebgpu export MODEL.onnx -o BUNDLE --records {out}`.")


@app.command()
def site(
    models: Annotated[list[Path], typer.Argument(help="ONNX files and bundles.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="SITE", help="The folder to write.")],
    pyodide: Annotated[
        PyodideSource,
        typer.Option(help="Python in the page: copied into the site, from its CDN, or left out."),
    ] = PyodideSource.local,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Let pages run ONNX Runtime Web beside ours: copies its files and the ONNX files.",
        ),
    ] = False,
    records: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A records service that tuning asks, and that the pages' policy then allows.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Build a static site in which the models answer in the visitor's browser.

    It works on any static host, from a sub-path, and asks no other origin (unless --pyodide cdn or
    --records).

    \b
    Examples:
      pywebgpu site model.onnx -o site
      pywebgpu site digits.onnx bundles/minilm -o site --pyodide none
      pywebgpu site model.onnx -o site --compare     beside ONNX Runtime Web, 58 MB more
      pywebgpu site model.onnx -o site --records https://records.example.org/

    Browser libraries come from a node_modules folder here or above, from the one named by
    PYWEBGPU_NODE_MODULES, or from npm.
    """
    from .site import build_site

    with progress_bar(json) as progress:
        folder = build_site(
            models,
            out,
            pyodide=pyodide.value,
            compare=compare,
            records=records,
            progress=progress,
        )
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    if json:
        names = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        print_json({"site": str(folder), "bytes": total, "files": names})
    else:
        print(f"Built {folder}: {len(files)} files, {human_bytes(total)}.")
        print(f"Look at it with `pywebgpu serve {folder}`, or copy it to any static host.")


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="An ONNX file or a bundle.")],
    provider: Annotated[
        Provider, typer.Option(help="webgpu: this machine's GPU; wasm: its CPU.")
    ] = Provider.wasm,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="onnxruntime",
            help="Compare the outputs with native ONNX Runtime's on the same inputs.",
        ),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Size of a symbolic dimension; repeatable."),
    ] = None,
    feed: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE.npy", help="An input's values; repeatable."),
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="The same, as a number or a JSON list; repeatable."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for wasm; by default one per processor.")
    ] = None,
    device: Device = None,
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs, after a first one.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the random inputs.")] = 0,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Write the outputs to this file.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a model on this machine, time it, and compare it with ONNX Runtime.

    Inputs that are not given with --feed or --value get random values that suit their type and
    name.

    \b
    Examples:
      pywebgpu run model.onnx --provider webgpu --compare onnxruntime
      pywebgpu run bundle --provider wasm --dim batch=1 --dim sequence=128 --json
      pywebgpu run bundle --provider webgpu --device 1
      pywebgpu run bundle --provider webgpu --device low-power
      pywebgpu run model.onnx --feed image=digit.npy --save outputs.npz
    """
    from .compare import run_model
    from .feeds import load_feed, parse_value, save_arrays

    _existing(model, "model or bundle")
    feeds = dict(load_feed(option) for option in feed or [])
    with progress_bar(json) as progress:
        report = run_model(
            model,
            provider=provider.value,
            feeds=feeds,
            values=dict(map(parse_value, value or [])),
            dims=_parse_dims(dim or []),
            compare=compare,
            repeat=repeat,
            seed=seed,
            session_options={"threads": threads, **_gpu_options(device, provider)},
            progress=progress,
        )
    if save is not None:
        save_arrays(save, report.values)
    if json:
        print_json(report.to_json())
        return
    print(f"{report.model} on {report.provider} ({report.device})")
    for name, kind in report.inputs.items():
        print(f"  input   {name}: {kind}")
    for output in report.outputs:
        print(f"  output  {output.name}: {output.dtype}{list(output.shape)}")
    print(
        f"  time    {human_ms(report.ms_median)} median of {report.repeat}, "
        f"{human_ms(report.ms_first)} the first, {human_ms(report.ms_create)} to prepare"
    )
    if report.compared_with is not None:
        if report.max_abs is None or report.max_rel_to_scale is None:
            print(f"  WRONG   NaN or infinity where {report.compared_with} has none, or vice versa")
        else:
            print(
                f"  differs from {report.compared_with} by at most {report.max_abs:.3g}, "
                f"{report.max_rel_to_scale:.3g} of the output's scale"
            )
    if report.reference_ms_median is not None:
        print(f"  ONNX Runtime itself takes {human_ms(report.reference_ms_median)} here")


@app.command()
def info(
    path: Annotated[
        Path | None, typer.Argument(help="An ONNX file or a bundle; without one: this machine.")
    ] = None,
    device: Annotated[
        bool, typer.Option("--device", help="Measure what WebAssembly can do on this machine.")
    ] = False,
    devices: Annotated[
        bool, typer.Option("--devices", help="List the GPUs of this machine, for --device of run.")
    ] = False,
    json: Json = False,
) -> None:
    """Describe this machine, an ONNX file or a bundle. Builds nothing.

    \b
    Examples:
      pywebgpu info                  versions, GPUs and engines found here
      pywebgpu info --device         multiply-adds, registers, caches, threads: micro-benchmarks
      pywebgpu info --devices        GPUs by number: name, backend, limits, features
      pywebgpu info model.onnx       inputs, outputs, operators
      pywebgpu info bundle --json    inputs, outputs, files
    """
    from .describe import describe, describe_device, describe_devices, describe_machine

    if (device or devices) and path is not None:
        option = "--devices" if devices else "--device"
        raise InputError(f"{option} is about this machine", got=path, remedy="Leave the path out.")
    if devices:
        facts = describe_devices()
    elif device:
        facts = describe_device()
    else:
        facts = describe_machine() if path is None else describe(path)
    if json:
        print_json(facts)
    elif devices:
        _print_devices(facts)
    else:
        print_facts(facts)


def _print_devices(facts: dict[str, Any]) -> None:
    for adapter in facts["adapters"]:
        default = ", the default" if adapter["name"] == facts["default"] else ""
        limits = adapter["limits"]
        smallest, largest = adapter["subgroup_sizes"]
        print(f"{adapter['index']}  {adapter['name']}: {adapter['kind']}{default}")
        print(f"   driver    {adapter['driver']}")
        print(
            f"   binds     {human_bytes(limits['max-storage-buffer-binding-size'])} at once; "
            f"workgroups of {limits['max-compute-invocations-per-workgroup']} with "
            f"{human_bytes(limits['max-compute-workgroup-storage-size'])}"
        )
        sizes = f" (of {smallest} to {largest})" if largest else ""
        print(f"   features  {', '.join(adapter['features']) or 'none'}{sizes}")


@app.command()
def serve(
    site: Annotated[Path, typer.Argument(help="A folder built with `site`.")],
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    base: Annotated[str, typer.Option(metavar="/PATH/", help="Sub-path to serve under.")] = "/",
    isolation: Annotated[
        bool,
        typer.Option(
            help="Send the headers for cross-origin isolation, which WebAssembly threads need."
        ),
    ] = True,
    csp: Annotated[
        bool,
        typer.Option(
            "--csp",
            help="Send a strict Content-Security-Policy; it allows the site's records service.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Serve a built site on this machine, for looking at it. Stop with Ctrl-C.

    Any static host serves a built site; nothing here is needed in production.

    \b
    Examples:
      pywebgpu serve site
      pywebgpu serve site --port 0 --csp --base /demo/
      pywebgpu serve site --no-isolation        as on a host that cannot send headers
    """
    from .serve import SiteServer, records_service, strict_csp

    _existing(site, "site")
    if not (site / "index.html").is_file():
        raise InputError(
            "is not a site: it has no index.html",
            where=str(site),
            remedy="Build one with `pywebgpu site MODEL.onnx -o SITE`.",
        )
    policy = strict_csp(records_service(site)) if csp else None
    server = SiteServer(
        site,
        host=host,
        port=port,
        isolation=isolation,
        csp=policy,
        base=base,
        log=None if json else lambda line: print(line, file=sys.stderr),
    )
    if json:
        print_json({"url": server.url, "isolated": isolation, "csp": policy})
    else:
        print(f"Serving {site} at {server.url} (stop with Ctrl-C)", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print("Browsers offer WebGPU and threads only on localhost or https.", file=sys.stderr)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
