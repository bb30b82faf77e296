"""Caption files: lines of text, tables, and the usual forms of JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from clipconformity.data.brief import format_brief
from clipconformity.data.entries import LINES, Entry, read_entries
from clipconformity.data.limits import check_limit
from clipconformity.data.untrusted import check_all_words, check_id, check_input, format_value, read_json

ImageId = int | str
FORMATS = {".txt": LINES[".txt"], ".json": "", **LINES}
IMAGE_KEYS = ("image_id", "image", "image_name", "file_name", "filename", "image_path", "file_path")
"""Keys of an entry's image; the first one present is used."""
TEXT_KEYS = ("caption", "text", "prediction", "captions")
"""Keys of an entry's caption, or list of captions; the first one present is used."""
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})")


@dataclass(frozen=True)
class Captions:
    """Captions with their names and, where several belong to one image, their groups.

    Attributes:
        texts: The captions.
        ids: A name for each: annotation id, image id, or number of the line or entry.
        groups: The image id of each, or None where the file names no images.
        remark: How the file was interpreted; empty where there was only one way.
    """

    texts: list[str]
    ids: list[str]
    groups: list[int] | list[str] | None = None
    remark: str = ""

    def __repr__(self) -> str:
        images = None if self.groups is None else len(set(self.groups))
        return format_brief(self, count=len(self.texts), images=images)

    @classmethod
    def of_images(cls, images: Sequence[ImageId], texts: Sequence[str]) -> Captions:
        """Join images and their captions."""
        groups: Any = list(images)
        return cls(list(texts), [str(image) for image in images], groups)


def read_captions(path: Path | str, column: str | None = None) -> Captions:
    """Read captions from a file, in the usual forms.

    - ``.txt``: one caption a line, blank lines left out.
    - ``.json``: a list of strings; a list of entries; ``{"annotations": [entries]}``, as MS-COCO has it; or a map from
      the names of images to a caption, or a list of captions, each.
    - ``.jsonl``: a string or an entry in each line.
    - ``.csv`` and ``.tsv``: a header, then an entry in each line.

    An entry names its image under one of :data:`IMAGE_KEYS`, and has its caption, or a list of captions, under one of
    :data:`TEXT_KEYS`: ``{"image_id": 1, "caption": "a dog"}``, ``{"image": "dog.png", "text": "a dog"}``. Without an
    image, its number is its id. A file name of MS-COCO counts as its image id.

    Args:
        path: The file.
        column: The key or column of the captions, where it has another name or there are several.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it is not a regular file.
        ValueError: If it is broken, has other keys, holds no captions, or is over a limit; names the file and the
            place.
    """
    path = Path(path)
    what, suffix = "file of captions", path.suffix.lower()
    if suffix not in FORMATS:
        check_input(path, what)
        known = ", ".join(f"{name} ({how})" if how else name for name, how in FORMATS.items())
        raise ValueError(f"{path}: expected a file of captions whose name ends in {known}.")
    if suffix == ".json":
        entries = list(_find_entries(path, read_json(path, what)))
        check_limit(path, "rows", len(entries))
    else:
        entries = read_entries(path, what, column)
    captions = _read_plain(path, entries, column) if entries and isinstance(entries[0].value, str) else None
    captions = captions or _read_keyed(path, entries, column)
    if not captions.texts:
        raise ValueError(f"{path}: holds no captions.")
    return captions


def parse_coco_number(stem: str) -> int | None:
    """Parse the image id in a file name of MS-COCO, without suffix; None for any other name."""
    match = _COCO_NAME.fullmatch(stem)
    return int(match[1]) if match else None


def _find_entries(path: Path, content: Any) -> Iterator[Entry]:
    """Find the entries of a JSON file."""
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = content["annotations"]
    if isinstance(content, dict) and content and all(map(_is_caption, content.values())):
        content = [{"image": name, "caption": said} for name, said in content.items()]
    if isinstance(content, dict):
        raise ValueError(
            f"{path}: expected a list of captions, COCO annotations with a list 'annotations', or a map from images to "
            f"captions, got the keys {', '.join(map(format_value, list(content)[:8])) or 'none'}."
        )
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of captions, got {type(content).__name__}.")
    for number, value in enumerate(content):
        yield Entry(f"entry {number}", number + 1, value)


