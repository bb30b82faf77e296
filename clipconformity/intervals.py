"""Bootstrap intervals and the noise floor of a conformity KL.

Both sides are redrawn: the evaluated side by its buckets, which hold whole groups, the reference by the groups
of its row sample. A redrawn reference has another mean unit vector, so its own conformities and, by the shift
m_u(P) . delta, the evaluated ones are taken under the redrawn mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional._density import CELLS, Grid
from clipconformity.functional.divergence import Divergences, Side, corrected, plan, plug_in
from clipconformity.moments import check_clusters
from clipconformity.reference import ReferenceSet

CHUNK = 50
"""Resamples of the reference worked through at once: 50 x 10,000 conformities."""


def generator_or_default(generator: torch.Generator | None) -> torch.Generator:
    """Take the given generator, or a freshly seeded one so that the same data gives the same interval."""
    return torch.Generator().manual_seed(0) if generator is None else generator


def check_resamples(resamples: int) -> None:
    """Refuse fewer than one redraw.

    Raises:
        ValueError: If ``resamples`` is below 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}.")


def draw_weights(resamples: int, clusters: int, generator: torch.Generator) -> Tensor:
    """How often each of ``clusters`` is drawn, ``(resamples, clusters)`` float64."""
    drawn = torch.randint(clusters, (resamples, clusters), generator=generator)
    ones = torch.ones((), dtype=torch.float64).expand(drawn.shape)
    return torch.zeros(resamples, clusters, dtype=torch.float64).scatter_add_(1, drawn, ones)


def evaluated_side(histogram: Tensor, grouped: bool) -> Side:
    """Side of a divergence from bucket histograms ``(G, CELLS + 2)``."""
    counts = histogram.sum(0)
    total = float(counts.sum())
    return Side(counts, total / (design_effect(histogram) if grouped else 1.0))


def reference_side(reference: ReferenceSet, grid: Grid) -> Side:
    """Side of a divergence from a reference's row sample."""
    values = reference.null_conformities
    effect = 1.0
    if reference.grouped:
        cell = reference.clusters * (CELLS + 2) + grid.locate(values)
        cells, weight = cell.unique(return_counts=True)
        effect = _design_effect(cells // (CELLS + 2), cells % (CELLS + 2), weight.double())
    return Side(grid.counts(values), len(values) / effect)


def design_effect(histogram: Tensor) -> float:
    """How many times fewer independent samples there are than rows, from the spread between buckets; at least 1."""
    cluster, cell = histogram.nonzero(as_tuple=True)
    return _design_effect(cluster, cell, histogram[cluster, cell])


def _design_effect(cluster: Tensor, cell: Tensor, weight: Tensor) -> float:
    """Variance of the mean and of the spread under clusters, over that under independent rows, averaged."""
    total = weight.sum()
    z = cell.double()
    z = z - weight @ z / total
    square = z.square() - weight @ z.square() / total
    effects = []
    for score in (z, square):
        sums = torch.zeros(int(cluster.max()) + 1, dtype=torch.float64).index_add_(0, cluster, weight * score)
        independent = weight @ score.square()
        effects.append(float(sums.square().sum() / independent) if independent > 0 else 1.0)
    return max(1.0, sum(effects) / 2)


def redraw_evaluated(histogram: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Histograms ``(resamples, CELLS + 2)`` of redrawn buckets."""
    used = histogram[histogram.sum(1) > 0]
    check_clusters(len(used))
    return draw_weights(resamples, len(used), generator) @ used


def redraw_reference(
    reference: ReferenceSet, evaluated_mean: Tensor, grid: Grid, resamples: int, generator: torch.Generator
) -> Tensor:
    """Histograms ``(resamples, CELLS + 2)`` of the reference under redrawn groups and the mean that they give.

    Args:
        reference: The reference.
        evaluated_mean: Mean unit vector of the evaluated samples, ``(D,)``.
        grid: Cells of the histogram.
        resamples: Number of redraws.
        generator: Source of randomness.
    """
    rows = reference.sample.rows
    units = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    sample_mean = units.mean(0)
    shrink = (len(units) / reference.count) ** 0.5  # the mean rests on all rows, not on the sampled ones alone
    clusters = reference.clusters
    check_clusters(int(clusters.max()) + 1)
    within, size_of = reference.within_groups
    cosine = units.double() @ reference.unit_mean
    histograms = []
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        weight = draw_weights(size, int(clusters.max()) + 1, generator)[:, clusters]  # (b, k)
        drawn = (weight.float() @ units) / weight.sum(1, keepdim=True).float()
        delta = (drawn - sample_mean) * shrink  # (b, D)
        moved = cosine + (delta @ units.T).double()
        own = (reference.count * moved - weight * within) / (reference.count - weight * size_of)  # its group excluded
        value = own - (delta.double() @ evaluated_mean)[:, None]
        cell = grid.locate(value) + (CELLS + 2) * torch.arange(size)[:, None]
        flat = torch.bincount(cell.flatten(), weight.flatten(), minlength=size * (CELLS + 2))
        histograms.append(flat.view(size, CELLS + 2))
    return torch.cat(histograms)


def basic_interval(
    evaluated: Side, reference: Side, redrawn: tuple[Tensor, Tensor], confidence: float
) -> tuple[Tensor, Tensor]:
    """Basic bootstrap interval of KL(evaluated || reference), cut at 0.

    The plug-in KL of resamples exceeds that of the sample as that exceeds the truth, so twice the sample's value
    less the resamples' quantiles is free of the bias which makes the percentile interval miss a KL of 0 always.
    Near 0 the distribution is skewed, and the upper end is at least the percentile less both biases.
    """
    readout = plan(evaluated, reference)
    point = plug_in(readout, evaluated.counts[None], reference.counts[None]).forward
    values = plug_in(readout, *redrawn).forward
    levels = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    below, above = values.quantile(levels)
    value = point[0] - sum(readout.biases)
    low = torch.minimum(2 * point[0] - above, value)
    high = torch.maximum(torch.maximum(2 * point[0] - below, above - 2 * sum(readout.biases)), value)
    return low.clamp_min(0), high.clamp_min(0)


def null_divergences(evaluated: Side, reference: Side, resamples: int, generator: torch.Generator) -> Divergences:
    """Bias-corrected divergences when both sides are drawn from the reference, each at its own effective size.

    Both are drawn from the reference's smooth density: its histogram's own noise, taken for structure, would make the
    floor of a large evaluated set too high.
    """
    fitted = plan(reference, reference)
    share = torch.zeros_like(reference.counts)
    window = slice(1 + fitted.first * fitted.factor, 1 + fitted.last * fitted.factor)
    share[window] = torch.from_numpy(fitted.starts[0]).softmax(0).repeat_interleave(fitted.factor) / fitted.factor
    sides = [Side(share * side.effective, side.effective) for side in (evaluated, reference)]
    readout = plan(*sides)
    drawn = [torch.poisson(side.counts.expand(resamples, -1).contiguous(), generator=generator) for side in sides]
    return corrected(readout, plug_in(readout, *drawn))
