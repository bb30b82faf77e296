"""Metrics that compare Gaussians: likelihood under the reference's, and the Frechet distance to it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from clipconformity.functional import log_likelihood
from clipconformity.functional.likelihood import check_gaussian, gaussian_distance
from clipconformity.metrics.base import EVALUATED, REAL, EmbeddingMetric, Sides
from clipconformity.metrics.distribution import values_of
from clipconformity.moments import Layout
from clipconformity.reference import ReferenceSet

FOLDS = 5
"""Folds of the reference's held-out likelihood."""


class _AgainstGaussian(EmbeddingMetric):
    """Streams second moments, to be compared with a reference's or with those of the real rows."""

    rows_kept = True

    def _make_layouts(self) -> dict[str, Layout]:
        rows = self.max_samples if self.rows_kept else 0
        layouts = {EVALUATED: Layout(self.embed_dim, max_samples=rows, second_moment=True)}
        if self.reference is None:
            layouts[REAL] = Layout(self.embed_dim, buckets=1, max_samples=self.max_samples, second_moment=True)
        return layouts

    def _needed_reference(self, sides: Sides) -> ReferenceSet:
        reference = self._reference_of(sides)
        if reference is None:
            raise ValueError(
                f"{type(self).__name__}: there is no reference; give one at construction, or real rows by "
                "update(..., real=True)."
            )
        return reference


class FrechetDistance(_AgainstGaussian):
    r"""Frechet distance between the Gaussians of streamed raw embeddings and of a reference (CLIP-FID), squared.

    Args:
        reference: Set to compare with; without one, the rows given by ``update(..., real=True)``.
        encoder: Turns images and texts into embeddings: an encoder, or what ``load_encoder`` takes.
        embed_dim: Dimension D, where neither of those tells it.
        max_samples: Rows kept of the real ones, where there is no reference.
        allow_normalized: Take L2-normalised embeddings.
        kwargs: Of ``torchmetrics.Metric``.

    ``compute`` gives a scalar >= 0 in the squared units of the embeddings, exact whatever the number of rows. The
    value of finite samples is above that of the distributions: compare values at the same N only.

    Raises:
        ValueError: If the dimension is not told, or told twice differently.

    Source: Heusel et al., NeurIPS 2017; Kynkaanniemi et al., ICLR 2023, for CLIP features.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> metric = cc.FrechetDistance(cc.ReferenceSet.fit(rows))
        >>> metric.update(rows + torch.tensor([3.0, 4.0, 0.0, 0.0]))
        >>> round(float(metric.compute()), 3)
        25.0
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    rows_kept = False

    def _read(self, sides: Sides) -> Tensor:
        moments = self._checked(sides)
        reference = self._needed_reference(sides)
        other = (reference.mean.to(moments.mean), reference.covariance.to(moments.mean))
        return gaussian_distance(moments.mean, moments.covariance, *other).float()

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the value, or ``val``: one or several values over steps; gives ``(figure, axes)``."""
        from clipconformity import plots

        with self._synced():
            reference = self._reference_of(self._sides())
        values = values_of(self.compute() if val is None else val)
        modality = None if reference is None else reference.modality
        quantity = "Frechet distance (squared units of the embedding)"
        return plots.series(values, quantity=quantity, modality=modality, ax=ax)


