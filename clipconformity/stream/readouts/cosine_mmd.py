"""The MMD with the cosine kernel: typicality and variety added up."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.resampling import make_generator, name_ends
from clipconformity.stream.mmd import compute_noise, discrepancy, discrepancy_without
from clipconformity.stream.pairs import LeftOut
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.stream import Needs, Stream

UNIT = "squared cosine distance"
PARTS = {
    "cosine_mmd": "squared distance of the mean directions: typicality and variety added up",
    "cosine_mmd_typicality": "its half by typicality: above 0 where samples are less typical",
    "cosine_mmd_variety": "its half by variety: above 0 where samples are less varied",
}
"""The whole and its halves, in the order of ``Discrepancy``."""


class CosineMMDReadOut(ReadOut):
    """Distance of two mean directions, and its parts of typicality and variety."""

    name = "cosine_mmd"
    needs = Needs(rows=True, reference=True)
    value = "cosine_mmd"
    fields = (
        *(
            one
            for name, about in PARTS.items()
            for one in Field(name, about, UNIT, "lower" if name == "cosine_mmd" else "neither",
                             compared=True).with_interval()
        ),
        Field("cosine_mmd_noise_floor", "95% quantile of the cosine MMD of two sets of one kind", UNIT, compared=True,
              computed=False),
        Field("cosine_mmd_p_value", "sign-flip test that the mean directions are the same", compared=True,
              computed=False),
    )  # fmt: skip

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the unbiased value, which may be below 0, and its halves, each with its interval."""
        found: dict[str, Tensor] = {}
        for name, part in zip(PARTS, discrepancy(stream.contrast("CosineMMD")), strict=True):
            found |= {name: part.value} | name_ends(name, part.interval())
        return found

    def left_out(self, stream: Stream) -> dict[str, LeftOut]:
        """Return the distance and its halves."""
        contrast = stream.contrast("CosineMMD")
        parts = zip(PARTS, discrepancy_without(contrast), strict=True)
        return {name: LeftOut(part, contrast.counts) for name, part in parts}

    def resample(
        self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the noise floor and the p-value; NaN where all rows of a side are in one bucket."""
        contrast = stream.contrast("CosineMMD")
        found = (float("nan"), float("nan"))
        if all(int((count > 0).sum()) > 1 for count in contrast.counts):
            found = compute_noise(contrast, 0.95, resamples, make_generator(generator))
        keys = ("cosine_mmd_noise_floor", "cosine_mmd_p_value")
        return {name: torch.tensor(x, dtype=torch.float64) for name, x in zip(keys, found, strict=True)}
