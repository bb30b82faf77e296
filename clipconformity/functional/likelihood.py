"""Gaussians of raw embeddings: whitening, log-likelihood and the Frechet distance."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clipconformity.functional.linalg import covariance_of, full_precision, mean_of, panels, result_dtype, working
from clipconformity.functional.validation import check_rows, check_same_dim

BLOCK = 1024
"""Rows whose distances are taken at once: temporaries of more cost more than the products."""
SINGULAR = 1e-10
"""Share of the largest pivot of a covariance at which it is taken for singular."""


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


class SingularWarning(UserWarning):
    """A given Gaussian has no variance along some directions, and is used on the others alone."""


class Gaussian(NamedTuple):
    """A checked Gaussian, ready to whiten, float64."""

    mean: Tensor
    root: Tensor
    """Whitens centred rows: W with W Sigma W^T = I on the range of the covariance, ``(K, D)``."""
    log_determinant: Tensor
    """Logarithm of the product of the covariance's eigenvalues above 0, in nats."""
    rank: int
    """Dimension of the range."""
    triangular: bool = False
    """Whether the root is zero above its diagonal."""

    def log_density(self, distance: Tensor) -> Tensor:
        """Log-likelihood in nats of rows at a squared Mahalanobis distance."""
        return -0.5 * (self.rank * math.log(2 * math.pi) + self.log_determinant + distance)


@full_precision
def whiten(
    embeddings: Tensor,
    mean: Tensor,
    covariance: Tensor | None = None,
    shrinkage: float = 0.0,
    *,
    whitening: Tensor | None = None,
) -> Tensor:
    r"""Whiten raw embeddings: centred, and of unit covariance where they follow the given Gaussian.

    .. math:: W (v - m), \quad W \Sigma W^\top = I

    From a covariance :math:`W = \Sigma^{-1/2}`, the symmetric square root, the one whitening that is unique and stays
    nearest to the embeddings; a whitening matrix is used as it is given. The squared norm of a whitened row is its
    squared Mahalanobis distance, whatever the root. Differentiable in ``embeddings``.

    A singular Gaussian is used on its range, with a warning: along the other directions nothing is counted, so that
    rows which leave the range seem likelier than they are. ``shrinkage`` gives every direction a variance.

    Args:
        embeddings: Raw embeddings ``(N, D)``.
        mean: Mean ``(D,)`` of the fitted set.
        covariance: Covariance ``(D, D)`` of the fitted set. Eigenvalues that are no more than the rounding of its
            entries are taken for 0; float64 keeps all of a spectrum as long-tailed as CLIP's.
        shrinkage: In [0, 1]: the covariance becomes :math:`(1 - s)\Sigma + s\,\mathrm{tr}(\Sigma)/D\,I`.
        whitening: In place of a covariance, a matrix ``(K, D)``, K <= D, that whitens columns: :math:`W (v - m)`. One
            that is made for rows, :math:`(v - m)^\top W` as in the code of Betser et al., is given as ``W.T``.

    Returns:
        ``(N, D)``, or ``(N, K)`` by a whitening matrix, without units.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If not just one of ``covariance`` and ``whitening`` is given, shapes do not fit, a row is zero, NaN
            or infinite, ``shrinkage`` is out of range or goes with a whitening matrix, or the covariance is not
            symmetric, not finite, or has negative eigenvalues.

    Warns:
        SingularWarning: If the covariance or the whitening matrix is singular.

    Source: Betser, Levi and Gilboa, *Whitened CLIP as a Likelihood Surrogate of Images and Captions*, ICML 2025;
    Ledoit and Wolf, 2004, for the target of the shrinkage.

    Example:
        >>> import torch
        >>> whiten(torch.tensor([[3.0, 9.0]]), torch.tensor([1.0, 1.0]), torch.diag(torch.tensor([4.0, 16.0])))
        tensor([[1., 2.]])
    """
    gaussian = check_gaussian(mean, covariance, shrinkage, whitening)
    return _whitened(embeddings, gaussian).to(embeddings.device, result_dtype(embeddings))


