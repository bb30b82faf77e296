"""Rows and groups that the evaluated samples share with the reference: found by cosine, counted and left out."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.resampling import make_generator
from clipconformity.stream.moments import BUCKETS, assign_buckets
from clipconformity.stream.row_sample import Sample

MAX_DISTANCE = 1e-5
"""Largest difference of the cosine from 1 between copies of a sample: an encoder rounds rows differently in batches of
another size, so equal bits cannot be used."""
AXES = 16
"""Number of directions along which rows are compared before their cosine is computed."""
CELL_AXES = 3
"""Number of the first of these, along which rows are put into cells."""
MAX_PAIRS = 1 << 15
"""Largest number of pairs whose cosine is computed at once."""
MAX_NEAR_SHARE = 0.02
"""Share of all pairs that are near along these directions, above which all cosines are computed."""
DENSE_ROWS = 2000
"""Rows of either side that are compared where all cosines are computed."""


class Overlap(NamedTuple):
    """Samples and groups that both sides share, by their row samples."""

    rows: int
    """Evaluated rows that are in the reference; 0 where there are no more than by chance, as with short captions."""
    sampled: int
    """Evaluated rows that were compared."""
    pairs: float
    """Pairs of equal rows that are left out of the mean conformity: at most one for each row."""
    without: tuple[Tensor, Tensor, Tensor]
    """``pairs`` without each bucket of both sides, of the evaluated side, and of the reference, ``(G,)`` each."""
    own: Tensor
    """Whether each row of the evaluated side's sketch has its own row left out, ``(k,)``."""
    shared_groups: int
    """Groups of the evaluated side that are also in the reference."""
    groups: int
    """Groups of the evaluated side."""

    def notes(self) -> list[str]:
        """Describe the overlap, a sentence each."""
        notes = []
        if self.rows:
            notes.append(
                f"{self.rows} of {self.sampled} samples are also in the reference (cosine above 1 - {MAX_DISTANCE:g}); "
                "each is left out of the mean that it is compared with."
            )
        if self.shared_groups:
            notes.append(
                f"{self.shared_groups} of {self.groups} groups are also in the reference; no row is compared with its "
                "own group."
            )
        return notes


def find_overlap(mine: Sample, theirs: Sample, *, grouped: bool) -> Overlap:
    """Find what evaluated rows share with a reference, as far as the row samples of both show.

    Args:
        mine: Distinct rows of the evaluated side.
        theirs: Distinct rows of the reference.
        grouped: Whether both have groups, so that pairs inside a bucket are left out already.
    """
    own = mine.groups.unique() if grouped else mine.groups[:0]
    shared = int(torch.isin(own, theirs.groups).sum())
    first, second = _find_matches(mine, theirs, grouped)
    rows, pairs = _count_beyond_chance(mine, theirs, first, second, grouped) if len(first) else (0, 0.0)
    if not pairs:
        first, second = first[:0], second[:0]
    weight = (mine.copies[first] * theirs.copies[second]).double()
    weight = weight * (pairs / weight.sum().clamp_min(1.0))
    where = assign_buckets(mine.groups[first]), assign_buckets(theirs.groups[second])
    without = [pairs - torch.zeros(BUCKETS, dtype=torch.float64).index_add_(0, bucket, weight) for bucket in where]
    apart = where[0] != where[1]
    both = without[0].index_add(0, where[1][apart], -weight[apart])
    kept = torch.zeros(len(mine.keys), dtype=torch.bool)
    kept[first] = True
    sampled = int(mine.copies.sum())
    return Overlap(rows, sampled, pairs, (both, without[0], without[1]), kept, shared, len(own))


def _count_beyond_chance(
    mine: Sample, theirs: Sample, first: Tensor, second: Tensor, grouped: bool
) -> tuple[int, float]:
    """Count the rows, and pairs, that are equal beyond the number expected for sets of one distribution.

    Short captions repeat, and two sets of them share rows without one being a copy of the other. Copies show by rows
    that occur once in the reference: a sample of the same distribution would hit such rows with a probability of the
    share of rows that occur twice (Good 1953).
    """
    often, total, sampled = _count_occurrences(theirs, grouped), float(theirs.copies.sum()), float(mine.copies.sum())
    alone = first[often[second] == 1].unique()
    usual = sampled * float(theirs.copies[often == 2].sum()) / total
    if float(mine.copies[alone].sum()) <= usual + 3 * math.sqrt(2 * usual):
        return 0, 0.0
    rows = int(mine.copies[first.unique()].sum())
    by_chance = sampled * float((theirs.copies * (often - 1)).sum()) / max(total - 1, 1.0)
    found = float((mine.copies[first] * theirs.copies[second]).sum())
    return rows, min(max(found - by_chance, 0.0), rows)


