"""The most and the least typical samples, as cards."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from torch import Tensor

from clipconformity.data.images import open_image
from clipconformity.evaluation import Score
from clipconformity.provenance import without_folders
from clipconformity.report.page import number, shortened
from clipconformity.stream.reference import ReferenceSet

SIDE = 192
"""Longest side of a thumbnail, in pixels."""
SMALL = 64
"""Images up to this side are carried as they are."""
CAPTION, NAME = 300, 120
"""Most characters of a caption and of a name."""

Value = TypeVar("Value")
Samples: TypeAlias = "Mapping[str, Value] | Sequence[Value] | None"
"""Something of each sample, by id or in their order."""


class Picture(NamedTuple):
    """A thumbnail."""

    source: str
    """A ``data:`` address."""
    small: bool
    """Whether its pixels are to be seen."""


class Card(NamedTuple):
    """A sample as it is shown."""

    name: str
    picture: Picture | Literal[False] | None
    """False where the image cannot be read, None where there is none."""
    caption: str | None
    lines: list[str]
    """What is known of it, in words."""
    order: dict[str, float]
    """What it can be sorted by."""


class Chosen(NamedTuple):
    """Rows of the extremes, each from the outermost inwards."""

    most: list[int]
    least: list[int]


def extremes(conformities: Tensor, each: int) -> Chosen:
    """Choose the rows of highest and of lowest conformity, at most ``each`` of both and none twice."""
    order = conformities.argsort(descending=True, stable=True).tolist()
    count = min(each, len(order) // 2)
    return Chosen(order[:count], order[::-1][:count])


def cards(score: Score, rows: Sequence[int], images: Samples[Path], captions: Samples[str]) -> list[Card]:
    """Lay samples out with their conformity, norm and nearest reference; without image and caption they are named."""
    return [
        _card(
            score.ids[row],
            _of(images, score.ids[row], row),
            _of(captions, score.ids[row], row),
            {
                "conformity": float(score.conformities[row]),
                "norm": float(score.norms[row]),
                **(
                    {"nearest": float(score.columns["nearest_cosine"][row])}
                    if "nearest_cosine" in score.columns
                    else {}
                ),
            },
            str(score.columns["nearest_id"][row]) if "nearest_id" in score.columns else "",
        )
        for row in rows
    ]


def reference_cards(
    reference: ReferenceSet, rows: Sequence[int], images: Mapping[str, Path] | None, captions: Mapping[str, str] | None
) -> list[Card]:
    """Lay rows of a reference's row sample out."""
    ids = reference.sample_ids or [""] * len(reference.units)
    return [
        _card(
            ids[row],
            _of(images, ids[row], row),
            _of(captions, ids[row], row),
            {"conformity": float(reference.conformities[row]), "norm": float(reference.norms[row])},
        )
        for row in rows
    ]


def _card(name: str, image: Path | None, caption: str | None, order: dict[str, float], nearest: str = "") -> Card:
    lines = [f"{quantity} {number(order[quantity])}" for quantity in ("conformity", "norm")]
    if "nearest" in order:
        of = f"{shortened(without_folders(nearest), NAME)}, " if nearest else ""
        lines.append(f"nearest reference {of}cosine {number(order['nearest'])}")
    return Card(
        shortened(without_folders(name), NAME),
        None if image is None else _picture(image),
        None if caption is None else shortened(caption, CAPTION),
        lines,
        order,
    )


def _of(values: Samples[Value], name: str, row: int) -> Value | None:
    if values is None:
        return None
    return values.get(name) if isinstance(values, Mapping) else values[row]


def _picture(path: Path) -> Picture | Literal[False]:
    try:
        kind, data = thumbnail(path)
    except (OSError, ValueError):
        return False
    source = base64.b64encode(data).decode("ascii")
    return Picture(f"data:image/{kind};base64,{source}", kind == "png")


def thumbnail(path: Path) -> tuple[str, bytes]:
    """Give an image file at the size of a thumbnail: its kind, and its bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image, or is truncated.
    """
    image, out = open_image(path), io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(out, "PNG", optimize=True)
        return "png", out.getvalue()
    image.thumbnail((SIDE, SIDE))
    image.save(out, "JPEG", quality=80, optimize=True)
    return "jpeg", out.getvalue()
