"""Copies of the reference and repeats among the samples, by the nearest rows of both row samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.neighbours import close_counts, is_authentic
from clipconformity.functional.resampling import Estimate, Interval, estimate_share
from clipconformity.stream.closest import Closest
from clipconformity.stream.parts import count_independent, estimate_spread, explain_missing_spread, share_variance
from clipconformity.stream.row_sample import Sample

DUPLICATE = 0.98
"""Cosine from which two rows are near-duplicates: different images or captions of MS-COCO stay below."""
MAX_SHOWN = 10
"""Largest number of named samples that are copied, and that are repeated."""
MIN_NEIGHBOURS = 5
"""Smallest number of neighbours in a part of the rows for the variance of authenticity."""


class Copies(NamedTuple):
    """Row samples of both sides, with the nearest row of each row."""

    evaluated: Sample
    reference: Sample
    across: Closest
    within: Closest
    in_reference: Closest
    grouped: tuple[bool, bool]
    """Whether rows of one group are excluded as neighbours, on either side."""

    @classmethod
    def find(cls, evaluated: Sample, reference: Sample, grouped: tuple[bool, bool]) -> Copies:
        """Find the nearest rows; with groups on both sides, those of other groups."""
        return cls(
            evaluated,
            reference,
            Closest.find(evaluated, reference, grouped=all(grouped)),
            Closest.find(evaluated, grouped=grouped[0]),
            Closest.find(reference, grouped=grouped[1]),
            grouped,
        )

    def mean_nearest(self) -> list[tuple[Estimate, Interval]]:
        """Return the mean nearest cosine of the samples to the reference, and of the reference inside itself."""
        return [(mean, mean.interval()) for mean in (self.across.mean(), self.in_reference.mean())]

    def compute_shares(self) -> list[tuple[Estimate, Interval]]:
        """Compute the shares of copies of the reference, of repeated samples, and of repeated reference rows."""
        sides = ((self.across, self.evaluated), (self.within, self.evaluated), (self.in_reference, self.reference))
        found = [(closest.mean(is_close), sample) for closest, sample in sides]
        return [(share, estimate_share(share, count_independent(sample))) for share, sample in found]

    def compute_authentic(self) -> Tensor:
        """Compute the share of authentic samples, and of the reference's rows against the others, ``(2,)``."""
        return _find_authentic(self.across, self.in_reference, self.reference)

    def compute_authentic_intervals(self) -> list[Interval]:
        """Compute 95% intervals of both, for the expectation at these sizes."""
        value, sides = self.compute_authentic(), (self.evaluated, self.reference)

        def figures(mine: Sample, theirs: Sample) -> Tensor:
            across = Closest.find(mine, theirs, grouped=all(self.grouped))
            return _find_authentic(across, Closest.find(theirs, grouped=self.grouped[1]), theirs)

        spread, degrees = estimate_spread(sides, MIN_NEIGHBOURS, figures, share_variance, value)
        return [
            estimate_share(Estimate(share, error, degrees), count_independent(side))
            for share, error, side in zip(value, spread, sides, strict=True)
        ]

    def notes(self) -> list[str]:
        """Explain what missing intervals of authenticity need."""
        return explain_missing_spread("authenticity", (self.evaluated, self.reference), MIN_NEIGHBOURS)

    def count_copied(self, names: dict[int, str], others: dict[int, str]) -> list[dict[str, Any]]:
        """Count the samples that are near-duplicates of each reference row as their nearest."""
        cosine = self.across.cosine
        rows = (cosine >= DUPLICATE).nonzero()[:, 0]
        rows = rows[cosine[rows].argsort(descending=True, stable=True)]
        there = self.across.which[rows]
        _, which, often = self.reference.keys[there].unique(return_inverse=True, return_counts=True)
        listed = []
        for one in often.argsort(descending=True, stable=True)[:MAX_SHOWN].tolist():
            mine, its = rows[which == one], there[which == one]
            listed.append({
                "reference_id": others.get(int(self.reference.ids[its[0]])),
                "samples": int(often[one]),
                "cosine": float(cosine[mine[0]]),
                "ids": [names.get(label) for label in self.evaluated.ids[mine[:3]].tolist()],
            })  # fmt: skip
        return listed

    def count_repeated(self, names: dict[int, str]) -> list[dict[str, Any]]:
        """Count the near-duplicates of samples; of samples that are near-duplicates of each other, one is named."""
        units = self.evaluated.rows / self.evaluated.values[:, :1].float()
        often = close_counts(units, DUPLICATE)
        listed: list[dict[str, Any]] = []
        left = often.clone()
        while len(listed) < MAX_SHOWN and int(left.max()) > 1:
            row = int(left.argmax())
            left[units @ units[row] >= DUPLICATE] = 0
            left[row] = 0
            listed.append({"id": names.get(int(self.evaluated.ids[row])), "times": int(often[row])})
        return listed


def is_close(cosine: Tensor) -> Tensor:
    """Whether a cosine is that of near-duplicates, as 0 or 1."""
    return (cosine >= DUPLICATE).double()


def _find_authentic(across: Closest, in_reference: Closest, reference: Sample) -> Tensor:
    """Find authentic rows: those farther from their nearest reference row than that row is from its own nearest."""
    own = in_reference.cosine
    sides = ((across.cosine, own[across.which]), (own, own[in_reference.which]))
    return torch.stack([is_authentic(*side, reference.rows.dtype).double().mean() for side in sides])
