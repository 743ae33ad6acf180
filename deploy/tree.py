"""Write `docs/tree.md`: every module with the first sentence of its docstring. `make docs` runs it."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def tree() -> str:
    """Return the page: a table for each package of the wheel that has modules to tell of."""
    lines = ["# The tree", "", "Made from the modules' own words by `make docs`.", ""]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package in project["tool"]["setuptools"]["packages"]:
        folder = package.replace(".", "/")
        if rows := _rows(ROOT / folder):
            lines += [f"## {folder}/", "", "| module | what it is |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _rows(folder: Path) -> list[str]:
    rows = []
    for path in sorted(folder.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        if path.name != "__init__.py" or first:
            rows.append(f"| {path.name} | {first} |")
    return rows


if __name__ == "__main__":
    target = ROOT / "docs" / "tree.md"
    target.write_text(tree(), encoding="utf-8")
    sys.stderr.write(f"{target.relative_to(ROOT)}\n")
