"""Gaussians of raw embeddings: whitening and log-likelihood."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.distances import quick_type
from clipconformity.functional.linalg import full_precision, panels, result_dtype, square_norms, to_working_precision
from clipconformity.functional.validation import check_rows, check_same_dim

BLOCK = 512
"""Rows whose distances are computed at once: larger temporaries cost more than the products."""
MAX_INFLATION = 1e3
"""Largest :attr:`Gaussian.inflation` for float32 products: they err by about 1e-7 of the spread of a squared distance,
times the root of it."""


class SingularWarning(UserWarning):
    """A given Gaussian has no variance along some directions, and is used on the others only."""


class Gaussian(NamedTuple):
    """A checked Gaussian, with its whitening matrix, float64."""

    mean: Tensor
    root: Tensor
    """Whitens centred rows: W with W Sigma W^T = I on the range of the covariance, ``(K, D)``."""
    log_determinant: Tensor
    """Logarithm of the product of the covariance's eigenvalues above 0, in nats."""
    rank: int
    """Dimension of the range."""
    triangular: bool = False
    """Whether the root is zero above its diagonal."""
    inflation: float = math.inf
    """Mean ratio of the variance of a dimension to what of it the others leave open: how far terms cancel."""

    @property
    def quick_type(self) -> torch.dtype:
        """Type in which products of float32 rows with the root are exact enough for statistics of many rows."""
        return quick_type() if self.inflation <= MAX_INFLATION else torch.float64

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
    nearest to the embeddings; a whitening matrix is used as given. The squared norm of a whitened row is its squared
    Mahalanobis distance for any root. Differentiable in ``embeddings``.

    A singular Gaussian is used on its range, with a warning: other directions are ignored, so that rows outside the
    range seem likelier than they are. ``shrinkage`` gives every direction a variance.

    Args:
        embeddings: Raw embeddings ``(N, D)``.
        mean: Mean ``(D,)`` of the fitted set.
        covariance: Covariance ``(D, D)`` of the fitted set. Eigenvalues within the rounding of its entries count as 0;
            float64 resolves a spectrum with a tail as long as CLIP's.
        shrinkage: In [0, 1]: the covariance becomes :math:`(1 - s)\Sigma + s\,\mathrm{tr}(\Sigma)/D\,I`.
        whitening: In place of a covariance, a matrix ``(K, D)``, K <= D, that whitens columns: :math:`W (v - m)`. A
            matrix for rows, :math:`(v - m)^\top W` as in the code of Betser et al., is given as ``W.T``.

    Returns:
        ``(N, D)``, or ``(N, K)`` by a whitening matrix, without units.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If not exactly one of ``covariance`` and ``whitening`` is given, shapes do not fit, a row is zero,
            NaN or infinite, ``shrinkage`` is out of range or goes with a whitening matrix, or the covariance is not
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
    return _whiten_rows(embeddings, gaussian).to(embeddings.device, result_dtype(embeddings))


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
    with held-out values only. A density has units: scaling the embeddings by c subtracts D log c. Where the Gaussian is
    singular, D is the dimension of its range and the determinant the product of its eigenvalues above 0. Differentiable
    in ``embeddings``.

    Args:
        embeddings: Raw embeddings ``(N, D)``.
        mean: Mean ``(D,)`` of the fitted set.
        covariance: Covariance ``(D, D)`` of the fitted set, as in :func:`whiten`.
        shrinkage: In [0, 1]: the covariance becomes :math:`(1 - s)\Sigma + s\,\mathrm{tr}(\Sigma)/D\,I`.
        whitening: In place of a covariance, a whitening matrix ``(K, D)``, as in :func:`whiten`. The code of Betser et
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
    return log_density(_check(embeddings, gaussian), gaussian).to(embeddings.device, result_dtype(embeddings))


