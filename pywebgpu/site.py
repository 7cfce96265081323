"""`pywebgpu site`: models and bundles to a folder that any static host can serve.

    build_site(["digits.onnx", "bundles/minilm"], "site")

The folder works from any sub-path, without special headers, under a strict Content-Security-Policy
that every page also carries itself, and asks no other origin but a records service that is named:

    index.html, NAME.html           pages, from web/app/pages/*.html.j2
    own.html                        runs a bundle that the visitor has
    app/                            their scripts and styles
    site-worker.js                  for threads on hosts without headers and for use without a
                                    network, if the visitor wants
    pywebgpu.js, ...                the browser runtime, linked into one file
    models/NAME/                    one bundle per model
    data/NAME/                      what a model's page needs beside it (samples, a tokenizer)
    vendor/                         browser libraries that pages use
    site.json                       what is in the site; also marks the folder as ours
    py/                             Pyodide and the Python console, if wanted
    vendor/onnxruntime-web/         what pages compare with, if wanted, and data/NAME/model.onnx
                                    for it

Which page a model gets is said by a *card*, a JSON file beside it: for ``digits.onnx`` or for the
bundle folder ``digits`` it is ``digits.site.json``, {"title", "label", "summary", "page", "files"}.
A model without a card gets the page for any model.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import jinja2

from . import __version__
from .codegen.dims import dim_from_json, dim_str
from .console import human_bytes
from .errors import BundleError, InputError
from .link import write_runtime
from .serve import origin
from .vendored import (
    ONNX_RUNTIME_WEB,
    PYODIDE,
    TOKENIZERS,
    UPLOT,
    NpmPackage,
    copy_files,
    package_folder,
)

ProgressFunction = Callable[[str, int, int], None]
Pyodide = Literal["local", "cdn", "none"]

MARKER = "site.json"
ONNX_FILE = "model.onnx"
# A path and not importlib.resources: web/ is a folder of files, not a package, and is copied whole.
_PACKAGE = Path(__file__).parent
_PYODIDE_CDN = f"https://cdn.jsdelivr.net/pyodide/v{PYODIDE.version}/full/"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
# Scheme, host, port and path: nothing that could end a policy's directive, nor a name and password.
_ADDRESS = re.compile(r"https?://([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?(/[\w./~-]*)?", re.ASCII)
# Page names and folders of the site itself.
_RESERVED = {"index", "own", "python", "app", "models", "data", "vendor", "py"}


@dataclass(frozen=True)
class PageKind:
    """A page template and what it needs in the site beside the model."""

    template: str
    icon: str
    vendored: tuple[NpmPackage, ...] = ()


PAGES = {
    "digits": PageKind("digits.html.j2", "digits.svg"),
    "picture": PageKind("picture.html.j2", "picture.svg"),
    "search": PageKind("search.html.j2", "search.svg", (TOKENIZERS,)),
    "model": PageKind("model.html.j2", "model.svg"),
}


@dataclass(frozen=True)
class Card:
    """What the site says about a model, and which page it gets."""

    title: str
    label: str
    summary: str
    page: str = "model"
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One model on its way into the site."""

    name: str
    source: Path
    card: Card


