"""docs/adding-an-operator.md shows code that is really there, and no more of it than it says."""

from __future__ import annotations

import re
from pathlib import Path

from pywebgpu.lower.engine import LOWERINGS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/adding-an-operator.md").read_text()
DIFFS = re.findall(r"```diff\n--- a/(\S+)\n\+\+\+ b/(\S+)\n(.*?)```", PAGE, re.S)


def test_the_diffs_are_in_the_repository() -> None:
    assert len(DIFFS) == 3
    for before, after, body in DIFFS:
        assert before == after
        added = "".join(line.removeprefix("+") + "\n" for line in body.splitlines())
        assert added in (ROOT / after).read_text(), after


def test_the_example_takes_at_most_40_lines() -> None:
    assert sum(len(body.splitlines()) for _, _, body in DIFFS) <= 40


def test_the_operator_has_no_other_code() -> None:
    """Nothing else in the library names it: the page leaves nothing out."""
    assert ("com.microsoft", "BiasSplitGelu") in LOWERINGS
    files = [*(ROOT / "pywebgpu").glob("*/*.py"), *(ROOT / "codegen").rglob("*.py")]
    named = {p.relative_to(ROOT).as_posix() for p in files if "BiasSplitGelu" in p.read_text()}
    assert named == {"pywebgpu/infer/contrib.py", "pywebgpu/lower/elementwise.py"}


def test_the_files_it_points_to_exist() -> None:
    for path in re.findall(r"`((?:pywebgpu|codegen|tests|docs)/[\w/.-]+)`", PAGE):
        assert (ROOT / path).exists(), path