def _is_caption(value: object) -> bool:
    """Whether a value is a caption or a list of captions."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _read_plain(path: Path, entries: Sequence[Entry], column: str | None) -> Captions:
    """Read entries that are captions."""
    if column is not None:
        raise ValueError(f"{path}: holds captions alone, and no column {column!r}.")
    texts = [_read_caption(path, one.where, one.value) for one in entries]
    check_all_words(texts, lambda number: f"{path}: {entries[number].where}")
    return Captions(texts, [str(one.number) for one in entries])


def _read_keyed(path: Path, entries: Sequence[Entry], column: str | None) -> Captions:
    """Read entries that have keys; those of the first entry hold for all."""
    if not entries:
        return Captions([], [])
    image_key, text_key, remark = _find_keys(path, entries[0], column)
    images: list[ImageId] = []
    texts, ids, places = [], [], []
    for entry in entries:
        value = entry.value
        if not isinstance(value, dict) or text_key not in value or not (image_key is None or image_key in value):
            wanted = " and ".join(key for key in (image_key, text_key) if key)
            got = format_value(sorted(value)) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{path}: {entry.where}: expected keys {wanted}, got {got}.")
        image = entry.number if image_key is None else _read_image(path, entry, value[image_key], image_key)
        said = value[text_key]
        several = said if isinstance(said, list) else [said]
        name = check_id(f"{path}: {entry.where}", value.get("id", image))
        for number, one in enumerate(several, start=1):
            texts.append(_read_caption(path, entry.where, one, image))
            images.append(image)
            ids.append(f"{name}#{number}" if isinstance(said, list) else str(name))
            places.append(entry.where)
    check_all_words(texts, lambda number: f"{path}: {places[number]}")
    mixed = next((number for number, image in enumerate(images) if type(image) is not type(images[0])), None)
    if mixed is not None:
        raise ValueError(
            f"{path}: {places[mixed]}: its {image_key} is {format_value(images[mixed])} and that of {places[0]} "
            f"{format_value(images[0])}; expected whole numbers or strings throughout."
        )
    if all(isinstance(image, str) and image.isdecimal() and len(image) < 19 for image in images):
        images = [int(image) for image in images]
    groups: Any = None if image_key is None else images
    return Captions(texts, ids, groups, remark)


def _find_keys(path: Path, first: Entry, column: str | None) -> tuple[str | None, str, str]:
    """Find the keys of image and caption, and remark on them where they are not the usual ones."""
    there = list(first.value) if isinstance(first.value, dict) else []
    image = next((key for key in IMAGE_KEYS if key in there), None)
    said = [key for key in TEXT_KEYS if key in there and key != image]
    if column is not None and column not in there:
        raise ValueError(f"{path}: {first.where}: expected a key {column!r}, got {format_value(sorted(there))}.")
    if column is None and not said:
        got = format_value(sorted(there)) if isinstance(first.value, dict) else type(first.value).__name__
        raise ValueError(
            f"{path}: {first.where}: expected keys image_id and caption, or for the caption one of "
            f"{', '.join(TEXT_KEYS[1:])}, got {got}; name another with --column."
        )
    text = column or said[0]
    others = [key for key in said if key != text]
    remark = f"{path}: captions are read from {text!r}; {', '.join(map(repr, others))} can be had with --column."
    return image, text, remark if others and column is None else ""


def _read_image(path: Path, entry: Entry, name: object, key: str) -> ImageId:
    image = check_id(f"{path}: {entry.where}", name)
    if isinstance(image, str) and key != "image_id":
        number = parse_coco_number(PurePath(image).stem)
        return image if number is None else number
    return image


def _read_caption(path: Path, where: str, caption: object, image: object = None) -> str:
    if not isinstance(caption, str) or not caption.strip():
        of = "" if image is None else f" (image_id {format_value(image)})"
        raise ValueError(f"{path}: {where}{of}: expected a caption in words, got {format_value(caption)}.")
    return caption.strip()
