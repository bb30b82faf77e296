"""Metrics of the conformity distribution and of the norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipconformity.functional.density import Grid
from clipconformity.functional.divergence import MAX_COARSENING
from clipconformity.functional.linalg import full_precision
from clipconformity.functional.resampling import Interval
from clipconformity.metrics.base import EmbeddingMetric, SetMetric
from clipconformity.metrics.pictures import draw_values
from clipconformity.stream.readouts.conformity import ConformityReadOut, SelfConformityReadOut, histogram
from clipconformity.stream.readouts.conformity_kl import ConformityKLReadOut
from clipconformity.stream.readouts.norm import NormReadOut, compute_sampled_norms
from clipconformity.stream.standing import Standing

__all__ = ["Conformity", "ConformityKL", "EmbeddingNorm", "SelfConformity"]


class Conformity(EmbeddingMetric):
    r"""Distribution of the conformity of streamed raw embeddings, and their self-conformity.

    Conformity :math:`u \cdot m_u` to a reference measures how *typical* samples are; self-conformity, their mean
    pairwise cosine, how *alike* they are: low is varied. A generator that draws only cars is typical and not varied.

    Args:
        reference: Set for conformity. Without one, conformity is to the real rows, given by
            ``update(..., real=True)``, or without these inside the evaluated set, each sample excluded.
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is neither a reference nor an encoder.
        max_samples: Rows kept for quantiles, and without a reference for the standard deviation; exact up to so
            many samples. Means are always exact.
        allow_normalized: Accept L2-normalised embeddings.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a dict of scalars: ``conformity_mean``, ``conformity_std``, ``conformity_se`` (standard error of
    the mean, the reference taken as fixed), ``conformity_q05``, ``conformity_q50``, ``conformity_q95``,
    ``self_conformity_mean`` and ``self_conformity_se``, all cosines in [-1, 1]. To a reference or real rows also
    ``typicality_shift``, (mean - reference mean)/reference std; ``variety_ratio``, the mean cosine distance of two
    samples over that of two reference samples; and ``spread_ratio``, std/reference std. Each of these has the ends of
    its 95% interval under ``_low`` and ``_high``. Where rows have groups, pairs of rows of one group are left out.

    Raises:
        ValueError: If the dimension is unknown, or given with two different values.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> g = torch.Generator().manual_seed(0)
        >>> reference = cc.ReferenceSet.fit(torch.randn(500, 16, generator=g) + 1)
        >>> metric = cc.Conformity(reference)
        >>> metric.update(torch.randn(100, 16, generator=g) + 1)
        >>> round(float(metric.compute()["conformity_mean"]), 1)
        0.5
    """

    readout = ConformityReadOut()
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    @full_precision
    def histogram(self) -> tuple[Tensor, Tensor]:
        """Histogram of the conformities in cells of a quarter of the reference's standard deviation.

        Without a reference, the cells are those of the set's own conformities, and the row sample is counted.

        Returns:
            Counts ``(K,)`` and edges ``(K + 1,)``; values beyond 16 standard deviations are in the outermost cells.
        """
        with self._read_stream() as stream:
            return trim_histogram(*histogram(stream))

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the distribution over the reference's, or ``val``: values of ``compute``; returns ``(figure, axes)``."""
        if val is not None:
            return draw_values(self._plotted, val, ax)
        from clipconformity import plots

        reference = None
        with self._read_stream() as stream:
            known = stream.get_reference()
        if known is not None:
            reference = trim_histogram(known.grid.counts(known.null_conformities), known.grid)
        modality = None if known is None else known.modality
        return plots.conformity_distribution(self.histogram(), reference, modality=modality, ax=ax)


class SelfConformity(SetMetric):
    r"""Self-conformity of streamed raw embeddings: their mean pairwise cosine. Low is varied.

    .. math:: (N |m_u|^2 - 1) / (N - 1)

    Args:
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is no encoder.
        max_samples: Accepted for uniformity with the other metrics; no rows are kept.
        allow_normalized: Accept L2-normalised embeddings.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a scalar in [-1, 1], exact for any number of samples. Rows given with ``real=True`` are
    ignored.

    Raises:
        ValueError: If the dimension is unknown, or given with two different values.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> metric = cc.SelfConformity(embed_dim=2)
        >>> metric.update(torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]]))
        >>> metric.compute()
        tensor(0.3333)
    """

    readout = SelfConformityReadOut()
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0


