"""Files of embeddings: single files, folders, patterns, and the layout of clip-retrieval and LAION."""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from clipconformity.data.formats import READERS
from clipconformity.data.untrusted import format_path

CLIP_RETRIEVAL_NAME = re.compile(r"(img|text)_emb_(\d+)\.npy")
"""Name of a file of embeddings of clip-retrieval; the number is that of its metadata."""
METADATA = re.compile(r"metadata_\d+\.parquet")
MODALITIES = {"img": "image", "text": "text"}


@dataclass
class EmbeddingFiles:
    """The files that paths name.

    Attributes:
        paths: The files, in the order of the places; within one, by name, with numbers sorted by value.
        names: A unique name of each file, for rows without ids.
        ignored: Number of files in folders with other suffixes.
    """

    paths: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ignored: int = 0


def find_embeddings(places: Sequence[Path | str], modality: str | None = None) -> EmbeddingFiles:
    """Find the files of embeddings that paths name.

    Args:
        places: Each a file; a folder, searched with its subfolders except hidden ones and links to folders; or a
            pattern with ``*``, ``?``, ``[...]`` or ``**``, where no file has that name.
        modality: ``"image"`` or ``"text"``, to choose from a folder of clip-retrieval with both.

    Raises:
        FileNotFoundError: If nothing matches a pattern, or there is no such folder.
        ValueError: If a folder holds no embeddings, or those of images and of texts, or a place is an address.
    """
    found = EmbeddingFiles()
    for place in map(Path, places):
        if place.is_dir():
            found.paths += _choose_kind(place, _list_folder(place, found), modality)
        elif re.match(r"[a-z][a-z0-9+.-]+:/", str(place)) and not place.exists():
            raise ValueError(
                f"{format_path(place)}: expected a local file or folder, got an address; download it first."
            )
        elif is_pattern(place):
            matches = sorted(_find_matches(place), key=_split_numbers)
            inside = (_list_folder(one, found) if one.is_dir() else [one] for one in matches)
            files = list(dict.fromkeys(file for files in inside for file in files))
            if not files:
                raise FileNotFoundError(f"{format_path(place)}: no file fits this pattern.")
            found.paths += _choose_kind(place, files, modality)
        else:
            found.paths.append(place)
    found.names = _name_files(found.paths)
    return found


def is_pattern(place: Path) -> bool:
    """Whether a path is a pattern such as ``*.npy`` rather than a file."""
    return not os.path.lexists(place) and glob.has_magic(str(place))


def _find_matches(place: Path) -> Iterator[Path]:
    return map(Path, glob.iglob(str(place), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern


def list_embedding_files(place: Path) -> Iterator[Path]:
    """List the files of embeddings of one path of :func:`find_embeddings`, of any kind; none where there are none."""
    if place.is_dir():
        yield from _list_folder(place, EmbeddingFiles())
    elif is_pattern(place):
        for match in _find_matches(place):
            yield from _list_folder(match, EmbeddingFiles()) if match.is_dir() else [match]
    else:
        yield place


def _list_folder(root: Path, found: EmbeddingFiles) -> list[Path]:
    files = []
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if name.startswith(".") or METADATA.fullmatch(name):
                continue
            if path.suffix in READERS and path.is_file():
                files.append(path)
            else:
                found.ignored += 1
    return sorted(files, key=_split_numbers)


def _split_numbers(path: Path) -> tuple[tuple[int, str], ...]:
    """Return a sort key that orders numbers in names by value: 2 comes before 10."""
    words = re.findall(r"\d+|\D+", str(path))
    return tuple((int(word[:4000]), word) if word.isascii() and word.isdigit() else (-1, word) for word in words)


def _choose_kind(place: Path, files: list[Path], modality: str | None) -> list[Path]:
    """Choose the embeddings of one modality; refuse both together."""
    if not files:
        raise ValueError(f"{place}: no embeddings in this folder (looked for {', '.join(READERS)}).")
    kinds = {path: parse_modality(path) for path in files}
    if len({kind for kind in kinds.values() if kind is not None}) < 2:
        return files
    if modality is None:
        first = {kind: next(path for path in files if kinds[path] == kind) for kind in MODALITIES.values()}
        raise ValueError(
            f"{place}: holds embeddings of images ({first['image']}) and of texts ({first['text']}); "
            "name the folder or the files of one of them, or choose with --modality image or --modality text."
        )
    return [path for path in files if kinds[path] in (None, modality)]


def parse_modality(path: Path) -> str | None:
    """Return the modality in the name of a file of clip-retrieval; None for any other file."""
    found = CLIP_RETRIEVAL_NAME.fullmatch(path.name)
    return None if found is None else MODALITIES[found[1]]


def find_metadata(path: Path, needed: bool = False) -> Path | None:
    """Find the metadata of a file of clip-retrieval: in its folder, or in ``metadata`` beside it.

    Args:
        path: The file.
        needed: Whether the metadata were requested; else they are ignored where pyarrow is not installed.
    """
    found = CLIP_RETRIEVAL_NAME.fullmatch(path.name)
    if found is None:
        return None
    name = f"metadata_{found[2]}.parquet"
    places = (path.parent / name, path.absolute().parent.parent / "metadata" / name)
    beside = next((place for place in places if place.is_file()), None)
    if beside is not None and not needed and find_spec("pyarrow") is None:
        warnings.warn(
            f"{beside.parent}: pyarrow, which reads the ids there, is not installed (pip install "
            "'clipconformity[parquet]'): rows are named by their places.",
            stacklevel=2,
        )
        return None
    return beside


def _name_files(paths: Sequence[Path]) -> list[str]:
    """Name each file by its stem where these differ, else by its path from the common folder."""
    if not paths:
        return []
    root = os.path.commonpath([path.absolute().parent for path in paths])
    longer = [Path(os.path.relpath(path.absolute(), root)) for path in paths]
    for names in ([path.stem for path in paths], [path.with_suffix("").as_posix() for path in longer]):
        if len(set(names)) == len(names):
            return names
    return [path.as_posix() for path in longer]
