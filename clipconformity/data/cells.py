"""CSV files that a spreadsheet may open."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipconformity.data.files import replace_file


def escape_formula(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would run as a formula; numbers stay.

    Example:
        >>> escape_formula("=cmd|' /C calc'!A0"), escape_formula("-3"), escape_formula("cat.png")
        ("'=cmd|' /C calc'!A0", '-3', 'cat.png')
    """
    runs = text[:1] in ("=", "+", "-", "@", "\t", "\r") and not re.fullmatch(r"[+-]?\d+(\.\d+)?", text)
    return f"'{text}" if runs else text


def format_cell(value: object) -> object:
    """Format a value for a cell: texts without formulas, numbers with nine digits, None as empty."""
    if isinstance(value, str):
        return escape_formula(value)
    return f"{value:.9g}" if isinstance(value, float) else value


def write_table(path: Path | str, head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file, each value by :func:`format_cell`; the file appears whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    with (
        replace_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(map(format_cell, row) for row in rows)
