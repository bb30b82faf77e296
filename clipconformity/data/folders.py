"""Folders of images: which files count, and what was ignored, unreadable or repeated."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipconformity.data.brief import format_brief
from clipconformity.data.untrusted import format_path, format_value

IMAGE_FORMATS = {
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jfif": "JPEG",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
"""Suffixes that count in a folder of images, and Pillow's names of their formats, the only ones that are opened."""
IGNORED = {
    "hidden": "hidden",
    "linked": "links to folders",
    "skipped": "of other suffixes",
    "special": "no regular files",
}
"""Kinds of ignored files in words, by the name of their list."""
OTHER_KINDS = {
    "unreadable": "folders cannot be read",
    "repeated": "repeat the content of others",
    "missing": "are listed and missing",
}
"""Further kinds of files in words, likewise."""
MANIFEST = re.compile(r"manifest(-\d+-of-\d+)?\.jsonl")
"""Manifest that ``generate_images`` writes beside its images; not counted as an ignored file."""
TAIL_BYTES = 4096
"""Bytes at the end of a file, by which most files of equal size differ."""
MAX_MISSING_NAMED = 3
"""Largest number of missing files in an error."""
MAX_NAMED = 5
"""Largest number of named files of a kind, where all are counted."""


@dataclass
class ImageFolder:
    """The images of a folder with its subfolders, or of a list, and the files that are not among them.

    Attributes:
        root: The folder that names are relative to.
        paths: The image files, in the order of their paths, or of the list.
        hidden: Files and folders whose names begin with a dot, such as ``.ipynb_checkpoints``.
        linked: Symbolic links to folders, which are not followed.
        skipped: Files of other suffixes.
        special: Pipes, sockets, devices and links to nothing under the name of an image.
        unreadable: Folders that cannot be listed.
        repeated: Images with the same content as one before them; they count nevertheless.
        missing: Files of the list that do not exist.
        file: The list; None for a folder.
        names: Name of each image in the list; see :attr:`ids`.
    """

    root: Path
    paths: list[Path] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    file: Path | None = None
    names: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        left_out = {name: len(names) for name in (*IGNORED, *OTHER_KINDS) if (names := getattr(self, name))}
        return format_brief(self, root=self.root, file=self.file, found=len(self.paths), **left_out)

    @property
    def ids(self) -> list[str]:
        """Name of each image: as in the list, or relative to the folder."""
        return self.names if self.file else [str(path.relative_to(self.root)) for path in self.paths]

    @property
    def ignored(self) -> int:
        """Number of files and folders that are not among the images."""
        return sum(len(getattr(self, name)) for name in IGNORED)

    def describe(self) -> dict[str, Any]:
        """Count what was found, ignored, unreadable and repeated, and name the first of each, as plain values."""
        lists = {name: getattr(self, name) for name in (*IGNORED, *OTHER_KINDS)}
        about: dict[str, Any] = {
            "found": len(self.paths),
            "ignored": self.ignored,
            "unreadable": len(self.unreadable),
            "repeated": len(self.repeated),
        }
        if self.file is not None:
            about["missing"] = len(self.missing)
        examples = {
            name: [*names[:MAX_NAMED], *["..."][: len(names) > MAX_NAMED]] for name, names in lists.items() if names
        }
        return about | ({"examples": examples} if examples else {})

    @property
    def remark(self) -> str:
        """Describe in a line what is left out or repeated; empty where nothing is."""
        remarks = []
        for name, word in (IGNORED | OTHER_KINDS).items():
            names = getattr(self, name)
            if names:
                first = ", ".join(map(format_value, names[:2])) + (", ..." if len(names) > 2 else "")
                remarks.append(f"{len(names)} {word} ({first})")
        return f"{self.file or self.root}: {len(self.paths)} images found; {'; '.join(remarks)}." if remarks else ""

    def survey(self) -> ImageFolder:
        """Find images with the content of another one."""
        self.repeated = sorted(os.path.relpath(path, self.root) for path in _find_repeats(self.paths))
        return self


