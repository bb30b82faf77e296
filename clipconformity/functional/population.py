"""Estimates for the population from raw embeddings, and influences of rows, for intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.linalg import gram, panels, square_norms
from clipconformity.functional.resampling import Estimate, Interval, PartsLeftOut, exponentiate_interval, jackknife

MIN_GROUPS = 4
"""Smallest number of groups for unbiased estimates: their terms have four rows of different groups."""
BLOCK = 512
"""Rows that are worked through at once."""
GRAM_ROWS = 2048
"""Rows whose outer products are added up in their own type: a sum over more loses digits, and of fewer takes longer."""


@dataclass(frozen=True)
class Rows:
    """Centred rows, and the groups inside which they are dependent.

    Their products are taken in the type that the rows came in, and added up in float64.
    """

    mean: Tensor
    """Raw mean before centring, ``(D,)`` float64."""
    centered: Tensor
    """``(N, D)``, of mean 0."""
    squares: Tensor
    """Squared norm of each, ``(N,)`` float64."""
    group: Tensor
    """Index of each row's group, from 0, ``(N,)``."""
    sums: Tensor
    """Sum of the centred rows of each group, ``(G, D)``."""
    sizes: Tensor
    """Rows of each group, ``(G,)`` float64."""

    @classmethod
    def center(cls, values: Tensor, group: Tensor | None = None) -> Rows:
        """Centre rows ``(N, D)``; without groups every row is one."""
        # In blocks that stay in the cache: fresh memory for all rows in float64 costs more than the arithmetic.
        mean = torch.stack([block.double().sum(0) for block in values.split(BLOCK)]).sum(0) / len(values)
        centered, squares = torch.empty_like(values), []
        for block, into in zip(values.split(BLOCK), centered.split(BLOCK), strict=True):
            exact = block.double() - mean
            into.copy_(exact)
            squares.append(square_norms(exact))
        ones = torch.ones(len(values), dtype=torch.float64)
        rows = cls(mean, centered, torch.cat(squares), torch.arange(len(values)), centered, ones)
        if group is None:
            return rows
        group = group.unique(return_inverse=True)[1]
        count = int(group.max()) + 1
        sums = centered.new_zeros(count, len(mean)).index_add_(0, group, centered)
        return replace(rows, group=group, sums=sums, sizes=ones.new_zeros(count).index_add_(0, group, ones))

    def ungroup(self) -> Rows:
        """Return the same rows, each in a group of its own."""
        count = len(self.centered)
        return replace(self, group=torch.arange(count), sums=self.centered, sizes=self.sizes.new_ones(count))

    @property
    def alone(self) -> bool:
        """Whether every row is a group of its own."""
        return len(self.sizes) == len(self.centered)

    @cached_property
    def lengths(self) -> Tensor:
        """Squared norm of the sum of each group, ``(G,)`` float64."""
        return self.squares if self.alone else square_norms(self.sums).double()

    @cached_property
    def along(self) -> Tensor:
        """Product of each row with the sum of its group, ``(N,)`` float64."""
        return self.squares if self.alone else torch.linalg.vecdot(self.centered, self.sums[self.group]).double()

    @cached_property
    def within(self) -> Tensor:
        """Sum of the squared products of each row with all rows of its group, ``(N,)`` float64."""
        if self.alone:
            return self.squares.square()
        order = self.group.argsort(stable=True)
        groups = self.centered[order].split(self.sizes.long().tolist())
        squares = torch.cat([_square_products(part) for part in groups])
        return torch.empty_like(squares).index_copy_(0, order, squares)


def _square_products(rows: Tensor) -> Tensor:
    """Sum of the squared products of each row with all, ``(N,)`` float64, by the smaller of two matrices."""
    if len(rows) > rows.shape[1]:
        return symmetric_form(rows, sum_outer_products(rows))
    return square_norms(rows @ rows.T).double()


