"""Every message that the page on troubleshooting quotes is one that the library gives."""

from __future__ import annotations

import ast
import re
from functools import lru_cache

import pytest
from pages import ROOT, blocks, pages

MESSAGES = [content.strip() for language, content in blocks(pages()["troubleshooting.md"]) if language == "output"]
LEAST = 24
"""Letters of a template that are its own; with fewer it fits too much."""


def template(node: ast.AST) -> str | None:
    """A text of the code as a pattern, in which what is filled in matches anything."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return ".+?".join(map(re.escape, re.split(r"\{[^{} ]*\}", node.value)))
    if isinstance(node, ast.JoinedStr):
        return "".join((template(part) or ".*?") if isinstance(part, ast.Constant) else ".*?" for part in node.values)
    return None


@lru_cache
def templates() -> list[re.Pattern[str]]:
    """Every text of the code that is long enough, alone or behind the name of an argument or a file."""
    found = set()
    for path in (ROOT / "clipconformity").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            pattern = template(node)
            if pattern and len(re.sub(r"\.[*+]\?|\\", "", pattern)) >= LEAST:
                found.add(pattern)
    return [re.compile(rf"(.+: )?{pattern}", re.DOTALL) for pattern in sorted(found)]


def is_given(message: str) -> bool:
    """Whether a whole template of the code is the message, or ends it."""
    return any(pattern.fullmatch(message) for pattern in templates())


def test_the_page_quotes_messages():
    assert len(MESSAGES) > 30
    assert len(templates()) > 300


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_is_one_of_the_library(message):
    assert is_given(message)


def test_another_message_is_found_out():
    assert not is_given("all 500 embeddings have norm 2: they were L2-normalised.")
    assert not is_given("expected at least 20 samples, got 12; add fewer.")