class GaussianLikelihood(_AgainstGaussian):
    r"""Log-likelihood of streamed raw embeddings under the Gaussian of a reference, beside its own held-out one.

    The covariance is shrunk towards a multiple of the identity by the oracle approximating shrinkage (OAS) of Chen et
    al. (2010), which follows from the reference's N and spectrum alone; ``likelihood_shrinkage`` tells it. A Gaussian
    overfits the set it was fitted on, by hundreds of nats at a few thousand samples, so the reference's own value is
    taken by 5-fold cross-validation on its row sample.

    Args:
        reference: Set whose Gaussian it is; without one, the rows given by ``update(..., real=True)``.
        encoder: Turns images and texts into embeddings: an encoder, or what ``load_encoder`` takes.
        embed_dim: Dimension D, where neither of those tells it.
        max_samples: Rows kept for the standard deviation.
        allow_normalized: Take L2-normalised embeddings.
        kwargs: Of ``torchmetrics.Metric``.

    ``compute`` gives a dict of scalars: ``log_likelihood_mean`` in nats (exact), ``log_likelihood_std``,
    ``whitened_norm_mean``, the mean squared whitened norm (exact; D in expectation for the reference's own
    distribution), ``reference_log_likelihood``, held out, ``log_likelihood_shift``, the difference of the means over
    the reference's held-out standard deviation, and ``likelihood_shrinkage``.

    Raises:
        ValueError: If the dimension is not told, or told twice differently.

    Source: Betser, Levi and Gilboa, *Whitened CLIP as a Likelihood Surrogate of Images and Captions*, ICML 2025.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> g = torch.Generator().manual_seed(0)
        >>> metric = cc.GaussianLikelihood(cc.ReferenceSet.fit(torch.randn(900, 8, generator=g)))
        >>> metric.update(torch.randn(300, 8, generator=g))
        >>> abs(float(metric.compute()["log_likelihood_shift"])) < 0.2
        True
    """

    higher_is_better = True

    def _read(self, sides: Sides) -> dict[str, Tensor]:
        moments = self._checked(sides)
        reference = self._needed_reference(sides)
        shrinkage = oas_shrinkage(reference.covariance, reference.count)
        gaussian = check_gaussian(reference.mean, reference.covariance, shrinkage)
        apart = moments.mean.cpu() - gaussian.mean
        spread = (moments["second_moment"] / moments.total).cpu() - torch.outer(moments.mean, moments.mean).cpu()
        spread = spread + torch.outer(apart, apart)  # second moment about the reference's mean
        whitened = ((gaussian.axes.T @ spread @ gaussian.axes).diagonal() / gaussian.spectrum).sum()
        constant = len(gaussian.mean) * math.log(2 * math.pi) + gaussian.spectrum.log().sum()
        mean = -0.5 * (constant + whitened)
        rows = moments.good_sample().rows.double().cpu()
        values = log_likelihood(rows, reference.mean, reference.covariance, shrinkage)
        held_out = held_out_likelihoods(reference)
        result = {
            "log_likelihood_mean": mean,
            "log_likelihood_std": values.std(),
            "whitened_norm_mean": whitened,
            "reference_log_likelihood": held_out.mean(),
            "log_likelihood_shift": (mean - held_out.mean()) / held_out.std(),
            "likelihood_shrinkage": torch.tensor(shrinkage),
        }
        return {name: value.float() for name, value in result.items()}

    def _nothing(self, sides: Sides) -> dict[str, Tensor]:
        names = ("log_likelihood_mean", "log_likelihood_std", "whitened_norm_mean", "reference_log_likelihood")
        return {name: torch.tensor(float("nan")) for name in (*names, "log_likelihood_shift", "likelihood_shrinkage")}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the samples' log-likelihoods over the reference's held-out ones, or ``val``: values of ``compute``.

        Returns:
            ``(figure, axes)``.
        """
        if val is not None:
            return self._plot(val, ax)
        from clipconformity import plots

        with self._synced():
            sides = self._sides()
            rows = self._checked(sides).good_sample().rows.double().cpu()
            reference = self._needed_reference(sides)
        shrinkage = oas_shrinkage(reference.covariance, reference.count)
        values = log_likelihood(rows, reference.mean, reference.covariance, shrinkage)
        return plots.distributions(
            {"evaluated": values},
            held_out_likelihoods(reference),
            quantity="log-likelihood under the reference's Gaussian (nats)",
            modality=reference.modality,
            reference_label="reference, held out",
            ax=ax,
        )


def oas_shrinkage(covariance: Tensor, count: int) -> float:
    """Oracle approximating shrinkage towards trace/D times the identity, in [0, 1] (Chen et al. 2010, equation 23)."""
    dim = len(covariance)
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    numerator = (1 - 2 / dim) * square + trace**2
    denominator = (count + 1 - 2 / dim) * (square - trace**2 / dim)
    return 1.0 if denominator <= 0 else min(1.0, numerator / denominator)


def held_out_likelihoods(reference: ReferenceSet) -> Tensor:
    """Log-likelihood of each sampled row of a reference under the Gaussian of all rows but its fold, ``(k,)``.

    Raises:
        ValueError: If the reference is too small to hold a fold out.
    """
    if reference.count < 2 * FOLDS:
        raise ValueError(f"reference: expected at least {2 * FOLDS} samples, got {reference.count}.")
    rows = reference.sample.rows.double()
    total = reference.mean * reference.count
    second = reference.covariance * (reference.count - 1) + torch.outer(total, total) / reference.count
    values = torch.empty(len(rows), dtype=torch.float64)
    for fold in range(FOLDS):
        out = reference.clusters % FOLDS == fold  # a group is held out together
        count = reference.count - int(out.sum())
        mean = (total - rows[out].sum(0)) / count
        covariance = (second - rows[out].T @ rows[out] - count * torch.outer(mean, mean)) / (count - 1)
        values[out] = log_likelihood(rows[out], mean, covariance, oas_shrinkage(covariance, count))
    return values
