"""Cosine MMD of both sides with its halves, and its noise floor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.resampling import Estimate, check_clusters, check_level, check_resamples, joint_jackknife
from clipconformity.functional.two_sample import tail_probability
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.moments import Moments
from clipconformity.stream.pairs import Without, cross_squares, own_pairs_without, own_squares


class Discrepancy(NamedTuple):
    """Cosine MMD and the two halves that add up to it, each with its uncertainty."""

    whole: Estimate
    typicality: Estimate
    variety: Estimate


class DiscrepancyWithout(NamedTuple):
    """Cosine MMD and its halves, whole and without each bucket."""

    whole: Without
    typicality: Without
    """2 (SC(Q) - C(P, Q)): above 0 where the samples are less typical than the reference."""
    variety: Without
    """SC(P) - SC(Q): above 0 where they are less varied."""


class Noise(NamedTuple):
    """Noise floor and p-value under one distribution of both sides."""

    floor: float
    """Quantile of the cosine MMD."""
    p_value: float


def discrepancy(contrast: Contrast) -> Discrepancy:
    """Compute the unbiased cosine MMD and its halves, with groups over pairs of different groups."""
    return Discrepancy(*(_estimate(contrast, part) for part in discrepancy_without(contrast)))


def discrepancy_without(contrast: Contrast) -> DiscrepancyWithout:
    """Compute the same without each bucket of either side."""
    (mine, without), (theirs, others) = (own_pairs_without(side) for side in _get_sides(contrast))
    cross = contrast.conformity
    variety = Without(mine - theirs, without - others, without - theirs, mine - others)
    typicality = Without(*(2 * (own - mean) for own, mean in zip((theirs, others, theirs, others), cross, strict=True)))
    whole = Without(*(one + other for one, other in zip(typicality, variety, strict=True)))
    return DiscrepancyWithout(whole, typicality, variety)


def squares_discrepancy(contrast: Contrast) -> Tensor:
    """Compute the same for the squared cosine, unbiased, without an error."""
    mine, theirs = _get_sides(contrast)
    sides = (contrast.sample, mine), (contrast.reference.sample, theirs)
    return sum(own_squares(*side) for side in sides) - 2 * cross_squares(*sides, contrast.overlap)


def compute_noise(contrast: Contrast, quantile: float, resamples: int, generator: torch.Generator) -> Noise:
    """Compute the noise floor and the p-value by random signs of the centred bucket sums.

    Under one distribution of both sides, the mean of a centred bucket sum is 0 for any dependence of rows inside the
    bucket; rows that both sides share in a bucket stay shared.

    Raises:
        ValueError: If the level or the number of redraws is wrong, or all rows are in one bucket.
    """
    check_level(quantile, "quantile")
    check_resamples(resamples)
    (count, sums), (counts, others) = ((side["count"], side["unit_sum"]) for side in _get_sides(contrast))
    check_clusters(min(int((one > 0).sum()) for one in (count, counts)))
    center = (sums + others).sum(0) / (count + counts).sum()
    added = _center_sums(sums, count, center) - _center_sums(others, counts, center)  # (G, D)
    products = added @ added.T
    signs = 2 * torch.randint(2, (resamples, len(added)), generator=generator).double() - 1
    drawn = ((signs @ products) * signs).sum(1)
    floor = drawn.quantile(quantile) - products.trace()  # unbiased: without products of a bucket with itself
    return Noise(float(floor), tail_probability(products.sum(), drawn))


def _center_sums(sums: Tensor, count: Tensor, center: Tensor) -> Tensor:
    return (sums - count[:, None] * center) / count.sum()


def _get_sides(contrast: Contrast) -> tuple[Moments, Moments]:
    return contrast.evaluated.cpu(), contrast.reference.moments


def _estimate(contrast: Contrast, figure: Without) -> Estimate:
    return joint_jackknife(figure.whole, figure.both, (figure.evaluated, figure.reference), contrast.counts)
