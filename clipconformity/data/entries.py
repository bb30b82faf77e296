"""Files with one entry a line: texts, tables and JSON lines, for captions and lists of images."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clipconformity.data.limits import check_limit
from clipconformity.data.untrusted import format_value, read_json_lines, read_text

LINES = {".txt": "one a line", ".jsonl": "one a line", ".csv": "with a header", ".tsv": "with a header"}
"""Suffixes of such files, and their formats in words, for errors."""


class Entry(NamedTuple):
    """An entry of a file."""

    where: str
    """Its position, in words for errors."""
    number: int
    """Its number from 1, the name of an entry without one."""
    value: Any


def read_entries(path: Path, what: str, column: str | None = None) -> list[Entry]:
    """Read the entries of a file with a suffix of :data:`LINES`; blank lines are skipped.

    Args:
        path: The file.
        what: What the file should be, for errors.
        column: The requested column; a text file has none.

    Raises:
        OSError: If it does not exist or is not a regular file.
        ValueError: If it is broken or over a limit, or a column of a text file is requested; names the position.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt":
        if column is not None:
            raise ValueError(f"{path}: a text file has no column {column!r}.")
        lines = read_text(path, what).split("\n")
        entries = [Entry(f"line {n}", n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    elif suffix == ".jsonl":
        entries = [Entry(f"line {n}", n, value) for n, value in read_json_lines(path, what)]
    else:
        entries = list(_read_table(path, read_text(path, what), "," if suffix == ".csv" else "\t"))
    check_limit(path, "rows", len(entries))
    return entries


def _read_table(path: Path, text: str, delimiter: str) -> Iterator[Entry]:
    """Read the rows of a table by the names in its header."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="", strict=True)
    try:
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: line 1: two columns have one name: {', '.join(map(format_value, names[:8]))}.")
        for number, row in enumerate(reader, start=1):
            if None in row.values() or "" in row:
                raise ValueError(f"{path}: line {reader.line_num}: expected {len(names)} columns, as in the header.")
            yield Entry(f"line {reader.line_num}", number, row)
    except csv.Error as error:
        raise ValueError(f"{path}: broken table after line {reader.line_num}: {error}.") from None
