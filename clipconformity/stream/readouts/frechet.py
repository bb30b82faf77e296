"""The Frechet distance to the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.likelihood import distance_influence, gaussian_distance
from clipconformity.stream.pairs import influence_estimate
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.stream import Needs, Stream

UNIT = "raw units squared"
ENDS = ("frechet_low", "frechet_high")
ABOUT = "95% interval of the distance that sets of these sizes have on average"


class FrechetReadOut(ReadOut):
    """Distance between the Gaussians of the samples and of the reference (CLIP-FID), squared."""

    name = "frechet"
    needs = Needs(rows=True, second_moment=True, reference=True)
    value = "frechet"
    fields = (
        Field("frechet", "Frechet distance to the reference", UNIT, "lower", interval=ENDS, compared=True),
        Field("frechet_low", f"low end of the {ABOUT}", UNIT, compared=True, computed=False),
        Field("frechet_high", f"high end of the {ABOUT}", UNIT, compared=True, computed=False),
    )

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Give the distance, exact whatever the number of rows."""
        moments = stream.checked()
        reference = stream.needed_reference("FrechetDistance")
        other = (reference.mean.to(moments.mean), reference.covariance.to(moments.mean))
        return {"frechet": gaussian_distance(moments.mean, moments.covariance, *other)}

    def resample(
        self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Give the interval, from what each row of the samples adds; nothing is drawn."""
        return self._ends(stream, self.read(stream)["frechet"])

    def figures(self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Give all fields; the distance is computed once for them."""
        found = self.read(stream)
        return found | self._ends(stream, found["frechet"])

    def _ends(self, stream: Stream, value: Tensor) -> dict[str, Tensor]:
        moments, reference = stream.checked(), stream.needed_reference("FrechetDistance")
        mine, theirs = (moments.mean.cpu(), moments.covariance.cpu()), (reference.mean, reference.covariance)
        sample = moments.good_sample().cpu()
        estimate = influence_estimate(
            value.cpu(),
            (distance_influence(sample.rows.double(), *mine, *theirs), sample, moments),
            (distance_influence(reference.sample.rows.double(), *theirs, *mine), reference.sample, reference.moments),
        )
        ends = (torch.tensor(end, dtype=torch.float64).clamp_min(0) for end in estimate.interval())
        return dict(zip(ENDS, ends, strict=True))
