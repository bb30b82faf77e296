"""What samples repeat, what they copy, and what they miss, as cards and names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from clipconformity.evaluation import Score
from clipconformity.provenance import without_folders
from clipconformity.report.gallery import NAME, cards
from clipconformity.report.page import number, shortened

EACH = 4
"""Most samples that are shown of what is repeated, of what is copied, and of what lies off the manifold."""
NAMED = 12
"""Most reference samples that are named."""


class _Shown(NamedTuple):
    """Samples under a heading."""

    title: str
    about: str
    ids: list[str]


def neighbours(
    score: Score,
    most: int,
    images: Mapping[str, Path] | Sequence[Path] | None,
    captions: Mapping[str, str] | Sequence[str] | None,
) -> tuple[str, int]:
    """Lay out the samples that ``prdc`` and ``nearest`` name, at most so many.

    Returns:
        HTML, empty where there are none, and the number of samples that are shown.
    """
    places = {name: row for row, name in enumerate(score.ids)}
    parts, used = [], 0
    for title, about, ids in _found(score.details):
        rows = [places[name] for name in dict.fromkeys(ids) if name in places][: min(EACH, most - used)]
        if rows:
            used += len(rows)
            parts.append(f"<div><h4>{title}</h4><p>{escape(about)}</p>{cards(score, rows, images, captions)}</div>")
    missed = score.details.get("prdc", {}).get("uncovered")
    if missed is not None and missed["ids"]:
        names = "".join(f"<li>{escape(_name(one))}</li>" for one in missed["ids"][:NAMED])
        told = f"{missed['count']} of {missed['of']} of the reference's balls hold no sample; the farthest are of"
        parts.append(f"<div><h4>Not covered</h4><p>{told}</p><ul>{names}</ul></div>")
    return "".join(parts), used


def _found(details: Mapping[str, Mapping[str, Any]]) -> Iterator[_Shown]:
    """Find what there is to show."""
    if repeated := [one for one in details.get("nearest", {}).get("repeated", ()) if one["id"]]:
        times = ", ".join(f"{one['times']} times" for one in repeated[:EACH])
        yield _Shown("Repeated", f"near-duplicates among the samples: {times}", [one["id"] for one in repeated])
    for key, whose in (("nearest", "in the reference"), ("against", "in the files of --against")):
        copies = [_copy(one) for one in details.get(key, {}).get("copied", ())]
        if copies := [one for one in copies if one[0]]:
            of = ", ".join(f"{_name(name or 'unnamed')} ({number(cosine)})" for _, name, cosine in copies[:EACH])
            yield _Shown("Copied", f"near-duplicates {whose}, of {of}", [str(one[0]) for one in copies])
    off = details.get("prdc", {}).get("off_manifold", {})
    if off.get("ids"):
        about = f"{off['count']} of {off['of']} samples lie in no ball of the reference; the farthest"
        yield _Shown("Off the manifold", about, off["ids"])


def _copy(one: Mapping[str, Any]) -> tuple[str | None, str | None, float]:
    """A sample, the row that it copies, and their cosine."""
    if "training_id" in one:
        return one["id"], one["training_id"], one["cosine"]
    return one["ids"][0], one["reference_id"], one["cosine"]


def _name(name: str) -> str:
    return shortened(without_folders(name), NAME)