def build_site(
    inputs: Iterable[str | Path],
    out: str | Path,
    *,
    pyodide: Pyodide = "local",
    compare: bool = False,
    records: str | None = None,
    progress: ProgressFunction | None = None,
) -> Path:
    """Write the site for `inputs` (ONNX files and bundles) to the folder `out`; returns `out`.

    pyodide: "local" copies Pyodide into the site, "cdn" lets the Python page fetch it from its
    content network, "none" leaves Python out.
    compare: pages can run ONNX Runtime Web beside ours; its files (58 MB) and the ONNX files that
    were given become part of the site.
    records: the address of a records service (`pywebgpu records serve`), which tuning then asks for
    what won elsewhere, and which visitors can choose to tell; the pages' policy names its origin.
    progress: called as progress(label, done, total).

    `out` may be missing, empty, or a site that this function wrote, which is then replaced in one
    step; an error leaves it as it was. Raises InputError for anything else, and the errors of
    export for models.
    """
    report = progress or (lambda label, done, total: None)
    target = Path(out)
    _check_target(target)
    entries = _entries([Path(item) for item in inputs])
    if pyodide not in ("local", "cdn", "none"):
        raise InputError(
            "unknown option", where="pyodide", got=pyodide, expected="local, cdn, none"
        )
    service = service_url(records) if records is not None else ""
    if service and pyodide == "none":
        raise InputError(
            "a records service without Python, which tuning needs",
            where="records",
            got=records,
            remedy="Leave Python in the site, or the service out.",
        )

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename within one file system.
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        stage.chmod(0o755)
        for done, entry in enumerate(entries):
            report(f"model {entry.name}", done, len(entries) + 2)
            _add_model(entry, stage)
            if compare:
                _add_onnx(entry, stage)
        report("pages", len(entries), len(entries) + 2)
        has_python = _add_python(stage, pyodide)
        _add_runtime(stage, has_python=has_python)
        if compare:
            copy_files(ONNX_RUNTIME_WEB, stage / "vendor")
        _add_pages(
            entries,
            stage,
            pyodide=pyodide,
            has_python=has_python,
            compare=compare,
            records=service,
        )
        _replace(stage, target)
        report("done", len(entries) + 2, len(entries) + 2)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return target


# ---------------------------------------------------------------- what goes in


def _entries(inputs: list[Path]) -> list[Entry]:
    if not inputs:
        raise InputError(
            "a site needs at least one model", remedy="Name ONNX files or bundles made by `export`."
        )
    entries: dict[str, Entry] = {}
    for path in inputs:
        if not path.exists():
            raise InputError("no such file or folder", where=str(path), remedy="Check the path.")
        if path.is_dir() and not (path / "manifest.json").is_file():
            raise InputError(
                "not a bundle: it has no manifest.json",
                where=str(path),
                remedy="Name an ONNX file, or a folder made by `pywebgpu export`.",
            )
        stem = path.resolve().name if path.is_dir() else path.stem
        name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or "model"
        if name in _RESERVED:
            name = f"{name}-model"
        assert _NAME.fullmatch(name)
        if name in entries:
            raise InputError(
                "two models would have the same name in the site",
                where=f"{path} and {entries[name].source}",
                got=name,
                remedy="Rename one of them.",
            )
        entries[name] = Entry(name, path, _card(path.resolve(), stem))
    return list(entries.values())


def _card(path: Path, stem: str) -> Card:
    """The card beside `path`, or a plain one."""
    file = path.with_name(f"{stem}.site.json")
    if not file.is_file():
        summary = "Compiled from ONNX. Run it on random input and see how long it takes here."
        return Card(title=stem, label=stem, summary=summary)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError("not JSON", where=str(file), got=str(error)) from error
    known = {"title", "label", "summary", "page", "files"}
    if not isinstance(values, dict) or not set(values) <= known:
        got = ", ".join(sorted(set(values) - known)) if isinstance(values, dict) else "no object"
        raise InputError(
            "not a model's card", where=str(file), got=got, expected=", ".join(sorted(known))
        )
    page = values.get("page", "model")
    if page not in PAGES:
        raise InputError("no such page", where=f"{file}, page", got=page, expected=", ".join(PAGES))
    extra = tuple(file.parent / name for name in values.get("files", []))
    for item in extra:
        if not item.is_file():
            raise InputError("a file that the card names is missing", where=str(item))
    title = str(values.get("title", stem))
    return Card(title, str(values.get("label", title)), str(values.get("summary", "")), page, extra)


