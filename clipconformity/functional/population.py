"""Estimates for the population from raw embeddings, and influences of rows, for intervals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.linalg import gram, quadratic_form, square_norms
from clipconformity.functional.resampling import Estimate, Interval, exponentiate_interval, jackknife

MIN_GROUPS = 4
"""Smallest number of groups for unbiased estimates: their terms have four rows of different groups."""


class Rows(NamedTuple):
    """Centred rows, and the groups inside which they are dependent."""

    mean: Tensor
    """Raw mean before centring, ``(D,)``."""
    centered: Tensor
    """``(N, D)`` float64, of mean 0."""
    group: Tensor
    """Index of each row's group, from 0, ``(N,)``."""
    sums: Tensor
    """Sum of the centred rows of each group, ``(G, D)``."""
    sizes: Tensor
    """Rows of each group, ``(G,)`` float64."""

    @classmethod
    def center(cls, values: Tensor, group: Tensor | None = None) -> Rows:
        """Centre rows ``(N, D)``; without groups every row is one."""
        group = torch.arange(len(values)) if group is None else group.unique(return_inverse=True)[1]
        values = values.double()
        mean = values.mean(0)
        centered = values - mean
        count = int(group.max()) + 1
        sums = centered.new_zeros(count, len(mean)).index_add_(0, group, centered)
        sizes = centered.new_zeros(count).index_add_(0, group, torch.ones_like(centered[:, 0]))
        return cls(mean, centered, group, sums, sizes)

    def ungroup(self) -> Rows:
        """Return the same rows, each in a group of its own."""
        return self._replace(
            group=torch.arange(len(self.centered)), sums=self.centered, sizes=torch.ones_like(self.centered[:, 0])
        )

    def multiply_within(self) -> tuple[Tensor, Tensor]:
        """Sum of the squared products of a row with all rows of its group, and its product with their sum, ``(N,)``."""
        if len(self.sizes) == len(self.centered):
            square = square_norms(self.centered)
            return square.square(), square
        order = self.group.argsort(stable=True)
        squares = torch.cat(
            [(part @ part.T).square().sum(1) for part in self.centered[order].split(self.sizes.long().tolist())]
        )
        return torch.empty_like(squares).index_copy_(0, order, squares), (self.centered * self.sums[self.group]).sum(1)


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
    within, along = rows.multiply_within()
    norms = square_norms(rows.centered)
    total, squares = norms.sum(), torch.zeros_like(sizes).index_add_(0, rows.group, norms)
    lengths = square_norms(rows.sums)
    between = second if len(lengths) == len(rows.centered) else gram(rows.sums)  # without groups they are the rows
    chain = 2 * along.square().sum() - (second * between).sum()
    open_ = lengths.sum().square() + 2 * between.square().sum() - 6 * lengths.square().sum()
    spread = total.square() - squares.square().sum()
    tied = 2 * (squares * lengths).sum() - total * lengths.sum()
    return Traces(
        rows.mean.square().sum() - mean_square_excess(rows, rows.mean),
        (n * total - (sizes * squares).sum() + lengths.sum()) / pairs,  # half the squared distance of two rows
        spread / pairs - 2 * tied / triples + open_ / quadruples,
        (second.square().sum() - within.sum()) / pairs - 2 * chain / triples + open_ / quadruples,
        len(rows.mean),
    )


def mean_square_excess(rows: Rows, direction: Tensor) -> Tensor:
    """Bias of the squared norm of ``direction`` by pairs of rows of one group, a scalar.

    The direction is the mean or a sum that it is part of.
    """
    pairs = len(rows.centered) ** 2 - rows.sizes.square().sum()
    return (rows.sums.square().sum() + 2 * direction @ (rows.sizes @ rows.sums)) / pairs


def mean_square_influence(rows: Rows, direction: Tensor) -> Tensor:
    """Influence of each row on the squared norm of ``direction``, to first order, ``(N,)``.

    The direction is the mean or a sum that it is part of; the own group is left out of it.
    """
    along = (rows.centered * rows.sums[rows.group]).sum(1)
    values = 2 * (rows.centered @ direction - along / (len(rows.centered) - rows.sizes[rows.group]))
    return values - values.mean()


def offset_influence(rows: Rows, traces: Traces) -> Tensor:
    """Influence of each row on the squared offset, to first order, beside the rows of other groups, ``(N,)``."""
    square = square_norms(rows.centered)
    return (mean_square_influence(rows, rows.mean) - traces.offset_square * (square - square.mean())) / traces.trace


def participation_influence(rows: Rows, second: Tensor, traces: Traces) -> Tensor:
    """Influence of each row on the logarithm of the participation ratio, as :func:`offset_influence`, ``(N,)``."""
    others = len(rows.centered) - rows.sizes[rows.group]
    across = (quadratic_form(rows.centered, second) - rows.multiply_within()[0]) / others
    values = 2 * square_norms(rows.centered) / traces.trace - 2 * across / traces.bounded
    return values - values.mean()


def tilt_influence(rows: Rows, covariance: Tensor) -> Tensor:
    """Influence of each row on the off-diagonal ratio of a covariance, to first order, ``(N,)``."""
    signs = covariance.sign().fill_diagonal_(0)
    trace = covariance.trace()
    ratio = (signs * covariance).sum() / trace
    values = (quadratic_form(rows.centered, signs) - ratio * square_norms(rows.centered)) / trace
    return values - values.mean()


def correlation_influence(rows: Rows, covariance: Tensor) -> Tensor:
    """Influence of each row on the mean absolute correlation, to first order, ``(N,)``."""
    variances = covariance.diagonal()
    scale = torch.where(variances > 0, variances, 1.0).rsqrt() * (variances > 0)
    signed = torch.outer(scale, scale) * covariance
    signs = signed.sign().fill_diagonal_(0)
    z = rows.centered * scale
    kept = (variances > 0).sum()
    values = quadratic_form(z, signs) - z.square() @ (signs * signed).sum(1)
    return values / (kept * (kept - 1)).clamp_min(1)


def estimate(value: Tensor, influence: Tensor, rows: Rows) -> Estimate:
    """Estimate a figure with its error from the influences of rows, summed by group."""
    sums = torch.zeros_like(rows.sizes).index_add_(0, rows.group, influence)
    return jackknife(value, value - sums / (rows.sizes.sum() - rows.sizes), rows.sizes)


def shell_estimate(rows: Rows, part: Tensor) -> Estimate:
    """Estimate the logarithm of the shell's ratio by leaving out each part, also from the mean."""
    parts = int(part.max()) + 1
    sums = rows.centered.new_zeros(parts, rows.centered.shape[1]).index_add_(0, part, rows.centered)
    sizes = rows.centered.new_zeros(parts).index_add_(0, part, torch.ones_like(rows.centered[:, 0]))
    moves = torch.cat([torch.zeros_like(sums[:1]), -sums / (len(part) - sizes)[:, None]])  # (1 + P, D)
    square = square_norms(rows.centered)[:, None] - 2 * rows.centered @ moves.T + moves.square().sum(1)
    distance = square.clamp_min(0).sqrt()  # (N, 1 + P)
    left = torch.cat([torch.ones_like(part[:, None]).bool(), part[:, None] != torch.arange(parts)], 1).double()
    count = left.sum(0)
    mean = (left * distance).sum(0) / count
    variance = (left * (distance - mean).square()).sum(0) / (count - 1)
    logs = 2 * mean.log() - variance.log()
    return jackknife(logs[0], logs[1:], sizes)
