"""Frechet distances at other numbers of rows: equal and infinite ones, and the noise floor.

The distance of finite sets is above that of their distributions by about c (1/n + 1/N).
"""

from __future__ import annotations

import math
from itertools import cycle, islice

import torch
from torch import Tensor

from clipconformity.functional.frechet import factored_distance, factorise_covariance, fit_gaussian
from clipconformity.functional.resampling import student_quantile
from clipconformity.stream.equal_n import draw_subsamples
from clipconformity.stream.pairs import Side
from clipconformity.stream.row_sample import Sample

DRAWS = 4
"""Number of subsamples at equal numbers of rows."""
SHARES = (2, 3, 4)
"""Divisors of this number, beside 1, for the line over 1/N."""
DRAWS_PER_SPLIT = 2
"""Subsamples for each divisor."""
SPLITS = 6
"""Redraws of both sides as one set: the floor comes from their mean and spread."""


def compute_at_equal_n(mine: Sample, theirs: Sample, generator: torch.Generator) -> tuple[int, Tensor]:
    """Compute the mean distance of subsamples of both sides at the smaller number of rows; return also that number."""
    size = min(len(mine.keys), len(theirs.keys))
    sides = [list(draw_subsamples(side, size, generator, DRAWS)) for side in (mine, theirs)]
    pairs = islice(zip(*(cycle(side) for side in sides), strict=True), max(map(len, sides)))
    return size, torch.stack([_compute_distance(*pair) for pair in pairs]).mean()


def min_rows(dim: int) -> int:
    """Smallest number of rows of either side for an extrapolation: the smallest subsample has as many as dimensions."""
    return max(SHARES) * dim


def extrapolate_to_infinite_n(
    mine: Sample, theirs: Sample, size: int, equal: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Extrapolate to infinitely many rows by a line over 1/N; return the value, which may be below 0, and its error.

    NaN where the smallest subsample has fewer rows than dimensions: the curve is then no line, and the value too high.

    Args:
        mine: Rows of one side.
        theirs: Rows of the other side.
        size: Equal number of rows.
        equal: Distance at this number.
        generator: Source of randomness.

    Source: Chong and Forsyth, *Effectively Unbiased FID and Inception Score and Where to Find Them*, CVPR 2020.
    """
    if size < min_rows(mine.rows.shape[1]):
        return torch.full_like(equal, math.nan), torch.full_like(equal, math.nan)
    places, values = [1.0], [equal]
    for share in SHARES:
        fewer = size // share
        for pair in zip(
            *(draw_subsamples(side, fewer, generator, DRAWS_PER_SPLIT) for side in (mine, theirs)), strict=True
        ):
            places.append(size / fewer)
            values.append(_compute_distance(*pair))
    x, y = torch.tensor(places, dtype=torch.float64), torch.stack(values)
    line = torch.stack([torch.ones_like(x), x], 1)
    inverse = torch.linalg.inv(line.T @ line)
    found = inverse @ line.T @ y
    spread = (y - line @ found).square().sum() / (len(y) - 2)
    return found[0], (spread * inverse[0, 0]).sqrt()


def compute_noise_floor(mine: Side, theirs: Side, generator: torch.Generator) -> Tensor:
    """Compute the 95% quantile of the distance of two sets of one distribution, by redistributing the rows of both.

    Groups stay whole. Beyond the row samples, the distance is computed at their sizes, and scaled by 1/n + 1/N.
    """
    rows = torch.cat([sample.rows.double() for sample, _ in (mine, theirs)])
    rows = rows - rows.mean(0)
    groups = torch.cat([sample.groups for sample, _ in (mine, theirs)])
    grouped = mine[1].grouped or theirs[1].grouped
    number = groups.unique(return_inverse=True)[1] if grouped else torch.arange(len(rows))
    kept = sorted(len(sample.keys) for sample, _ in (mine, theirs))
    total, found = rows.T @ rows, []
    for _ in range(SPLITS):
        order = torch.rand(len(rows), generator=generator)[number].argsort(stable=True)
        found.append(factored_distance(*_split_and_fit(rows, order, kept[0], total)))
    draws = torch.stack(found)
    high = student_quantile(0.95, SPLITS - 1) * (1 + 1 / SPLITS) ** 0.5
    scale = sum(1 / moments.total.cpu() for _, moments in (mine, theirs)) / sum(1 / size for size in kept)
    return (draws.mean() + high * draws.std()) * scale


def _split_and_fit(rows: Tensor, order: Tensor, size: int, total: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Split shuffled rows after ``size``; return mean and factor of the covariance of both parts.

    Args:
        rows: Rows whose mean is 0, ``(N, D)``.
        order: A permutation of the rows, ``(N,)``.
        size: At most half of N.
        total: Their second moment times N, from which that of the second part follows.
    """
    parts = order.tensor_split([size])
    first = rows[parts[0]]
    if len(parts[1]) < rows.shape[1]:
        return [fit_gaussian(first), fit_gaussian(rows[parts[1]])]
    squares, mean = first.T @ first, first.mean(0)
    left = -mean * size / len(parts[1])
    few = size < rows.shape[1]
    return [
        fit_gaussian(first) if few else (mean, factorise_covariance(_compute_covariance(squares, mean, size))),
        (left, factorise_covariance(_compute_covariance(total - squares, left, len(parts[1])))),
    ]


def _compute_covariance(squares: Tensor, mean: Tensor, count: int) -> Tensor:
    return (squares - count * torch.outer(mean, mean)) / (count - 1)


def _compute_distance(first: Tensor, second: Tensor) -> Tensor:
    return factored_distance(fit_gaussian(first), fit_gaussian(second))
