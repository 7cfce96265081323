"""The console of a site's Python page, in Pyodide: statements, their values, and completions.

`web/app/console.js` is the visitor's side of it. Statements are run like the page's program: at
module level, with top-level ``await``, and in the same namespace.
"""

from __future__ import annotations

import ast
import codeop
from math import prod

from pyodide.code import eval_code_async
from pyodide.console import Console, repr_shorten

import __main__

from .executors.browser import InferenceSession, Tensor

FILENAME = "<console>"
MOST_CHARACTERS = 2000
MOST_COMPLETIONS = 40

_names = __main__.__dict__
_console = Console(globals=_names, filename=FILENAME)
_compiler = codeop.CommandCompiler()
_compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


async def prepare(url: str) -> str:
    """Put ``session``, on the bundle at `url`, and ``feeds`` of ones for it at hand, unless the
    program has defined them. Says what is there."""
    if "session" not in _names:
        _names["session"] = await InferenceSession.create(url)
    session = _names["session"]
    if "feeds" not in _names:
        _names["feeds"] = ones(session)
    return f"session: {url} on {session.provider}; feeds: {', '.join(_names['feeds'])}"


def ones(session: InferenceSession) -> dict[str, Tensor]:
    """A feed for every input: all elements 1, every size that is open 1."""
    feeds = {}
    for port in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in port.shape]
        feeds[port.name] = Tensor([1] * prod(shape), shape, port.dtype)
    return feeds


def is_complete(source: str) -> bool:
    """Is `source` to be run as it is, or may more lines follow? What is wrong is complete, too:
    running it shows the error. A block ends with an empty line."""
    lines = source.split("\n")
    if len(lines) > 1 and lines[-1][:1].isspace() and lines[-1].strip():
        return False
    try:
        return _compiler(source, FILENAME, "exec") is not None
    except (SyntaxError, ValueError, OverflowError):
        return True


async def run(source: str) -> tuple[str, str]:
    """Run `source`: ("value", its repr), ("nothing", "") or ("error", a traceback)."""
    try:
        value = await eval_code_async(source, globals=_names, filename=FILENAME)
    except SyntaxError as error:
        return "error", str(_console.formatsyntaxerror(error))
    except BaseException as error:
        return "error", str(_console.formattraceback(error))
    if value is None:
        return "nothing", ""
    _names["_"] = value
    return "value", str(repr_shorten(value, limit=MOST_CHARACTERS))


def complete(source: str) -> tuple[list[str], int]:
    """What the last word of `source` may become, and where that word starts."""
    found, start = _console.complete(source)
    names = list(dict.fromkeys(found))
    word = source[start:].rpartition(".")[2]
    if not word.startswith("_"):
        names = [name for name in names if not name.rpartition(".")[2].startswith("_")]
    return names[:MOST_COMPLETIONS], start
