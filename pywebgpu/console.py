"""What the command line's commands share: where text goes, progress bars, errors, exit codes.

Results go to stdout, as text or, with `--json`, as one JSON object. All else (progress, warnings,
errors) goes to stderr. Exit codes: 0 done; 2 the user can fix it; 1 a bug of ours; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import PywebgpuError

#: `progress(label, done, total)`: called from long work, any number of times.
ProgressFunction = Callable[[str, int, int], None]

EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout, on one line, flushed at once."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def human_bytes(count: int) -> str:
    """1234567 -> "1.2 MB" (decimal units, as browsers and hosts count)."""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.95 or unit == "TB":
            return f"{size:.1f} {unit}"
    raise AssertionError("unreachable")


def human_ms(milliseconds: float) -> str:
    """Three significant digits and a unit: "0.412 ms", "38.1 ms", "1.24 s"."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms"


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """A nested JSON object as indented lines; values of the same object start in one column."""
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{key}")
            print_facts(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"{indent}{key}")
            for entry in value:
                print(f"{indent}  {_one_line(entry)}")
        else:
            print(f"{indent}{key:<{width}}  {_one_line(value)}")


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        name, dtype, shape = (value.get(key) for key in ("name", "dtype", "shape"))
        if name is not None and dtype is not None:
            return f"{name}: {dtype}{_one_line(shape)}"
        return ", ".join(f"{key}={_one_line(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return "[" + ", ".join(map(_one_line, value)) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[ProgressFunction]:
    """A bar on stderr while the block runs; silent when `quiet` or when stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda label, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)

        def tell(label: str, done: int, total: int) -> None:
            bar.update(task, description=label, completed=done, total=total or None)

        yield tell


def _print_error(title: str, error: BaseException | None, details: dict[str, Any]) -> None:
    """To stderr for people; with `--json` on the command line also as JSON to stdout."""
    print(f"pywebgpu: {title}", file=sys.stderr)
    if error is not None and os.environ.get("PYWEBGPU_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    if "--json" in sys.argv:
        print_json({"error": details})


def _plain_details(error: BaseException) -> dict[str, Any]:
    return {"type": type(error).__name__, "what": str(error)}


def run_guarded(main: Callable[[], object]) -> int:
    """Run `main`; turn what it raises into a message without a traceback, and an exit code."""
    try:
        main()
        return 0
    except PywebgpuError as error:
        _print_error(f"error: {error}", error, error.to_json())
        return error.exit_code
    except KeyboardInterrupt:
        print("pywebgpu: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`pywebgpu info | head`); nothing is left to say, even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BUG
    except MemoryError as error:
        _print_error("error: not enough memory for this model", error, _plain_details(error))
        return EXIT_USER_ERROR
    except OSError as error:
        # A full disk or a missing permission is for the user to fix, wherever it struck.
        where = f"{error.filename}: " if error.filename else ""
        _print_error(
            f"error: {where}{error.strerror or error}. Check the path, its permissions and the "
            "free space.",
            error,
            _plain_details(error),
        )
        return EXIT_USER_ERROR
    except Exception as error:
        hint = (
            ""
            if os.environ.get("PYWEBGPU_DEBUG")
            else " Set PYWEBGPU_DEBUG=1 to see where it happened."
        )
        _print_error(
            f"internal error: {type(error).__name__}: {error}\n"
            f"This is a bug in pywebgpu, not in your model or command.{hint}",
            error,
            _plain_details(error),
        )
        return EXIT_BUG
