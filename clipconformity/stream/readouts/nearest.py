"""The nearest reference row of each sample: what the samples copy, and what they repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from clipconformity.functional.neighbours import close_counts, nearest
from clipconformity.functional.resampling import Estimate, Interval, ends_of, estimated_share
from clipconformity.stream.closest import Closest
from clipconformity.stream.neighbourhood import independent
from clipconformity.stream.readouts.base import Batch, Field, ReadOut
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.row_sample import Sample
from clipconformity.stream.stream import Needs, Stream

DUPLICATE = 0.98
"""Cosine from which two rows are near-duplicates: different images of MS-COCO, and different captions, stay below."""
SHOWN = 10
"""Most samples that are named of those that are copied, and of those that are repeated."""
NEAR = f"a near-duplicate (cosine of {DUPLICATE} or more)"
FIGURES = (
    ("nearest_cosine", "mean cosine of a sample to the nearest reference row", "cosine"),
    ("reference_nearest_cosine", "the same inside the reference", "cosine"),
    ("copied_share", f"share of the samples with {NEAR} in the reference", ""),
    ("repeated_share", f"share of the samples with {NEAR} among the samples", ""),
    ("reference_repeated_share", f"share of the reference with {NEAR} in it", ""),
)


class Neighbours(NamedTuple):
    """Row samples of both sides, and the nearest row of each."""

    evaluated: Sample
    reference: Sample
    across: Closest
    within: Closest
    in_reference: Closest


class NearestReadOut(ReadOut):
    """How near the samples come to the reference, and to each other, in the row samples of both sides."""

    name = "nearest"
    needs = Needs(rows=True, reference=True)
    fields = (
        *(one for name, about, unit in FIGURES for one in Field(name, about, unit, compared=True).with_interval()),
    )

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Give the figures; the intervals leave buckets of rows out of both sides."""
        found = self.neighbours(stream)
        sizes = independent(found.evaluated), independent(found.reference)
        mean, copied = found.across.mean(), found.across.mean(_close)
        usual, repeated, normal = found.in_reference.mean(), found.within.mean(_close), found.in_reference.mean(_close)
        estimates: tuple[tuple[Estimate, Interval], ...] = (
            (mean, mean.interval()),
            (usual, usual.interval()),
            (copied, estimated_share(copied, sizes[0])),
            (repeated, estimated_share(repeated, sizes[0])),
            (normal, estimated_share(normal, sizes[1])),
        )
        figures: dict[str, Tensor] = {}
        for (name, *_), (estimate, interval) in zip(FIGURES, estimates, strict=True):
            figures |= {name: estimate.value} | ends_of(name, interval)
        return figures

    def neighbours(self, stream: Stream) -> Neighbours:
        """Find the nearest rows of the row samples; with groups on both sides those of other groups."""
        moments, reference = stream.checked(), stream.needed_reference(self.name)

        def make() -> Neighbours:
            mine, theirs = moments.good_sample().cpu(), reference.sample
            return Neighbours(
                mine,
                theirs,
                Closest.of(mine, theirs, grouped=moments.grouped and reference.grouped),
                Closest.of(mine, grouped=moments.grouped),
                Closest.of(theirs, grouped=reference.grouped),
            )

        return stream.once(self.name, make)

    def notes(self, stream: Stream) -> list[str]:
        """Say where copies were looked for, unless that is everywhere."""
        reference = stream.needed_reference(self.name)
        kept, count = len(reference.sample.keys), reference.count
        if kept == count:
            return []
        return [f"nearest rows were looked for among the {kept} that the reference keeps, of {count}: copies of others "
                "are not found."]  # fmt: skip

    def details(self, stream: Stream) -> dict[str, Any]:
        """Name the reference rows that most samples copy, and the samples that are repeated most."""
        found, reference = self.neighbours(stream), stream.needed_reference(self.name)
        names, others = stream.evaluated.names, reference.moments.names
        return {
            "threshold": DUPLICATE,
            "looked_at": {"samples": len(found.evaluated.keys), "reference": len(found.reference.keys)},
            "copied": _copied(found, names, others),
            "repeated": _repeated(found.evaluated, names),
        }

    def columns(self, batch: Batch, reference: ReferenceSet) -> Mapping[str, Sequence[float | str]]:
        """Give id and cosine of the nearest reference row of each row of a batch."""
        cosine, index = nearest(batch.embeddings.cpu(), reference)
        ids = reference.sample_ids or [""] * len(reference.units)
        return {"nearest_id": [ids[one] for one in index[:, 0].tolist()], "nearest_cosine": cosine[:, 0].tolist()}


def _close(cosine: Tensor) -> Tensor:
    return (cosine >= DUPLICATE).double()


def _copied(found: Neighbours, names: dict[int, str], others: dict[int, str]) -> list[dict[str, Any]]:
    """Reference rows by the number of samples that are near-duplicates of them before all others."""
    rows = (found.across.cosine >= DUPLICATE).nonzero()[:, 0]
    rows = rows[found.across.cosine[rows].argsort(descending=True, stable=True)]
    there = found.across.which[rows]
    _, which, often = found.reference.keys[there].unique(return_inverse=True, return_counts=True)
    listed = []
    for one in often.argsort(descending=True, stable=True)[:SHOWN].tolist():
        mine, its = rows[which == one], there[which == one]
        listed.append({
            "reference_id": others.get(int(found.reference.ids[its[0]])),
            "samples": int(often[one]),
            "cosine": float(found.across.cosine[mine[0]]),
            "ids": [names.get(label) for label in found.evaluated.ids[mine[:3]].tolist()],
        })  # fmt: skip
    return listed


def _repeated(sample: Sample, names: dict[int, str]) -> list[dict[str, Any]]:
    """Samples by the number of their near-duplicates, one for those that are near-duplicates of each other."""
    units = sample.rows / sample.values[:, :1].float()
    often = close_counts(units, DUPLICATE)
    listed: list[dict[str, Any]] = []
    left = often.clone()
    while len(listed) < SHOWN and int(left.max()) > 1:
        row = int(left.argmax())
        left[units @ units[row] >= DUPLICATE] = 0
        left[row] = 0
        listed.append({"id": names.get(int(sample.ids[row])), "times": int(often[row])})
    return listed
