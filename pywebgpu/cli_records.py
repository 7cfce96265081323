"""The `pywebgpu records` commands: what to do with tuning records."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import print_json
from .errors import DeviceError

records_app = typer.Typer(
    name="records",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Tuning records: what was measured of which kernel on which device.

    \b
    Examples:
      pywebgpu records show records.json --json
      pywebgpu records merge laptop.json phone.json -o all.json
      pywebgpu records serve --origin https://example.org
    """,
)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="FILE.json", help="The file to write.")]


@records_app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="Files of records; later ones count more.")],
    out: Out,
    json: Json = False,
) -> None:
    """Join files of records into one.

    Of two records of the same kernel, target, device and generator version the later file's timings
    count; candidates that only the earlier has are kept, scaled by what the default took.

    \b
    Examples:
      pywebgpu records merge laptop.json phone.json -o all.json
    """
    from .records import load_records, save_records
    from .records import merge as join

    joined = join(*(load_records(file, every=True) for file in files))
    save_records(out, joined)
    if json:
        print_json({"records": len(joined), "file": str(out)})
    else:
        print(f"Wrote {out}: {len(joined)} records of {len(files)} files.")


@records_app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A file of records.")],
    target: Annotated[
        str | None, typer.Option(help="Only this target: wasm-relaxed, webgpu, ...")
    ] = None,
    json: Json = False,
) -> None:
    """Say what is in a file of records: kernels, devices, winners and what they gain.

    \b
    Examples:
      pywebgpu records show records.json
      pywebgpu records show records.json --target webgpu --json
    """
    from .codegen import GENERATOR_VERSION
    from .records import load_records

    found = [r for r in load_records(file, every=True) if target in (None, r.target)]
    rows: list[dict[str, Any]] = [
        {
            "kernel": r.kernel,
            "target": r.target,
            "device": r.device,
            "current": r.generator_version == GENERATOR_VERSION,
            "candidates": len(r.candidates),
            "failed": sum(t.error is not None for t in r.candidates),
            "gain": round(1 / ratio - 1, 4) if (ratio := r.ratio(r.best)) else 0.0,
            "best": r.best,
        }
        for r in found
    ]
    if json:
        print_json({"records": rows})
        return
    for device in dict.fromkeys((r.target, r.device) for r in found):
        print(f"{device[0]} on {device[1]}")
        for row in rows:
            if (row["target"], row["device"]) == device:
                best = " ".join(f"{name}={value}" for name, value in row["best"].items())
                note = "" if row["current"] else "  (another generator version)"
                tried = f"{row['candidates']} tried, {row['failed']} failed"
                gain = f"{row['gain']:+.1%}"
                print(f"  {row['kernel'][:8]}  {gain:>8}  {tried:<22}  {best}{note}")
    print(f"{len(found)} records in {file}.")


@records_app.command()
def prune(
    file: Annotated[Path, typer.Argument(help="A file of records.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="By default in place.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Drop devices that are called so, too.")
    ] = None,
    json: Json = False,
) -> None:
    """Drop records that nothing uses any more: those of other generator versions.

    \b
    Examples:
      pywebgpu records prune records.json
      pywebgpu records prune records.json --device wasmtime -o browsers.json
    """
    from .codegen import GENERATOR_VERSION
    from .records import load_records, save_records

    before = load_records(file, every=True)
    kept = [
        r
        for r in before
        if r.generator_version == GENERATOR_VERSION and (device is None or device not in r.device)
    ]
    save_records(out or file, kept)
    if json:
        print_json({"kept": len(kept), "dropped": len(before) - len(kept)})
    else:
        print(f"Wrote {out or file}: {len(kept)} records, {len(before) - len(kept)} dropped.")


@records_app.command()
def serve(
    database: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Where to keep records: sqlite:///FILE, or postgresql+psycopg://USER:PW@HOST/NAME",
        ),
    ] = "sqlite:///records.db",
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A site whose pages may use it, such as https://example.org; repeatable.",
        ),
    ] = None,
    confirmations: Annotated[
        int, typer.Option(help="Contributors who must have measured a candidate before it counts.")
    ] = 3,
    rate: Annotated[
        str, typer.Option(help='Requests per network, such as 120/minute; "" for no limit.')
    ] = "120/minute",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8020,
    trust_proxy: Annotated[
        str,
        typer.Option(metavar="ADDRESSES", help="Proxies whose X-Forwarded-For is believed."),
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print the address as JSON.")] = False,
) -> None:
    """Run a kernel database: pages give it what tuning found, and ask it for winners.

    Nothing about a contributor is kept but a keyed hash of their network, which makes each network
    count once. Winners need --confirmations such contributors, and go by medians. Needs
    `pip install 'pywebgpu[records]'`. Ctrl-C or SIGTERM finishes what is under way and stops.

    \b
    Examples:
      pywebgpu records serve --origin https://example.org
      pywebgpu records serve --database postgresql+psycopg://me:secret@db/kernels --host 0.0.0.0 \\
          --trust-proxy 10.0.0.2
    """
    try:
        import uvicorn

        from .database.service import Settings, create_app
        from .database.store import Store
    except ImportError as error:
        raise DeviceError(
            f"the Python package {error.name} is not installed",
            where="pywebgpu records serve",
            remedy="Install what the service needs with `pip install 'pywebgpu[records]'`",
        ) from error
    settings = Settings(tuple(origin or ()), confirmations, rate)
    app = create_app(Store(database), settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        proxy_headers=bool(trust_proxy),
        forwarded_allow_ips=trust_proxy or None,
        server_header=False,
        timeout_graceful_shutdown=20,
        limit_concurrency=1000,
    )
    listener = config.bind_socket()
    listener.listen(config.backlog)  # before its address is told: who reads it may connect at once
    url = f"http://{host}:{listener.getsockname()[1]}/"
    if json:
        print_json({"url": url, "database": database.split("@")[-1]})
    else:
        print(f"Kernel records at {url} (see {url}docs; stop with Ctrl-C)")
    sys.stdout.flush()
    server = uvicorn.Server(config)
    # The server stops in order and then repeats the signal: that is its end, not an interruption.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
