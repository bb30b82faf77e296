"""Squared distances of rows in blocks: float32 decides where it can, and float64 within the rounding of float32.

A product of float32 matrices takes half the time of one in float64, and nearly all pairs of rows are so far from the
edge of a ball that its precision is enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.linalg import full_precision

ROWS, COLUMNS = 1024, 1024
"""Rows and columns of the largest block of a matrix of pairs."""
ROUNDING = 1e-12
"""Share of the squared norms within which two squared distances count as equal: copies lie on the edges of balls, which
are outside, and float64 rounding would decide differently in each block."""
EXTRA_NEIGHBOURS = 4
"""Neighbours kept beyond the k-th, to detect those that float32 missed."""
MAX_UNCERTAIN_SHARE = 1 / 32
"""Share of uncertain pairs from which on the whole block is computed in float64."""
PAIRS = 2048
"""Pairs of rows whose distances are computed in float64 at once."""
MIN_SQUARED_DISTANCE = 1e-30
"""Squared distance, where the largest is about 1, below which float32 underflows."""


class Points(NamedTuple):
    """Rows after a common shift and scaling, with their squared norms."""

    rows: Tensor
    """``(N, D)`` float64."""
    quick: Tensor
    """The rows in float32; in float64 where float32 products may have less precision."""
    squares: Tensor
    """Squared norms ``(N,)`` float64."""

    def part(self, which: slice) -> Points:
        """Select some of the rows."""
        return Points(*(one[which] for one in self))

    def margin(self, limit: Tensor) -> Tensor:
        r"""Bound on the float32 error of a squared distance of about ``limit``, ``(N,)`` for the rows.

        A sum of D products has an error of at most :math:`D\,2^{-24}\,|x||y|`, in any order; the rest has less
        than 16 roundings. A pair at a squared distance r has :math:`|y|^2 \le 2(|x|^2 + r)`; one with a longer y is
        farther away than r by more than the error.
        """
        return 4 * (self.rows.shape[1] + 16) * 2.0**-24 * (self.squares + limit) + MIN_SQUARED_DISTANCE


def center_and_scale(first: Tensor, second: Tensor) -> tuple[Points, Points, float]:
    """Subtract the second set's mean from both sets, in float64, and scale both by a power of two to norms of about 1.

    Distances change only by the scale, and round less for sets far from the origin.

    Returns:
        Both sets, and the factor on squared distances.
    """
    center = second.mean(0, dtype=torch.float64)
    sides = [side.double() - center for side in (first, second)]
    largest = max(float(side.abs().max()) for side in sides)
    scale = 2.0 ** -math.frexp(largest)[1] if largest else 1.0
    points = [
        Points(rows, rows.to(quick_type()), rows.square().sum(1)) for rows in (side.mul_(scale) for side in sides)
    ]
    return points[0], points[1], scale**2


def quick_type() -> torch.dtype:
    """Give float32, where its products of matrices have full precision, not that of TF32 or bfloat16; else float64."""
    try:
        full = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set for each backend, where this function raises
        full = False
    return torch.float32 if full else torch.float64


@full_precision
def kth_distance(points: Points, k: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row, ``(N,)`` float64."""
    bias = (-points.squares / 2).to(points.quick)
    kept = min(k + EXTRA_NEIGHBOURS, len(points.rows) - 1)
    near, place = find_largest(points.quick, None, kept, bias)  # half of the squared distances, negative, nearest first
    distance = near.double().mul_(-2)
    at = distance[:, k - 1 : k].clamp_min(0)
    margin = points.margin(2 * at[:, 0])[:, None]
    in_doubt = (distance - at).abs() <= 2 * margin
    row, column = in_doubt.nonzero(as_tuple=True)
    exact = torch.where(distance < at, -torch.inf, torch.inf).double()  # distances of the certain rows
    exact[row, column] = _exact_distances(points, points, row, place[row, column])
    found = exact.sort(1).values[:, k - 1]
    if kept < len(points.rows) - 1:
        missed = in_doubt[:, -1].nonzero()[:, 0]  # a row that was not kept may be nearer
        found[missed] = _exact_kth_distance(missed, points, k)
    return found


