"""MS-COCO's captions with their images: the 2014 and 2017 layouts, the Karpathy split, seeded selection of captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from clipconformity.data.brief import format_brief
from clipconformity.data.captions import Captions
from clipconformity.data.files import replace_file
from clipconformity.data.folders import make_missing_error
from clipconformity.data.limits import check_limit
from clipconformity.data.strict_json import to_json
from clipconformity.data.untrusted import MAX_ID, check_inside, check_words, format_value, read_json

MAX_NAMED = 3
"""Largest number of ids in an error."""


@dataclass(frozen=True)
class Coco:
    """Images and selected captions of one split.

    Attributes:
        split: Name of the split.
        image_ids: Ids of the images, in the order of their files, as ``list_images`` gives them.
        image_paths: Their files, in the same order.
        captions: The selected captions; ``ids`` are annotation ids, ``groups`` and ``image_ids`` image ids.
        missing: Files that are not there, with ``on_missing="skip"``; their images and captions are left out.
        per_image: Captions selected for each image; None means all.
        seed: Seed of the selection.
    """

    split: str
    image_ids: list[int]
    image_paths: list[Path]
    captions: Captions
    missing: list[Path]
    per_image: int | None
    seed: int

    def __repr__(self) -> str:
        return format_brief(self, split=self.split, **self._sizes, per_image=self.per_image, seed=self.seed)

    @property
    def _sizes(self) -> dict[str, int]:
        return {"images": len(self.image_paths), "captions": len(self.captions.texts), "missing": len(self.missing)}

    @property
    def name(self) -> str:
        """Name of the samples, for ``ReferenceSet.dataset``."""
        if self.per_image is None:
            return f"coco {self.split}, all captions"
        return f"coco {self.split}, captions per image: {self.per_image}, seed {self.seed}"

    def describe(self) -> dict[str, Any]:
        """Return the selection as plain values, without the ids."""
        return {"dataset": self.name} | self._sizes

    def save_captions(self, path: Path | str) -> None:
        """Write the selected captions with their ids as COCO annotations, which ``read_captions`` reads.

        Raises:
            OSError: If the file cannot be written.
        """
        annotations = [
            {"id": int(name), "image_id": image, "caption": text}
            for name, image, text in zip(
                self.captions.ids, self.captions.groups or [], self.captions.texts, strict=True
            )
        ]
        content = {"info": self.describe() | {"seed": self.seed}, "annotations": annotations}
        with replace_file(path) as temporary:
            temporary.write_text(to_json(content), encoding="utf-8")


class _Image(NamedTuple):
    id: int
    path: Path
    sentences: list[tuple[int, str]]
    """Annotation ids and captions."""


def read_coco(
    root: Path | str,
    split: str = "val2017",
    *,
    per_image: int | None = 1,
    seed: int = 0,
    karpathy: Path | str | None = None,
    on_missing: Literal["raise", "skip"] = "raise",
) -> Coco:
    """Read images and captions of MS-COCO.

    Annotations are ``root/annotations/captions_<split>.json``; images lie in ``root/<split>``, ``root/images/<split>``
    or ``root/images``. With a Karpathy split file (``dataset_coco.json``) the split is one of that file, such as
    ``"test"``, and images lie in ``root/<filepath>`` or ``root/images/<filepath>``.

    The selection depends only on the seed, the image id and the ids of its captions: not on the order of
    the file, nor on which other images there are.

    Args:
        root: Folder of the dataset.
        split: Such as ``"val2017"``, ``"val2014"``, ``"train2017"``; or a split of the Karpathy file.
        per_image: Captions selected for each image, or all of them where it has fewer; None selects all.
        seed: Seed of the selection.
        karpathy: The split file of Karpathy and Fei-Fei.
        on_missing: Whether images without a file are an error, or left out with their captions and counted.

    Raises:
        FileNotFoundError: If annotations or images are missing; counts the images and names the first.
        ValueError: If a file is broken, an id comes twice, an image has no caption, or an argument does not fit.
    """
    root = Path(root)
    if per_image is not None and per_image < 1:
        raise ValueError(f"per_image: expected at least 1, or None for all, got {per_image}.")
    if seed < 0:
        raise ValueError(f"seed: expected a number of at least 0, got {seed}.")
    if on_missing not in ("raise", "skip"):
        raise ValueError(f"on_missing: expected 'raise' or 'skip', got {on_missing!r}.")
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: expected the folder of MS-COCO.")
    images = _read_official(root, split) if karpathy is None else _read_karpathy(root, split, Path(karpathy))
    images = sorted(images, key=lambda image: image.path)  # the order of list_images, so that rows pair up
    present = [image for image in images if image.path.is_file()]
    missing = [image.path for image in images if not image.path.is_file()]
    if missing and (on_missing == "raise" or not present):
        raise make_missing_error(root, f"{len(images)} images of {split}", missing)
    texts: list[str] = []
    ids: list[str] = []
    groups: list[int] = []
    for image in present:
        for sentence, text in _draw_captions(image, per_image, seed):
            texts.append(text)
            ids.append(str(sentence))
            groups.append(image.id)
    captions = Captions(texts, ids, groups)
    return Coco(
        split, [image.id for image in present], [image.path for image in present], captions, missing, per_image, seed
    )


def _draw_captions(image: _Image, per_image: int | None, seed: int) -> list[tuple[int, str]]:
    sentences = sorted(image.sentences)
    if per_image is None or per_image >= len(sentences):
        return sentences
    drawn = np.random.default_rng([seed, image.id]).permutation(len(sentences))[:per_image]
    return [sentences[number] for number in sorted(drawn.tolist())]


def _read_official(root: Path, split: str) -> list[_Image]:
    path = root / "annotations" / f"captions_{split}.json"
    if not path.is_file():
        found = sorted(p.stem.removeprefix("captions_") for p in path.parent.glob("captions_*.json"))
        raise FileNotFoundError(f"{path}: no such file of captions; splits found here: {', '.join(found) or 'none'}.")
    content = read_json(path, "file of annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise ValueError(f"{path}: expected COCO annotations with lists 'images' and 'annotations'.")
    for part in ("images", "annotations"):
        check_limit(path, "rows", len(content[part]))
    folder = _find_folder(root, split)
    entries = [
        _read_fields(path, "images", n, e, {"id": int, "file_name": str}) for n, e in enumerate(content["images"])
    ]
    images = {number: _Image(number, folder / check_inside(path, name), []) for number, name in entries}
    if len(images) < len(entries):
        raise ValueError(f"{path}: {len(entries) - len(images)} image ids come twice.")
    wanted = {"id": int, "image_id": int, "caption": str}
    for number, entry in enumerate(content["annotations"]):
        sentence, image, text = _read_fields(path, "annotations", number, entry, wanted)
        if image not in images:
            raise ValueError(f"{path}: annotation {sentence} is of image {image}, which is not among the images.")
        images[image].sentences.append((sentence, text.strip()))
    return _check_images(path, list(images.values()))


def _read_karpathy(root: Path, split: str, path: Path) -> list[_Image]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such split file.")
    content = read_json(path, "split file")
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{path}: expected a Karpathy split file with a list 'images'.")
    check_limit(path, "rows", len(content["images"]))
    splits = (entry.get("split") for entry in content["images"] if isinstance(entry, dict))
    found = {one for one in splits if isinstance(one, str)}
    if split not in found:
        raise ValueError(
            f"split: {path} has no split {split!r}; it has {', '.join(map(format_value, sorted(found)[:8]))}."
        )
    images, folders = [], {}
    for number, entry in enumerate(content["images"]):
        if not isinstance(entry, dict) or entry.get("split") != split:
            continue
        key = "cocoid" if "cocoid" in entry else "imgid"
        wanted = {key: int, "filename": str, "sentences": list}
        image, name, sentences = _read_fields(path, "images", number, entry, wanted)
        place = entry.get("filepath", "")
        if not isinstance(place, str):
            raise ValueError(f"{path}: images, entry {number}: expected filepath (str), got {format_value(place)}.")
        if check_inside(path, place) not in folders:
            folders[place] = _find_folder(root, place)
        said = [
            _read_fields(path, f"images[{number}].sentences", n, e, {"sentid": int, "raw": str})
            for n, e in enumerate(sentences)
        ]
        images.append(_Image(image, folders[place] / check_inside(path, name), [(s, text.strip()) for s, text in said]))
    return _check_images(path, images)


def _check_images(path: Path, images: list[_Image]) -> list[_Image]:
    """Refuse ids that come twice, empty captions and images without one."""
    if not images:
        raise ValueError(f"{path}: holds no images.")
    sentences = [sentence for image in images for sentence, _ in image.sentences]
    for what, ids in (("image", [image.id for image in images]), ("caption", sentences)):
        if len(set(ids)) < len(ids):
            raise ValueError(f"{path}: {len(ids) - len(set(ids))} {what} ids come twice.")
    bare = [image.id for image in images if not image.sentences]
    if bare:
        raise ValueError(f"{path}: {len(bare)} images have no caption; the first ids are {_list_first(bare)}.")
    empty = [sentence for image in images for sentence, text in image.sentences if not text]
    if empty:
        raise ValueError(f"{path}: {len(empty)} captions are empty; the first ids are {_list_first(empty)}.")
    return images


def _list_first(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:MAX_NAMED]))


def _find_folder(root: Path, name: str) -> Path:
    """Find the folder of images; where there is none, the first candidate, so that errors name it."""
    candidates = [root / name, root / "images" / name, root / "images"]
    return next((folder for folder in candidates if folder.is_dir() and folder != root), candidates[0])


def _read_fields(path: Path, part: str, number: int, entry: Any, wanted: dict[str, type]) -> Any:
    """Return the wanted fields of an entry, after checking their types."""

    def values() -> Iterator[Any]:
        for key, kind in wanted.items():
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(
                    f"{path}: {part}, entry {number}: expected {key} ({kind.__name__}), got {format_value(value)}."
                )
            if isinstance(value, int) and not 0 <= value < MAX_ID:
                raise ValueError(
                    f"{path}: {part}, entry {number}: expected {key} from 0 to 2^63, got {format_value(value)}."
                )
            if isinstance(value, str) and not (len(value) < 300 and value.isascii() and "\0" not in value):
                check_words(f"{path}: {part}, entry {number}", value)
            yield value

    return tuple(values())