@full_precision
def log_likelihood(
    embeddings: Tensor,
    mean: Tensor,
    covariance: Tensor | None = None,
    shrinkage: float = 0.0,
    *,
    whitening: Tensor | None = None,
) -> Tensor:
    r"""Log-likelihood of raw embeddings under a Gaussian, in nats.

    .. math:: -\tfrac12 \left(D \log 2\pi + \log\det\Sigma + |W (v - m)|^2\right)

    The set that the Gaussian was fitted on overfits it, by hundreds of nats at a few thousand CLIP embeddings: compare
    with held-out values only. A density has units: scaling the embeddings by c takes D log c off. Where the Gaussian is
    singular, D is the dimension of its range and the determinant the product of its eigenvalues above 0. Differentiable
    in ``embeddings``.

    Args:
        embeddings: Raw embeddings ``(N, D)``.
        mean: Mean ``(D,)`` of the fitted set.
        covariance: Covariance ``(D, D)`` of the fitted set, as of :func:`whiten`.
        shrinkage: In [0, 1]: the covariance becomes :math:`(1 - s)\Sigma + s\,\mathrm{tr}(\Sigma)/D\,I`.
        whitening: In place of a covariance, a whitening matrix ``(K, D)``, as of :func:`whiten`. The code of Betser et
            al. leaves out the determinant, which is the same for all rows.

    Returns:
        ``(N,)`` in nats; high is likely.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: As :func:`whiten`.

    Warns:
        SingularWarning: As :func:`whiten`.

    Source: Betser, Levi and Gilboa, ICML 2025.

    Example:
        >>> import torch
        >>> log_likelihood(torch.tensor([[1.0, 0.0]]), torch.zeros(2), torch.eye(2))
        tensor([-2.3379])
    """
    gaussian = check_gaussian(mean, covariance, shrinkage, whitening, symmetric=False)
    return log_density(embeddings, gaussian).to(embeddings.device, result_dtype(embeddings))


def log_density(embeddings: Tensor, gaussian: Gaussian) -> Tensor:
    """Log-likelihood of raw embeddings ``(N, D)`` under a checked Gaussian, in nats, ``(N,)`` float64."""
    return gaussian.log_density(torch.cat([_distances(block, gaussian) for block in embeddings.split(BLOCK)]))


def _distances(embeddings: Tensor, gaussian: Gaussian) -> Tensor:
    """Squared norms of whitened rows, ``(N,)``; of a triangular root five eighths of the products are taken."""
    if not gaussian.triangular:
        return _whitened(embeddings, gaussian).square().sum(1)
    centered = _centered(embeddings, gaussian)
    root, total = gaussian.root.to(centered), centered.new_zeros(len(centered))
    for start, end in panels(len(root)):
        total = total + (centered[:, :end] @ root[start:end, :end].T).square().sum(1)
    return total


@full_precision
def frechet_distance(embeddings: Tensor, reference: Tensor | HasGaussian) -> Tensor:
    r"""Frechet distance between the Gaussians of two sets of raw embeddings (CLIP-FID), squared as is usual.

    .. math:: |m_1 - m_2|^2 +
              \mathrm{tr}\left(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2}\right)

    The last trace is taken as the sum of the singular values of :math:`L_2^\top L_1`, with
    :math:`L_i L_i^\top = \Sigma_i`, in float64, which loses no digits where a covariance is singular. The value of
    finite samples is above that of the distributions, the more so the fewer there are: compare values at the same N
    only.

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
        other = fitted(check_rows(reference, "reference", min_rows=2).to(values.device))
    elif all(hasattr(reference, name) for name in ("count", "mean", "covariance")):
        if reference.count < 2:
            raise ValueError(f"reference: expected at least 2 samples, got {reference.count}; add samples.")
        mean, covariance = (one.double().to(values.device) for one in (reference.mean, reference.covariance))
        other = (mean, factor_of(covariance))
    else:
        raise TypeError(
            f"reference: expected embeddings of shape (M, D) or a ReferenceSet, got {type(reference).__name__}."
        )
    check_same_dim(values, len(other[0]), "embeddings", "reference")
    distance = factored_distance(fitted(values), other)
    return distance.to(embeddings.device, result_dtype(embeddings))


def gaussian_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """Squared Frechet distance of two Gaussians given by float64 moments, a scalar cut at 0."""
    return factored_distance((mean, factor_of(covariance)), (other_mean, factor_of(other_covariance)))


def factored_distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """The same of two Gaussians given by mean ``(D,)`` and factor L ``(D, K)`` of the covariance, L L'."""
    overlap = torch.linalg.svdvals(other[1].T @ one[1]).sum()
    traces = one[1].square().sum() + other[1].square().sum()
    return ((one[0] - other[0]).square().sum() + traces - 2 * overlap).clamp_min(0)


