"""The frame of a report: one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import torch
from markupsafe import Markup

from clipconformity import __version__
from clipconformity.data.files import replace_file
from clipconformity.report.cite import format_citations
from clipconformity.report.terms import TERMS


class Section(NamedTuple):
    """A part of the page."""

    key: str
    """Its address on the page."""
    title: str
    template: str
    """Name of its template."""


class Table(NamedTuple):
    """A table; the first cell of a row heads it."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_page(
    path: Path | str,
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    context: Mapping[str, Any],
    command: str | None = None,
) -> None:
    """Write a page; the context is escaped, except :class:`markupsafe.Markup`.

    Raises:
        OSError: If the file cannot be written.
    """
    script = _read_file("page.js")
    page = _make_environment().get_template("page.html").render(
        **context,
        title=title,
        subtitle=subtitle,
        sections=sections,
        command=command,
        terms=TERMS,
        citations=format_citations(),
        policy=_make_policy(script),
        script=Markup(script),
        style=Markup(_read_file("style.css")),
        version=__version__,
        versions=list_versions(),
        date=format_date(),
    )  # fmt: skip
    with replace_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")  # names that are not UTF-8


@cache
def _make_environment() -> jinja2.Environment:
    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("clipconformity.report"),
    )


def _read_file(name: str) -> str:
    return files("clipconformity.report").joinpath(name).read_text(encoding="utf-8")


def _make_policy(script: str) -> str:
    """Make a content security policy: only the page's own script runs, and nothing is fetched."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def format_date() -> str:
    """Format the date in UTC; that of ``SOURCE_DATE_EPOCH`` where it is set, for reproducible builds."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(epoch), timezone.utc) if epoch else datetime.now(timezone.utc)
    return f"{now:%Y-%m-%d}"


def list_versions() -> str:
    """List the versions of the software behind the figures."""
    parts = {
        "clipconformity": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }
    return ", ".join(f"{name} {version}" for name, version in parts.items())


def format_number(value: float) -> str:
    """Format a figure for reading."""
    return f"{value:.4g}"


def format_interval(low: float, high: float) -> str:
    """Format an interval for reading."""
    return f"{format_number(low)} to {format_number(high)}"


def shorten(text: str, most: int) -> str:
    """Shorten a long text."""
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
