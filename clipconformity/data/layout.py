"""Files of embeddings: single files, folders, patterns, and the layout of clip-retrieval and LAION."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path, PurePath

from clipconformity.data.addresses import Place, RemotePath, parse_place
from clipconformity.data.formats import READERS
from clipconformity.data.places import find_matches, is_file, is_folder, is_pattern, list_files, sort_key
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

    paths: list[Place] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ignored: int = 0


def find_embeddings(places: Sequence[Place | str], modality: str | None = None) -> EmbeddingFiles:
    """Find the files of embeddings that paths name.

    Args:
        places: Each a file; a folder, searched with its subfolders except hidden ones and links to folders; or a
            pattern with ``*``, ``?``, ``[...]`` or ``**``, where no file has that name. Each on this machine or at an
            address such as ``s3://bucket/folder/*.npy``, as ``data.addresses.parse_place`` takes it.
        modality: ``"image"`` or ``"text"``, to choose from a folder of clip-retrieval with both.

    Raises:
        FileNotFoundError: If nothing matches a pattern, or there is no such folder.
        OSError: If a server does not give a listing.
        ValueError: If a folder holds no embeddings, or those of images and of texts, or an address cannot be read.
        ImportError: If the package that reads an address is not installed.
    """
    found = EmbeddingFiles()
    for place in map(parse_place, places):
        if is_folder(place):
            found.paths += _choose_kind(place, _list_folder(place, found), modality)
        elif is_pattern(place):
            matches = sorted(find_matches(place), key=sort_key)
            inside = (_list_folder(one, found) if is_folder(one) else [one] for one in matches)
            files = list(dict.fromkeys(file for files in inside for file in files))
            if not files:
                raise FileNotFoundError(f"{format_path(place)}: no file fits this pattern.")
            found.paths += _choose_kind(place, files, modality)
        else:
            found.paths.append(place)
    found.names = _name_files(found.paths)
    return found


def list_embedding_files(place: Place) -> Iterator[Place]:
    """List the files of embeddings of one path of :func:`find_embeddings`, of any kind; none where there are none."""
    if is_folder(place):
        yield from _list_folder(place, EmbeddingFiles())
    elif is_pattern(place):
        for match in find_matches(place):
            yield from _list_folder(match, EmbeddingFiles()) if is_folder(match) else [match]
    else:
        yield place


def _list_folder(root: Place, found: EmbeddingFiles) -> list[Place]:
    files = []
    for path in list_files(root):
        if path.name.startswith(".") or METADATA.fullmatch(path.name):
            continue
        if path.suffix in READERS and (isinstance(path, RemotePath) or path.is_file()):
            files.append(path)
        else:
            found.ignored += 1
    return sorted(files, key=sort_key)


def _choose_kind(place: Place, files: list[Place], modality: str | None) -> list[Place]:
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


def parse_modality(path: Place) -> str | None:
    """Return the modality in the name of a file of clip-retrieval; None for any other file."""
    found = CLIP_RETRIEVAL_NAME.fullmatch(path.name)
    return None if found is None else MODALITIES[found[1]]


def find_metadata(path: Place, needed: bool = False) -> Place | None:
    """Find the metadata of a file of clip-retrieval: in its folder, or in ``metadata`` beside it.

    Args:
        path: The file.
        needed: Whether the metadata were requested; else they are ignored where pyarrow is not installed.
    """
    found = CLIP_RETRIEVAL_NAME.fullmatch(path.name)
    if found is None:
        return None
    name = f"metadata_{found[2]}.parquet"
    places: tuple[Place, ...] = (path.parent / name, path.absolute().parent.parent / "metadata" / name)
    beside = next((place for place in places if is_file(place)), None)
    if beside is not None and not needed and find_spec("pyarrow") is None:
        warnings.warn(
            f"{beside.parent}: pyarrow, which reads the ids there, is not installed (pip install "
            "'clipconformity[parquet]'): rows are named by their places.",
            stacklevel=2,
        )
        return None
    return beside


def _name_files(paths: Sequence[Place]) -> list[str]:
    """Name each file by its stem where these differ, else by its path from the common folder."""
    if not paths:
        return []
    whole = [path.absolute() if isinstance(path, Path) else path.spelled for path in paths]
    root = os.path.commonpath([path.parent for path in whole])
    longer = [PurePath(os.path.relpath(path, root)) for path in whole]
    for names in ([path.stem for path in paths], [path.with_suffix("").as_posix() for path in longer]):
        if len(set(names)) == len(names):
            return names
    return [path.as_posix() for path in longer]
