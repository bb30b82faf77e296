"""CMMD, from the moments of the unit rows."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.mmd import third_order
from clipconformity.functional.resampling import name_ends
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.mmd import discrepancy, discrepancy_without, squares_discrepancy
from clipconformity.stream.pairs import LeftOut, Without
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.stream import Needs, Stream

UNIT = "1000 MMD^2"


class CMMDReadOut(ReadOut):
    """MMD with the Gaussian kernel of width 10 on unit vectors, times 1000, as published and unbiased."""

    name = "cmmd"
    needs = Needs(rows=True, unit_second_moment=True, reference=True)
    fields = (
        *Field("cmmd", "CMMD as published: above 0 at any finite N", UNIT, "lower", compared=True).with_interval(
            "that sets of these sizes have on average"
        ),
        *Field("cmmd_unbiased", "CMMD without the bias of a finite N", UNIT, "lower", compared=True).with_interval(
            "of the populations"
        ),
    )

    def __init__(self, unbiased: bool = False) -> None:
        self.value = "cmmd_unbiased" if unbiased else "cmmd"

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return both estimates, with an error of third order; the unbiased one may be below 0."""
        contrast = stream.contrast("CMMD")
        whole, values = discrepancy(contrast).whole, _values(contrast)
        half = _scale_cosine_mmd(torch.tensor(whole.half_width(), dtype=torch.float64))
        for name, value in list(values.items()):
            values |= name_ends(name, (float(value - half), float(value + half)))
        return values

    def left_out(self, stream: Stream) -> dict[str, LeftOut]:
        """Return both estimates; leaving out a bucket changes them as it changes the cosine MMD."""
        contrast = stream.contrast("CMMD")
        without = discrepancy_without(contrast).whole
        return {
            name: LeftOut(
                Without(*(value + _scale_cosine_mmd(part - without.whole) for part in without)), contrast.counts
            )
            for name, value in _values(contrast).items()
        }


def _values(contrast: Contrast) -> dict[str, Tensor]:
    mine, theirs = contrast.evaluated.cpu(), contrast.reference.moments
    means, squares = mine.unit_mean - theirs.unit_mean, mine.unit_second_moment - theirs.unit_second_moment
    return {
        "cmmd": third_order(means.square().sum(), squares.square().sum()),
        "cmmd_unbiased": third_order(discrepancy_without(contrast).whole.whole, squares_discrepancy(contrast)),
    }


def _scale_cosine_mmd(discrepancy: Tensor) -> Tensor:
    """Contribution of the cosine MMD alone."""
    return third_order(discrepancy, torch.zeros((), dtype=torch.float64))
