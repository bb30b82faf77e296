"""Figures at the same number of rows of both sides: what grows or shrinks with N compares only so."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clipconformity.stream.row_sample import Sample

DRAWS = 8
"""Subsamples that a figure is averaged over."""


def draw_subsamples(sample: Sample, size: int, generator: torch.Generator, draws: int = DRAWS) -> Iterator[Tensor]:
    """Draw rows without replacement, ``(size, D)`` float64 each; all rows once where there are no more."""
    rows = sample.rows.double()
    if size >= len(rows):
        yield rows
        return
    for _ in range(draws):
        yield rows[torch.randperm(len(rows), generator=generator)[:size]]