def log_density(rows: Tensor, gaussian: Gaussian, products: torch.dtype = torch.float64) -> Tensor:
    """Log-likelihood of checked rows ``(N, D)`` under a checked Gaussian, in nats, ``(N,)`` float64.

    Rows are centred in float64. For a triangular root five eighths of the products are computed.

    Args:
        rows: The rows.
        gaussian: The Gaussian.
        products: Type in which rows are multiplied by the root, such as :attr:`Gaussian.quick_type`.
    """
    mean, root, distances = gaussian.mean.to(rows.device), gaussian.root.to(rows.device, products), []
    bands = [(slice(None), root.T)]
    if gaussian.triangular:
        bands = [(slice(end), root[start:end, :end].T) for start, end in panels(len(root))]
    for block in rows.split(BLOCK):
        centered = (block.double() - mean).to(products)
        distances.append(torch.stack([square_norms(centered[:, part] @ band) for part, band in bands]).double().sum(0))
    return gaussian.log_density(torch.cat(distances))


def check_gaussian(
    mean: Tensor,
    covariance: Tensor | None = None,
    shrinkage: float = 0.0,
    whitening: Tensor | None = None,
    *,
    symmetric: bool = True,
) -> Gaussian:
    """Check a Gaussian given by its covariance or by a whitening matrix, and compute its whitening matrix.

    The root of a covariance is the symmetric one; with ``symmetric=False`` it may be another root, in a tenth of the
    time.

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
        regular = None
        if not symmetric and _is_symmetric(checked["covariance"]) and _is_definite(checked["covariance"]):
            regular = _factorise_full_rank(center, *given_covariance)
        return _read_covariance(center, *given_covariance) if regular is None else regular
    assert whitening is not None
    if mean.ndim != 1 or whitening.ndim != 2 or not 1 <= len(whitening) <= len(mean) == whitening.shape[1]:
        raise ValueError(
            f"mean, whitening: expected shapes (D,) and (K, D), K <= D, got {shape} and {tuple(whitening.shape)}."
        )
    if shrinkage:
        raise ValueError("shrinkage: expected a covariance to shrink, got a whitening matrix; give the covariance.")
    return _read_whitening(center, checked["whitening"], whitening.dtype)


def _finite(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected a floating-point tensor, got {got}.")
    result = to_working_precision(value.detach()).double()
    if not bool(torch.isfinite(result).all()):
        raise ValueError(f"{name}: expected finite values, got NaN or infinite ones.")
    return result


def _factorise_full_rank(mean: Tensor, matrix: Tensor, dtype: torch.dtype, shrinkage: float) -> Gaussian | None:
    """Factorise a covariance by Cholesky where it is clearly of full rank; None where eigenvalues must decide.

    The sum of squares of a root is the sum of inverse eigenvalues, so its inverse bounds every eigenvalue from below.
    """
    shrunk = (1 - shrinkage) * matrix
    shrunk.diagonal().add_(shrinkage * matrix.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(shrunk)
    if bool(failed):
        return None
    root, ones = torch.zeros_like(factor), torch.eye(len(mean)).to(factor)
    for start, end in panels(len(mean)):  # an inverse is triangular too: half of the products
        below, band = slice(start, None), slice(start, end)
        root[below, band] = torch.linalg.solve_triangular(factor[below, below], ones[below, band], upper=False)
    largest, squares = float(matrix.trace()), root.square().sum(0)  # the diagonal of the inverse
    least = max(_estimate_rounding(matrix, largest, dtype), 4 * len(mean) * torch.finfo(torch.float64).eps * largest)
    if not 1 / float(squares.sum()) > least:
        return None
    log_determinant, inflation = 2 * factor.diagonal().log().sum(), float((shrunk.diagonal() * squares).mean())
    return Gaussian(mean, root, log_determinant, len(mean), triangular=True, inflation=inflation)


def shrink_gaussian(mean: Tensor, covariance: Tensor, count: int) -> tuple[Gaussian, float]:
    """Give the Gaussian of a set's own float64 moments with the shrinkage of its covariance, and this."""
    shrinkage = oas_shrinkage(covariance, count)
    known = _factorise_full_rank(mean, covariance, covariance.dtype, shrinkage)
    return known or check_gaussian(mean, covariance, shrinkage, symmetric=False), shrinkage


def _is_definite(matrix: Tensor) -> bool:
    return not bool(torch.linalg.cholesky_ex(matrix).info)


def _is_symmetric(matrix: Tensor) -> bool:
    return float((matrix - matrix.T).abs().max()) <= 1e-4 * float(matrix.abs().max())


