"""What is asked of places of files, on this machine and at addresses alike."""

from __future__ import annotations

import glob
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

from clipconformity.data.addresses import Place, RemotePath
from clipconformity.data.limits import check_limit
from clipconformity.data.remote import (
    HEADER_BYTES,
    MAX_DEPTH,
    ROW_BYTES,
    RemoteFile,
    find_info,
    list_children,
    read_version,
)
from clipconformity.data.untrusted import check_input


class Stamp(NamedTuple):
    """What changes with the content of a file."""

    size: int
    """In bytes."""
    version: int | str
    """Of a local file the time of its change, of another what its server says; empty where it says nothing."""


def look_up(place: Place, what: str = "file", *, fresh: bool = True) -> Stamp:
    """Refuse a missing file, and anything but a regular file.

    Args:
        place: The file to be read.
        what: What it should be, for the error.
        fresh: Ask a server anew.

    Raises:
        OSError: If it is missing, or not a regular file, or its server does not give it.
    """
    if isinstance(place, Path):
        found = check_input(place, what).stat()
        return Stamp(found.st_size, found.st_mtime_ns)
    info = find_info(place, fresh=fresh)
    if info is None:
        raise FileNotFoundError(f"{place}: no such {what}.")
    if info["type"] == "directory":
        raise FileNotFoundError(f"{place}: no such {what}; it is a folder.")
    if info.get("size") is None:
        raise OSError(f"{place}: the server does not tell the size of the file; download it first.")
    return Stamp(int(info["size"]), read_version(info))


Stamps: TypeAlias = "tuple[tuple[Place, Stamp], ...]"
"""Files that are read together, as they were when they were opened."""


def check_unchanged(place: Place, stamps: Stamps) -> None:
    """Refuse a file that is another than was opened, or whose metadata are.

    Raises:
        ValueError: If it is.
        OSError: If it is gone.
    """
    if any(look_up(one) != stamp for one, stamp in stamps):
        raise ValueError(f"{place}: was replaced by another file while it was read.")


def open_place(place: Place, ahead: int = HEADER_BYTES) -> IO[bytes]:
    """Open a file for reading.

    Args:
        place: The file.
        ahead: Bytes of a remote file that are fetched beyond those asked for.

    Raises:
        OSError: As :func:`look_up`.
    """
    if isinstance(place, Path):
        return place.open("rb", buffering=0) if ahead == ROW_BYTES else place.open("rb")
    return RemoteFile(place, look_up(place, fresh=False).size, ahead)  # type: ignore[return-value]


@contextmanager
def copy_here(place: Place, first: int | None = None) -> Iterator[Path]:
    """Give a file on this machine: the place itself, or a temporary copy of a remote one, for what takes paths alone.

    Args:
        place: The file.
        first: Copy so many bytes alone; the others are a hole, which takes no space.

    Raises:
        OSError: As :func:`look_up`.
    """
    if isinstance(place, Path):
        yield place
        return
    size = look_up(place, fresh=False).size
    left, ahead = (size, ROW_BYTES) if first is None else (min(first, size), HEADER_BYTES)
    with tempfile.TemporaryDirectory(prefix="clipconformity-") as folder:
        copy = Path(folder, f"copy{place.suffix}")
        with copy.open("wb") as written, open_place(place, ahead) as file:
            while left and (part := file.read(min(left, ROW_BYTES))):
                written.write(part)
                left -= len(part)
            written.truncate(size)
        yield copy


def is_folder(place: Place) -> bool:
    """Whether there is a folder; on the web what ends in a slash, or in a name without a suffix."""
    if isinstance(place, Path):
        return place.is_dir()
    if place.on_web:
        by_name = not place.magic and (not place.path or place.path.endswith("/") or not place.suffix)
        return bool(place.known.get("folder", by_name))
    info = find_info(place)
    return info is not None and info["type"] == "directory"


def is_file(place: Place) -> bool:
    """Whether there is a file that can be read; stores refuse to say that there is none."""
    if isinstance(place, Path):
        return place.is_file()
    try:
        info = find_info(place)
    except PermissionError:
        return False
    return info is not None and info["type"] != "directory"


def is_pattern(place: Place) -> bool:
    """Whether a place is a pattern such as ``*.npy`` rather than a file."""
    if isinstance(place, Path):
        return not os.path.lexists(place) and glob.has_magic(str(place))
    return place.magic and not is_file(place)


def find_matches(place: Place) -> Iterator[Place]:
    """Find the files and folders that fit a pattern, in any order."""
    if isinstance(place, Path):
        yield from map(Path, glob.iglob(str(place), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute one
        return
    parts = place.path.split("/")
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = RemotePath(place.protocol, place.host, "/".join(parts[:fixed]))
    if not root.path and not root.on_web:
        raise ValueError(f"{place}: a pattern in the place of a bucket; name the bucket.")
    yield from _expand(root, [part for part in parts[fixed:] if part])


def _expand(folder: RemotePath, parts: Sequence[str]) -> Iterator[RemotePath]:
    """Find what fits the parts of a pattern in a folder, as Python's ``glob`` does."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part != "**" and not glob.has_magic(part):
        there = folder / part
        if rest or is_file(there) or is_folder(there):
            yield from _expand(there, rest)
        return
    if part == "**":
        yield from _expand(folder, rest)
    try:
        children = list_children(folder)
    except FileNotFoundError:
        return
    for child in children:
        if part == "**":
            if is_folder(child) and _fits(child.name, "*"):
                yield from _expand(_check_depth(child), parts)
            elif not rest and _fits(child.name, "*"):
                yield child
        elif _fits(child.name, part) and (not rest or is_folder(child)):
            yield from _expand(child, rest)


def _fits(name: str, part: str) -> bool:
    """Whether a name fits a part of a pattern; a hidden one fits only what begins with a point."""
    return fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))


def list_files(root: Place) -> Iterator[Place]:
    """List the files of a folder with its subfolders, except hidden ones, in any order; of links to folders none."""
    if isinstance(root, Path):
        for place, folders, names in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (Path(place, name) for name in names)
        return
    waiting, count = [root], 0
    while waiting:
        for child in list_children(waiting.pop()):
            count += 1
            check_limit(root, "listed", count)
            if not is_folder(child):
                yield child
            elif not child.name.startswith("."):
                waiting.append(_check_depth(child))


def _check_depth(folder: RemotePath) -> RemotePath:
    if folder.path.count("/") > MAX_DEPTH:
        raise ValueError(f"{folder}: over {MAX_DEPTH} folders in each other; name the files, or a folder among them.")
    return folder


def sort_key(place: Place) -> tuple[tuple[int, str], ...]:
    """Return a key that orders numbers in names by value: 2 comes before 10."""
    words = re.findall(r"\d+|\D+", str(place if isinstance(place, Path) else place.spelled))
    return tuple((int(word[:4000]), word) if word.isascii() and word.isdigit() else (-1, word) for word in words)
