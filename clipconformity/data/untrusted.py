"""Reading of untrusted files: regular files only, text and JSON within bounds, and no unsafe unpickling."""

from __future__ import annotations

import json
import os
import re
import reprlib
import stat
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

from clipconformity.data.addresses import Place, refuse_address
from clipconformity.data.limits import RefusedError, check_limit, get_limit

MIN_TORCH = (2, 10)
"""First version in which ``torch.load(weights_only=True)`` is safe by all that is known.

CVE-2025-32434, which runs code, is fixed in 2.6.0, and CVE-2026-24747, which overwrites memory, in 2.10.0.
"""
MAX_NAME_BYTES = 255
"""Largest size of a file or folder name in bytes, on every usual system."""
MAX_ID = 2**63
"""Ids that are whole numbers are below this, and at least its negative."""

_NONE = re.compile("[\0\ud800-\udfff]")
"""Characters that are not allowed in texts."""
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother, _brief.maxlong = 2, 60, 60, 40


def format_value(value: object) -> str:
    """Format a value of a file for an error: short and in one line, however large or deep it is."""
    return _brief.repr(value)[:80]


def check_input(path: Path, what: str) -> Path:
    """Refuse a missing file, and anything but a regular file: reading a pipe or a device might never end.

    Args:
        path: The file to be read.
        what: What it should be, for the error.

    Raises:
        OSError: If it is missing or not a regular file.
        ValueError: If it is an address.
    """
    refuse_address(path, f"a {what.partition(';')[0]}")
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        raise FileNotFoundError(f"{format_path(path)}: no such {what}.") from None
    if stat.S_ISDIR(mode):
        raise FileNotFoundError(f"{path}: it is a folder, and no {what}.")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path}: expected a regular file, got a pipe, a socket or a device.")
    return path


def format_path(path: Place) -> str:
    """Format a path in one line, also one with unprintable characters."""
    return str(path) if str(path).isprintable() else repr(str(path))


def read_text(path: Path, what: str) -> str:
    """Read a text file in UTF-8.

    Raises:
        OSError: If it does not exist or is not a regular file.
        ValueError: If it is too large or not UTF-8.
    """
    check_limit(path, "text_bytes", check_input(path, what).stat().st_size)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    if "\0" in text:
        raise ValueError(f"{path}: not UTF-8 text: it holds null characters, as UTF-16 does; save it as UTF-8.")
    return text


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file in UTF-8, with bounds on the size, on the number of values and on their nesting.

    Raises:
        OSError: If it does not exist or is not a regular file.
        ValueError: If it is broken or over a limit.
    """
    return _parse_json(_read_bounded(path, what), path, what)


def read_json_lines(path: Path, what: str) -> list[tuple[int, Any]]:
    """Read the JSON value of each line of a file, with the bounds of :func:`read_json`.

    Returns:
        Number, from 1, and value of every line that is not blank.

    Raises:
        OSError: If it does not exist or is not a regular file.
        ValueError: If it is broken or over a limit; names the line.
    """
    lines = enumerate(_read_bounded(path, what).split("\n"), start=1)
    return [(number, _parse_json(line, path, what, number)) for number, line in lines if line.strip()]


def _read_bounded(path: Path, what: str) -> str:
    text = read_text(path, what)
    check_limit(path, "json_values", sum(map(text.count, "[{,")))
    return text


def _parse_json(text: str, path: Path, what: str, first: int = 1) -> Any:
    """Parse JSON that starts at a line of a file."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: broken JSON at line {first + error.lineno - 1}: {error.msg}.") from None
    except ValueError as error:  # a number with too many digits
        raise ValueError(f"{path}: broken JSON: {str(error).partition(';')[0]}.") from None
    except RecursionError:
        raise ValueError(f"{path}: broken JSON: nested too deeply to be {what.removeprefix('file of ')}.") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def check_words(where: object, text: str) -> str:
    """Refuse a text that no tokenizer accepts, or that would take long.

    Raises:
        ValueError: If it has an invalid character, or is too long.
    """
    check_limit(where, "caption_characters", len(text))
    if found := _NONE.search(text):
        what = "a null character" if found[0] == "\0" else "half of a surrogate pair, which is no character"
        raise ValueError(f"{where}: {format_value(text)} holds {what}.")
    return text


def check_all_words(texts: Sequence[str], where: Callable[[int], object]) -> None:
    """Refuse texts as :func:`check_words` does, fast where all texts of a file are valid.

    Args:
        texts: All texts.
        where: Returns the position of a text, by its number.

    Raises:
        ValueError: If one is invalid.
    """
    if max(map(len, texts), default=0) > get_limit("caption_characters") or _NONE.search("\n".join(texts)):
        for number, text in enumerate(texts):
            check_words(where(number), text)


def check_inside(path: Path, name: str) -> str:
    """Refuse a file name that leads out of its folder, or that no file can have.

    Args:
        path: The file that names it.
        name: The name, with or without folders.

    Raises:
        ValueError: If it does.
    """
    check_words(f"{path}: the name of a file or folder", name)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(name).is_absolute() or ".." in kind(name).parts or kind(name).drive:
            raise ValueError(f"{path}: the file name {format_value(name)} leads out of the folder of images.")
    if any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in PurePosixPath(name).parts):
        raise ValueError(
            f"{path}: the file name {format_value(name)} has over {MAX_NAME_BYTES} bytes, which no file's has."
        )
    return name


def check_id(where: object, name: object) -> int | str:
    """Refuse an id that is neither a whole number nor a string.

    Args:
        where: Its position: file and entry.
        name: The id.

    Raises:
        ValueError: If it is neither, is too large, or has an invalid character.
    """
    if isinstance(name, str):
        return name if len(name) < 100 and name.isascii() and name.isprintable() else check_words(where, name)
    if not isinstance(name, int) or isinstance(name, bool) or not -MAX_ID <= name < MAX_ID:
        raise ValueError(
            f"{where}: expected a whole number of at most 64 bits or a string as id, got {format_value(name)}."
        )
    return name


def check_unpickling(path: Path, version: str | None = None) -> None:
    """Refuse a file that holds a pickle under a torch whose ``weights_only`` is unsound.

    Args:
        path: The file.
        version: The version of torch; by default the installed one.

    Raises:
        RefusedError: If it is.
    """
    import torch

    version = torch.__version__ if version is None else version
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < MIN_TORCH:
        raise RefusedError(
            f"{path}: holds a pickle, which torch {version} reads unsafely even with weights_only (CVE-2025-32434, "
            f"CVE-2026-24747); use torch {'.'.join(map(str, MIN_TORCH))} or newer, or save it as .safetensors."
        )
