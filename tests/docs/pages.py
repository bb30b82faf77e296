"""The pages as the tests read them."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def pages() -> dict[str, str]:
    """The text of every page, and of the README, by name; of a notebook its cells as fenced blocks."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
    for path in sorted(DOCS.glob("*.ipynb")):
        texts[path.name] = "\n".join(
            source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells(path)
        )
    return texts | {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "SECURITY.md")}


def cells(path: Path) -> list[tuple[str, str]]:
    """Kind and source of each cell of a notebook."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    found = re.findall(r"^( *)```(?:\{code-cell\} *)?([\w+-]*)[^\n]*\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [(language, re.sub(f"^{indent}", "", content, flags=re.MULTILINE)) for indent, language, content in found]


def commands(text: str) -> list[str]:
    """The calls of `clipconformity` in the consoles and shells of a page, each as one line."""
    lines = []
    for language, content in blocks(text):
        joined = re.sub(r"\\\n\s*", "", content)
        if language == "console":
            lines += [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
        elif language in ("bash", "sh") or content.startswith("%%bash"):
            lines += joined.splitlines()
    return [line for line in lines if line.startswith("clipconformity ")]
