"""Metrics that compare Gaussians: likelihood under the reference's, and the Frechet distance to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clipconformity.functional.likelihood import Gaussian, check_gaussian
from clipconformity.metrics.base import EmbeddingMetric
from clipconformity.metrics.pictures import draw_values
from clipconformity.stream.readouts.base import read_sample
from clipconformity.stream.readouts.frechet import FrechetReadOut
from clipconformity.stream.readouts.likelihood import (
    LikelihoodReadOut,
    compute_under,
    held_out_likelihoods,
    sampled_likelihoods,
)
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.stream import Needs, Stream

__all__ = ["FrechetDistance", "GaussianLikelihood"]


class FrechetDistance(EmbeddingMetric):
    r"""Frechet distance between the Gaussians of streamed raw embeddings and of a reference (CLIP-FID), squared.

    Args:
        reference: Set to compare with; without one, the rows given by ``update(..., real=True)``.
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is neither a reference nor an encoder.
        max_samples: Rows kept of the real ones, where there is no reference.
        allow_normalized: Accept L2-normalised embeddings.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a scalar >= 0 in the squared units of the embeddings, exact for any number of rows. The
    value of finite samples is above that of the distributions: compare values at the same N only.

    Raises:
        ValueError: If the dimension is unknown, or given with two different values.

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


class _GivenReadOut(LikelihoodReadOut):
    """The figures of samples under a given Gaussian, without its own rows."""

    needs = Needs(rows=True, second_moment=True)

    def __init__(self, gaussian: Gaussian) -> None:
        self.gaussian = gaussian

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the figures that need no row of a reference."""
        return compute_under(self.gaussian, stream.read_side(), read_sample(stream))[0]

    def names(self, compared: bool) -> list[str]:
        """Names of what :meth:`read` gives."""
        return ["log_likelihood_mean", "log_likelihood_se", "log_likelihood_std", "whitened_norm_mean"]


class GaussianLikelihood(EmbeddingMetric):
    r"""Log-likelihood of streamed raw embeddings under the Gaussian of a reference, or under a given one.

    The covariance is shrunk towards a multiple of the identity by the oracle approximating shrinkage (OAS) of Chen et
    al. (2010), which follows from the reference's N and spectrum alone; see ``likelihood_shrinkage``. A Gaussian
    overfits the set it was fitted on, by hundreds of nats at a few thousand samples, so the reference's own value is
    computed by 5-fold cross-validation on its row sample.

    Given statistics, such as published ones of MS-COCO, are used as they are: without shrinkage, and without a value of
    the reference for comparison, which would need its rows.

    Args:
        reference: Set of the Gaussian; without one, the rows given by ``update(..., real=True)``.
        mean: In place of a reference, the raw mean ``(D,)`` of a set.
        covariance: Its covariance ``(D, D)``, as of :func:`clipconformity.functional.whiten`.
        whitening: In place of the covariance, a matrix W ``(K, D)`` that whitens it, :math:`W \Sigma W^\top = I`.
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is neither a reference nor an encoder.
        max_samples: Rows kept for the standard deviation.
        allow_normalized: Accept L2-normalised embeddings.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a dict of scalars: ``log_likelihood_mean`` in nats (exact), with its standard error
    ``log_likelihood_se``, ``log_likelihood_std``, ``whitened_norm_mean``, the mean squared whitened norm (exact; the
    rank of the covariance, mostly D, in expectation for the reference's own distribution); and with a reference
    ``reference_log_likelihood``, held out, ``log_likelihood_shift``, the difference of the means over the reference's
    held-out standard deviation, and ``likelihood_shrinkage``.

    Raises:
        TypeError: If given statistics are not floating-point tensors.
        ValueError: If the dimension is unknown, or given with two different values, or if both a reference and
            statistics are given, or some that do not fit.

    Warns:
        SingularWarning: If a given covariance or whitening matrix is singular; it is used on its range.

    Source: Betser, Levi and Gilboa, *Whitened CLIP as a Likelihood Surrogate of Images and Captions*, ICML 2025.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> g = torch.Generator().manual_seed(0)
        >>> metric = cc.GaussianLikelihood(cc.ReferenceSet.fit(torch.randn(900, 8, generator=g)))
        >>> metric.update(torch.randn(300, 8, generator=g))
        >>> abs(float(metric.compute()["log_likelihood_shift"])) < 0.2
        True
        >>> metric = cc.GaussianLikelihood(mean=torch.zeros(8), covariance=torch.eye(8))
        >>> metric.update(torch.randn(300, 8, generator=g))
        >>> round(float(metric.compute()["whitened_norm_mean"]))
        8
    """

    readout = LikelihoodReadOut()
    higher_is_better = True

    def __init__(
        self,
        reference: ReferenceSet | None = None,
        *,
        mean: Tensor | None = None,
        covariance: Tensor | None = None,
        whitening: Tensor | None = None,
        embed_dim: int | None = None,
        **options: Any,
    ) -> None:
        given = [name for name, x in (("covariance", covariance), ("whitening", whitening)) if x is not None]
        if mean is not None:
            if reference is not None:
                raise ValueError("reference, mean: expected a reference or the statistics of one, got both.")
            gaussian = check_gaussian(mean, covariance, whitening=whitening)
            if embed_dim not in (None, len(mean)):
                raise ValueError(f"embed_dim is {embed_dim} and mean has dimension {len(mean)}; give one of them.")
            embed_dim = len(mean)
            self.readout = _GivenReadOut(gaussian._replace(mean=gaussian.mean.cpu(), root=gaussian.root.cpu()))
        elif given:
            raise ValueError(f"{given[0]}: expected the mean of the same set beside it, got none; give mean.")
        super().__init__(reference, embed_dim=embed_dim, **options)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the samples' log-likelihoods over the reference's held-out ones, or ``val``: values of ``compute``.

        Returns:
            ``(figure, axes)``.
        """
        if val is not None:
            return draw_values(self._plotted, val, ax)
        from clipconformity import plots

        quantity = "log-likelihood under the reference's Gaussian (nats)"
        with self._read_stream() as stream:
            if isinstance(self.readout, _GivenReadOut):
                values = compute_under(self.readout.gaussian, stream.read_side(), read_sample(stream))[1]
                return plots.distributions({"evaluated": values}, quantity="log-likelihood (nats)", ax=ax)
            reference = stream.require_reference(type(self).__name__)
            values = sampled_likelihoods(stream, reference)
        return plots.distributions(
            {"evaluated": values},
            held_out_likelihoods(reference),
            quantity=quantity,
            modality=reference.modality,
            reference_label="reference, held out",
            ax=ax,
        )
