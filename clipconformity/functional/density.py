"""Smooth densities from histograms: the estimator behind every conformity KL.

A density is fitted to cell counts by penalised Poisson likelihood, with the third differences of the
log-density penalised (Silverman 1982; Eilers and Marx 1996). What the penalty leaves free is a quadratic
log-density, that is a Gaussian, so with heavy smoothing the fit is the Gaussian of the same mean and variance, and
beyond the data the log-density continues as a quadratic. The weight of the penalty is chosen by marginal likelihood.

The Hessian H = M + lambda D'D has the cell means M on its diagonal and D the third differences. It is banded, and so
badly conditioned that its logarithmic determinant loses whole units. It is used for Newton steps only, where an error
costs a step. Results come from the augmented matrix of the same problem, [M, D'; D, -I/lambda], which is
banded too, does not square D, and allows empty cells.

It uses NumPy and SciPy's banded LAPACK, on one thread whatever the setting of torch: the arrays are small, and the
same counts give the same figures for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CELLS = 1024
"""Cells of a histogram, without the two overflow counts at its ends."""
CELLS_PER_STD = 32
"""Cells per standard deviation of the reference's conformity."""
PENALTIES = 10.0 ** np.arange(-2.0, 6.5, 0.5)
"""Penalty weights tried, for a log-density in units of its own standard deviation."""
EVIDENCE_MARGIN = 1.0
"""Smallest gain in log marginal likelihood for a rougher fit."""
DIFFERENCE = np.array([-1.0, 3.0, -3.0, 1.0])
"""A row of D: the third difference of four neighbouring cells."""
BAND = 3
"""Half-bandwidth of D'D and of the augmented matrix."""
PIVOT_SCALE = 1e-6
"""Factor on D in the augmented matrix: small, so that elimination pivots on the cell means, by size. A factor
of 1 costs six digits with two distant spikes, each a cell wide."""
TOLERANCE = 1e-9
"""Gain in log-likelihood below which a fit has converged."""
MIN_LOG = -690.0
"""Log-probability below which a cell has no share in a divergence."""
MAX_STEPS = 60
MAX_HALVINGS = 12

Array = NDArray[np.float64]
Index = NDArray[np.intp]


class Grid(NamedTuple):
    """Histogram cells fixed by a reference: ``CELLS`` of width ``cell`` around ``center``."""

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


def fit_log_density(counts: Array, penalty: float, start: Array | None = None) -> Array:
    """Fit smooth cell log-probabilities by damped Newton steps on the penalised Poisson likelihood.

    Args:
        counts: Cell counts ``(B, K)``, not necessarily whole.
        penalty: Weight on the squared third differences.
        start: Log-means ``(K,)`` to start from. Several histograms must be similar to it: they share its Hessian as
            long as that improves the fit, which makes a thousand resamples cheap.

    Returns:
        Log-means ``(B, K)``.
    """
    eta = gaussian_log_means(counts) if start is None else np.broadcast_to(start, counts.shape)
    eta = eta + (np.log(counts.sum(1)) - log_sum(eta))[:, None]
    left = np.arange(len(counts))
    if start is not None and len(counts) > 1:
        solve = _make_solver(start, penalty)
        left = _maximise(counts, eta, penalty, left, lambda slope, _: solve(slope.T).T)
    _maximise(counts, eta, penalty, left, lambda slope, x: _compute_steps(slope, x, penalty))
    return eta


def choose_penalty(counts: Array, width: float) -> tuple[float, float, Array]:
    """Choose the smoothing of one histogram by (Laplace) marginal likelihood.

    Args:
        counts: Cell counts ``(K,)``.
        width: Standard deviation of the sample in cells.

    Returns:
        The penalty in units of cells; the effective degrees of freedom of the fit (3 is a Gaussian: mass, mean,
        variance); and its log-means ``(K,)``.
    """
    penalties = PENALTIES * width**5
    fits: list[Array] = []
    for penalty in penalties[::-1]:  # from the smoothest, which is nearly the Gaussian of the first start
        fits.insert(0, fit_log_density(counts[None], penalty, start=fits[0] if fits else None)[0])
    evidence = np.array([_evidence(counts, eta, penalty) for eta, penalty in zip(fits, penalties, strict=True)])
    # The smoothest fit whose evidence is not clearly below the best: under P = Q a rougher one only adds noise.
    best = int(np.flatnonzero(evidence >= evidence.max() - EVIDENCE_MARGIN).max())
    freedom = Augmented(fits[best], penalties[best]).degrees_of_freedom()
    return float(penalties[best]), freedom, fits[best]


def _evidence(counts: Array, eta: Array, penalty: float) -> float:
    """Log marginal likelihood of a fit, up to a constant."""
    determinants = (len(eta) - 3) * np.log(penalty) - Augmented(eta, penalty).log_det_hessian()
    return float(_objective(eta[None], counts[None], penalty)[0] + 0.5 * determinants)