def _check_target(target: Path) -> None:
    """Refuse to replace anything but an empty folder or a site of ours."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise InputError("there is a file in the way", where=str(target), expected="a folder")
    if (target / MARKER).is_file() and (target / "index.html").is_file():
        return
    if any(target.iterdir()):
        raise InputError(
            "the output folder holds other files",
            where=str(target),
            expected="a new folder, an empty one, or a site made by this command",
            remedy="Choose another folder with -o.",
        )


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write the site: {error.strerror or error}",
        where=str(target),
        remedy="Check the folder's permissions and the free space.",
    )


# ---------------------------------------------------------------- what comes out


def _add_model(entry: Entry, stage: Path) -> None:
    folder = stage / "models" / entry.name
    if entry.source.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(entry.source, folder)
    else:
        # The compiler's packages are only needed for ONNX files.
        from .export import export

        folder.parent.mkdir(parents=True, exist_ok=True)
        export(entry.source, folder)
    for item in entry.card.files:
        data = stage / "data" / entry.name
        data.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(item, data / item.name)
    for package in PAGES[entry.card.page].vendored:
        copy_files(package, stage / "vendor")


def _add_onnx(entry: Entry, stage: Path) -> None:
    """The ONNX file itself, in one piece; without it, and beyond ONNX's 2 GB, nothing."""
    if entry.source.is_dir():
        return
    import onnx

    try:
        # Weights that lie in other files are read in.
        content = onnx.load(entry.source).SerializeToString()
    except ValueError:
        return
    target = stage / "data" / entry.name / ONNX_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def _add_runtime(stage: Path, *, has_python: bool) -> None:
    """The runtime and the pages' scripts; what is below py/ comes with the Python side."""
    web = _PACKAGE / "web"
    write_runtime(web, stage)
    shutil.copytree(web / "app", stage / "app", ignore=shutil.ignore_patterns("pages"))
    if not has_python:
        (stage / "app" / "python.js").unlink()
    # A service worker reaches the folder that it lies in, so it has to lie in the first one.
    (stage / "app" / "site-worker.js").rename(stage / "site-worker.js")


def _add_python(stage: Path, pyodide: Pyodide) -> bool:
    """Add Pyodide and our Python archive; False when they are left out."""
    if pyodide == "none" or importlib.util.find_spec("pywebgpu.pyodide_archive") is None:
        return False
    archive: Any = importlib.import_module("pywebgpu.pyodide_archive")
    source = package_folder(PYODIDE) if pyodide == "local" else _PYODIDE_CDN
    archive.build(stage, source)
    copy_files(UPLOT, stage / "vendor")
    return True


def service_url(text: str) -> str:
    """A service's address with a slash at its end; InputError for what is none."""
    try:
        parts = urlsplit(text)
        fits = _ADDRESS.fullmatch(text) and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits:
        raise InputError(
            "not the address of a records service",
            where="records",
            got=text,
            expected="such as https://records.example.org/",
        )
    return text.rstrip("/") + "/"


def content_security_policy(pyodide: Pyodide, service: str = "") -> str:
    """The policy that every page of the site carries: our own origin, and no code from strings.

    service: the address of a records service that pages may ask too.
    """
    elsewhere = " https://cdn.jsdelivr.net" if pyodide == "cdn" else ""
    asked = f" {origin(service)}" if service else ""
    return (
        f"default-src 'self'; script-src 'self' 'wasm-unsafe-eval'{elsewhere}; "
        f"worker-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"connect-src 'self'{elsewhere}{asked}; object-src 'none'; base-uri 'none'; "
        f"form-action 'none'"
    )