def walk_images(root: Path) -> ImageFolder:
    """List a folder and its subfolders; hidden files and links to folders are left out."""
    found = ImageFolder(root)

    def failed(error: OSError) -> None:
        found.unreadable.append(os.path.relpath(error.filename, root))

    for place, folders, files in os.walk(root, onerror=failed):
        for name in folders:
            if name.startswith("."):
                _add(found.hidden, found, place, name)
            elif os.path.islink(os.path.join(place, name)):  # noqa: PTH114, PTH118 - a path of each file takes long
                _add(found.linked, found, place, name)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(place, name)
            if name.startswith("."):
                _add(found.hidden, found, place, name)
            elif path.suffix.lower() not in IMAGE_FORMATS:
                if not MANIFEST.fullmatch(name):
                    _add(found.skipped, found, place, name)
            elif not path.is_file():
                _add(found.special, found, place, name)
            else:
                found.paths.append(path)
    for names in (found.paths, found.hidden, found.linked, found.skipped, found.special, found.unreadable):
        names.sort()
    return found


def _add(names: list[str], found: ImageFolder, place: str, name: str) -> None:
    names.append(os.path.relpath(Path(place, name), found.root))


def find_image_files(root: Path) -> Iterator[Path]:
    """Find the image files in a folder and its subfolders."""
    return iter(walk_images(root).paths)


def list_images(root: Path | str) -> list[Path]:
    """List the image files in a folder and its subfolders, in the order of their paths.

    Hidden files and folders, and links to folders, are left out; :func:`survey_images` says what was.

    Raises:
        NotADirectoryError: If it is not a folder.
        ValueError: If there is no image in it.
    """
    return _list_images(root).paths


def survey_images(root: Path | str) -> ImageFolder:
    """List the image files in a folder and its subfolders, and what was ignored, unreadable or repeated.

    Raises:
        NotADirectoryError: If it is not a folder.
        ValueError: If there is no image in it.
    """
    return _list_images(root).survey()


def make_missing_error(where: Path, of: str, missing: Sequence[Path]) -> FileNotFoundError:
    """Make the error for images that a file names and that do not exist.

    Args:
        where: The file that names them.
        of: Total number, and what is counted, in words.
        missing: The missing files.
    """
    first = ", ".join(map(format_path, missing[:MAX_MISSING_NAMED])) + (
        ", ..." if len(missing) > MAX_MISSING_NAMED else ""
    )
    return FileNotFoundError(
        f"{where}: {len(missing)} of {of} are missing: {first}. "
        "Complete the download, or leave them out: on_missing='skip', or --on-error skip on the command line."
    )


def _list_images(root: Path | str) -> ImageFolder:
    root = Path(root)
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: expected a folder of images.")
    found = walk_images(root)
    if not found.paths:
        besides = f" {found.remark}" if found.remark else ""
        raise ValueError(f"{root}: no images in this folder (looked for {', '.join(IMAGE_FORMATS)}).{besides}")
    return found


def _find_repeats(paths: Sequence[Path]) -> Iterator[Path]:
    """Find the files with the content of an earlier one; only those of equal size and tail are read whole."""
    same = [list(paths)]
    for key in (_read_size, _read_tail, _hash_file):
        same = [part for group in same for part in _group_by(group, key)]
    for group in same:
        yield from group[1:]


def _group_by(paths: Sequence[Path], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    parts = defaultdict(list)
    for path in paths:
        try:
            parts[key(path)].append(path)
        except OSError:  # reported when it is opened for encoding
            continue
    return [part for part in parts.values() if len(part) > 1]


def _read_size(path: Path) -> int:
    return path.stat().st_size


def _read_tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(_read_size(path) - TAIL_BYTES, 0))
        return file.read(TAIL_BYTES)


def _hash_file(path: Path) -> bytes:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.digest()
