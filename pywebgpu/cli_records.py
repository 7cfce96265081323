"""The `pywebgpu records` commands: what to do with tuning records."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Annotated

import typer

from .console import print_json
from .errors import DeviceError

records_app = typer.Typer(
    name="records",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Tuning records: what was measured of which kernel on which device.",
)


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
