"""The nearest reference row of each sample: copies of the reference, and repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clipconformity.functional.neighbours import nearest
from clipconformity.functional.resampling import name_ends
from clipconformity.stream.copies import DUPLICATE, Copies
from clipconformity.stream.readouts.base import Batch, Field, ReadOut
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.stream import Needs, Stream

NEAR_DUPLICATE = f"a near-duplicate (cosine of {DUPLICATE} or more)"
FIGURES = (
    ("nearest_cosine", "mean cosine of a sample to the nearest reference row", "cosine"),
    ("reference_nearest_cosine", "the same inside the reference", "cosine"),
    ("copied_share", f"share of the samples with {NEAR_DUPLICATE} in the reference", ""),
    ("repeated_share", f"share of the samples with {NEAR_DUPLICATE} among the samples", ""),
    ("reference_repeated_share", f"share of the reference with {NEAR_DUPLICATE} in it", ""),
)
AUTHENTIC = (
    ("authenticity", "share of the samples farther from the nearest reference row than that is from another one"),
    ("reference_authenticity", "the same of the reference, each row against the others"),
)


class NearestReadOut(ReadOut):
    """Nearest neighbours of the samples in the reference, and among themselves, in the row samples of both sides."""

    name = "nearest"
    needs = Needs(rows=True, reference=True)
    fields = (
        *(one for name, about, unit in FIGURES for one in Field(name, about, unit, compared=True).with_interval()),
        *(
            one
            for name, about in AUTHENTIC
            for one in Field(name, about, compared=True).with_interval(
                "that sets of these sizes have on average", drawn=True
            )
        ),
    )

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the figures; all intervals but that of authenticity leave buckets of rows out of both sides."""
        found = self.find_copies(stream)
        figures: dict[str, Tensor] = {}
        for (name, *_), (estimate, interval) in zip(
            FIGURES, found.mean_nearest() + found.compute_shares(), strict=True
        ):
            figures |= {name: estimate.value} | name_ends(name, interval)
        return figures | {name: value for (name, _), value in zip(AUTHENTIC, found.compute_authentic(), strict=True)}

    def resample(
        self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the intervals of authenticity, by splitting both sides into parts; nothing is random."""
        found: dict[str, Tensor] = {}
        for (name, _), interval in zip(AUTHENTIC, self.find_copies(stream).compute_authentic_intervals(), strict=True):
            found |= name_ends(name, interval)
        return found

    def find_copies(self, stream: Stream) -> Copies:
        """Find the nearest rows of the row samples; with groups on both sides those of other groups."""
        moments, reference = stream.read_side(), stream.require_reference(self.name)

        def make() -> Copies:
            return Copies.find(moments.good_sample().cpu(), reference.sample, (moments.grouped, reference.grouped))

        return stream.cache(self.name, make)

    def notes(self, stream: Stream) -> list[str]:
        """Note where copies were searched, unless everywhere, and what intervals need."""
        reference, missing = stream.require_reference(self.name), self.find_copies(stream).notes()
        kept, count = len(reference.sample.keys), reference.count
        if kept == count:
            return missing
        return [f"nearest rows were looked for among the {kept} that the reference keeps, of {count}: copies of others "
                "are not found.", *missing]  # fmt: skip

    def details(self, stream: Stream) -> dict[str, Any]:
        """Name the reference rows that most samples copy, and the samples that are repeated most."""
        found, names = self.find_copies(stream), stream.evaluated.names
        return {
            "threshold": DUPLICATE,
            "looked_at": {"samples": len(found.evaluated.keys), "reference": len(found.reference.keys)},
            "copied": found.count_copied(names, stream.require_reference(self.name).moments.names),
            "repeated": found.count_repeated(names),
        }

    def columns(self, batch: Batch, reference: ReferenceSet) -> Mapping[str, Sequence[float | str]]:
        """Return id and cosine of the nearest reference row of each row of a batch."""
        cosine, index = nearest(batch.embeddings.cpu(), reference)
        ids = reference.sample_ids or [""] * len(reference.units)
        return {"nearest_id": [ids[one] for one in index[:, 0].tolist()], "nearest_cosine": cosine[:, 0].tolist()}