def _count_occurrences(sample: Sample, apart: bool) -> Tensor:
    """Count how often each row occurs in its sample, itself included, ``(k,)``."""
    first, second = _find_matches(sample, sample, apart)
    return sample.copies.index_add(0, first[first != second], sample.copies[second[first != second]])


def _find_matches(first: Sample, second: Sample, apart: bool) -> tuple[Tensor, Tensor]:
    """Find the equal rows of two samples, as indices ``(m,)`` each; ``apart``: only those in different buckets."""
    row, other = find_near_pairs(first.rows, second.rows)
    if apart:
        differ = assign_buckets(first.groups[row]) != assign_buckets(second.groups[other])
        row, other = row[differ], other[differ]
    return row, other


def find_near_pairs(rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Find the rows of ``(n, D)`` and ``(m, D)`` with a cosine above 1 - ``MAX_DISTANCE``, as indices.

    Their unit vectors lie within sqrt(2 MAX_DISTANCE) of each other along any direction, so in the same cell of that
    width or in one beside it, along each of a few directions in which rows vary much. Of sets that do not vary, the
    first ``DENSE_ROWS`` are compared.
    """
    norms, lengths = (torch.linalg.vector_norm(side, dim=1, keepdim=True) for side in (rows, others))
    axes, near = _choose_axes(others, lengths), math.sqrt(2 * MAX_DISTANCE) + 1e-6
    mine, theirs = (rows @ axes) / norms, (others @ axes) / lengths  # unit vectors of all rows would be large copies
    cells, their_cells = ((side[:, :CELL_AXES] / near).floor().long() for side in (mine, theirs))
    # Along the first axis cells are numbered one by one: those on both sides of a cell are one range with it.
    steps = torch.cartesian_prod(torch.zeros(1).long(), *[torch.arange(-1, 2)] * (cells.shape[1] - 1))
    ladder, order = _number_cells(their_cells).sort()
    wanted = _number_cells(cells[:, None] + steps.view(-1, cells.shape[1])).flatten()  # (n * steps,)
    low = torch.searchsorted(ladder, wanted - 1)
    count = torch.searchsorted(ladder, wanted + 1, right=True) - low
    if int(count.sum()) > max(MAX_NEAR_SHARE * len(rows) * len(others), DENSE_ROWS):
        first, second = (one[:DENSE_ROWS] / norm[:DENSE_ROWS] for one, norm in ((rows, norms), (others, lengths)))
        found = (first @ second.T > 1 - MAX_DISTANCE).nonzero()
        return found[:, 0], found[:, 1]
    which = torch.arange(len(wanted)).repeat_interleave(count)
    row = which // len(steps)
    other = order[low[which] + torch.arange(len(which)) - (count.cumsum(0) - count)[which]]
    pairs = []
    for one, two in zip(row.split(MAX_PAIRS), other.split(MAX_PAIRS), strict=True):
        close = (mine[one] - theirs[two]).square().sum(1) <= near**2
        one, two = one[close], two[close]
        same = torch.linalg.vecdot(rows[one] / norms[one], others[two] / lengths[two]) > 1 - MAX_DISTANCE
        pairs.append((one[same], two[same]))
    first, second = zip(*pairs, strict=True)
    return torch.cat(first), torch.cat(second)


def _number_cells(cells: Tensor) -> Tensor:
    """Number the cells ``(..., k)``; two cells rarely share a number, which then only costs a cosine."""
    factors = torch.tensor([1, 0x9E3779B1, 0x85EBCA77C2B2])[: cells.shape[-1]]
    return (cells * factors).sum(-1)


def _choose_axes(rows: Tensor, norms: Tensor) -> Tensor:
    """Choose orthonormal directions in which unit vectors vary much, the largest first, ``(D, AXES)``."""
    step = max(1, len(rows) // 512)
    some = rows[::step] / norms[::step]
    centered = some - some.mean(0)  # a step of subspace iteration approximates its principal axes
    start = torch.randn(len(some), min(AXES, rows.shape[1]), generator=make_generator(None), dtype=rows.dtype)
    axes = torch.linalg.qr(centered.T @ start).Q
    return axes[:, (centered @ axes).square().sum(0).argsort(descending=True)]
