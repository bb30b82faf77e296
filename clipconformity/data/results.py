"""COCO results: one caption an image, as captioners publish them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

from clipconformity.data.captions import Captions, ImageId, parse_coco_number
from clipconformity.data.files import check_outputs, replace_file
from clipconformity.data.limits import check_limit
from clipconformity.data.strict_json import to_json
from clipconformity.data.untrusted import check_all_words, check_id, format_value, read_json


def coco_image_id(path: Path | str) -> ImageId:
    """Image id of a file: the number in a name of MS-COCO, else the name without suffix.

    Example:
        >>> coco_image_id("COCO_val2014_000000391895.jpg"), coco_image_id("000000000139.jpg"), coco_image_id("dog.png")
        (391895, 139, 'dog')
    """
    stem = Path(path).stem
    number = parse_coco_number(stem)
    return stem if number is None else number


def write_results(path: Path | str, image_ids: Sequence[ImageId], captions: Sequence[str]) -> None:
    """Write COCO results, ``[{"image_id": 1, "caption": "a dog"}]``.

    Raises:
        ValueError: If the lengths differ, an id comes twice, or a caption is empty.
        OSError: If the file cannot be written.
    """
    image_ids = list_ids(image_ids)
    if len(image_ids) != len(captions):
        raise ValueError(f"expected one caption for each image, got {len(captions)} for {len(image_ids)}.")
    refuse_duplicates("image_ids", image_ids)
    if any(not caption.strip() for caption in captions):
        raise ValueError("captions: expected words, got an empty caption.")
    entries = [{"image_id": name, "caption": text} for name, text in zip(image_ids, captions, strict=True)]
    with replace_file(path) as temporary:
        temporary.write_text(to_json(entries), encoding="utf-8")


def read_results(
    path: Path | str,
    image_ids: Sequence[ImageId] | None = None,
    *,
    on_missing: Literal["raise", "skip"] = "raise",
) -> Captions:
    """Read COCO results: one caption an image.

    Args:
        path: The file; published ones often have further keys, which are ignored.
        image_ids: The images that were to be captioned, in order; the captions come back in that order.
        on_missing: Whether images without a caption are an error or left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is broken, an image comes twice, or is not among ``image_ids``, or one of these is missing;
            counts them and names the first.
    """
    path = Path(path)
    if on_missing not in ("raise", "skip"):
        raise ValueError(f"on_missing: expected 'raise' or 'skip', got {on_missing!r}.")
    entries = read_result_entries(path)
    if not entries:
        raise ValueError(f"{path}: expected COCO results with one caption at least, got none.")
    names = [name for name, _ in entries]
    refuse_duplicates(str(path), names)
    texts = dict(entries)
    if image_ids is not None:
        image_ids = list_ids(image_ids)
        refuse_duplicates("image_ids", image_ids)
        wanted = set(image_ids)
        unknown = [name for name in names if name not in wanted]
        if unknown:
            kinds = {type(name).__name__ for name in (*unknown[:1], *image_ids[:1])}
            hint = (
                "is this a results file of another split?"
                if len(kinds) < 2
                else f"ids are {' and '.join(sorted(kinds))}."
            )
            raise ValueError(
                f"{path}: {len(unknown)} of {len(names)} image ids are unknown: {list_first(unknown)}; {hint}"
            )
        missing = [name for name in image_ids if name not in texts]
        if missing and on_missing == "raise":
            raise ValueError(f"{path}: {len(missing)} of {len(wanted)} images have no caption: {list_first(missing)}.")
        names = [name for name in image_ids if name in texts]
    return Captions.of_images(names, [texts[name] for name in names])


def merge_results(paths: Sequence[Path | str], output: Path | str) -> Captions:
    """Join the results of several processes, interleaved as the images were split.

    That is the order of the images, unless some were left out for their empty captions.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If one is broken, an image comes twice, or ``output`` is one of ``paths``.
    """
    check_outputs([("output", Path(output))], [("paths", Path(path)) for path in paths])
    parts = [read_result_entries(Path(path)) for path in paths]
    longest = max((len(part) for part in parts), default=0)
    entries = [part[place] for place in range(longest) for part in parts if place < len(part)]
    write_results(output, [name for name, _ in entries], [text for _, text in entries])
    return read_results(output)


def read_result_entries(path: Path) -> list[tuple[ImageId, str]]:
    """Read image ids and captions of a results file; ids keep their type."""
    content = read_json(path, "results file")
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected COCO results, a list of entries with image_id and caption.")
    check_limit(path, "rows", len(content))
    entries = []
    for number, entry in enumerate(content):
        name, text = (entry.get("image_id"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
        if not _is_id(name) or not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"{path}: entry {number}: expected image_id and a caption in words, got {format_value(entry)}."
            )
        entries.append((check_id(f"{path}: entry {number}", name), text.strip()))
    check_all_words([text for _, text in entries], lambda number: f"{path}: entry {number}")
    return entries


def _is_id(name: object) -> TypeGuard[ImageId]:
    return isinstance(name, int | str) and not isinstance(name, bool)


def list_ids(ids: Any) -> list[ImageId]:
    """List ids, also those of a tensor or an array.

    Raises:
        TypeError: If one is neither a whole number nor a string.
    """
    listed: list[ImageId] = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    wrong = [name for name in listed if not _is_id(name)]
    if wrong:
        raise TypeError(f"image_ids: expected whole numbers or strings, got {wrong[0]!r} ({type(wrong[0]).__name__}).")
    return listed


def refuse_duplicates(where: str, ids: Sequence[ImageId]) -> None:
    """Refuse duplicate ids, with their number."""
    seen: set[ImageId] = set()
    twice = list(dict.fromkeys(name for name in ids if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    if twice:
        raise ValueError(f"{where}: {len(twice)} image ids come twice: {list_first(twice)}; give one caption an image.")


def list_first(ids: Sequence[ImageId]) -> str:
    """List the first three values for an error."""
    plain = (str(one) if len(str(one)) < 80 and str(one).isprintable() else format_value(one) for one in ids[:3])
    return ", ".join(plain) + (", ..." if len(ids) > 3 else "")