def fitted(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of rows ``(N, D)`` and a factor of their covariance, float64: ``(D, N)`` where there are fewer than D."""
    if len(rows) < rows.shape[1]:
        mean = mean_of(rows)
        return mean, (rows.double() - mean).T / (len(rows) - 1) ** 0.5
    mean, covariance = covariance_of(rows)
    return mean, factor_of(covariance)


def distance_influence(rows: Tensor, mean: Tensor, covariance: Tensor, other_mean: Tensor, other: Tensor) -> Tensor:
    """How much each row moves the squared Frechet distance of its Gaussian to another, to first order, ``(N,)``.

    With T = L (L' S1 L)^-1/2 L', L L' = S2, which transports the one Gaussian to the other, it is the centred
    2 (m1 - m2) . (x - m1) + (x - m1)' (I - T) (x - m1). Directions without variance are left out.

    Args:
        rows: Rows of the one side ``(N, D)``, float64.
        mean: Its mean ``(D,)``.
        covariance: Its covariance ``(D, D)``.
        other_mean: The mean of the other side.
        other: The covariance of the other side.
    """
    factor = factor_of(other)
    spectrum, axes = torch.linalg.eigh(factor.T @ covariance @ factor)
    least = float(spectrum[-1].clamp_min(0)) * len(spectrum) * torch.finfo(torch.float64).eps
    half = factor @ (axes * torch.where(spectrum > least, spectrum.clamp_min(least).pow(-0.25), 0.0))
    centered = rows - mean
    values = centered.square().sum(1) - (centered @ half).square().sum(1) + 2 * centered @ (mean - other_mean)
    return values - values.mean()


def factor_of(covariance: Tensor) -> Tensor:
    """A matrix L ``(D, D)`` with L L' the covariance, which one does not matter: Cholesky's, in a sixth of the time.

    Of a singular covariance it is the symmetric square root, where eigenvalues that are rounding are 0: their roots
    would not be small.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal().square()
    if not bool(failed) and float(pivots.min()) > SINGULAR * float(pivots.max()):
        return factor
    spectrum, axes = torch.linalg.eigh(covariance)
    least = float(spectrum[-1].clamp_min(0)) * len(spectrum) * torch.finfo(torch.float64).eps
    return (axes * torch.where(spectrum > least, spectrum, 0.0).sqrt()) @ axes.T


def check_gaussian(
    mean: Tensor,
    covariance: Tensor | None = None,
    shrinkage: float = 0.0,
    whitening: Tensor | None = None,
    *,
    symmetric: bool = True,
) -> Gaussian:
    """Check a Gaussian that is given by its covariance or by a whitening matrix, and make it ready to whiten.

    The root of a covariance is the symmetric one; where any will do, with ``symmetric=False``, it may be another that
    takes a tenth of the time.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: As :func:`whiten`.

    Warns:
        SingularWarning: As :func:`whiten`.
    """
    if (covariance is None) == (whitening is None):
        got = "none" if covariance is None else "both"
        raise ValueError(f"covariance, whitening: expected one of the two, got {got}.")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage: expected a number from 0 to 1, got {shrinkage}.")
    given = {"mean": mean, "covariance": covariance, "whitening": whitening}
    checked = {name: _finite(name, value) for name, value in given.items() if value is not None}
    center, shape = checked["mean"], tuple(checked["mean"].shape)
    if covariance is not None:
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"mean, covariance: expected shapes (D,) and (D, D), got {shape} and {tuple(covariance.shape)}."
            )
        given_covariance = checked["covariance"], covariance.dtype, shrinkage
        regular = None if symmetric else _of_full_rank(center, *given_covariance)
        return _from_covariance(center, *given_covariance) if regular is None else regular
    assert whitening is not None
    if mean.ndim != 1 or whitening.ndim != 2 or not 1 <= len(whitening) <= len(mean) == whitening.shape[1]:
        raise ValueError(
            f"mean, whitening: expected shapes (D,) and (K, D), K <= D, got {shape} and {tuple(whitening.shape)}."
        )
    if shrinkage:
        raise ValueError("shrinkage: works on a covariance, and cannot be had with whitening; give the covariance.")
    return _from_whitening(center, checked["whitening"], whitening.dtype)


def _finite(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected a floating-point tensor, got {got}.")
    result = working(value.detach()).double()
    if not bool(torch.isfinite(result).all()):
        raise ValueError(f"{name}: expected finite values, got NaN or infinite ones.")
    return result


def _of_full_rank(mean: Tensor, matrix: Tensor, dtype: torch.dtype, shrinkage: float) -> Gaussian | None:
    """Take a covariance by Cholesky where that tells it to be of full rank; None where its eigenvalues must tell.

    The sum of the squares of a root is that of the inverse eigenvalues, so that none is below its inverse.
    """
    shrunk = (1 - shrinkage) * matrix
    shrunk.diagonal().add_(shrinkage * matrix.diagonal().mean())
    (factor, failed), own = torch.linalg.cholesky_ex(shrunk), torch.linalg.cholesky_ex(matrix)
    if bool(failed) or bool(own.info) or not _is_symmetric(matrix):
        return None
    root = torch.linalg.solve_triangular(factor, torch.eye(len(mean)).to(factor), upper=False)
    largest = float(matrix.trace())
    least = max(_rounding(matrix, largest, dtype), 4 * len(mean) * torch.finfo(torch.float64).eps * largest)
    if not 1 / float(root.square().sum()) > least:
        return None
    return Gaussian(mean, root, 2 * factor.diagonal().log().sum(), len(mean), triangular=True)


def _is_symmetric(matrix: Tensor) -> bool:
    return float((matrix - matrix.T).abs().max()) <= 1e-4 * float(matrix.abs().max())


def _from_covariance(mean: Tensor, matrix: Tensor, dtype: torch.dtype, shrinkage: float) -> Gaussian:
    if not _is_symmetric(matrix):
        raise ValueError("covariance: expected a symmetric matrix; compute it with torch.cov(embeddings.T).")
    spectrum, axes = torch.linalg.eigh((matrix + matrix.T) / 2)
    smallest, largest = float(spectrum[0]), float(spectrum[-1])
    least = _rounding(matrix, largest, dtype)
    if not largest > 0 or smallest < -max(least, 1e-4 * largest):
        raise ValueError(
            f"covariance: expected eigenvalues above 0, got {smallest:.3g} to {largest:.3g}; compute it with "
            "torch.cov(embeddings.T) of rows that differ."
        )
    spectrum = (1 - shrinkage) * spectrum + shrinkage * matrix.trace() / len(mean)
    known = spectrum > max(least, -2 * smallest)  # a covariance has no eigenvalue below 0: what it has is rounding
    _tell_singular("covariance", int(known.sum()), len(mean))
    spectrum, axes = spectrum[known], axes[:, known]
    return Gaussian(mean, (axes * spectrum.rsqrt()) @ axes.T, spectrum.log().sum(), len(spectrum))


def _from_whitening(mean: Tensor, root: Tensor, dtype: torch.dtype) -> Gaussian:
    """Take a whitening matrix; its rows may be of any scale, so that the rank is that of the rows at length 1."""
    length = torch.linalg.vector_norm(root, dim=1, keepdim=True)
    if not float(length.max()) > 0:
        raise ValueError("whitening: expected a matrix of rank 1 at least, got zeros.")
    rows = root / length.clamp_min(float(length.max()) * torch.finfo(torch.float64).eps)
    singular = torch.linalg.svdvals(rows)
    rank = int((singular > _rounding(rows, float(singular[0]), dtype)).sum())
    _tell_singular("whitening", rank, len(mean))
    return Gaussian(mean, root, -2 * torch.linalg.svdvals(root)[:rank].log().sum(), rank)


def _rounding(matrix: Tensor, largest: float, dtype: torch.dtype) -> float:
    """Eigenvalue that rounding alone may make: of entries kept in ``dtype``, and of the decomposition in float64.

    Rounding moves an entry by up to eps/2 of itself, evenly; a matrix of such moves has a norm of about twice the root
    of the largest sum of their variances in a row or column.
    """
    longest = max(float(torch.linalg.vector_norm(matrix, dim=side).max()) for side in (0, 1))
    entries = longest * torch.finfo(dtype).eps / 3**0.5
    return max(entries, largest * len(matrix) ** 0.5 * torch.finfo(torch.float64).eps)


def _tell_singular(name: str, rank: int, dim: int) -> None:
    if rank < dim:
        warnings.warn(
            f"{name}: singular, of rank {rank} in {dim} dimensions; it is used on its range, and what rows have "
            "outside of that is not counted. Fit on more samples than dimensions in float64, or raise shrinkage.",
            SingularWarning,
            stacklevel=6,
        )


def _whitened(embeddings: Tensor, gaussian: Gaussian) -> Tensor:
    """Whitened rows ``(N, K)`` float64, with the graph of ``embeddings``."""
    centered = _centered(embeddings, gaussian)
    return centered @ gaussian.root.T.to(centered)


def _centered(embeddings: Tensor, gaussian: Gaussian) -> Tensor:
    check_same_dim(check_rows(embeddings), len(gaussian.mean), "embeddings", "mean")
    values = working(embeddings).double()
    return values - gaussian.mean.to(values)


def oas_shrinkage(covariance: Tensor, count: int) -> float:
    """Oracle approximating shrinkage towards trace/D times the identity, in [0, 1] (Chen et al. 2010, equation 23)."""
    dim = len(covariance)
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    numerator = (1 - 2 / dim) * square + trace**2
    denominator = (count + 1 - 2 / dim) * (square - trace**2 / dim)
    return 1.0 if denominator <= 0 else min(1.0, numerator / denominator)
