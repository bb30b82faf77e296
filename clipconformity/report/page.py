"""The frame of a report: one HTML page that carries all it shows and asks for nothing off itself."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
import torch

from clipconformity import __version__
from clipconformity.data.files import replacing

# No script runs and nothing is fetched, whatever a caption or a file name holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="clipconformity $version">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<a class="skip" href="#$first">Skip to the verdict</a>
<header><h1>$title</h1><p>$subtitle</p></header>
<nav aria-label="Sections"><ul>$links</ul></nav>
<main>
$sections
</main>
<footer><p>Written by clipconformity $version.</p></footer>
</body>
</html>
""")


class Section(NamedTuple):
    """A part of the page."""

    key: str
    """Its address on the page."""
    title: str
    body: str
    """HTML."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def write_page(path: Path | str, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write a page; title and subtitle are plain text.

    Raises:
        OSError: If the file cannot be written.
    """
    links = "".join(f'<li><a href="#{part.key}">{escape(part.title)}</a></li>' for part in sections)
    body = "\n".join(
        f'<section id="{part.key}" aria-labelledby="{part.key}-title" tabindex="-1">'
        f'<h2 id="{part.key}-title">{escape(part.title)}</h2>\n{part.body}\n</section>'
        for part in sections
    )
    page = PAGE.substitute(
        policy=POLICY,
        version=__version__,
        title=escape(title),
        subtitle=escape(subtitle),
        style=files("clipconformity.report").joinpath("style.css").read_text(encoding="utf-8"),
        first=sections[0].key,
        links=links,
        sections=body,
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")  # of names that are not UTF-8


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table that scrolls sideways where it is wider than the page; the first cell heads its row."""
    columns = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def facts(pairs: Mapping[str, str]) -> str:
    """Lay out names and values; a value that is :class:`Markup` stands as it is."""
    items = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in pairs.items())
    return f'<dl class="facts">{items}</dl>'


def versions() -> str:
    """Say what the figures were computed with."""
    parts = {
        "clipconformity": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }
    return ", ".join(f"{name} {version}" for name, version in parts.items())


def code(text: str) -> Markup:
    """Set plain text as code."""
    return Markup(f"<code>{escape(text)}</code>")


def number(value: float) -> str:
    """Write a figure for reading."""
    return f"{value:.4g}"


def between(low: float, high: float) -> str:
    """Write an interval for reading."""
    return f"{number(low)} to {number(high)}"


def shortened(text: str, most: int) -> str:
    """Cut text that would not end."""
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _text(value: str) -> str:
    return value if isinstance(value, Markup) else escape(value)
