"""The Frechet distance of the Gaussians of two sets, and influences on it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from clipconformity.functional.linalg import covariance_of, full_precision, mean_of, result_dtype
from clipconformity.functional.validation import check_rows, check_same_dim

SINGULAR = 1e-10
"""Share of the largest pivot below which a covariance counts as singular."""


class HasGaussian(Protocol):
    """An object with the moments of its embeddings, such as a ``ReferenceSet``."""

    @property
    def count(self) -> int:
        """Number of embeddings."""

    @property
    def mean(self) -> Tensor:
        """Raw mean ``(D,)``."""

    @property
    def covariance(self) -> Tensor:
        """Sample covariance ``(D, D)``."""


@full_precision
def frechet_distance(embeddings: Tensor, reference: Tensor | HasGaussian) -> Tensor:
    r"""Frechet distance between the Gaussians of two sets of raw embeddings (CLIP-FID), squared as usual.

    .. math:: |m_1 - m_2|^2 +
              \mathrm{tr}\left(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2}\right)

    The last trace is taken as the sum of the singular values of :math:`L_2^\top L_1`, with
    :math:`L_i L_i^\top = \Sigma_i`, in float64, which loses no precision where a covariance is singular. The value
    of finite samples is above that of the distributions, and more so for fewer samples: compare values at equal N only.

    Args:
        embeddings: Raw embeddings ``(N, D)``, N >= 2.
        reference: Raw embeddings ``(M, D)``, M >= 2, a ``ReferenceSet``, or any object with ``count``, ``mean`` and
            ``covariance``.

    Returns:
        A scalar >= 0, in the squared units of the embeddings.

    Raises:
        TypeError: If an argument is neither a floating-point tensor nor, for ``reference``, such an object.
        ValueError: If dimensions differ, there are too few samples, or a row is zero, NaN or infinite.

    Source: Heusel et al., *GANs Trained by a Two Time-Scale Update Rule*, NeurIPS 2017; Kynkaanniemi et al., *The
    Role of ImageNet Classes in Frechet Inception Distance*, ICLR 2023, for CLIP features.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 4.0]])
        >>> frechet_distance(rows + torch.tensor([3.0, 4.0]), rows)
        tensor(25.)
    """
    values = check_rows(embeddings, min_rows=2)
    if isinstance(reference, Tensor):
        other = fit_gaussian(check_rows(reference, "reference", min_rows=2).to(values.device))
    elif all(hasattr(reference, name) for name in ("count", "mean", "covariance")):
        if reference.count < 2:
            raise ValueError(f"reference: expected at least 2 samples, got {reference.count}; add samples.")
        mean, covariance = (one.double().to(values.device) for one in (reference.mean, reference.covariance))
        other = (mean, factorise_covariance(covariance))
    else:
        raise TypeError(
            f"reference: expected embeddings of shape (M, D) or a ReferenceSet, got {type(reference).__name__}."
        )
    check_same_dim(values, len(other[0]), "embeddings", "reference")
    distance = factored_distance(fit_gaussian(values), other)
    return distance.to(embeddings.device, result_dtype(embeddings))


def gaussian_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """Squared Frechet distance of two Gaussians given by float64 moments, a scalar cut at 0."""
    return factored_distance(
        (mean, factorise_covariance(covariance)), (other_mean, factorise_covariance(other_covariance))
    )


def factored_distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """The same for two Gaussians given by mean ``(D,)`` and factor L ``(D, K)`` of the covariance, L L'."""
    overlap = torch.linalg.svdvals(other[1].T @ one[1]).sum()
    traces = one[1].square().sum() + other[1].square().sum()
    return ((one[0] - other[0]).square().sum() + traces - 2 * overlap).clamp_min(0)


def fit_gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of rows ``(N, D)`` and a factor of their covariance, float64: ``(D, N)`` where there are fewer than D."""
    if len(rows) < rows.shape[1]:
        mean = mean_of(rows)
        return mean, (rows.double() - mean).T / (len(rows) - 1) ** 0.5
    mean, covariance = covariance_of(rows)
    return mean, factorise_covariance(covariance)


def distance_influence(rows: Tensor, mean: Tensor, covariance: Tensor, other_mean: Tensor, other: Tensor) -> Tensor:
    """Influence of each row on the squared Frechet distance of its Gaussian to another, to first order, ``(N,)``.

    With T = L (L' S1 L)^-1/2 L', L L' = S2, which transports one Gaussian to the other, it is the centred
    2 (m1 - m2) . (x - m1) + (x - m1)' (I - T) (x - m1). Directions without variance are left out.

    Args:
        rows: Rows of the one side ``(N, D)``, float64.
        mean: Its mean ``(D,)``.
        covariance: Its covariance ``(D, D)``.
        other_mean: The mean of the other side.
        other: The covariance of the other side.
    """
    factor = factorise_covariance(other)
    spectrum, axes = torch.linalg.eigh(factor.T @ covariance @ factor)
    least = float(spectrum[-1].clamp_min(0)) * len(spectrum) * torch.finfo(torch.float64).eps
    half = factor @ (axes * torch.where(spectrum > least, spectrum.clamp_min(least).pow(-0.25), 0.0))
    centered = rows - mean
    values = centered.square().sum(1) - (centered @ half).square().sum(1) + 2 * centered @ (mean - other_mean)
    return values - values.mean()


def factorise_covariance(covariance: Tensor) -> Tensor:
    """A matrix L ``(D, D)`` with L L' the covariance: Cholesky's factor, in a sixth of the time of a square root.

    For a singular covariance it is the symmetric square root, with eigenvalues within rounding set to 0: their roots
    would not be small.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal().square()
    if not bool(failed) and float(pivots.min()) > SINGULAR * float(pivots.max()):
        return factor
    spectrum, axes = torch.linalg.eigh(covariance)
    least = float(spectrum[-1].clamp_min(0)) * len(spectrum) * torch.finfo(torch.float64).eps
    return (axes * torch.where(spectrum > least, spectrum, 0.0).sqrt()) @ axes.T
