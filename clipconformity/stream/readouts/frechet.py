"""The Frechet distance to the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.frechet import distance_influence, gaussian_distance
from clipconformity.functional.resampling import make_generator, name_ends
from clipconformity.stream.frechet_sizes import (
    compute_at_equal_n,
    compute_noise_floor,
    extrapolate_to_infinite_n,
    min_rows,
)
from clipconformity.stream.moments import Moments
from clipconformity.stream.pairs import LeftOut, estimate_by_influence, influence_without
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.row_sample import Sample
from clipconformity.stream.stream import Needs, Stream

UNIT = "raw units squared"
NAME = "FrechetDistance"


class FrechetReadOut(ReadOut):
    """Distance between the Gaussians of the samples and of the reference (CLIP-FID), squared."""

    name = "frechet"
    needs = Needs(rows=True, second_moment=True, reference=True)
    value = "frechet"
    fields = (
        *Field("frechet", "Frechet distance to the reference", UNIT, "lower", compared=True).with_interval(
            "that sets of these sizes have on average", drawn=True
        ),
        *Field("frechet_infinite_n", "the same extrapolated to infinitely many rows", UNIT, "lower", compared=True,
               computed=False).with_interval("of the populations"),
        Field("frechet_noise_floor", "95% quantile of the distance of two sets of one kind and of these sizes", UNIT,
              compared=True, computed=False),
        Field("frechet_n", "rows at which both sides are compared", "samples", compared=True, computed=False),
        Field("frechet_equal_n", "Frechet distance at frechet_n rows of either side", UNIT, "lower", compared=True,
              computed=False),
    )  # fmt: skip

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the distance, exact for any number of rows."""
        moments = stream.read_side()
        reference = stream.require_reference(NAME)
        other = (reference.mean.to(moments.mean), reference.covariance.to(moments.mean))
        return {"frechet": gaussian_distance(moments.mean, moments.covariance, *other)}

    def resample(
        self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the costlier fields: intervals, from influences of rows, and the distance at other numbers of rows."""
        return self._uncertainty(stream, self.read(stream)["frechet"], make_generator(generator))

    def figures(self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return all fields, with the distance computed once."""
        found = self.read(stream)
        return found | self._uncertainty(stream, found["frechet"], make_generator(generator))

    def left_out(self, stream: Stream) -> dict[str, LeftOut]:
        """Return the distance, by influences of rows."""
        return {"frechet": influence_without(self.read(stream)["frechet"].cpu(), *self._compute_influences(stream))}

    def notes(self, stream: Stream) -> list[str]:
        """Note where there are too few rows to extrapolate."""
        reference, dim = stream.require_reference(NAME), stream.evaluated.layout.dim
        size = min(len(stream.read_side().good_sample().keys), len(reference.sample.keys))
        least = min_rows(dim)
        if size >= least:
            return []
        return [
            f"frechet_infinite_n needs at least {least:,} rows of either side at {dim} dimensions; there are {size}."
        ]

    def _uncertainty(self, stream: Stream, value: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        moments, reference = stream.read_side().cpu(), stream.require_reference(NAME)
        sample, theirs = moments.good_sample(), reference.sample
        size, equal = compute_at_equal_n(sample, theirs, generator)
        found = {"frechet_n": torch.tensor(float(size)), "frechet_equal_n": equal}
        found["frechet_infinite_n"], line_error = extrapolate_to_infinite_n(sample, theirs, size, equal, generator)
        found["frechet_noise_floor"] = compute_noise_floor((sample, moments), (theirs, reference.moments), generator)
        estimate = estimate_by_influence(value.cpu(), *self._compute_influences(stream))
        half = torch.tensor(estimate.half_width(), dtype=torch.float64)
        halves = {"frechet": half, "frechet_infinite_n": torch.hypot(half, 1.96 * line_error)}
        for name, width in halves.items():
            center = value.cpu() if name == "frechet" else found[name]
            found |= name_ends(name, (float((center - width).clamp_min(0)), float((center + width).clamp_min(0))))
        return found

    def _compute_influences(self, stream: Stream) -> list[tuple[Tensor, Sample, Moments]]:
        """Compute the influence of each sampled row of either side on the distance."""
        moments, reference = stream.read_side().cpu(), stream.require_reference(NAME)
        mine, theirs = (moments.mean, moments.covariance), (reference.mean, reference.covariance)
        sample, others = moments.good_sample(), reference.sample
        return [
            (distance_influence(sample.rows.double(), *mine, *theirs), sample, moments),
            (distance_influence(others.rows.double(), *theirs, *mine), others, reference.moments),
        ]
