"""The browser runtime as a site carries it: its modules linked into one file.

    write_runtime(web, site)

A browser spends about five milliseconds of processor time on every module that it has to ask for,
however small, so a dozen of them cost more than the largest one's code. In `pywebgpu.js` of a site
each module is a function scope that returns its exports, in the order of the imports, without its
comments. The other modules' names stay importable, so that a script of the site may go on naming
the one it needs; it gets the same classes.

This is no JavaScript parser. It knows the forms that the runtime's sources use, one statement per
line at the first column, and refuses all others by raising LinkError:

    import { a, b as c } from "./x.js";      export { a, b } from "./x.js";
    import x from "./x.json" with { type: "json" };
    export class A ..., export function a ..., export async function a ..., export const a ...
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

_IMPORT = re.compile(r'import (?:\{(?P<names>[^}]*)\} from )?"(?P<path>\./[\w.-]+\.js)";$')
_JSON = re.compile(
    r'import (?P<name>\w+) from "(?P<path>\./[\w.-]+\.json)" with \{ type: "json" \};$'
)
_FORWARD = re.compile(r'export \{(?P<names>[^}]*)\} from "(?P<path>\./[\w.-]+\.js)";$')
_DECLARATION = re.compile(
    r"export ((?:class|function|async function|const) (?P<name>\w+).*)$", re.S
)


class LinkError(Exception):
    """A source of the runtime has a form that linking does not know: the sources are at fault."""


@dataclass
class Module:
    """One source file: what it imports by statement, its text, and the names that it exports."""

    name: str
    scope: str
    imports: list[str] = field(default_factory=list)
    forwards: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)


def write_runtime(web: Path, out: Path) -> None:
    """Write the runtime of the folder `web` to `out`: linked, beside the scripts of its workers.

    Pages and Python are left out, and types, since no browser reads them.
    """
    left_out = shutil.ignore_patterns(
        "app", "linked", "py", "testing", "vendor", "*.d.ts", "*.json", "*.py", "__pycache__"
    )
    shutil.copytree(web, out, ignore=left_out, dirs_exist_ok=True)
    link(web / "pywebgpu.js", out)


def link(entry: Path, out: Path) -> None:
    """Write `entry` with all that it imports to the folder `out`, under the names they had."""
    modules: dict[str, Module] = {}
    _read(entry.parent, entry.name, modules, ())
    main = modules[entry.name]
    absorbed = [module for module in modules.values() if module is not main]
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(entry.parent / "linked"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def write(name: str, template: str, **values: object) -> None:
        text = templates.get_template(template).render(**values)
        (out / name).write_text(text, encoding="utf-8")

    write(entry.name, "runtime.js.j2", modules=absorbed, main=main)
    for module in absorbed:
        if module.exports:
            write(module.name, "module.js.j2", module=module, main=main)


def _read(folder: Path, name: str, modules: dict[str, Module], path: tuple[str, ...]) -> Module:
    """The module `name`, entered into `modules` behind all that it imports."""
    if name in modules:
        return modules[name]
    if name in path:
        raise LinkError(f"modules import each other in a circle: {' -> '.join([*path, name])}")
    module = Module(name, "$" + re.sub(r"\W", "_", name.removesuffix(".js")))
    for statement in _statements((folder / name).read_text(encoding="utf-8"), name):
        if found := _JSON.match(statement):
            data = json.loads((folder / found["path"]).read_text(encoding="utf-8"))
            module.lines.append(f"const {found['name']} = {json.dumps(data, ensure_ascii=True)};")
        elif found := _IMPORT.match(statement) or _FORWARD.match(statement):
            scope = _read(folder, found["path"][2:], modules, (*path, name)).scope
            if found["names"] is not None:
                names = " ".join(found["names"].replace(" as ", ": ").split())
                forward = statement.startswith("export")
                (module.forwards if forward else module.imports).append(f"{{ {names} }} = {scope}")
        elif found := _DECLARATION.match(statement):
            module.exports.append(found["name"])
            module.lines.append(found[1])
        elif statement.startswith(("import ", "export ")):
            raise LinkError(f"{name}: a form that cannot be linked: {statement}")
        else:
            module.lines.append(statement)
    modules[name] = module
    return module


def _statements(text: str, name: str) -> Iterator[str]:
    """The lines of a module without comments; an import over several lines counts as one."""
    lines = iter(text.splitlines())
    for line in lines:
        rest = line.strip()
        while rest.startswith("/*"):
            while "*/" not in rest:
                rest = next(lines)
            rest = rest.partition("*/")[2].strip()
            line = rest
        if not rest or rest.startswith("//"):
            continue
        if line.count("`") % 2:
            raise LinkError(f"{name}: a text over several lines may hold what looks like a comment")
        if re.match(r"(import|export) \{[^}]*$", line):
            while "}" not in line:
                line += " " + next(lines).strip()
        yield line