def _read_covariance(mean: Tensor, matrix: Tensor, dtype: torch.dtype, shrinkage: float) -> Gaussian:
    if not _is_symmetric(matrix):
        raise ValueError("covariance: expected a symmetric matrix; compute it with torch.cov(embeddings.T).")
    spectrum, axes = torch.linalg.eigh((matrix + matrix.T) / 2)
    smallest, largest = float(spectrum[0]), float(spectrum[-1])
    least = _estimate_rounding(matrix, largest, dtype)
    if not largest > 0 or smallest < -max(least, 1e-4 * largest):
        raise ValueError(
            f"covariance: expected eigenvalues above 0, got {smallest:.3g} to {largest:.3g}; compute it with "
            "torch.cov(embeddings.T) of rows that differ."
        )
    spectrum = (1 - shrinkage) * spectrum + shrinkage * matrix.trace() / len(mean)
    known = spectrum > max(least, -2 * smallest)  # negative eigenvalues of a covariance are rounding
    _warn_singular("covariance", int(known.sum()), len(mean))
    spectrum, axes = spectrum[known], axes[:, known]
    return Gaussian(mean, (axes * spectrum.rsqrt()) @ axes.T, spectrum.log().sum(), len(spectrum))


def _read_whitening(mean: Tensor, root: Tensor, dtype: torch.dtype) -> Gaussian:
    """Read a whitening matrix; its rows may be of any scale, so the rank is that of the rows at length 1."""
    length = torch.linalg.vector_norm(root, dim=1, keepdim=True)
    if not float(length.max()) > 0:
        raise ValueError("whitening: expected a matrix of rank 1 at least, got zeros.")
    rows = root / length.clamp_min(float(length.max()) * torch.finfo(torch.float64).eps)
    singular = torch.linalg.svdvals(rows)
    rank = int((singular > _estimate_rounding(rows, float(singular[0]), dtype)).sum())
    _warn_singular("whitening", rank, len(mean))
    return Gaussian(mean, root, -2 * torch.linalg.svdvals(root)[:rank].log().sum(), rank)


def _estimate_rounding(matrix: Tensor, largest: float, dtype: torch.dtype) -> float:
    """Largest eigenvalue that rounding alone may cause: of entries in ``dtype``, and of the decomposition in float64.

    Rounding changes an entry by up to eps/2 of itself, uniformly; the norm of a matrix of such errors is about twice
    the root of the largest sum of their variances in a row or column.
    """
    longest = max(float(torch.linalg.vector_norm(matrix, dim=side).max()) for side in (0, 1))
    entries = longest * torch.finfo(dtype).eps / 3**0.5
    return max(entries, largest * len(matrix) ** 0.5 * torch.finfo(torch.float64).eps)


def _warn_singular(name: str, rank: int, dim: int) -> None:
    if rank < dim:
        warnings.warn(
            f"{name}: singular, of rank {rank} in {dim} dimensions; it is used on its range, and what rows have "
            "outside of that is not counted. Fit on more samples than dimensions in float64, or raise shrinkage.",
            SingularWarning,
            stacklevel=6,
        )


def _whiten_rows(embeddings: Tensor, gaussian: Gaussian) -> Tensor:
    """Whitened rows ``(N, K)`` float64, with the graph of ``embeddings``."""
    values = _check(embeddings, gaussian).double()
    return (values - gaussian.mean.to(values)) @ gaussian.root.T.to(values)


def _check(embeddings: Tensor, gaussian: Gaussian) -> Tensor:
    """Refuse rows of another dimension, and invalid ones; return them in working precision, with their graph."""
    check_same_dim(check_rows(embeddings), len(gaussian.mean), "embeddings", "mean")
    return to_working_precision(embeddings)


def oas_shrinkage(covariance: Tensor, count: int) -> float:
    """Oracle approximating shrinkage towards trace/D times the identity, in [0, 1] (Chen et al. 2010, equation 23)."""
    dim = len(covariance)
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    numerator = (1 - 2 / dim) * square + trace**2
    denominator = (count + 1 - 2 / dim) * (square - trace**2 / dim)
    return 1.0 if denominator <= 0 else min(1.0, numerator / denominator)
