"""Precision, recall, density and coverage of the row samples of two sides, with their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clipconformity.functional.neighbours import Coverage, cover, expected_coverage
from clipconformity.functional.resampling import Estimate, Interval, estimate_share
from clipconformity.stream.parts import count_independent, estimate_spread, explain_missing_spread, share_variance
from clipconformity.stream.row_sample import Sample


@dataclass(frozen=True)
class Neighbourhood:
    """The row samples of both sides, and their mutual coverage.

    Attributes:
        evaluated: Rows of the evaluated side, on the CPU.
        reference: Rows of the reference.
        k: Number of neighbours inside a ball.
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
        """Which rows lie in balls of the other side."""
        return cover(self.evaluated.rows.double(), self.reference.rows.double(), self.k)

    @property
    def values(self) -> Tensor:
        """Precision, recall, density and coverage, ``(4,)`` float64."""
        return torch.stack(list(self.coverage.result()))

    @cached_property
    def intervals(self) -> list[Interval]:
        """95% intervals of the four, for the expectation at these sizes."""
        value, (spread, degrees) = self.values, self._spread
        estimates = [Estimate(v, s, degrees) for v, s in zip(value, spread, strict=True)]
        counts = [count_independent(self.evaluated), count_independent(self.reference)]
        precision, recall, coverage = (
            estimate_share(estimates[figure], counts[side]) for figure, side in ((0, 0), (1, 1), (3, 1))
        )
        low, high = estimates[2].interval()
        if not value[2]:  # an unseen part could have the density of the reference's distribution
            high = precision.high
        return [precision, recall, Interval(max(low, 0.0), high), coverage]

    @cached_property
    def _spread(self) -> tuple[Tensor, float]:
        """Standard errors of the four, ``(4,)``, and their degrees of freedom; 0 where there are too few rows."""
        return estimate_spread(
            (self.evaluated, self.reference), self.k, self._compute_figures, _share_variances, self.values
        )

    def _compute_figures(self, mine: Sample, theirs: Sample) -> Tensor:
        return torch.stack(list(cover(mine.rows.double(), theirs.rows.double(), self.k).result()))

    def off_manifold(self, names: dict[int, str]) -> tuple[int, list[str]]:
        """Number and names of the samples in no ball of the reference; the farthest come first."""
        return _name_rows(self.coverage.balls == 0, self.coverage.apart, self.evaluated, names)

    def uncovered(self, names: dict[int, str]) -> tuple[int, list[str]]:
        """Number and names of the reference's rows whose ball holds no sample; the farthest come first."""
        return _name_rows(~self.coverage.covered, self.coverage.reference_apart, self.reference, names)

    def notes(self) -> list[str]:
        """Describe the effect of unequal numbers of rows, and what missing intervals need."""
        mine, theirs = len(self.evaluated.keys), len(self.reference.keys)
        names = "precision, recall, density and coverage"
        missing = explain_missing_spread(names, (self.evaluated, self.reference), self.k)
        if mine == theirs:
            return missing
        usual = expected_coverage(mine, theirs, self.k)
        return [
            f"{names} rest on {mine} samples and {theirs} of the reference: compare them with figures at these numbers "
            f"only (coverage would be {usual:.3f} if nothing differed).",
            *missing,
        ]


def _share_variances(values: Tensor) -> Tensor:
    """Variance of one row's share; for density, where it is about as large as the value, the value."""
    scale = share_variance(values)
    scale[2] = values[2]
    return scale


def _name_rows(chosen: Tensor, apart: Tensor, sample: Sample, names: dict[int, str]) -> tuple[int, list[str]]:
    rows = chosen.nonzero()[:, 0]
    rows = rows[apart[rows].argsort(descending=True, stable=True)]
    ids = dict.fromkeys(sample.ids[rows].tolist())
    return len(rows), [names[one] for one in ids if one in names]
