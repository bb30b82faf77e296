"""The most and the least typical samples, as cards."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple, TypeVar

from clipconformity.data.images import open_image
from clipconformity.evaluation import Score
from clipconformity.provenance import without_folders
from clipconformity.report.page import number, shortened

SIDE = 192
"""Longest side of a thumbnail, in pixels."""
SMALL = 64
"""Images up to this side are carried as they are."""
CAPTION, NAME = 300, 120
"""Most characters of a caption and of a name."""

Value = TypeVar("Value")


class Chosen(NamedTuple):
    """Rows of the extremes, each from the outermost inwards."""

    most: list[int]
    least: list[int]


def extremes(score: Score, each: int) -> Chosen:
    """Choose the rows of highest and of lowest conformity, at most ``each`` of both and none twice."""
    order = score.conformities.argsort(descending=True, stable=True).tolist()
    count = min(each, len(order) // 2)
    return Chosen(order[:count], order[::-1][:count])


def cards(
    score: Score,
    rows: Sequence[int],
    images: Mapping[str, Path] | Sequence[Path] | None,
    captions: Mapping[str, str] | Sequence[str] | None,
) -> str:
    """Lay samples out with their conformity and norm; those without image and caption are named alone."""
    return f'<ol class="gallery">{"".join(_card(score, row, images, captions) for row in rows)}</ol>'


def _card(
    score: Score,
    row: int,
    images: Mapping[str, Path] | Sequence[Path] | None,
    captions: Mapping[str, str] | Sequence[str] | None,
) -> str:
    name = shortened(without_folders(score.ids[row]), NAME)
    image, caption = _of(images, score.ids[row], row), _of(captions, score.ids[row], row)
    picture = "" if image is None else _picture(image, name)
    words = "" if caption is None else f"<q>{escape(shortened(caption, CAPTION))}</q>"
    figures = {"conformity": float(score.conformities[row]), "norm": float(score.norms[row])}
    told = "".join(f"<span>{quantity} {number(value)}</span>" for quantity, value in figures.items())
    return (
        f"<li><figure>{picture}<figcaption>{words}"
        f'<span class="name">{escape(name)}</span>{told}</figcaption></figure></li>'
    )


def _of(values: Mapping[str, Value] | Sequence[Value] | None, name: str, row: int) -> Value | None:
    if values is None:
        return None
    return values.get(name) if isinstance(values, Mapping) else values[row]


def _picture(path: Path, name: str) -> str:
    try:
        kind, data = thumbnail(path)
    except (OSError, ValueError):
        return '<p class="missing">This image cannot be read.</p>'
    source = base64.b64encode(data).decode("ascii")
    return f'<img src="data:image/{kind};base64,{source}" alt="{escape(f"Sample {name}")}"{_look(kind)}>'


def _look(kind: str) -> str:
    return ' class="small"' if kind == "png" else ""


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
