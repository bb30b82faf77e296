"""Files that give the class, or prompt, of each sample."""

from __future__ import annotations

import csv
from pathlib import Path

from clipconformity.data.limits import check_limit
from clipconformity.data.untrusted import format_value, read_text

HEADER = ["id", "class"]


def read_classes(path: Path | str) -> dict[str, str]:
    """Read the class of each id from a CSV file of two columns; a first row ``id,class`` is the header.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it is not a regular file.
        ValueError: If it is broken or over a limit, a row has another number of cells or an empty one, or an id has two
            classes; names the line.
    """
    path = Path(path)
    text = read_text(path, "file of classes")
    check_limit(path, "rows", text.count("\n"))
    found: dict[str, str] = {}
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells) or (reader.line_num == 1 and [cell.lower() for cell in cells] == HEADER):
                continue
            if len(cells) != len(HEADER) or not all(cells):
                raise ValueError(
                    f"{path}: line {reader.line_num}: expected an id and a class, got {format_value(row)}."
                )
            if found.setdefault(cells[0], cells[1]) != cells[1]:
                raise ValueError(
                    f"{path}: line {reader.line_num}: {format_value(cells[0])} is of class "
                    f"{format_value(found[cells[0]])} already; give each id one class."
                )
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: broken CSV ({error}).") from None
    if not found:
        raise ValueError(f"{path}: holds no classes; expected lines of an id and a class.")
    return found