class Augmented:
    """LU factors of the augmented matrix [M, D'; D, -I/penalty] at given log-means ``(K,)``.

    Cells and differences are interleaved, so that it is banded. Its determinant is that of the Hessian over
    (-penalty)^(K - 3), and the part of its inverse that belongs to the cells is the inverse of the Hessian.
    """

    def __init__(self, eta: Array, penalty: float) -> None:
        from scipy.linalg.lapack import dgbtrf

        self.means = np.exp(eta)
        self.penalty = penalty
        # Cell, cell, difference, cell, difference, ...: each difference stands in the middle of its four cells.
        differences = 2 * np.arange(len(eta) - 3) + 2
        self.cells = np.clip(2 * np.arange(len(eta)) - 1, 0, 2 * len(eta) - 4)
        band = np.zeros((3 * BAND + 1, 2 * len(eta) - 3))  # LAPACK's layout: entry (i, j) in row 2 BAND + i - j
        band[2 * BAND, self.cells] = self.means
        band[2 * BAND, differences] = -(PIVOT_SCALE**2) / penalty
        for which, weight in enumerate(PIVOT_SCALE * DIFFERENCE):
            cells = self.cells[which : which + len(differences)]
            band[2 * BAND + differences - cells, cells] = weight
            band[2 * BAND + cells - differences, differences] = weight
        self.factors, self.pivots, _ = dgbtrf(band, BAND, BAND)

    def solve(self, right: Array) -> Array:
        """Solve H x = right for columns ``(K, B)``."""
        from scipy.linalg.lapack import dgbtrs

        padded = np.zeros((self.factors.shape[1], right.shape[1]))
        padded[self.cells] = right
        return dgbtrs(self.factors, BAND, BAND, padded, self.pivots)[0][self.cells]

    def log_det_hessian(self) -> float:
        """Logarithm of the Hessian's determinant."""
        pivots = np.log(np.abs(self.factors[2 * BAND])).sum()
        return float(pivots + (len(self.means) - 3) * np.log(self.penalty / PIVOT_SCALE**2))

    def degrees_of_freedom(self) -> float:
        """Effective degrees of freedom of the fit, tr(H^-1 M)."""
        return float(self.solve(np.diag(self.means)).trace())


def _maximise(counts: Array, eta: Array, penalty: float, rows: Index, steps: Callable[[Array, Array], Array]) -> Index:
    """Maximise in place until no step gains ``TOLERANCE`` in log-likelihood; return the rows that did not converge."""
    for _ in range(MAX_STEPS):
        if not len(rows):
            break
        x, y = eta[rows], counts[rows]
        slope = y - np.exp(x) - penalty * _transposed_difference(_difference(x))
        step = steps(slope, x)
        value, size = _objective(x, y, penalty), np.ones(len(x))
        for _ in range(MAX_HALVINGS):
            worse = ~(_objective(x + size[:, None] * step, y, penalty) >= value - 1e-9 * np.abs(value))
            if not worse.any():
                break
            size[worse] /= 2
        size[worse] = 0
        eta[rows] = x + size[:, None] * step
        rows = rows[(slope * step).sum(1) * size > TOLERANCE]
    return rows


def _objective(eta: Array, counts: Array, penalty: float) -> Array:
    with np.errstate(over="ignore"):  # too long a step, halved below
        likelihood = (counts * eta - np.exp(eta)).sum(1)
    return likelihood - 0.5 * penalty * np.square(_difference(eta)).sum(1)


def _compute_steps(slope: Array, eta: Array, penalty: float) -> Array:
    """Newton steps ``(B, K)``, each histogram under its own Hessian."""
    return np.stack([_make_solver(x, penalty)(own[:, None])[:, 0] for own, x in zip(slope, eta, strict=True)])


def _make_solver(eta: Array, penalty: float) -> Callable[[Array], Array]:
    """Return a solver of H x = right for columns ``(K, B)``: by Cholesky, twice as fast, where rounding allows it."""
    from scipy.linalg.lapack import dpbtrf, dpbtrs

    band = penalty * _gram_band(len(eta))
    band[0] += np.exp(eta)
    factor, failure = dpbtrf(band, lower=1)
    if failure:
        return Augmented(eta, penalty).solve
    return lambda right: dpbtrs(factor, right, lower=1)[0]


@lru_cache(maxsize=64)
def _gram_band(cells: int) -> Array:
    """Lower band of D'D, ``(4, K)``."""
    columns = _difference(np.eye(cells))  # (K, K - 3), which is D'
    gram = columns @ columns.T
    return np.stack([np.pad(gram.diagonal(-apart), (0, apart)) for apart in range(BAND + 1)])


def _difference(values: Array) -> Array:
    """D times each row, ``(..., K)`` to ``(..., K - 3)``."""
    return values[..., 3:] - values[..., :-3] - 3 * (values[..., 2:-1] - values[..., 1:-2])


def _transposed_difference(values: Array) -> Array:
    """D' times each row, ``(B, K - 3)`` to ``(B, K)``; rounding errors stay where the penalty acts."""
    padded = np.zeros((len(values), values.shape[1] + 2 * BAND))
    padded[:, BAND:-BAND] = values
    return -_difference(padded)


def log_probabilities(counts: Array, penalty: float, start: Array) -> Array:
    """Fit as :func:`fit_log_density` does, and normalise each row, ``(B, K)``."""
    eta = fit_log_density(counts, penalty, start)
    return eta - log_sum(eta)[:, None]


def relative_entropy(log_p: Array, log_q: Array, floor: float) -> Array:
    """KL divergence of each row of cell probabilities in nats, ``(B,)``; ``log_q`` is held at ``floor`` or above."""
    return (np.exp(log_p) * (np.maximum(log_p, MIN_LOG) - np.maximum(log_q, floor))).sum(1)


def log_sum(values: Array) -> Array:
    """Log of the summed exponentials of each row, ``(B, K)`` to ``(B,)``."""
    top = values.max(1)
    return top + np.log(np.exp(values - top[:, None]).sum(1))


def gaussian_log_means(counts: Array) -> Array:
    """Unnormalised log-density of the Gaussian with each histogram's mean and variance, ``(B, K)``."""
    cell = np.arange(counts.shape[1])
    total = counts.sum(1, keepdims=True)
    mean = (counts @ cell)[:, None] / total
    variance = (counts @ np.square(cell))[:, None] / total - np.square(mean)
    return -0.5 * np.square(cell - mean) / np.maximum(variance, 0.25)
