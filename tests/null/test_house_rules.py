"""Rules that keep the parts apart, checked on the source: no device and no model is needed."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ("pywebgpu", "codegen", "shaders")
NOT_IN_PYODIDE = ("numpy", "onnx", "wgpu", "wasmtime", "typer", "rich", "jsonschema", "markupsafe")


def python_files(*folders: str) -> list[Path]:
    """Python files below the folders; links (pywebgpu/codegen and so on) are not followed."""
    found: list[Path] = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if not any((ROOT / parent).is_symlink() for parent in relative.parents):
                found.append(path)
    return found


def module_name(path: Path) -> str:
    """`codegen` is a package inside `pywebgpu`, by a link."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "pywebgpu" else ("pywebgpu", *parts)
    return ".".join(parts).removesuffix(".__init__")


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of what a library file imports: modules, each with every name taken from it,
    since that may be a module too. Imports inside functions and for types count."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", python_files("codegen"), ids=lambda p: str(p.relative_to(ROOT)))
def test_codegen_imports_only_the_standard_library_and_jinja2(path: Path) -> None:
    """It runs in Pyodide in the visitor's browser, where little else exists."""
    for module in imported_modules(path):
        inside = module == "pywebgpu.codegen" or module.startswith("pywebgpu.codegen.")
        top = module.split(".")[0]
        assert inside or top in sys.stdlib_module_names or top == "jinja2", (
            f"{path.relative_to(ROOT)} imports {module}; codegen may import the standard library, "
            "Jinja2 and itself"
        )


def test_library_imports_have_no_circle() -> None:
    files = {module_name(path): path for path in python_files("pywebgpu", "codegen")}
    imports = {
        name: {
            m for m in imported_modules(path) if m in files and not f"{name}.".startswith(f"{m}.")
        }
        for name, path in files.items()
    }
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"these import one another: {' -> '.join(error.args[1][::-1])}")


def run_without(modules: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new Python in which importing one of `modules` fails."""
    blocker = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
"""
    return subprocess.run(
        [sys.executable, "-c", blocker + code], capture_output=True, text=True, cwd=ROOT
    )


def test_importing_pywebgpu_loads_no_third_party_package() -> None:
    code = """
import pywebgpu, pywebgpu.errors
assert pywebgpu.__version__
assert issubclass(pywebgpu.InputError, pywebgpu.PywebgpuError)
assert "InferenceSession" in dir(pywebgpu)
"""
    result = run_without((*NOT_IN_PYODIDE, "jinja2"), code)
    assert result.returncode == 0, result.stderr


def test_codegen_works_with_nothing_but_jinja2() -> None:
    """MarkupSafe's compiled half is missing in Pyodide too, but its Python half is there."""
    names = sorted(
        "pywebgpu." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in python_files("codegen")
        if path.name != "__init__.py"
    )
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    blocked = tuple(name for name in NOT_IN_PYODIDE if name != "markupsafe")
    result = run_without(blocked, code)
    assert result.returncode == 0, result.stderr


def test_unknown_attribute_is_an_attribute_error() -> None:
    import pywebgpu

    with pytest.raises(AttributeError, match="nonsense"):
        _ = pywebgpu.nonsense


def docstrings(tree: ast.AST) -> set[int]:
    """ids of the string nodes that are statements of their own."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


# Spellings that JavaScript has and WGSL, Python and plain English do not.
JAVASCRIPT = re.compile(
    r"=>|===|\bfunction\s*\w*\(|\b(document|window|navigator|globalThis)\.|\bnew [A-Z]\w+\(|<script"
)


def test_python_writes_no_javascript() -> None:
    for path in python_files(*LIBRARY):
        tree = ast.parse(path.read_text())
        text_is_documentation = docstrings(tree)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in text_is_documentation
            ):
                found = JAVASCRIPT.search(node.value)
                assert not found, (
                    f"{path.relative_to(ROOT)}:{node.lineno}: JavaScript in a string: {found}"
                )


def test_javascript_knows_no_operators() -> None:
    """The runtime plays a plan; what the steps compute is none of its business."""
    import onnx

    operators = {schema.name for schema in onnx.defs.get_all_schemas()}
    for path in sorted((ROOT / "web").glob("*.js")):
        literals = re.findall(r"""(["'`])(\w+)\1""", path.read_text())
        named = {text for _, text in literals} & operators
        assert not named, f"{path.relative_to(ROOT)} names operators: {sorted(named)}"


def test_every_module_says_what_it_is_for() -> None:
    for path in python_files("pywebgpu", "codegen", "tests", "examples"):
        source = path.read_text()
        if source.strip():
            assert ast.get_docstring(ast.parse(source)), f"{path.relative_to(ROOT)}: no docstring"