def sum_outer_products(rows: Tensor) -> Tensor:
    """Sum of the outer products of rows ``(N, D)``, taken in their type and added up in float64, ``(D, D)``."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for block in rows.split(GRAM_ROWS):
        total += gram(block)
    return total


def permuted_covariance(rows: Rows, generator: torch.Generator) -> Tensor:
    """Sample covariance of the rows, every column permuted on its own, ``(D, D)`` float64."""
    # A copy with a column's entries side by side: fetched one by one they are a row apart.
    turned = rows.centered.T.clone(memory_format=torch.contiguous_format)
    for column in turned:
        column.copy_(column.index_select(0, torch.randperm(len(column), generator=generator)))
    return sum_outer_products(turned.T) / (len(rows.centered) - 1)


def symmetric_form(rows: Tensor, matrix: Tensor) -> Tensor:
    """Give x' M x of every row x for a symmetric matrix, in the type of the rows, ``(N,)`` float64.

    By panels from the diagonal on: five eighths of the products.
    """
    bands = []
    for start, end in panels(len(matrix)):
        band = 2 * matrix[start:, start:end]
        band[: end - start] /= 2  # on the diagonal a pair of dimensions comes twice by itself
        bands.append((slice(start, None), slice(start, end), band.to(rows)))
    found = []
    for block in rows.split(BLOCK):
        parts = [torch.linalg.vecdot(block[:, right] @ band, block[:, left]) for right, left, band in bands]
        found.append(torch.stack(parts).double().sum(0))
    return torch.cat(found)


class Traces(NamedTuple):
    """Traces behind offset and participation ratio: of a sample, or unbiased estimates for the population."""

    mean_square: Tensor
    """Squared norm of the mean; may be negative near 0."""
    trace: Tensor
    """Trace of the covariance."""
    trace_square: Tensor
    """Squared trace of the covariance."""
    square_trace: Tensor
    """Trace of the squared covariance."""

    dim: int

    @property
    def offset_square(self) -> Tensor:
        """Squared offset of the population; may be negative near 0."""
        return self.mean_square / self.trace

    @property
    def participation_ratio(self) -> Tensor:
        """Participation ratio, in [1, D]."""
        return self.trace_square / self.bounded

    @property
    def bounded(self) -> Tensor:
        """Trace of the squared covariance, clipped to the range that the trace of the covariance allows."""
        return torch.maximum(torch.minimum(self.square_trace, self.trace_square), self.trace_square / self.dim)

    def offset_interval(self, known: Estimate) -> Interval:
        """95% interval of the population's offset, from the estimate of its square."""
        low, high = known.interval()
        return Interval(max(low, 0.0) ** 0.5, max(high, 0.0) ** 0.5)

    def participation_interval(self, known: Estimate) -> Interval:
        """95% interval of the population's participation ratio from the estimate of its logarithm, in [1, D].

        With few rows for their dimensions it is too wide, since the jackknife counts contributions of pairs twice.
        """
        low, high = exponentiate_interval(known.interval())
        return Interval(min(max(low, 1.0), float(self.dim)), max(min(high, float(self.dim)), 1.0))


def plain_traces(mean: Tensor, covariance: Tensor) -> Traces:
    """Traces of a sample's own mean and covariance."""
    trace = covariance.trace()
    return Traces(mean.square().sum(), trace, trace.square(), covariance.square().sum(), len(mean))


def unbiased_traces(rows: Rows, second: Tensor) -> Traces:
    r"""Estimate the population's traces without bias for any distribution, from rows of at least four groups.

    Each is a mean over rows of *different* groups, as of :math:`(x_i \cdot x_j)^2 - 2 (x_i \cdot x_j)(x_i \cdot x_k)
    + (x_i \cdot x_j)(x_k \cdot x_l)` for the trace of the squared covariance; the sums over tuples follow from those
    over rows and groups, since the centred rows add up to 0. Without groups they are the estimates of Himeno and Yamada
    (2014). With groups of unequal size the larger weigh more, and the two squares have a bias of second order in the
    groups' shares of the rows, since they use rows centred on the sample's own mean.

    Args:
        rows: The rows.
        second: Sum of their outer products ``(D, D)``.
    """
    n, sizes = float(len(rows.centered)), rows.sizes
    two, three, four = (float(sizes.pow(power).sum()) for power in (2, 3, 4))
    pairs, triples = n**2 - two, n**3 - 3 * n * two + 2 * three
    quadruples = n**4 - 6 * n**2 * two + 3 * two**2 + 8 * n * three - 6 * four
    total, squares = rows.squares.sum(), torch.zeros_like(sizes).index_add_(0, rows.group, rows.squares)
    lengths = rows.lengths
    between = second if rows.alone else sum_outer_products(rows.sums)  # without groups they are the rows
    chain = 2 * rows.along.square().sum() - (second * between).sum()
    open_ = lengths.sum().square() + 2 * between.square().sum() - 6 * lengths.square().sum()
    spread = total.square() - squares.square().sum()
    tied = 2 * (squares * lengths).sum() - total * lengths.sum()
    return Traces(
        rows.mean.square().sum() - mean_square_excess(rows, rows.mean),
        (n * total - (sizes * squares).sum() + lengths.sum()) / pairs,  # half the squared distance of two rows
        spread / pairs - 2 * tied / triples + open_ / quadruples,
        (second.square().sum() - rows.within.sum()) / pairs - 2 * chain / triples + open_ / quadruples,
        len(rows.mean),
    )


