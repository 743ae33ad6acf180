"""The documents that describe the code agree with it, and the house's limits hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted(path for folder in ("schemas", "wire", "producers", "workers") for path in (ROOT / folder).rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in CODE]


def test_the_tree_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, 'deploy'); import tree; sys.stdout.write(tree.tree())"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (ROOT / "docs/tree.md").read_text() == made.stdout, "run `make docs`"


@pytest.mark.parametrize("path", CODE, ids=IDS)
def test_the_limits_of_the_house(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    assert path.stem not in {"utils", "common", "helpers", "manager"}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is longer than 60 lines"


@pytest.mark.parametrize("path", CODE, ids=IDS)
def test_every_package_is_listed_for_the_wheel(path: Path) -> None:
    listed = (ROOT / "pyproject.toml").read_text()
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    assert f'"{package}"' in listed


def test_what_the_readme_links_to_is_there() -> None:
    pages = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    links = [(page, to) for page in pages for to in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())]
    assert len(links) > 20
    for page, target in links:
        assert (page.parent / target).exists(), f"{page.name} → {target}"


def test_locks_carry_hashes_and_no_addresses() -> None:
    locks = list((ROOT / "deploy").glob("*.lock"))
    assert locks
    for lock in locks:
        text = lock.read_text()
        assert "://" not in text
        pins = re.findall(r"^[a-z0-9][^ ]*==", text, re.MULTILINE)
        assert pins
        assert text.count("--hash=sha256:") >= len(pins)
