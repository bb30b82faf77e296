"""The smooth densities behind the KL, against 80 digits and on any number of threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest

from clipconformity.functional import density as density


def log_means(cells: int, width: float, count: float, center: float | None = None) -> np.ndarray:
    """Log-means of a Gaussian of ``count`` samples."""
    cell = np.arange(cells)
    eta = -0.5 * ((cell - (cells / 2 if center is None else center)) / width) ** 2
    return eta + np.log(count / np.exp(eta).sum())


def valley(cells: int) -> np.ndarray:
    """Log-means of two spikes at the ends, with e^-950 between them: two sets that lie apart."""
    cell = np.arange(cells)
    return 6.4 - 0.147 * cell * (cells - 1 - cell)


def exactly(eta: np.ndarray, penalty: float) -> tuple[float, float]:
    """Log-determinant of the Hessian and degrees of freedom, by a banded Cholesky in 80 digits."""
    with mpmath.workdps(80):
        cells = len(eta)
        means = [mpmath.e ** mpmath.mpf(float(x)) for x in eta]
        hessian = mpmath.zeros(cells)
        for i in range(cells - 3):
            for a, x in enumerate((-1, 3, -3, 1)):
                for b, y in enumerate((-1, 3, -3, 1)):
                    hessian[i + a, i + b] += mpmath.mpf(float(penalty)) * x * y
        for k in range(cells):
            hessian[k, k] += means[k]
        factor = [[mpmath.mpf(0)] * 4 for _ in range(cells)]  # factor[j][d] is L[j + d, j]
        for j in range(cells):
            for d in range(min(4, cells - j)):
                rest = hessian[j + d, j] - sum(
                    factor[j - m][d + m] * factor[j - m][m] for m in range(1, 4 - d) if j >= m
                )
                factor[j][d] = mpmath.sqrt(rest) if d == 0 else rest / factor[j][0]
        inverse: dict[tuple[int, int], mpmath.mpf] = {}
        for j in reversed(range(cells)):  # the band of the inverse, from its last corner on
            for d in reversed(range(min(4, cells - j))):
                value = 1 / factor[j][0] ** 2 if d == 0 else mpmath.mpf(0)
                for m in range(1, min(4, cells - j)):
                    value -= factor[j][m] / factor[j][0] * inverse[max(j + m, j + d), min(j + m, j + d)]
                inverse[j + d, j] = value
        determinant = 2 * sum(mpmath.log(row[0]) for row in factor)
        return float(determinant), float(sum(inverse[k, k] * means[k] for k in range(cells)))


CASES = {
    "few cells": (log_means(12, 2.0, 10.0), 2.0),
    "Gaussian": (log_means(90, 10.0, 5000.0), 10.0),
    "most cells": (log_means(279, 31.0, 20_000.0), 31.0),
    "a million samples": (log_means(279, 31.0, 1e6), 31.0),
    "narrow": (log_means(256, 6.0, 1000.0, center=80.0), 6.0),
    "two spikes apart": (valley(160), 0.5),
}


@pytest.mark.parametrize("power", [-2, 1, 4, 6])
@pytest.mark.parametrize("name", CASES)
def test_determinant_and_degrees_of_freedom_agree_with_80_digits(name, power):
    eta, width = CASES[name]
    penalty = 10.0**power * width**5
    determinant, freedom = exactly(eta, penalty)
    augmented = density.Augmented(eta, penalty)
    assert augmented.log_det_hessian() == pytest.approx(determinant, abs=1e-6, rel=0)
    assert augmented.degrees_of_freedom() == pytest.approx(freedom, abs=1e-8, rel=0)


@pytest.mark.parametrize("name", ["Gaussian", "two spikes apart"])
def test_the_augmented_matrix_solves_the_hessian(name):
    """The Hessian times what it solves gives the right side back, to rounding of its largest terms."""
    eta, width = CASES[name]
    penalty = width**5
    right = np.random.default_rng(0).normal(size=(len(eta), 3)) * np.exp(eta)[:, None]
    solved = density.Augmented(eta, penalty).solve(right)
    columns = np.diff(np.eye(len(eta)), 3, axis=0)
    back = np.exp(eta)[:, None] * solved + penalty * columns.T @ (columns @ solved)
    np.testing.assert_allclose(back, right, atol=1e-9 * penalty * np.abs(solved).max())


@pytest.mark.parametrize("penalty", [1e2, 1e6, 1e11])
def test_fits_from_a_shared_start_climb_to_the_same_optimum(penalty):
    """A thousand resamples share one Hessian; each must end where a fit of its own ends."""
    random = np.random.default_rng(0)
    means = np.exp(log_means(90, 10.0, 2000.0))
    counts = random.poisson(means, size=(40, 90)).astype(float)
    start = density.fit_log_density(means[None], penalty)[0]
    shared = density.fit_log_density(counts, penalty, start=start)
    own = np.concatenate([density.fit_log_density(row[None], penalty) for row in counts])
    assert np.abs(np.exp(shared) - np.exp(own)).max() < 2e-3
    for eta in (shared, own):  # at the optimum the penalised score vanishes, and the total is kept
        assert np.exp(eta).sum(1) == pytest.approx(counts.sum(1), rel=1e-6)
        moments = (np.arange(90) @ (np.exp(eta) - counts).T) / counts.sum(1)
        assert np.abs(moments).max() < 1e-4


def test_without_a_penalty_that_bites_the_fit_is_the_histogram():
    counts = np.random.default_rng(1).poisson(50, size=(1, 40)).astype(float)
    np.testing.assert_allclose(np.exp(density.fit_log_density(counts, 1e-9)), counts, rtol=1e-6)


def test_under_the_heaviest_penalty_the_fit_is_the_gaussian_of_the_same_moments():
    means = np.exp(log_means(120, 10.0, 5000.0)) * (1 + 0.3 * np.sin(np.arange(120)))
    fit = np.exp(density.fit_log_density(means[None], 1e14))[0]
    cell = np.arange(120)
    for power in (0, 1, 2):
        assert fit @ cell**power == pytest.approx(means @ cell**power, rel=1e-5)
    assert np.abs(np.diff(np.log(fit), 3)).max() < 1e-7


def gamma_counts(size: int, width: int, seed: int = 0) -> np.ndarray:
    """Histogram of a skewed sample of variance 1, in cells of which ``width`` are a standard deviation."""
    values = (np.random.default_rng(seed).gamma(4.0, size=size) - 4) / 2
    return np.histogram(values, np.arange(-6 * width, 10 * width + 1) / width)[0].astype(float)


@pytest.mark.parametrize("size", [200, 5000])
def test_the_smoothing_does_not_depend_on_the_width_of_the_cells(size):
    """The third differences of a log-density go with the cube of a cell, and their sum of squares with the fifth."""
    chosen = [density.choose_penalty(gamma_counts(size, width), float(width)) for width in (4, 8, 16)]
    relative = [penalty / width**5 for (penalty, _, _), width in zip(chosen, (4, 8, 16), strict=True)]
    assert relative == pytest.approx([relative[0]] * 3)
    freedom = [freedom for _, freedom, _ in chosen]
    assert freedom == pytest.approx([freedom[0]] * 3, rel=0.1)


def test_gaussian_samples_are_nearly_always_fitted_by_a_gaussian():
    """Of equal evidence the smoothest: a rougher fit must gain e, which 1 in 40 does; the best alone is 1 in 3."""
    edges = np.arange(-24, 25) / 4
    drawn = (np.random.default_rng(seed).normal(size=500) for seed in range(20))
    freedom = [density.choose_penalty(np.histogram(x, edges)[0].astype(float), 4.0)[1] for x in drawn]
    assert sum(one < 3.05 for one in freedom) >= 18


SCRIPT = """
import json, torch, clipconformity as cc
from clipconformity.functional import shift_grid, shift_sweep
draw = torch.Generator().manual_seed(0)
rows = torch.randn(3000, 64, generator=draw) * torch.rand(64, generator=draw) + 0.5 * torch.randn(64, generator=draw)
text = 0.9 * rows + 0.3 * torch.randn(3000, 64, generator=draw) - 0.2
figures = []
for groups in (None, torch.arange(1500) // 5):
    metric = cc.ConformityKL(cc.ReferenceSet.fit(rows[:1500], groups=groups))
    metric.update(rows[1500:] + 0.1, groups=groups)
    figures += [metric.compute(), metric.reverse(), *metric.interval(resamples=200), metric.noise_floor(resamples=200)]
sweep = shift_sweep(rows[:400], text[:400], [0.0, 0.5], resamples=40)
grid = shift_grid(rows[:400], text[:400], [0.0, 0.5], [0.0, 1.0])
figures += [*sweep.loss, *sweep.loss_low, *sweep.kl, *sweep.kl_low, *sweep.kl_high, *grid.kl.flatten()]
print(json.dumps([float(x) for x in figures]))
"""


@pytest.mark.slow
def test_every_figure_is_the_same_on_any_number_of_threads_and_nothing_is_printed():
    figures = []
    for threads in ("1", "2", "4"):
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        run = subprocess.run(
            [sys.executable, "-W", "ignore::UserWarning", "-c", SCRIPT],
            capture_output=True, text=True, env=environment, check=True,
        )  # fmt: skip
        assert run.stderr == ""
        figures.append(json.loads(run.stdout))
    assert len(figures[0]) > 20
    np.testing.assert_allclose(figures[1], figures[0], atol=1e-9, rtol=0)
    np.testing.assert_allclose(figures[2], figures[0], atol=1e-9, rtol=0)