def mean_square_excess(rows: Rows, direction: Tensor) -> Tensor:
    """Bias of the squared norm of ``direction`` by pairs of rows of one group, a scalar.

    The direction is the mean or a sum that it is part of.
    """
    pairs = len(rows.centered) ** 2 - rows.sizes.square().sum()
    return (rows.lengths.sum() + 2 * direction @ (rows.sizes.to(rows.sums) @ rows.sums).double()) / pairs


def mean_square_influence(rows: Rows, direction: Tensor) -> Tensor:
    """Influence of each row on the squared norm of ``direction``, to first order, ``(N,)``.

    The direction is the mean or a sum that it is part of; the own group is left out of it.
    """
    towards = (rows.centered @ direction.to(rows.centered)).double()
    values = 2 * (towards - rows.along / (len(rows.centered) - rows.sizes[rows.group]))
    return values - values.mean()


def offset_influence(rows: Rows, traces: Traces) -> Tensor:
    """Influence of each row on the squared offset, to first order, beside the rows of other groups, ``(N,)``."""
    longer = rows.squares - rows.squares.mean()
    return (mean_square_influence(rows, rows.mean) - traces.offset_square * longer) / traces.trace


def participation_influence(rows: Rows, second: Tensor, traces: Traces) -> Tensor:
    """Influence of each row on the logarithm of the participation ratio, as :func:`offset_influence`, ``(N,)``."""
    others = len(rows.centered) - rows.sizes[rows.group]
    across = (symmetric_form(rows.centered, second) - rows.within) / others
    values = 2 * rows.squares / traces.trace - 2 * across / traces.bounded
    return values - values.mean()


def tilt_influence(rows: Rows, covariance: Tensor) -> Tensor:
    """Influence of each row on the off-diagonal ratio of a covariance, to first order, ``(N,)``."""
    signs = covariance.sign().fill_diagonal_(0)
    trace = covariance.trace()
    ratio = (signs * covariance).sum() / trace
    values = symmetric_form(rows.centered, signs.fill_diagonal_(-float(ratio))) / trace
    return values - values.mean()


def correlation_influence(rows: Rows, covariance: Tensor) -> Tensor:
    """Influence of each row on the mean absolute correlation, to first order, ``(N,)``."""
    variances = covariance.diagonal()
    scale = torch.where(variances > 0, variances, 1.0).rsqrt() * (variances > 0)
    scales = torch.outer(scale, scale)
    signs = covariance.sign().fill_diagonal_(0)
    moved = signs - (signs * scales * covariance).sum(1).diag()  # a longer row has the same correlations
    kept = (variances > 0).sum()
    return symmetric_form(rows.centered, scales * moved) / (kept * (kept - 1)).clamp_min(1)


def estimate(value: Tensor, influence: Tensor, rows: Rows) -> Estimate:
    """Estimate a figure with its error from the influences of rows, summed by group."""
    sums = torch.zeros_like(rows.sizes).index_add_(0, rows.group, influence)
    return jackknife(value, value - sums / (rows.sizes.sum() - rows.sizes), rows.sizes)


def shell_estimate(rows: Rows, part: Tensor) -> Estimate:
    """Estimate the logarithm of the shell's ratio by leaving out each part, also from the mean."""
    parts = int(part.max()) + 1
    sizes = torch.bincount(part).double()
    sums = rows.centered.new_zeros(parts, rows.centered.shape[1]).index_add_(0, part, rows.centered)
    moves = -sums / (len(part) - sizes)[:, None].to(sums)  # of the mean, (P, D)
    lengths, tiny = square_norms(moves), torch.finfo(moves.dtype).tiny
    distance = rows.squares.sqrt()
    mean, left = distance.mean(), PartsLeftOut(parts)
    for block, square, own in zip(
        rows.centered.split(BLOCK), rows.squares.split(BLOCK), part.split(BLOCK), strict=True
    ):
        near = square.to(block)[:, None]
        longer = torch.addmm(lengths, block, moves.T, alpha=-2)  # of the squared distance, (n, P)
        far = (near + longer).clamp_min_(0).sqrt_().add_(near.sqrt()).clamp_min_(tiny)
        left.add(square.sqrt() - mean, own, longer.div_(far))  # x - y = (x^2 - y^2) / (x + y)
    logs = 2 * (mean + left.mean).log() - left.variance.log()
    return jackknife(2 * mean.log() - distance.var().log(), logs, sizes)
