"""`build_site`: what it writes, what it refuses, and that a failure leaves nothing behind."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pywebgpu import site as site_module
from pywebgpu.errors import InputError
from pywebgpu.site import build_site
from tests.web import mini

WEB = Path(__file__).parents[2] / "web"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    mini.write(tmp_path / "in" / "mini")
    return tmp_path / "in" / "mini"


def snapshot(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Links(HTMLParser):
    """Every href and src, every attribute or element that a strict policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.forbidden: list[str] = []
        self.script_open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [v for k, v in attrs if k in ("href", "src") and v is not None]
        if tag == "style" or (tag == "script" and "src" not in values):
            self.forbidden.append(f"<{tag}>")
        self.forbidden += [k for k in values if k == "style" or k.startswith("on")]


def test_pages_have_only_relative_links_that_exist(bundle: Path, tmp_path: Path) -> None:
    out = build_site([bundle], tmp_path / "out", pyodide="none")
    pages = list(out.glob("*.html"))
    assert {page.name for page in pages} == {"index.html", "mini.html", "own.html"}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        parser = Links()
        parser.feed(text)
        assert parser.forbidden == []
        for link in parser.links:
            assert not re.match(r"[a-z]+:|/", link), f"{page.name}: {link} is not relative"
            assert link.startswith("#") or (out / link).exists(), f"{page.name}: {link} is dead"
        assert 'http-equiv="Content-Security-Policy"' in text
        bundle_link = re.search(r'data-bundle="([^"]+)"', text)
        assert bundle_link is None or (out / bundle_link[1] / "manifest.json").is_file()


def test_scripts_import_what_the_site_has(bundle: Path, tmp_path: Path) -> None:
    out = build_site([bundle], tmp_path / "out", pyodide="none")
    for script in out.rglob("*.js"):
        for target in re.findall(r'^(?:import|export) .*"(\.[^"]+)";', script.read_text(), re.M):
            assert (script.parent / target).is_file(), f"{script}: imports {target}"


def test_same_input_same_bytes(bundle: Path, tmp_path: Path) -> None:
    first = snapshot(build_site([bundle], tmp_path / "a", pyodide="none"))
    assert first == snapshot(build_site([bundle], tmp_path / "b", pyodide="none"))


def test_replaces_its_own_site(bundle: Path, tmp_path: Path) -> None:
    out = build_site([bundle], tmp_path / "out", pyodide="none")
    (out / "old.html").write_text("left from before")
    build_site([bundle], out, pyodide="none")
    assert not (out / "old.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_refuses_a_folder_with_other_files(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        build_site([bundle], tmp_path / "out", pyodide="none")
    assert snapshot(tmp_path / "out") == {"thesis.txt": b"years of work"}


def test_a_failure_leaves_the_old_site(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = build_site([bundle], tmp_path / "out", pyodide="none")
    before = snapshot(out)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site_module, "_add_pages", full)
    with pytest.raises(InputError, match="No space left"):
        build_site([bundle], out, pyodide="none")
    assert snapshot(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a model's card"),
        ('{"titel": "x"}', "titel"),
        ('{"page": "chat"}', "no such page"),
        ('{"files": ["missing.json"]}', "missing"),
    ],
)
def test_wrong_cards(bundle: Path, tmp_path: Path, card: str, message: str) -> None:
    bundle.with_name("mini.site.json").write_text(card)
    with pytest.raises(InputError, match=message):
        build_site([bundle], tmp_path / "out", pyodide="none")
    assert not (tmp_path / "out").exists()


def test_wrong_inputs(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="at least one model"):
        build_site([], tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        build_site([tmp_path / "nothing.onnx"], tmp_path / "out")
    with pytest.raises(InputError, match=r"no manifest\.json"):
        build_site([tmp_path / "empty"], tmp_path / "out")
    shutil.copytree(bundle, tmp_path / "other" / "mini")
    with pytest.raises(InputError, match="same name"):
        build_site([bundle, tmp_path / "other" / "mini"], tmp_path / "out")
    with pytest.raises(InputError, match="pyodide"):
        build_site([bundle], tmp_path / "out", pyodide="maybe")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file in the way"):
        build_site([bundle], tmp_path / "file", pyodide="none")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "records.example.org",
        "ftp://records.example.org/",
        "https://me:secret@records.example.org/",
        "https://records.example.org:99999/",
        "https://records.example.org/; script-src *",
        'https://records.example.org/"><b>',
        "https://records.example.org/?q=1",
    ],
)
def test_what_is_no_records_service(bundle: Path, tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="not the address of a records service"):
        build_site([bundle], tmp_path / "out", records=url)
    with pytest.raises(InputError, match="without Python"):
        build_site([bundle], tmp_path / "out", records="https://a.org", pyodide="none")
    assert not (tmp_path / "out").exists()


def test_names_are_safe_in_links(bundle: Path, tmp_path: Path) -> None:
    odd = bundle.rename(bundle.with_name("Größe & <b>Co"))
    out = build_site([odd], tmp_path / "out", pyodide="none")
    (model,) = json.loads((out / "site.json").read_text())["models"]
    assert re.fullmatch(r"[a-z0-9.-]+\.html", model["href"])
    assert (out / model["bundle"] / "manifest.json").is_file()
    assert "<b>Co" not in (out / "index.html").read_text(encoding="utf-8")


def test_a_missing_library_says_how_to_get_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.with_name("mini.site.json").write_text('{"page": "search"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYWEBGPU_NODE_MODULES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"npm.*missing.*PYWEBGPU_NODE_MODULES"):
        build_site([bundle], tmp_path / "out", pyodide="none")
    assert not (tmp_path / "out").exists()
