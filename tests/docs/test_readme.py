"""The README fits one screen, and each of its links names a file at the one address of the project."""

from __future__ import annotations

import re

import pytest
from pages import ROOT, pages

TEXT = pages()["README.md"]
LINKS = re.findall(r"\]\(([^)]+)\)", TEXT)


def repository() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^Repository = "(.+)"$', text, re.MULTILINE)[1]


def test_it_fits_one_screen():
    assert len(TEXT.splitlines()) <= 80


@pytest.mark.parametrize("link", LINKS)
def test_links_are_absolute_and_name_files(link):
    found = re.fullmatch(rf"{re.escape(repository())}/(blob|raw)/main/(.+)", link)
    assert found, f"expected {repository()}/blob/main/FILE, or raw for a picture"
    assert (ROOT / found[2]).is_file()
    assert (found[1] == "raw") == link.endswith(".png")


def test_there_are_links_and_a_picture():
    assert len(LINKS) >= 10
    assert sum(link.endswith(".png") for link in LINKS) == 1


def test_the_table_is_that_of_the_page():
    page = pages()["real-captioners.md"]
    rows = re.findall(r"^\| [^|]+ \| ([^|]+ ± [^|]+) \| ([^|]+ ± [^|]+) \|", TEXT, re.MULTILINE)
    assert len(rows) == 5
    for shift, ratio in rows:
        assert re.search(rf"\| {re.escape(shift)} \| {re.escape(ratio)} \|", page)
