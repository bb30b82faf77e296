"""Precision, recall, density and coverage of the row samples of two sides, with what is known of their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clipconformity.functional.neighbours import Coverage, cover, expected_coverage
from clipconformity.functional.resampling import Estimate, Interval, estimated_share
from clipconformity.stream.row_sample import Sample, mix

SPLITS, PARTS = 4, 16
"""How often the buckets are split for the uncertainty, and into how many parts at most."""
FEWEST, FEWEST_GROUPS = 5, 4
"""Rows of a part, in units of k, and groups of a part, on the side that has fewer."""


@dataclass(frozen=True)
class Neighbourhood:
    """The row samples of both sides, and how they cover each other.

    Attributes:
        evaluated: Rows of the evaluated side, on the CPU.
        reference: Rows of the reference.
        k: Neighbours that a ball reaches over.
    """

    evaluated: Sample
    reference: Sample
    k: int

    def __post_init__(self) -> None:
        for side, name in ((self.evaluated, "samples"), (self.reference, "samples of the reference")):
            if len(side.keys) <= self.k:
                raise ValueError(f"prdc: expected more than k = {self.k} {name}, got {len(side.keys)}; add more.")

    @cached_property
    def coverage(self) -> Coverage:
        """Who lies in whose balls."""
        return cover(self.evaluated.rows.double(), self.reference.rows.double(), self.k)

    @property
    def values(self) -> Tensor:
        """Precision, recall, density and coverage, ``(4,)`` float64."""
        return torch.stack(list(self.coverage.result()))

    @cached_property
    def intervals(self) -> list[Interval]:
        """95% intervals of the four: of what sets of these sizes have on average.

        Leaving rows out in turn overstates the spread of figures of nearest neighbours, by 20% to 140% in simulations,
        and redrawing rows makes neighbours of copies. So both sides are split by their groups into parts, and the
        figures of the parts are compared. Each figure is a mean of what rows find near them: its variance goes with
        1/N, and is to that of a share of independent rows as it is in a part.
        """
        value, (spread, degrees) = self.values, self._spread
        estimates = [Estimate(v, s, degrees) for v, s in zip(value, spread, strict=True)]
        counts = [independent(self.evaluated), independent(self.reference)]
        precision, recall, coverage = (
            estimated_share(estimates[figure], counts[side]) for figure, side in ((0, 0), (1, 1), (3, 1))
        )
        low, high = estimates[2].interval()
        if not value[2]:  # what no sample shows could have the density of the reference's kind
            high = precision.high
        return [precision, recall, Interval(max(low, 0.0), high), coverage]

    @cached_property
    def _spread(self) -> tuple[Tensor, float]:
        """Standard errors of the four, ``(4,)``, and their degrees of freedom; 0 where there are too few rows."""
        sides = self.evaluated, self.reference
        rows, groups = min(len(side.keys) for side in sides), min(map(independent, sides))
        parts = min(PARTS, rows // (FEWEST * self.k), int(groups / FEWEST_GROUPS))
        if parts < 2:
            return torch.full((4,), math.nan).double(), 0.0
        found = torch.stack([self._of_parts(parts, split) for split in range(SPLITS)])  # (SPLITS, parts, 4)
        whole, part = _scale(self.values), _scale(found.mean((0, 1)))
        variance = found.var(1).mean(0) / parts * torch.where(part > 0, whole / part, 1.0)
        return variance.sqrt(), float(SPLITS * (parts - 1))

    def _of_parts(self, parts: int, split: int) -> Tensor:
        """Figures of each part of a split, ``(parts, 4)``: groups go together, those of both sides to the same part."""
        dealt = [
            [side.rows[part].double() for part in mix(side.groups, split).argsort(stable=True).tensor_split(parts)]
            for side in (self.evaluated, self.reference)
        ]
        found = [cover(mine, theirs, self.k).result() for mine, theirs in zip(*dealt, strict=True)]
        return torch.stack([torch.stack(list(one)) for one in found])

    @property
    def note(self) -> str | None:
        """What unequal numbers of rows do to the figures; None where they are equal."""
        mine, theirs = len(self.evaluated.keys), len(self.reference.keys)
        if mine == theirs:
            return None
        usual = expected_coverage(mine, theirs, self.k)
        return (
            f"precision, recall, density and coverage rest on {mine} samples and {theirs} of the reference: compare "
            f"them with figures at these numbers only (coverage would be {usual:.3f} if nothing differed)."
        )


def _scale(values: Tensor) -> Tensor:
    """Variance of one row's share p, p (1 - p); of a density, of which one row's is about as large, the density."""
    scale = values * (1 - values)
    scale[2] = values[2]
    return scale


def independent(sample: Sample) -> float:
    """How many independent rows a sample is worth: its groups, of which a row without one is its own."""
    sizes = sample.groups.unique(return_counts=True)[1].double()
    return float(sizes.sum() ** 2 / sizes.square().sum())
