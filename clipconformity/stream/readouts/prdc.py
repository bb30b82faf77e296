"""Precision, recall, density and coverage against the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipconformity.functional.neighbours import check_neighbours
from clipconformity.functional.resampling import name_ends
from clipconformity.stream.neighbourhood import Neighbourhood
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.stream import Needs, Stream

FIGURES = (
    ("precision", "share of the samples in a ball of the reference, to its k-th neighbour"),
    ("recall", "share of the reference in a ball of the samples"),
    ("density", "mean number of the reference's balls that a sample is in, over k"),
    ("coverage", "share of the reference's balls that hold a sample"),
)
MAX_SHOWN = 20
"""Largest number of named samples off the manifold, and of rows that are not covered."""


class PRDCReadOut(ReadOut):
    """Mutual coverage of samples and reference, by the k nearest neighbours of each row."""

    name = "prdc"
    needs = Needs(rows=True, reference=True)
    fields = (
        *(
            one
            for name, about in FIGURES
            for one in Field(name, about, "", "higher", compared=True).with_interval(
                "that sets of these sizes have on average", drawn=True
            )
        ),
    )

    def __init__(self, k: int = 5) -> None:
        check_neighbours(k)
        self.k = k

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the four figures of the row samples of both sides."""
        return {name: value for (name, _), value in zip(FIGURES, self.find_neighbourhood(stream).values, strict=True)}

    def resample(
        self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the intervals, by splitting both sides into parts; nothing is random."""
        found: dict[str, Tensor] = {}
        for (name, _), interval in zip(FIGURES, self.find_neighbourhood(stream).intervals, strict=True):
            found |= name_ends(name, interval)
        return found

    def find_neighbourhood(self, stream: Stream) -> Neighbourhood:
        """Compare the row samples of both sides.

        Raises:
            ValueError: If there are too few rows, or no reference.
        """
        moments, reference = stream.read_side(), stream.require_reference("PRDC")

        def make() -> Neighbourhood:
            return Neighbourhood(moments.good_sample().cpu(), reference.sample, self.k)

        return stream.cache(("prdc", self.k), make)

    def notes(self, stream: Stream) -> list[str]:
        """Note the effect of the numbers of rows."""
        return self.find_neighbourhood(stream).notes()

    def details(self, stream: Stream) -> dict[str, Any]:
        """Name the samples that lie in no ball of the reference, and the reference rows whose ball holds no sample."""
        found = self.find_neighbourhood(stream)
        sides = {
            "off_manifold": (found.off_manifold(stream.evaluated.names), found.evaluated),
            "uncovered": (found.uncovered(stream.require_reference("PRDC").moments.names), found.reference),
        }
        return {
            key: {"count": count, "of": len(side.keys), "ids": names[:MAX_SHOWN]}
            for key, ((count, names), side) in sides.items()
        }
