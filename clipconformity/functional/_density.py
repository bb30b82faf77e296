"""Smooth densities from histograms: the estimator behind every conformity KL.

A density is fitted to cell counts by penalised Poisson likelihood, with the third differences of the
log-density penalised (Silverman 1982; Eilers and Marx 1996). What the penalty leaves free is a quadratic
log-density, that is a Gaussian, so with heavy smoothing the fit is the Gaussian of the same mean and variance, and
beyond the data the log-density continues as a quadratic. The weight of the penalty is chosen by marginal likelihood.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CELLS = 1024
"""Cells of a histogram, without the two overflow counts at its ends."""
CELLS_PER_STD = 32
"""Cells per standard deviation of the reference's conformity."""
PENALTIES = 10.0 ** torch.arange(-2.0, 6.5, 0.5, dtype=torch.float64)
"""Penalty weights tried, for a log-density in units of its own standard deviation."""
EVIDENCE_MARGIN = 1.0
"""Log marginal likelihood that a rougher fit must gain."""


class Grid(NamedTuple):
    """Cells anchored on a reference: ``CELLS`` of width ``cell`` around ``center``."""

    center: float
    cell: float

    def edges(self) -> Tensor:
        """Edges of the cells, shape ``(CELLS + 1,)``."""
        return self.center + self.cell * torch.arange(-CELLS // 2, CELLS // 2 + 1, dtype=torch.float64)

    def locate(self, values: Tensor) -> Tensor:
        """Position of each value in a histogram of ``CELLS + 2``: 0 is below the cells, the last is above."""
        position = ((values.double() - self.center) / self.cell).floor() + CELLS // 2
        return position.clamp(-1, CELLS).long() + 1

    def counts(self, values: Tensor) -> Tensor:
        """Histogram of values, shape ``(CELLS + 2,)`` float64."""
        return torch.bincount(self.locate(values), minlength=CELLS + 2).double()


def fit_log_density(counts: Tensor, penalty: Tensor, start: Tensor | None = None) -> Tensor:
    """Fit smooth cell log-probabilities by damped Newton steps on the penalised Poisson likelihood.

    Args:
        counts: Cell counts ``(B, K)``, not necessarily whole.
        penalty: Weight on the squared third differences, ``(B, 1, 1)`` or a scalar.
        start: Log-means ``(1, K)`` of a similar histogram, whose Hessian all of ``counts`` then share for as long as
            that climbs: it makes a thousand resamples cheap.

    Returns:
        Log-means ``(B, K)``.
    """
    rough = penalty * _third_difference_gram(counts.shape[1])
    eta = gaussian_log_means(counts) if start is None else start.expand(counts.shape)
    eta = eta + counts.sum(1, keepdim=True).log() - torch.logsumexp(eta, 1, keepdim=True)
    if start is not None:
        shared = torch.linalg.cholesky(_lifted(rough + torch.diag(start[0].exp())))
        eta, left = _climb(counts, eta, rough, shared)
        if left.any():
            eta[left], _ = _climb(counts[left], eta[left], rough)
        return eta
    return _climb(counts, eta, rough)[0]


def _climb(
    counts: Tensor, eta: Tensor, rough: Tensor, factor: Tensor | None = None, tolerance: float = 1e-9
) -> tuple[Tensor, Tensor]:
    """Newton steps until none gains ``tolerance`` in log-likelihood; says which rows have not got there."""
    eta = eta.clone()
    active = torch.arange(len(counts))
    for _ in range(60):
        x, y = eta[active], counts[active]
        own = rough[active] if rough.ndim == 3 else rough
        slope = y - x.exp() - _times(own, x)
        if factor is None:
            step = _solve(own + torch.diag_embed(x.exp()), slope)
        else:
            step = torch.cholesky_solve(slope.T, factor).T
        value, size = _objective(x, y, own), torch.ones(len(x), dtype=x.dtype)
        for _ in range(12):  # halve the steps that do not climb
            worse = ~(_objective(x + size[:, None] * step, y, own) >= value - 1e-9 * value.abs())
            if not bool(worse.any()):
                break
            size = torch.where(worse, size / 2, size)
        size = torch.where(worse, 0.0, size)
        eta[active] = x + size[:, None] * step
        active = active[(slope * step).sum(1) * size > tolerance]
        if not len(active):
            break
    left = torch.zeros(len(counts), dtype=torch.bool)
    left[active] = True
    return eta, left


def _times(rough: Tensor, x: Tensor) -> Tensor:
    return x @ rough if rough.ndim == 2 else (rough @ x[..., None])[..., 0]


def _objective(x: Tensor, counts: Tensor, rough: Tensor) -> Tensor:
    return (counts * x - x.exp()).sum(1) - 0.5 * (x * _times(rough, x)).sum(1)


def choose_penalty(counts: Tensor, width: Tensor | float) -> tuple[float, float]:
    """Choose the smoothing of one histogram by (Laplace) marginal likelihood.

    Args:
        counts: Cell counts ``(K,)``.
        width: Standard deviation of the sample in cells.

    Returns:
        The penalty in units of cells, and the effective degrees of freedom of the fit (3 is a Gaussian: mass,
        mean, variance).
    """
    weights = PENALTIES * float(width) ** 5
    batch = counts.expand(len(weights), -1)
    eta = fit_log_density(batch, weights[:, None, None])
    gram = _third_difference_gram(counts.shape[0])
    hessian = weights[:, None, None] * gram + torch.diag_embed(eta.exp())
    roughness = (eta * (eta @ gram)).sum(1)
    evidence = (
        (batch * eta - eta.exp()).sum(1)
        - 0.5 * weights * roughness
        + 0.5 * (counts.shape[0] - 3) * weights.log()
        - 0.5 * _log_det(hessian)
    )
    # The smoothest fit whose evidence is not clearly below the best: under P = Q a rougher one only adds noise.
    best = int((evidence >= evidence.max() - EVIDENCE_MARGIN).nonzero().max())
    freedom = torch.linalg.solve(hessian[best], torch.diag(eta[best].exp())).diagonal().sum()
    return float(weights[best]), float(freedom)


def gaussian_log_means(counts: Tensor) -> Tensor:
    """Unnormalised log-density of the Gaussian with each histogram's mean and variance, ``(B, K)``."""
    cell = torch.arange(counts.shape[1], dtype=counts.dtype, device=counts.device)
    total = counts.sum(1, keepdim=True)
    mean = (counts @ cell)[:, None] / total
    variance = (counts @ cell.square())[:, None] / total - mean.square()
    return -0.5 * (cell - mean).square() / variance.clamp_min(0.25)


def _third_difference_gram(cells: int) -> Tensor:
    difference = torch.eye(cells, dtype=torch.float64).diff(n=3, dim=0)  # (K - 3, K)
    return difference.T @ difference


def _solve(hessian: Tensor, slope: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(_lifted(hessian))
    if bool((info > 0).any()):
        return torch.linalg.solve(_lifted(hessian), slope)
    return torch.cholesky_solve(slope[..., None], factor)[..., 0]


def _log_det(hessian: Tensor) -> Tensor:
    return torch.linalg.slogdet(_lifted(hessian)).logabsdet


def _lifted(hessian: Tensor) -> Tensor:
    """Add 1e-13 of the largest diagonal entry, so that rounding cannot make the matrix indefinite."""
    top = hessian.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None]
    return hessian + torch.diag_embed((1e-13 * top).expand(hessian.shape[:-1]))
