"""Metrics that compare Gaussians: likelihood under the reference's, and the Frechet distance to it."""

from __future__ import annotations

from typing import Any

from clipconformity.metrics.base import EmbeddingMetric, values_of
from clipconformity.stream.readouts.frechet import FrechetReadOut
from clipconformity.stream.readouts.likelihood import LikelihoodReadOut, held_out_likelihoods, sampled_likelihoods

__all__ = ["FrechetDistance", "GaussianLikelihood"]


class FrechetDistance(EmbeddingMetric):
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

    readout = FrechetReadOut()
    higher_is_better = False
    plot_lower_bound = 0.0

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the value, or ``val``: one or several values over steps; gives ``(figure, axes)``."""
        from clipconformity import plots

        with self._read_stream() as stream:
            reference = stream.compared_with()
        values = values_of(self.compute() if val is None else val)
        modality = None if reference is None else reference.modality
        quantity = "Frechet distance (squared units of the embedding)"
        return plots.series(values, quantity=quantity, modality=modality, ax=ax)


class GaussianLikelihood(EmbeddingMetric):
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

    readout = LikelihoodReadOut()
    higher_is_better = True

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the samples' log-likelihoods over the reference's held-out ones, or ``val``: values of ``compute``.

        Returns:
            ``(figure, axes)``.
        """
        if val is not None:
            return self._plot(val, ax)
        from clipconformity import plots

        with self._read_stream() as stream:
            reference = stream.needed_reference(type(self).__name__)
            values = sampled_likelihoods(stream, reference)
        return plots.distributions(
            {"evaluated": values},
            held_out_likelihoods(reference),
            quantity="log-likelihood under the reference's Gaussian (nats)",
            modality=reference.modality,
            reference_label="reference, held out",
            ax=ax,
        )
