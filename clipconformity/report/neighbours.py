"""Repeated, copied and missed samples, as cards and names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipconformity.evaluation import Score
from clipconformity.provenance import shorten_paths
from clipconformity.report.gallery import NAME, Card, Samples, make_cards, make_reference_cards
from clipconformity.report.page import format_number, shorten

MAX_SHOWN = 4
"""Largest number of shown samples of each kind: repeated, copied, off the manifold."""
MAX_NAMED = 12
"""Largest number of named reference samples."""


class Part(NamedTuple):
    """Samples under a heading."""

    title: str
    about: str
    cards: list[Card]
    names: Sequence[str] = ()


class _Found(NamedTuple):
    """Samples that a metric names."""

    title: str
    about: str
    samples: dict[str, str | None]
    """For each sample, the reference sample to be shown beside it."""


def collect_parts(
    score: Score,
    most: int,
    images: Samples[Path],
    captions: Samples[str],
    reference_images: Mapping[str, Path] | None = None,
    reference_captions: Mapping[str, str] | None = None,
) -> tuple[list[Part], int]:
    """Collect the samples that ``prdc`` and ``nearest`` name, up to a given number.

    Returns:
        The parts, and the number of shown samples.
    """
    places = {name: row for row, name in enumerate(score.ids)}
    shown = reference_images is not None or reference_captions is not None
    theirs = {name: row for row, name in enumerate(score.reference.sample_ids or ())} if shown else {}
    parts, used = [], 0

    def originals(names: Sequence[str | None]) -> list[Card]:
        rows = [theirs[name] for name in names if name in theirs]
        return make_reference_cards(score.reference, rows, reference_images, reference_captions)

    for one in _collect_samples(score.details):
        drawn: list[Card] = []
        for name, original in list(one.samples.items())[:MAX_SHOWN]:
            beside = originals([original])
            if name in places and used + 1 + len(beside) <= most:
                drawn += make_cards(score, [places[name]], images, captions)
                drawn += [card._replace(name=f"original: {card.name}") for card in beside]
                used += 1 + len(beside)
        if drawn:
            parts.append(Part(one.title, one.about, drawn))
    missed = score.details.get("prdc", {}).get("uncovered")
    if missed is not None and missed["ids"]:
        drawn = originals(missed["ids"][: max(0, min(MAX_SHOWN, most - used))])
        used += len(drawn)
        names = [] if drawn else [_name_sample(one) for one in missed["ids"][:MAX_NAMED]]
        about = f"{missed['count']} of {missed['of']} of the reference's balls hold no sample; the farthest are of"
        parts.append(Part("Not covered", about, drawn, names))
    return parts, used


def _collect_samples(details: Mapping[str, Mapping[str, Any]]) -> Iterator[_Found]:
    """Collect the samples to show."""
    if repeated := [one for one in details.get("nearest", {}).get("repeated", ()) if one["id"]]:
        times = ", ".join(f"{one['times']} times" for one in repeated[:MAX_SHOWN])
        yield _Found(
            "Repeated", f"near-duplicates among the samples: {times}", dict.fromkeys(one["id"] for one in repeated)
        )
    for key, whose in (("nearest", "in the reference"), ("against", "in the files of --against")):
        copies = [_make_copy(one) for one in details.get(key, {}).get("copied", ())]
        if copies := [one for one in copies if one[0]]:
            of = ", ".join(
                f"{_name_sample(name or 'unnamed')} ({format_number(cosine)})" for _, name, cosine in copies[:MAX_SHOWN]
            )
            beside = {str(mine): name if key == "nearest" else None for mine, name, _ in copies}
            yield _Found("Copied", f"near-duplicates {whose}, of {of}", beside)
    off = details.get("prdc", {}).get("off_manifold", {})
    if off.get("ids"):
        about = f"{off['count']} of {off['of']} samples lie in no ball of the reference; the farthest"
        yield _Found("Off the manifold", about, dict.fromkeys(off["ids"]))


def _make_copy(one: Mapping[str, Any]) -> tuple[str | None, str | None, float]:
    """Make cards of a sample and the row that it copies, with their cosine."""
    if "training_id" in one:
        return one["id"], one["training_id"], one["cosine"]
    return one["ids"][0], one["reference_id"], one["cosine"]


def _name_sample(name: str) -> str:
    return shorten(shorten_paths(name), NAME)
