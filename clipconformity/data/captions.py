"""Caption files: text lines, COCO annotations, COCO results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipconformity.data.limits import check_limit
from clipconformity.data.untrusted import check_all_words, check_id, check_input, read_json, read_text, shown


@dataclass(frozen=True)
class Captions:
    """Captions with their names and, where several belong to one image, their groups.

    Attributes:
        texts: The captions.
        ids: A name for each: annotation id, image id, or line number.
        groups: The image id of each, or None where every image has one.
        image_ids: The image id of each, or None where the file has none.
    """

    texts: list[str]
    ids: list[str]
    groups: list[int] | list[str] | None = None
    image_ids: list[int] | list[str] | None = None


def read_captions(path: Path | str) -> Captions:
    """Read captions from a ``.txt`` file (one a line, blank lines left out), or a ``.json`` file.

    JSON may be a list of strings, COCO results ``[{"image_id", "caption"}]``, or COCO annotations
    ``{"annotations": [{"id", "image_id", "caption"}]}``.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it is no regular file.
        ValueError: If it is broken, has other keys, holds no captions, or is over a limit; names the file and the
            place.
    """
    path = Path(path)
    what = "file of captions"
    if path.suffix.lower() == ".json":
        captions = _from_json(path, read_json(path, what))
    elif path.suffix.lower() == ".txt":
        captions = _from_lines(path, read_text(path, what))
    else:
        check_input(path, what)
        raise ValueError(f"{path}: expected captions in a .txt file, one a line, or a .json file.")
    if not captions.texts:
        raise ValueError(f"{path}: holds no captions.")
    return captions


def _from_lines(path: Path, text: str) -> Captions:
    check_limit(path, "rows", text.count("\n"))
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    check_all_words([line for _, line in lines], lambda row: f"{path}: line {lines[row][0]}")
    return Captions([line for _, line in lines], [str(number) for number, _ in lines])


def _from_json(path: Path, content: Any) -> Captions:
    if isinstance(content, dict):
        if not isinstance(content.get("annotations"), list):
            raise ValueError(
                f"{path}: expected COCO annotations with a list 'annotations', got the keys "
                f"{', '.join(map(shown, sorted(content)[:8])) or 'none'}."
            )
        content = content["annotations"]
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of captions, got {type(content).__name__}.")
    check_limit(path, "rows", len(content))
    if all(isinstance(entry, str) for entry in content):
        said = [_caption(path, number, number + 1, entry) for number, entry in enumerate(content)]
        check_all_words(said, lambda number: f"{path}: entry {number}")
        return Captions(said, [str(number) for number in range(1, len(said) + 1)])
    entries = [_entry(path, number, entry) for number, entry in enumerate(content)]
    check_all_words([caption for _, _, caption in entries], lambda number: f"{path}: entry {number}")
    images = [image for _, image, _ in entries]
    mixed = next((number for number, image in enumerate(images) if type(image) is not type(images[0])), None)
    if mixed is not None:
        raise ValueError(
            f"{path}: entry {mixed}: its image_id is {shown(images[mixed])} and that of entry 0 {shown(images[0])}; "
            "expected whole numbers or strings throughout."
        )
    same: Any = images  # of one type, which has just been checked
    groups = same if len(set(images)) < len(images) else None
    return Captions([caption for _, _, caption in entries], [name for name, _, _ in entries], groups, same)


def _entry(path: Path, number: int, entry: Any) -> tuple[str, int | str, str]:
    if not isinstance(entry, dict) or not {"image_id", "caption"} <= set(entry):
        got = shown(sorted(entry)) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"{path}: entry {number}: expected keys image_id and caption, got {got}.")
    image = check_id(path, number, entry["image_id"])
    name = check_id(path, number, entry.get("id", image))
    return str(name), image, _caption(path, number, image, entry["caption"])


def _caption(path: Path, number: int, image: object, caption: object) -> str:
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(
            f"{path}: entry {number} (image_id {shown(image)}): expected a caption in words, got {shown(caption)}."
        )
    return caption.strip()
