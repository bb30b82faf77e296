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
from clipconformity.provenance import shorten_paths
from clipconformity.report.page import format_number, shorten
from clipconformity.stream.reference import ReferenceSet

MAX_SIDE = 192
"""Longest side of a thumbnail, in pixels."""
MAX_UNCHANGED_SIDE = 64
"""Images up to this side are embedded unchanged."""
CAPTION, NAME = 300, 120
"""Largest numbers of characters of a caption and of a name."""

Value = TypeVar("Value")
Samples: TypeAlias = "Mapping[str, Value] | Sequence[Value] | None"
"""A value of each sample, by id or in their order."""


class Picture(NamedTuple):
    """A thumbnail."""

    source: str
    """A ``data:`` address."""
    small: bool
    """Whether it is shown with visible pixels."""


class Card(NamedTuple):
    """A displayed sample."""

    name: str
    picture: Picture | Literal[False] | None
    """False where the image cannot be read, None where there is none."""
    caption: str | None
    lines: list[str]
    """Its values in words."""
    order: dict[str, float]
    """Its keys for sorting."""


class Extremes(NamedTuple):
    """Rows of highest and lowest conformity, each from the outermost inwards."""

    most: list[int]
    least: list[int]


def choose_extremes(conformities: Tensor, each: int) -> Extremes:
    """Choose the rows of highest and of lowest conformity, at most ``each`` of both, none twice."""
    order = conformities.argsort(descending=True, stable=True).tolist()
    count = min(each, len(order) // 2)
    return Extremes(order[:count], order[::-1][:count])


def make_cards(score: Score, rows: Sequence[int], images: Samples[Path], captions: Samples[str]) -> list[Card]:
    """Make cards of samples with conformity, norm and nearest reference; without image and caption, with the name."""
    return [
        _make_card(
            score.ids[row],
            _get_value(images, score.ids[row], row),
            _get_value(captions, score.ids[row], row),
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


def make_reference_cards(
    reference: ReferenceSet, rows: Sequence[int], images: Mapping[str, Path] | None, captions: Mapping[str, str] | None
) -> list[Card]:
    """Make cards of rows of a reference's row sample."""
    ids = reference.sample_ids or [""] * len(reference.units)
    return [
        _make_card(
            ids[row],
            _get_value(images, ids[row], row),
            _get_value(captions, ids[row], row),
            {"conformity": float(reference.conformities[row]), "norm": float(reference.norms[row])},
        )
        for row in rows
    ]


def _make_card(name: str, image: Path | None, caption: str | None, order: dict[str, float], nearest: str = "") -> Card:
    lines = [f"{quantity} {format_number(order[quantity])}" for quantity in ("conformity", "norm")]
    if "nearest" in order:
        of = f"{shorten(shorten_paths(nearest), NAME)}, " if nearest else ""
        lines.append(f"nearest reference {of}cosine {format_number(order['nearest'])}")
    return Card(
        shorten(shorten_paths(name), NAME),
        None if image is None else _make_picture(image),
        None if caption is None else shorten(caption, CAPTION),
        lines,
        order,
    )


def _get_value(values: Samples[Value], name: str, row: int) -> Value | None:
    if values is None:
        return None
    return values.get(name) if isinstance(values, Mapping) else values[row]


def _make_picture(path: Path) -> Picture | Literal[False]:
    try:
        kind, data = make_thumbnail(path)
    except (OSError, ValueError):
        return False
    source = base64.b64encode(data).decode("ascii")
    return Picture(f"data:image/{kind};base64,{source}", kind == "png")


def make_thumbnail(path: Path) -> tuple[str, bytes]:
    """Make a thumbnail of an image file: its kind, and its bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an image, or is truncated.
    """
    image, out = open_image(path), io.BytesIO()
    if max(image.size) <= MAX_UNCHANGED_SIDE:
        image.save(out, "PNG", optimize=True)
        return "png", out.getvalue()
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    image.save(out, "JPEG", quality=80, optimize=True)
    return "jpeg", out.getvalue()
