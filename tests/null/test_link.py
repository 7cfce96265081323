"""Linking of the browser runtime: what is refused, and that nothing of the sources is lost.

That the linked runtime works is what all tests in tests/web show: they run on it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pywebgpu.link import LinkError, link, write_runtime

WEB = Path(__file__).parents[2] / "web"


def linked(tmp_path: Path, **sources: str) -> str:
    """The text of `main` linked; keyword arguments are modules by name."""
    source, out = tmp_path / "web", tmp_path / "out"
    (source / "linked").mkdir(parents=True)
    out.mkdir()
    for template in (WEB / "linked").iterdir():
        (source / "linked" / template.name).write_bytes(template.read_bytes())
    for name, text in sources.items():
        (source / f"{name}.js").write_text(text)
    link(source / "main.js", out)
    return (out / "main.js").read_text()


def test_modules_come_before_those_that_import_them(tmp_path: Path) -> None:
    text = linked(
        tmp_path,
        main='import { b } from "./b.js";\nimport "./a.js";\nexport const c = b;\n',
        b='import {\n  a as other,\n} from "./a.js";\nexport const b = other;\n',
        a="/** One. */\nexport const a = 1; // not two\n// three\n",
    )
    order = ["const a = 1; // not two", "const { a: other, } = $a;", "const { b } = $b;"]
    places = [text.index(line) for line in order]
    assert places == sorted(places)
    assert "One." not in text
    assert "three" not in text
    assert (tmp_path / "out" / "a.js").read_text().endswith("export const { a } = $a;\n")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ('import a from "./a.js";', "cannot be linked"),
        ('import * as a from "./a.js";', "cannot be linked"),
        ("export default 1;", "cannot be linked"),
        ("export let a = 1;", "cannot be linked"),
        ('export * from "./a.js";', "cannot be linked"),
        ("const text = `\n// not a comment`;", "over several lines"),
        ('import { a } from "./main.js";', "in a circle"),
    ],
)
def test_unknown_forms_are_refused(tmp_path: Path, source: str, reason: str) -> None:
    with pytest.raises(LinkError, match=reason):
        linked(tmp_path, main=f"{source}\n", a="export const a = 1;\n")


def test_the_runtime_is_one_file_that_offers_what_its_sources_export(tmp_path: Path) -> None:
    write_runtime(WEB, tmp_path)
    text = (tmp_path / "pywebgpu.js").read_text()
    assert not re.search(r"^import\b", text, re.M)
    assert not (tmp_path / "manifest.schema.json").exists()
    for source in WEB.glob("*.js"):
        names = r"^export (?:class|function|async function|const) (\w+)"
        exported = re.findall(names, source.read_text(), re.M)
        part = (tmp_path / source.name).read_text()
        assert all(re.search(rf"\b{name}\b", part) for name in exported), source
