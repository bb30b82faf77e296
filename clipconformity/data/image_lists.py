"""Lists of images: files with a path in each line or in a column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from clipconformity.data.captions import IMAGE_KEYS, TEXT_KEYS
from clipconformity.data.entries import LINES, Entry, read_entries
from clipconformity.data.folders import IMAGE_FORMATS, ImageFolder, make_missing_error
from clipconformity.data.untrusted import check_input, check_inside, format_value

NAME_KEYS = (*(key for key in IMAGE_KEYS if key != "image_id"), "path", "file")
"""Keys of an entry's path; the first one present is used."""
_WHAT = "list of images"


def read_image_list(
    path: Path | str,
    column: str | None = None,
    *,
    root: Path | str | None = None,
    on_missing: Literal["raise", "skip"] = "raise",
) -> ImageFolder:
    """Read a list of images in its order; ``ids`` are the names as in the file.

    - ``.txt``: a path a line, blank lines left out.
    - ``.jsonl``: a path, or an entry, in each line.
    - ``.csv`` and ``.tsv``: a header, then an entry in each line.

    An entry has its path under one of :data:`NAME_KEYS`. Paths are relative to the folder of the list, and must not
    lead out of it.

    Args:
        path: The file.
        column: The key or column of the paths, where it has another name.
        root: Folder that the paths are relative to instead.
        on_missing: Whether missing files are an error, or left out and counted.

    Raises:
        FileNotFoundError: If there is no such list, or images are missing; counts them and names the first.
        ValueError: If it is broken, has other keys, names no image, or a path that leads out of the folder.
    """
    path = Path(path)
    if on_missing not in ("raise", "skip"):
        raise ValueError(f"on_missing: expected 'raise' or 'skip', got {on_missing!r}.")
    if path.suffix.lower() not in LINES:
        check_input(path, _WHAT)
        known = ", ".join(f"{name} ({how})" for name, how in LINES.items())
        raise ValueError(f"{path}: expected a folder of images, or a list of them whose name ends in {known}.")
    found = ImageFolder(path.parent if root is None else Path(root), file=path)
    if not found.root.is_dir():
        raise NotADirectoryError(f"{found.root}: expected the folder of the images of {path}.")
    missing = []
    names = _read_names(path, read_entries(path, _WHAT, column), column)
    for name in names:
        place = found.root / check_inside(path, name)
        if place.is_file():
            found.paths.append(place)
            found.names.append(name)
        else:
            missing.append(place)
            found.missing.append(name)
    if missing and (on_missing == "raise" or not found.paths):
        raise make_missing_error(path, f"{len(names)} images", missing)
    return found.survey()


def is_image_list(path: Path, column: str | None = None) -> bool:
    """Whether a file lists images rather than captions, by its first entry."""
    try:
        entries = read_entries(path, _WHAT, column) if path.suffix.lower() in LINES else []
        first = entries[0].value if entries else None
        if isinstance(first, dict) and column is None and any(key in first for key in TEXT_KEYS):
            return False
        names = _read_names(path, entries[:1], column)
    except (OSError, ValueError):  # reported when it is read
        return False
    return Path(names[0]).suffix.lower() in IMAGE_FORMATS


def _read_names(path: Path, entries: Sequence[Entry], column: str | None) -> list[str]:
    """Read the path of each entry, under the key of the first one."""
    if not entries:
        raise ValueError(f"{path}: names no images.")
    first = entries[0].value
    key = None if isinstance(first, str) else _find_key(path, entries[0], column)
    if key is None and column is not None:
        raise ValueError(f"{path}: holds paths alone, and no column {column!r}.")
    names = []
    for entry in entries:
        name = entry.value if key is None else entry.value.get(key) if isinstance(entry.value, dict) else None
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{path}: {entry.where}: expected the path of an image, got {format_value(entry.value)}.")
        names.append(name.strip())
    return names


def _find_key(path: Path, first: Entry, column: str | None) -> str:
    there = list(first.value) if isinstance(first.value, dict) else []
    key = column or next((key for key in NAME_KEYS if key in there), there[0] if len(there) == 1 else None)
    if key is None or key not in there:
        wanted = repr(column) if column else f"with the path of an image, one of {', '.join(NAME_KEYS)}"
        raise ValueError(
            f"{path}: {first.where}: expected a key {wanted}, got {format_value(sorted(there))}"
            f"{'.' if column else '; name another with --column.'}"
        )
    return key
