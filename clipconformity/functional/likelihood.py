"""Gaussians of raw embeddings: whitening, log-likelihood and the Frechet distance."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clipconformity.functional.linalg import covariance_of, full_precision, result_dtype, working
from clipconformity.functional.validation import check_rows, check_same_dim


class HasGaussian(Protocol):
    """Anything that carries the moments of its embeddings, such as a ``ReferenceSet``."""

    @property
    def count(self) -> int:
        """Number of embeddings."""

    @property
    def mean(self) -> Tensor:
        """Raw mean ``(D,)``."""

    @property
    def covariance(self) -> Tensor:
        """Sample covariance ``(D, D)``."""


class Gaussian(NamedTuple):
    """A checked Gaussian, ready to whiten: its mean and the eigendecomposition of its covariance, float64."""

    mean: Tensor
    spectrum: Tensor
    """Eigenvalues after shrinkage, ``(D,)``, ascending, above 0."""
    axes: Tensor
    """Eigenvectors in columns, ``(D, D)``."""


@full_precision
def whiten(embeddings: Tensor, mean: Tensor, covariance: Tensor, shrinkage: float = 0.0) -> Tensor:
    r"""Whiten raw embeddings: centred, and of unit covariance where they follow the given Gaussian.

    .. math:: \Sigma^{-1/2} (v - m)

    with the symmetric square root, the one whitening that is unique and stays nearest to the embeddings. The squared
    norm of a whitened row is its squared Mahalanobis distance, whatever the root. Differentiable in ``embeddings``.

    Args:
        embeddings: Raw embeddings ``(N, D)``.
        mean: Mean ``(D,)`` of the fitted set.
        covariance: Covariance ``(D, D)`` of the fitted set, in float64 where its spectrum is as long-tailed as CLIP's.
        shrinkage: In [0, 1]: the covariance becomes :math:`(1 - s)\Sigma + s\,\mathrm{tr}(\Sigma)/D\,I`.

    Returns:
        ``(N, D)``, without units.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes do not fit, a row is zero, NaN or infinite, ``shrinkage`` is out of range, or the
            covariance is not symmetric, not finite, or singular.

    Source: Betser, Levi and Gilboa, *Whitened CLIP as a Likelihood Surrogate of Images and Captions*, ICML 2025;
    Ledoit and Wolf, 2004, for the target of the shrinkage.

    Example:
        >>> import torch
        >>> whiten(torch.tensor([[3.0, 9.0]]), torch.tensor([1.0, 1.0]), torch.diag(torch.tensor([4.0, 16.0])))
        tensor([[1., 2.]])
    """
    gaussian = check_gaussian(mean, covariance, shrinkage)
    coordinates = _coordinates(embeddings, gaussian)
    return (coordinates @ gaussian.axes.T).to(embeddings.device, result_dtype(embeddings))


@full_precision
def log_likelihood(embeddings: Tensor, mean: Tensor, covariance: Tensor, shrinkage: float = 0.0) -> Tensor:
    r"""Log-likelihood of raw embeddings under a Gaussian, in nats.

    .. math:: -\tfrac12 \left(D \log 2\pi + \log\det\Sigma + |\Sigma^{-1/2}(v - m)|^2\right)

    The set that the Gaussian was fitted on overfits it, by hundreds of nats at a few thousand CLIP embeddings: compare
    with held-out values only. A density has units: scaling the embeddings by c takes D log c off. Differentiable in
    ``embeddings``.

    Args:
        embeddings: Raw embeddings ``(N, D)``.
        mean: Mean ``(D,)`` of the fitted set.
        covariance: Covariance ``(D, D)`` of the fitted set, in float64 where its spectrum is as long-tailed as CLIP's.
        shrinkage: In [0, 1]: the covariance becomes :math:`(1 - s)\Sigma + s\,\mathrm{tr}(\Sigma)/D\,I`.

    Returns:
        ``(N,)`` in nats; high is likely.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: As :func:`whiten`.

    Source: Betser, Levi and Gilboa, ICML 2025.

    Example:
        >>> import torch
        >>> log_likelihood(torch.tensor([[1.0, 0.0]]), torch.zeros(2), torch.eye(2))
        tensor([-2.3379])
    """
    gaussian = check_gaussian(mean, covariance, shrinkage)
    distance = _coordinates(embeddings, gaussian).square().sum(1)
    constant = len(gaussian.mean) * math.log(2 * math.pi) + gaussian.spectrum.log().sum()
    return (-0.5 * (constant + distance)).to(embeddings.device, result_dtype(embeddings))


@full_precision
def frechet_distance(embeddings: Tensor, reference: Tensor | HasGaussian) -> Tensor:
    r"""Frechet distance between the Gaussians of two sets of raw embeddings (CLIP-FID), squared as is usual.

    .. math:: |m_1 - m_2|^2 +
              \mathrm{tr}\left(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2}\right)

    The last trace is taken as the sum of the singular values of :math:`\Sigma_2^{1/2} \Sigma_1^{1/2}`, in float64,
    which loses no digits where a covariance is singular. The value of finite samples is above that of the
    distributions, the more so the fewer there are: compare values at the same N only.

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
        other = covariance_of(check_rows(reference, "reference", min_rows=2))
    elif all(hasattr(reference, name) for name in ("count", "mean", "covariance")):
        if reference.count < 2:
            raise ValueError(f"reference: expected at least 2 samples, got {reference.count}; add samples.")
        other = (reference.mean.double().to(values.device), reference.covariance.double().to(values.device))
    else:
        raise TypeError(
            f"reference: expected embeddings of shape (M, D) or a ReferenceSet, got {type(reference).__name__}."
        )
    check_same_dim(values, len(other[0]), "embeddings", "reference")
    distance = gaussian_distance(*covariance_of(values), *other)
    return distance.to(embeddings.device, result_dtype(embeddings))


