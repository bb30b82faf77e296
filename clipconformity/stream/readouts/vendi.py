"""The Vendi score and RKE: the effective number of different samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipconformity.functional.resampling import Interval, exponentiate_interval, make_generator, name_ends
from clipconformity.functional.vendi import check_order, effective_rank, entropy_influence, vendi_score
from clipconformity.stream.equal_n import draw_subsamples
from clipconformity.stream.moments import Moments
from clipconformity.stream.pairs import LeftOut, Side, estimate_by_influence, influence_without, own_squares
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.stream import Needs, Stream

UNIT = "effective samples"
ON_AVERAGE = "that sets of this size have on average"
ESTIMATES = {
    "vendi": ("effective number of different samples, which grows with N", UNIT, ON_AVERAGE),
    "rke": ("the same of order 2: one over the mean squared cosine", UNIT, ON_AVERAGE),
    "rke_unbiased": ("RKE over pairs of different rows, which does not grow with N", UNIT, "of the population"),
    "vendi_ratio": ("Vendi score over the reference's, both at vendi_n rows", "", "at this number of rows"),
}
"""Figures with an interval: description, unit, and covered quantity."""


class VendiReadOut(ReadOut):
    """Effective number of different samples, beside that of the reference, also at equal N."""

    name = "vendi"
    needs = Needs(rows=True, unit_second_moment=True, reference=True)
    value = "vendi"
    fields = (
        *(
            one
            for name, (about, unit, what) in ESTIMATES.items()
            for one in Field(name, about, unit, better="higher", compared=name == "vendi_ratio",
                             computed=name != "vendi_ratio").with_interval(what, drawn=True)
        ),
        Field("reference_vendi", "Vendi score of the reference, at its own N", UNIT, compared=True),
        Field("reference_rke", "RKE of the reference, at its own N", UNIT, compared=True),
        Field("vendi_n", "rows at which both sides are compared", "samples", compared=True, computed=False),
        Field("vendi_equal_n", "Vendi score at vendi_n rows", UNIT, better="higher", compared=True, computed=False),
        Field("reference_vendi_equal_n", "Vendi score of the reference at vendi_n rows", UNIT, compared=True,
              computed=False),
    )  # fmt: skip

    def __init__(self, order: float = 1.0) -> None:
        check_order(order)
        self.order = order

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the values, exact for any number of rows."""
        moments = stream.read_side()
        found = dict(zip(("vendi", "rke"), self._compute_values(moments), strict=True))
        squares = own_squares(moments.good_sample().cpu(), moments)
        found["rke_unbiased"] = torch.where(squares > 0, 1 / squares, math.nan)
        reference = stream.get_reference()
        if reference is not None:
            found |= zip(("reference_vendi", "reference_rke"), self._compute_values(reference.moments), strict=True)
        return found

    def _compute_values(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Vendi score of this order, and RKE."""
        matrix = moments.unit_second_moment.cpu()
        return effective_rank(torch.linalg.eigvalsh(matrix), self.order), 1 / matrix.square().sum()

    def resample(
        self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return intervals, from influences of rows, and both sides at equal N, by seeded subsamples."""
        moments, reference = stream.read_side(), stream.get_reference()
        values, sides = self.read(stream), [(moments.good_sample().cpu(), moments)]
        found = self._compute_ends("vendi", values["vendi"], sides[:1], self.order)
        for name in ("rke", "rke_unbiased"):
            found |= self._compute_ends(name, values[name], sides[:1], 2.0)
        if reference is None:
            return found
        sides.append((reference.sample, reference.moments))
        size, generator = min(len(sample.keys) for sample, _ in sides), make_generator(generator)
        equal = [
            torch.stack([vendi_score(rows, self.order) for rows in draw_subsamples(sample, size, generator)]).mean()
            for sample, _ in sides
        ]
        keys = ("vendi_n", "vendi_equal_n", "reference_vendi_equal_n", "vendi_ratio")
        found |= zip(keys, (torch.tensor(float(size)), *equal, equal[0] / equal[1]), strict=True)
        return found | self._compute_ends("vendi_ratio", equal[0] / equal[1], sides, self.order)

    def left_out(self, stream: Stream) -> dict[str, LeftOut]:
        """Return the logarithms of the values; of the Vendi score only where its order has an interval."""
        moments, values = stream.read_side(), self.read(stream)
        side, found = (moments.good_sample().cpu(), moments), {}
        for name, order in (("vendi", self.order), ("rke", 2.0), ("rke_unbiased", 2.0)):
            if 0 < order < math.inf:
                moved = entropy_influence(side[0].units, moments.unit_second_moment.cpu(), order)
                found[name] = influence_without(values[name].log(), (moved, *side), logarithm=True)
        return found

    @staticmethod
    def _compute_ends(name: str, value: Tensor, sides: list[Side], order: float) -> dict[str, Tensor]:
        """Compute the interval of a value, or of a ratio of two, on the log scale."""
        ends = Interval(math.nan, math.nan)
        if 0 < order < math.inf:
            moved = [entropy_influence(one.units, all_.unit_second_moment.cpu(), order) for one, all_ in sides]
            signed = [sign * one for sign, one in zip((1, -1), moved, strict=False)]
            parts = ((influence, *side) for influence, side in zip(signed, sides, strict=True))
            ends = exponentiate_interval(estimate_by_influence(value.log(), *parts).interval())
        return name_ends(name, ends)
