"""Write `docs/tree.md`: every module with the first sentence of its docstring. `make docs` runs it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "schemas", "wire", "wire/blobs", "wire/broker", "wire/follow", "wire/publish", "wire/share",
    "wire/transact", "producers",
    "producers/cli", "producers/dead", "producers/redrive", "workers",
    "workers/delay", "workers/handlers", "workers/llm",
)  # fmt: skip


def tree() -> str:
    """Return the page."""
    lines = ["# The tree", "", "Made from the modules' own words by `make docs`.", ""]
    for folder in FOLDERS:
        lines += [f"## {folder}/", "", "| module | what it is |", "|---|---|"]
        for path in sorted((ROOT / folder).glob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            first = text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
            if path.name != "__init__.py" or first:
                lines.append(f"| {path.name} | {first} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    target = ROOT / "docs" / "tree.md"
    target.write_text(tree(), encoding="utf-8")
    sys.stderr.write(f"{target.relative_to(ROOT)}\n")