def gaussian_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """Squared Frechet distance of two Gaussians given by float64 moments, a scalar cut at 0."""
    overlap = torch.linalg.svdvals(_square_root(other_covariance) @ _square_root(covariance)).sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * overlap
    return distance.clamp_min(0)


def distance_influence(rows: Tensor, mean: Tensor, covariance: Tensor, other_mean: Tensor, other: Tensor) -> Tensor:
    """How much each row moves the squared Frechet distance of its Gaussian to another, to first order, ``(N,)``.

    With T = S2^1/2 (S2^1/2 S1 S2^1/2)^-1/2 S2^1/2, which transports the one Gaussian to the other, it is the centred
    2 (m1 - m2) . (x - m1) + (x - m1)' (I - T) (x - m1). Directions without variance are left out.

    Args:
        rows: Rows of the one side ``(N, D)``, float64.
        mean: Its mean ``(D,)``.
        covariance: Its covariance ``(D, D)``.
        other_mean: The mean of the other side.
        other: The covariance of the other side.
    """
    root = _square_root(other)
    spectrum, axes = torch.linalg.eigh(root @ covariance @ root)
    least = float(spectrum[-1].clamp_min(0)) * len(spectrum) * torch.finfo(torch.float64).eps
    half = root @ (axes * torch.where(spectrum > least, spectrum.clamp_min(least).pow(-0.25), 0.0))
    centered = rows - mean
    values = centered.square().sum(1) - (centered @ half).square().sum(1) + 2 * centered @ (mean - other_mean)
    return values - values.mean()


def _square_root(covariance: Tensor) -> Tensor:
    """Symmetric square root; eigenvalues that are rounding become 0, since their roots would not be small."""
    spectrum, axes = torch.linalg.eigh(covariance)
    least = float(spectrum[-1].clamp_min(0)) * len(spectrum) * torch.finfo(torch.float64).eps
    return (axes * torch.where(spectrum > least, spectrum, 0.0).sqrt()) @ axes.T


def check_gaussian(mean: Tensor, covariance: Tensor, shrinkage: float) -> Gaussian:
    """Check and decompose a Gaussian.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: As :func:`whiten`.
    """
    for name, value in (("mean", mean), ("covariance", covariance)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a floating-point tensor, got {got}.")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"mean, covariance: expected shapes (D,) and (D, D), got {tuple(mean.shape)} and {tuple(covariance.shape)}."
        )
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage: expected a number from 0 to 1, got {shrinkage}.")
    center, matrix = (working(x.detach()).double() for x in (mean, covariance))
    if not bool(torch.isfinite(center).all() & torch.isfinite(matrix).all()):
        raise ValueError("mean, covariance: expected finite values, got NaN or infinite ones.")
    if float((matrix - matrix.T).abs().max()) > 1e-4 * float(matrix.abs().max()):
        raise ValueError("covariance: expected a symmetric matrix; compute it with torch.cov(embeddings.T).")
    spectrum, axes = torch.linalg.eigh((matrix + matrix.T) / 2)
    spectrum = (1 - shrinkage) * spectrum + shrinkage * matrix.trace() / len(center)
    _check_rank(spectrum, covariance.dtype, shrinkage)
    return Gaussian(center, spectrum, axes)


def _check_rank(spectrum: Tensor, dtype: torch.dtype, shrinkage: float) -> None:
    least = float(spectrum[-1]) * len(spectrum) ** 0.5 * torch.finfo(dtype).eps
    below = int((spectrum <= max(least, 0.0)).sum())
    if below:
        raise ValueError(
            f"covariance: singular at shrinkage={shrinkage}: {below} of {len(spectrum)} eigenvalues are no more than "
            f"the rounding of {dtype}; raise shrinkage, or fit on more samples than dimensions in float64."
        )


def _coordinates(embeddings: Tensor, gaussian: Gaussian) -> Tensor:
    """Whitened coordinates along the eigenvectors, ``(N, D)`` float64, with the graph of ``embeddings``."""
    check_same_dim(check_rows(embeddings), len(gaussian.mean), "embeddings", "mean")
    values = working(embeddings).double()
    centered = values - gaussian.mean.to(values)
    return centered @ (gaussian.axes * gaussian.spectrum.rsqrt()).to(values)


def oas_shrinkage(covariance: Tensor, count: int) -> float:
    """Oracle approximating shrinkage towards trace/D times the identity, in [0, 1] (Chen et al. 2010, equation 23)."""
    dim = len(covariance)
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    numerator = (1 - 2 / dim) * square + trace**2
    denominator = (count + 1 - 2 / dim) * (square - trace**2 / dim)
    return 1.0 if denominator <= 0 else min(1.0, numerator / denominator)
