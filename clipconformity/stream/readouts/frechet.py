"""The Frechet distance to the reference."""

from __future__ import annotations

from torch import Tensor

from clipconformity.functional.likelihood import gaussian_distance
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.stream import Needs, Stream


class FrechetReadOut(ReadOut):
    """Distance between the Gaussians of the samples and of the reference (CLIP-FID), squared."""

    name = "frechet"
    needs = Needs(second_moment=True, reference=True)
    value = "frechet"
    fields = (Field("frechet", "Frechet distance to the reference", "raw units squared", "lower", compared=True),)

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Give the distance, exact whatever the number of rows."""
        moments = stream.checked()
        reference = stream.needed_reference("FrechetDistance")
        other = (reference.mean.to(moments.mean), reference.covariance.to(moments.mean))
        return {"frechet": gaussian_distance(moments.mean, moments.covariance, *other)}
