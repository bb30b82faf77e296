"""Figures at equal numbers of rows on both sides, for figures that grow or shrink with N."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clipconformity.stream.row_sample import Sample

DRAWS = 8
"""Number of subsamples over which a figure is averaged."""


def draw_subsamples(sample: Sample, size: int, generator: torch.Generator, draws: int = DRAWS) -> Iterator[Tensor]:
    """Draw rows without replacement, ``(size, D)`` float64 each; all rows once where there are no more."""
    rows = sample.rows.double()
    if size >= len(rows):
        yield rows
        return
    for _ in range(draws):
        yield rows[torch.randperm(len(rows), generator=generator)[:size]]