class ConformityKL(EmbeddingMetric):
    r"""KL divergence KL(P || Q) in nats from the reference's conformity distribution Q to the evaluated one P.

    P is the conformity of streamed raw embeddings to the reference, Q that of the reference inside itself. The
    estimator is that of :func:`clipconformity.functional.conformity_kl`, over the same cells.

    A KL near 0 says that the samples are as typical as the reference, not that they are as varied: see the
    self-conformity of :class:`Conformity`. Read it with :meth:`interval` and :meth:`noise_floor`.

    Args:
        reference: Set to compare with; without one, the rows given by ``update(..., real=True)``.
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is neither a reference nor an encoder.
        max_samples: Rows kept.
        allow_normalized: Accept L2-normalised embeddings.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a scalar >= 0 in nats, with the finite-sample bias subtracted; a ``LowerBoundWarning`` is given
    when it is only a lower bound; see :attr:`is_lower_bound`.

    Raises:
        ValueError: If the dimension is unknown, or given with two different values.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> g = torch.Generator().manual_seed(0)
        >>> metric = cc.ConformityKL(cc.ReferenceSet.fit(torch.randn(500, 16, generator=g) + 1))
        >>> metric.update(torch.randn(500, 16, generator=g) + 1.5)
        >>> low, high = metric.interval(resamples=100)
        >>> bool(low < metric.compute() < high), bool(metric.compute() > metric.noise_floor(resamples=100))
        (True, True)
    """

    readout = ConformityKLReadOut()
    higher_is_better = False
    plot_lower_bound = 0.0

    def _read_standing(self) -> Standing:
        with self._read_stream() as stream:
            return Standing.from_stream(stream)

    @property
    def is_lower_bound(self) -> bool:
        """Whether the supports barely overlap, so that ``compute`` returns only a lower bound."""
        return self._read_standing().is_lower_bound

    @full_precision
    def reverse(self) -> Tensor:
        """KL(Q || P) in nats: large where the evaluated samples lack what the reference has."""
        return self._read_standing().divergences().reverse.float()

    @full_precision
    def interval(
        self, confidence: float = 0.95, *, resamples: int = 1000, generator: torch.Generator | None = None
    ) -> Interval:
        """Bootstrap interval of the divergence: both sides resampled, whole groups at a time, clipped at 0.

        Args:
            confidence: Nominal coverage, in (0, 1).
            resamples: Number of redraws.
            generator: Source of randomness; by default with a fixed seed, so that equal data gives an equal interval.

        Returns:
            The low and the high end, in nats.
        """
        return self._read_standing().interval(confidence, resamples, generator)

    @full_precision
    def noise_floor(
        self, quantile: float = 0.95, *, resamples: int = 1000, generator: torch.Generator | None = None
    ) -> float:
        """Quantile of the value when P = Q, that is from sampling noise alone at these sizes, in nats.

        Args:
            quantile: Level in (0, 1).
            resamples: Number of redraws of both sides as if they were of one distribution.
            generator: Source of randomness; by default one with a fixed seed.
        """
        return self._read_standing().redraw_null(quantile, resamples, generator).floor

    @full_precision
    def p_value(self, *, resamples: int = 1000, generator: torch.Generator | None = None) -> float:
        """p-value of the Anderson-Darling test for one distribution of conformity on both sides.

        It tests the conformity to the pooled mean of both sides. Independent rows are permuted between the sides; for
        rows in groups, signs of bucket sums are flipped.

        Args:
            resamples: Number of redraws R; the value is at least 1/(R + 1).
            generator: Source of randomness; by default one with a fixed seed.
        """
        return self._read_standing().redraw_null(0.95, resamples, generator).p_value


class EmbeddingNorm(SetMetric):
    r"""Norms of streamed raw embeddings, as they are, :math:`|v|`, and centred on their mean, :math:`|v - m|`.

    Args:
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is no encoder.
        max_samples: Rows kept for quantiles, centred norms and the correlation; exact up to so many samples.
        allow_normalized: Accept L2-normalised embeddings, whose norms carry no information.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a dict of scalars: ``norm_mean``, ``norm_std`` (both exact), ``norm_se``, ``norm_q05``,
    ``norm_q50``, ``norm_q95``; the same with ``centered_norm_`` (but for the standard error); and
    ``norm_conformity_correlation``, the Pearson correlation of the norm with the conformity inside the own set: the
    paper reports a negative one on MS-COCO. Rows given with ``real=True`` are left out.

    Raises:
        ValueError: If the dimension is unknown, or given with two different values.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> metric = cc.EmbeddingNorm(embed_dim=2)
        >>> metric.update(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        >>> metric.compute()["norm_mean"]
        tensor(3.)
    """

    readout = NormReadOut()
    plot_lower_bound = 0.0

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the norms as they are and centred, or ``val``: values of ``compute``; returns ``(figure, axes)``."""
        if val is not None:
            return draw_values(self._plotted, val, ax)
        from clipconformity import plots

        with self._read_stream() as stream:
            norms, centered = compute_sampled_norms(stream)
        return plots.norm_histogram(norms, centered, ax=ax)


def trim_histogram(counts: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the non-empty range of a histogram ``(CELLS + 2,)`` in coarse cells: counts and edges."""
    inner = counts[1:-1].clone()
    inner[0] += counts[0]
    inner[-1] += counts[-1]
    coarse = inner.unflatten(0, (-1, MAX_COARSENING)).sum(1)
    used = coarse.nonzero().flatten()
    first, last = int(used[0]), int(used[-1]) + 1
    return coarse[first:last], grid.edges().to(counts.device)[::MAX_COARSENING][first : last + 1]