def _add_pages(
    entries: list[Entry],
    stage: Path,
    *,
    pyodide: Pyodide,
    has_python: bool,
    compare: bool,
    records: str,
) -> None:
    models = [_model_view(entry, stage) for entry in entries]
    nav = [{"href": "index.html", "label": "Home"}]
    nav += [{"href": model["href"], "label": model["label"]} for model in models]
    nav.append({"href": "own.html", "label": "Your model"})
    if has_python:
        nav.append({"href": "python.html", "label": "Python"})

    app = _PACKAGE / "web" / "app"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([app / "pages", app / "icons"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {
        "csp": content_security_policy(pyodide, records),
        "nav": nav,
        "version": __version__,
        "models": models,
        "has_python": has_python,
        "python_size": _short(sum(f.stat().st_size for f in (stage / "py").rglob("*.*"))),
        "compare": ONNX_RUNTIME_WEB.version if compare else "",
        "records": records,
        "records_origin": origin(records) if records else "",
    }

    def write(template: str, href: str, title: str, description: str, **more: object) -> None:
        page = {"href": href, "title": title, "description": description}
        text = environment.get_template(template).render(page=page, **more)
        (stage / href).write_text(text, encoding="utf-8")

    about = "ONNX models compiled for this browser: WebGPU and WebAssembly."
    write("index.html.j2", "index.html", "Models", about)
    for entry, model in zip(entries, models, strict=True):
        template = PAGES[entry.card.page].template
        write(template, model["href"], model["title"], model["summary"], model=model)
    own = "Run a model that you have compiled yourself, in this page."
    write("own.html.j2", "own.html", "Your model", own, model={"bundle": "", "onnx": ""})
    if has_python:
        write("python.html.j2", "python.html", "Python", about)

    _add_contents(models, stage, records)


def _add_contents(models: list[dict[str, Any]], stage: Path, records: str) -> None:
    """site.json: the models, every file with its bytes for a visitor who keeps the site, and the
    records service for `serve`.

    Files that a manifest lists belong to its bundle, and count there. What pages compare with is
    not kept.
    """
    listed = ("name", "title", "href", "bundle", "bytes")
    apart = {stage / model["bundle"] / name for model in models for name in model["files"]}
    apart |= {stage / model["onnx"] for model in models if model["onnx"]}
    apart |= set((stage / "vendor" / "onnxruntime-web").rglob("*"))
    files = {
        path.relative_to(stage).as_posix(): path.stat().st_size
        for path in sorted(stage.rglob("*"))
        if path.is_file() and path not in apart
    }
    contents = {
        "generator": "pywebgpu",
        "version": __version__,
        "records": records,
        "models": [{key: model[key] for key in listed} for model in models],
        "files": files,
    }
    (stage / MARKER).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def _short(count: int) -> str:
    """A size without idle digits: "220 kB", "1.4 MB"."""
    return human_bytes(count).replace(".0 ", " ")


def _model_view(entry: Entry, stage: Path) -> dict[str, Any]:
    """What templates see of a model; links are relative to the site's first folder."""
    onnx = f"data/{entry.name}/{ONNX_FILE}"
    return {
        **_read_manifest(stage / "models" / entry.name),
        "name": entry.name,
        "title": entry.card.title,
        "label": entry.card.label,
        "summary": entry.card.summary,
        "icon": PAGES[entry.card.page].icon,
        "href": f"{entry.name}.html",
        "bundle": f"models/{entry.name}/",
        "data": f"data/{entry.name}/",
        "onnx": onnx if (stage / onnx).is_file() else "",
    }


def _read_manifest(bundle: Path) -> dict[str, Any]:
    """What a bundle's manifest tells a page's reader: inputs, outputs, symbols, size."""
    try:
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        sizes = {name: int(file["bytes"]) for name, file in manifest["files"].items()}
        # Loaded before the first answer: the weights and the code for one target.
        shards = sum(sizes[name] for name in manifest["weights"]["shards"])
        code = [sizes[variant["file"]] for variant in manifest["wasm"]["variants"]]
        inputs = [_port(port) for port in manifest["inputs"]]
        sizes_of_inputs = [dim for port in inputs for dim in port["shape"]]
        return {
            "inputs": inputs,
            "outputs": [_port(port) for port in manifest["outputs"]],
            "symbols": [dim for dim in dict.fromkeys(sizes_of_inputs) if not dim.isdigit()],
            "size": _short(shards + max(code, default=0)),
            "files": list(sizes),
            "bytes": sum(sizes.values()),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            "the manifest is not readable",
            where=str(bundle / "manifest.json"),
            got=repr(error),
            remedy="Export the model again.",
        ) from error


def _port(port: dict[str, Any]) -> dict[str, Any]:
    shape = [dim_str(dim_from_json(dim)) for dim in port["shape"]]
    is_float = "float" in port["dtype"]
    return {"name": port["name"], "type": port["dtype"], "shape": shape, "is_float": is_float}


def _replace(stage: Path, target: Path) -> None:
    """Put the finished site in place of the old one."""
    if not target.exists():
        stage.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(old / "site")
    try:
        stage.rename(target)
    except OSError:
        (old / "site").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
