"""Caption files: text lines, COCO annotations, COCO results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Captions:
    """Captions with their names and, where several belong to one image, their groups.

    Attributes:
        texts: The captions.
        ids: A name for each: annotation id, image id, or line number.
        groups: The image id of each, or None where every image has one.
    """

    texts: list[str]
    ids: list[str]
    groups: list[int] | list[str] | None = None


def read_captions(path: Path | str) -> Captions:
    """Read captions from a ``.txt`` file (one a line, blank lines left out), or a ``.json`` file.

    JSON may be a list of strings, COCO results ``[{"image_id", "caption"}]``, or COCO annotations
    ``{"annotations": [{"id", "image_id", "caption"}]}``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is broken, has other keys, or holds no captions; names the file and the place.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of captions.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    if path.suffix.lower() not in (".txt", ".json"):
        raise ValueError(f"{path}: expected captions in a .txt file, one a line, or a .json file.")
    if path.suffix.lower() == ".json":
        captions = _from_json(path, text)
    else:
        lines = [(str(number), line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        captions = Captions([line for _, line in lines], [number for number, _ in lines])
    if not captions.texts:
        raise ValueError(f"{path}: holds no captions.")
    return captions


def _from_json(path: Path, text: str) -> Captions:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: broken JSON at line {error.lineno}: {error.msg}.") from None
    except RecursionError:
        raise ValueError(f"{path}: broken JSON: nested too deeply to be captions.") from None
    if isinstance(content, dict):
        if not isinstance(content.get("annotations"), list):
            raise ValueError(
                f"{path}: expected COCO annotations with a list 'annotations', got keys {sorted(content)[:8]}."
            )
        content = content["annotations"]
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of captions, got {type(content).__name__}.")
    if all(isinstance(entry, str) for entry in content):
        content = [{"image_id": number, "caption": entry} for number, entry in enumerate(content, start=1)]
    entries = [_entry(path, number, entry) for number, entry in enumerate(content)]
    images = [image for _, image, _ in entries]
    groups: Any = images if len(set(images)) < len(images) else None
    return Captions([caption for _, _, caption in entries], [name for name, _, _ in entries], groups)


def _entry(path: Path, number: int, entry: Any) -> tuple[str, int | str, str]:
    if not isinstance(entry, dict) or not {"image_id", "caption"} <= set(entry):
        got = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"{path}: entry {number}: expected keys image_id and caption, got {got}.")
    image, caption = entry["image_id"], entry["caption"]
    if not isinstance(image, (int, str)) or not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"{path}: entry {number} (image_id {image!r}): expected a caption in words, got {caption!r}.")
    return str(entry.get("id", image)), image, caption.strip()
