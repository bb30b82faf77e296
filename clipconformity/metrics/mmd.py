"""Metrics of the distance of mean directions: MMD with the cosine kernel, and CMMD."""

from __future__ import annotations

from typing import Any

import torch

from clipconformity.functional.linalg import full_precision
from clipconformity.functional.mmd import MMDHalves
from clipconformity.functional.resampling import Interval, make_generator
from clipconformity.metrics.base import EmbeddingMetric
from clipconformity.metrics.pictures import draw_values
from clipconformity.stream.mmd import compute_noise, discrepancy
from clipconformity.stream.readouts.cmmd import CMMDReadOut
from clipconformity.stream.readouts.cosine_mmd import CosineMMDReadOut
from clipconformity.stream.reference import ReferenceSet

__all__ = ["CMMD", "CosineMMD"]


class CosineMMD(EmbeddingMetric):
    r"""Squared MMD with the cosine kernel between streamed raw embeddings and a reference, unbiased.

    .. math:: SC(P) + SC(Q) - 2\, C(P, Q)
              = \underbrace{2\, (SC(Q) - C(P, Q))}_{\text{typicality}} + \underbrace{SC(P) - SC(Q)}_{\text{variety}}

    with SC the self-conformity of a set and C(P, Q) the mean conformity of the samples to the reference. It is what
    published as CMMD, to 1% and but for a factor of 10, and :meth:`halves` has its two parts. One half may cancel the
    other: samples that crowd around the typical are more typical, and less varied.

    Args:
        reference: Set to compare with; without one, the rows given by ``update(..., real=True)``.
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is neither a reference nor an encoder.
        max_samples: Rows kept to find samples that are also in the reference.
        allow_normalized: Accept L2-normalised embeddings.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a scalar in squared cosine distance, exact for any number of rows, in O(N D). It is 0 on
    average where both are of one distribution, so that it may be negative. Where rows have groups, pairs of rows of one
    group are left out.

    Raises:
        ValueError: If the dimension is unknown, or given with two different values.

    Source: Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> g = torch.Generator().manual_seed(0)
        >>> metric = cc.CosineMMD(cc.ReferenceSet.fit(torch.randn(500, 16, generator=g) + 1))
        >>> metric.update(0.5 * torch.randn(500, 16, generator=g) + 1)
        >>> round(float(metric.compute()), 2)
        0.04
        >>> all(half > 0 for half in metric.halves()), metric.p_value() < 0.01
        (False, True)
    """

    readout = CosineMMDReadOut()
    higher_is_better = False

    @full_precision
    def halves(self) -> MMDHalves:
        """The two parts of the value, which add up to it."""
        with self._read_stream() as stream:
            found = discrepancy(stream.contrast(type(self).__name__))
        return MMDHalves(found.typicality.value.float(), found.variety.value.float())

    @full_precision
    def interval(self, confidence: float = 0.95) -> Interval:
        """Interval of the value for the two distributions, by leaving out buckets of rows; NaN where it is unknown.

        It is valid where they differ, for which see :meth:`p_value`.
        """
        with self._read_stream() as stream:
            return discrepancy(stream.contrast(type(self).__name__)).whole.interval(confidence)

    @full_precision
    def noise_floor(
        self, quantile: float = 0.95, *, resamples: int = 1000, generator: torch.Generator | None = None
    ) -> float:
        """Quantile of the value where both sides are of one distribution.

        Args:
            quantile: Level in (0, 1).
            resamples: Number of draws.
            generator: Source of randomness; by default one with a fixed seed.
        """
        with self._read_stream() as stream:
            return compute_noise(
                stream.contrast(type(self).__name__), quantile, resamples, make_generator(generator)
            ).floor

    @full_precision
    def p_value(self, *, resamples: int = 1000, generator: torch.Generator | None = None) -> float:
        """p-value of the test whether both mean directions are the same.

        It flips the signs of centred bucket sums; buckets hold whole groups.

        Args:
            resamples: Number of draws R; the value is at least 1/(R + 1).
            generator: Source of randomness; by default one with a fixed seed.
        """
        with self._read_stream() as stream:
            return compute_noise(
                stream.contrast(type(self).__name__), 0.95, resamples, make_generator(generator)
            ).p_value

    @full_precision
    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the value and its halves with their intervals, or ``val``, one or several values over steps.

        Returns:
            ``(figure, axes)``.
        """
        from clipconformity import plots

        quantity = "squared cosine distance"
        if val is not None:
            return draw_values(self.readout, val, ax)
        with self._read_stream() as stream:
            contrast = stream.contrast(type(self).__name__)
            parts = discrepancy(contrast)
        values = [float(part.value) for part in parts]
        low, high = zip(*(part.interval() for part in parts), strict=True)
        names, modality = ["cosine MMD", "by typicality", "by variety"], contrast.reference.modality
        return plots.forest(values, low, high, names, quantity=quantity, null=0.0, modality=modality, ax=ax)


class CMMD(EmbeddingMetric):
    r"""CMMD: squared MMD of unit embeddings with a Gaussian kernel of width 10, times 1000.

    It is computed from the means and second moments of the unit embeddings, in O(N D^2), without pairs. It differs from
    :func:`clipconformity.functional.cmmd` by at most 0.00066, and on CLIP embeddings by less than 0.1% of itself.
    :class:`CosineMMD` has its parts of typicality and variety.

    Args:
        reference: Set to compare with; without one, the rows given by ``update(..., real=True)``.
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is neither a reference nor an encoder.
        unbiased: Leave out the pairs of a row with itself, and of one group. The published code keeps them, which adds
            about 10 (1 - self-conformity) (1/n + 1/N).
        max_samples: Rows kept to find samples that are also in the reference.
        allow_normalized: Accept L2-normalised embeddings.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a scalar; below 0 only if ``unbiased``.

    Raises:
        ValueError: If the dimension is unknown, or given with two different values.

    Source: Jayasumana et al., *Rethinking FID: Towards a Better Evaluation Metric for Image Generation*, CVPR 2024.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> g = torch.Generator().manual_seed(0)
        >>> metric = cc.CMMD(cc.ReferenceSet.fit(torch.randn(500, 16, generator=g) + 1))
        >>> metric.update(0.5 * torch.randn(500, 16, generator=g) + 1)
        >>> round(float(metric.compute()), 2)
        0.39
    """

    higher_is_better = False

    def __init__(self, reference: ReferenceSet | None = None, *, unbiased: bool = False, **options: Any) -> None:
        self.__dict__["readout"] = CMMDReadOut(unbiased)
        super().__init__(reference, **options)
