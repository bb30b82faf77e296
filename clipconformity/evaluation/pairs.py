"""Images and captions read together: joined by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from clipconformity.data.folders import IMAGE_FORMATS
from clipconformity.data.results import coco_image_id, list_first
from clipconformity.evaluation.sources import Source, SourceBatch, check_source
from clipconformity.stream.alignment import Partners


class _SourceRows(NamedTuple):
    """All rows of one source by the key of the join."""

    rows: Tensor
    ids: list[str]
    places: dict[str, list[int]]


def paired_source(
    images: Source,
    captions: Source,
    *,
    scored: Literal["image", "text"],
    references: Source | None = None,
    on_missing: Literal["raise", "skip"] = "raise",
) -> Source:
    """Join images and captions by id, so that ``score`` adds their CLIPScore to the figures of one of them.

    An image belongs to the captions whose image id is the number in its name, as in MS-COCO, or its name without folder
    and suffix; a caption without an image id, as in a file of lines, to the image of its own id. The side that is not
    scored is read first, and its embeddings are held.

    Args:
        images: The images.
        captions: The captions, by the same encoder.
        scored: Which of the two is scored; an image with several captions has their mean CLIPScore.
        references: Human captions of the same images, for RefCLIPScore; with ``scored="text"``.
        on_missing: Whether a sample without a partner is an error or left out.

    Raises:
        TypeError: If one is not a source.
        ValueError: If ``scored`` is invalid, or the encoders differ; while reading, if two images have one id, or a
            sample has no partner.
    """
    sides = {"image": images, "text": captions}
    for source in (images, captions, references):
        if source is not None:
            check_source(source)
    if scored not in sides:
        raise ValueError(f"scored: expected 'image' or 'text', got {scored!r}.")
    if references is not None and scored != "text":
        raise ValueError("references: reference captions judge captions; give scored='text'.")
    if not images.provenance.is_same_encoder(captions.provenance):
        raise ValueError(
            f"the images come from encoder {images.provenance.spec!r} and the captions from "
            f"{captions.provenance.spec!r}; encode both with the same one."
        )
    mine, other = sides[scored], sides["text" if scored == "image" else "image"]
    joined = replace(mine, paired=True, with_references=references is not None, partner_of={})
    joined.encoder, joined.folder, joined.unknown = captions.encoder, images.folder, captions.unknown
    joined.beside = [other, *([] if references is None else [references])]

    def batches() -> Iterator[SourceBatch]:
        held = _read_source(other, scored != "image")
        people = None if references is None else _read_source(references, False)
        mine.skipped.extend(other.skipped)
        seen: set[str] = set()
        for batch in mine.batches:
            keys = _get_keys(batch, scored == "image")
            if scored == "image":
                _refuse_twice(seen, keys)
            lacking = [
                row for row, key in enumerate(keys) if not _have_groups(key, held) or not _have_groups(key, people)
            ]
            if lacking and on_missing == "raise":
                what = "caption" if scored == "image" else "image" + ("" if people is None else " or reference")
                raise ValueError(
                    f"pairs: {len(lacking)} of the {len(keys)} samples of a batch have no {what} of their id: "
                    f"{list_first([batch.ids[row] for row in lacking])}; name both alike, or leave these out "
                    "(--on-error skip)."
                )
            mine.skipped.extend({"id": str(batch.ids[row]), "reason": "no partner has its id"} for row in lacking)
            kept = sorted(set(range(len(keys))) - set(lacking))
            if kept:
                yield _pair_rows(batch, kept, keys, held, people, joined.partner_of)

    joined.batches = batches()
    return joined


def _read_source(source: Source, of_images: bool) -> _SourceRows:
    """Read a whole source."""
    rows: list[Tensor] = []
    ids: list[str] = []
    places: dict[str, list[int]] = {}
    for batch in source:
        keys = _get_keys(batch, of_images)
        if of_images:
            _refuse_twice(set(places), keys)
        for number, key in enumerate(keys, start=len(ids)):
            places.setdefault(key, []).append(number)
        rows.append(batch.embeddings.cpu())
        ids += batch.ids
    if not ids:
        raise ValueError(source.nothing_read)
    return _SourceRows(torch.cat(rows), ids, places)


def _get_keys(batch: SourceBatch, of_images: bool) -> list[str]:
    """Return the key of each row: the id of its image."""
    names: Any = batch.ids if of_images or batch.groups is None else batch.groups
    listed = names.tolist() if hasattr(names, "tolist") else names
    is_file = [of_images or Path(str(name)).suffix.lower() in IMAGE_FORMATS for name in listed]
    keys = [str(coco_image_id(str(name))) if file else str(name) for name, file in zip(listed, is_file, strict=True)]
    return [(key.lstrip("0") or "0") if key.isdecimal() else key for key in keys]


def _refuse_twice(seen: set[str], keys: Sequence[str]) -> None:
    for key in keys:
        if key in seen:
            raise ValueError(
                f"pairs: two images have the id {key!r}, so that captions cannot be told apart; rename one."
            )
        seen.add(key)


def _have_groups(key: str, held: _SourceRows | None) -> bool:
    return held is None or key in held.places


def _pair_rows(
    batch: SourceBatch,
    kept: list[int],
    keys: list[str],
    held: _SourceRows,
    people: _SourceRows | None,
    partner_of: dict[str, str],
) -> SourceBatch:
    """Return the chosen rows of a batch with their partners."""
    own = [held.places[keys[row]] for row in kept]
    ids = [str(batch.ids[row]) for row in kept]
    partner_of.update((name, held.ids[places[0]]) for name, places in zip(ids, own, strict=True))
    groups: Any = batch.groups
    if groups is not None and len(kept) < len(keys):
        groups = [groups[row] for row in kept]
    flat = [place for places in own for place in places]
    references = None if people is None else [people.rows[people.places[keys[row]]] for row in kept]
    partners = Partners(held.rows[flat], [len(places) for places in own], references)
    return SourceBatch(batch.embeddings[kept], ids, groups, batch.placed, partners=partners)
