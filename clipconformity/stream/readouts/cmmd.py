"""CMMD, from the moments of the unit rows."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.mmd import third_order
from clipconformity.functional.resampling import ends_of
from clipconformity.stream.mmd import discrepancy, squares_discrepancy
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
        """Give both estimates, to the third order; the unbiased one may be below 0."""
        contrast = stream.contrast("CMMD")
        mine, theirs = contrast.evaluated.cpu(), contrast.reference.moments
        means, squares = mine.unit_mean - theirs.unit_mean, mine.unit_second_moment - theirs.unit_second_moment
        whole = discrepancy(contrast).whole
        values = {
            "cmmd": third_order(means.square().sum(), squares.square().sum()),
            "cmmd_unbiased": third_order(whole.value, squares_discrepancy(contrast)),
        }
        half = third_order(torch.tensor(whole.half_width(), dtype=torch.float64), torch.zeros(()))
        for name, value in list(values.items()):
            values |= ends_of(name, (float(value - half), float(value + half)))
        return values