def _exact_kth_distance(which: Tensor, points: Points, k: int) -> Tensor:
    """The same for some rows, entirely in float64."""
    found = [points.rows.new_empty(0)]
    for part in which.split(max(1, ROWS * COLUMNS // len(points.rows))):
        distance = _multiply_blocks(points.rows[part], points.rows, points.squares[part], points.squares)
        distance[torch.arange(len(part), device=part.device), part] = torch.inf
        found.append(distance.kthvalue(k, dim=1).values.clamp_min(0))
    return torch.cat(found)


class BallBlock(NamedTuple):
    """The pairs found in a block of rows of a first and of a second set."""

    rows: slice
    columns: slice
    in_first: tuple[Tensor, Tensor]
    """Index pairs where the ball around the row of the first set contains the row of the second."""
    in_second: tuple[Tensor, Tensor]
    """Index pairs where the ball around the row of the second set contains the row of the first."""
    distance: Tensor
    """Squared distances of the block in float32 precision, ``(R, C)``."""


def find_ball_blocks(first: Points, second: Points, reaches: tuple[Tensor, Tensor]) -> Iterator[BallBlock]:
    """Find all pairs of two sets of which one lies inside the ball of the other, block by block; an edge is outside.

    Args:
        first: One set.
        second: The other set, with the same shift and scale.
        reaches: Squared radius of the ball around each row of either set, ``(N,)`` and ``(M,)``.
    """
    for row in split_slices(len(first.rows), ROWS):
        for column in split_slices(len(second.rows), COLUMNS):
            yield _find_ball_block(first, second, reaches, row, column)


@full_precision
def _find_ball_block(
    first: Points, second: Points, reaches: tuple[Tensor, Tensor], row: slice, column: slice
) -> BallBlock:
    sides = first.part(row), second.part(column)
    distance = _multiply_blocks(sides[0].quick, sides[1].quick, sides[0].squares, sides[1].squares)
    found = [
        _find_inside(sides, distance, (reaches[0][row, None], sides[0].margin(reaches[0][row])[:, None])),
        _find_inside(sides, distance, (reaches[1][None, column], sides[1].margin(reaches[1][column])[None])),
    ]
    in_first, in_second = ((mine + row.start, theirs + column.start) for mine, theirs in found)
    return BallBlock(row, column, in_first, in_second, distance)


def _find_inside(sides: tuple[Points, Points], distance: Tensor, edge: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Find the entries of a block with a distance below a limit; limit and float32 error are broadcast."""
    limit, margin = edge
    first, second = sides
    row, column = (distance < (limit + margin).to(distance)).nonzero(as_tuple=True)
    limits = limit.expand(distance.shape)[row, column]
    in_doubt = (distance[row, column] >= limits - margin.expand(distance.shape)[row, column]).nonzero()[:, 0]
    if len(in_doubt) > MAX_UNCERTAIN_SHARE * distance.numel():
        squares = [(1 + ROUNDING) * one.squares for one in sides]
        where = (_multiply_blocks(first.rows, second.rows, *squares) < limit).nonzero(as_tuple=True)
        return where[0], where[1]
    mine, theirs = row[in_doubt], column[in_doubt]
    lifted = _exact_distances(first, second, mine, theirs) + ROUNDING * (first.squares[mine] + second.squares[theirs])
    kept = torch.ones_like(row, dtype=torch.bool)
    kept[in_doubt] = lifted < limits[in_doubt]
    return row[kept], column[kept]


def _multiply_blocks(first: Tensor, second: Tensor, squares: Tensor, others: Tensor) -> Tensor:
    """Squared distances of two blocks by one product of matrices, ``(R, C)``."""
    distance = torch.addmm(others.to(first)[None], first, second.T, alpha=-2)
    return distance.add_(squares.to(first)[:, None])


def _exact_distances(first: Points, second: Points, row: Tensor, column: Tensor) -> Tensor:
    """Squared distances of some pairs in float64, each computed on its own."""
    found = [first.rows.new_empty(0)]
    for mine, theirs in zip(row.split(PAIRS), column.split(PAIRS), strict=True):
        found.append((first.rows[mine] - second.rows[theirs]).square().sum(1))
    return torch.cat(found)


def find_largest(rows: Tensor, others: Tensor | None, k: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest of ``rows @ others.T`` in each row, descending, and their columns, ``(N, k)`` each.

    Args:
        rows: ``(N, D)``.
        others: ``(M, D)``, M >= k; None for the rows themselves, N > k, of which none is its own neighbour.
        k: Number of neighbours.
        bias: Inside the own set, a term added for both rows of a pair, ``(N,)``.
    """
    values = rows.new_full((len(rows), k), -torch.inf)
    places = torch.zeros(len(rows), k, dtype=torch.int64, device=rows.device)

    def offer(row: slice, column: slice, found: Tensor) -> None:
        top, place = found.topk(min(k, found.shape[1]), dim=1)
        best, order = torch.cat([values[row], top], 1).topk(k, dim=1)
        values[row], places[row] = best, torch.cat([places[row], place + column.start], 1).gather(1, order)

    there = rows if others is None else others
    for row in split_slices(len(rows), ROWS):
        blocks = (
            split_slices(len(there), COLUMNS)
            if others is not None
            else split_slices(len(rows), ROWS)[row.start // ROWS :]
        )
        for column in blocks:
            found = rows[row] @ there[column].T
            if bias is not None:
                found.add_(bias[row, None]).add_(bias[column])
            if others is None and column == row:
                found.fill_diagonal_(-torch.inf)
            offer(row, column, found)
            if others is None and column != row:  # the other half of a symmetric matrix
                offer(column, row, found.T.contiguous())
    return values, places


def split_slices(count: int, size: int) -> list[slice]:
    """Cut ``count`` rows into blocks of ``size``."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
