"""Whitening, log-likelihood and the Frechet distance, against torch.distributions, scipy and torchmetrics."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows
from scipy import linalg, stats
from torch.distributions import MultivariateNormal
from torchmetrics.image.fid import FrechetInceptionDistance

import clipconformity as cc
from clipconformity.functional.frechet import factorise_covariance, fit_gaussian, frechet_distance
from clipconformity.functional.likelihood import SingularWarning, _estimate_rounding, log_likelihood, whiten


@pytest.fixture
def gaussian(generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows (50, 8) with a mean and covariance fitted on others, float64."""
    rows = ellipsoid_rows(500, 8, generator).double()
    return rows[:50], rows[50:].mean(0), torch.cov(rows[50:].T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_likelihood_equals_the_multivariate_normal(gaussian, dtype):
    rows, mean, covariance = (x.to(dtype) for x in gaussian)
    value = log_likelihood(rows, mean, covariance)
    assert value.dtype == dtype
    expected = MultivariateNormal(mean.double(), covariance.double()).log_prob(rows.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_log_likelihood_of_scaled_rows_differs_by_the_volume(gaussian, scale):
    rows, mean, covariance = gaussian
    value = log_likelihood(rows * scale, mean * scale, covariance * scale**2)
    torch.testing.assert_close(value, log_likelihood(rows, mean, covariance) - 8 * math.log(scale))


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_shrinkage_moves_the_covariance_towards_a_sphere(gaussian, shrinkage):
    rows, mean, covariance = gaussian
    shrunk = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / 8 * torch.eye(8)
    torch.testing.assert_close(
        log_likelihood(rows, mean, covariance, shrinkage), MultivariateNormal(mean, shrunk).log_prob(rows)
    )
    inverse = np.linalg.inv(linalg.sqrtm(double(shrunk)))
    np.testing.assert_allclose(whiten(rows, mean, covariance, shrinkage), double(rows - mean) @ inverse, atol=1e-10)


def test_whitened_rows_of_the_fitted_set_have_unit_covariance(generator):
    rows = ellipsoid_rows(300, 20, generator)
    white = whiten(rows, rows.double().mean(0), torch.cov(rows.double().T))
    assert white.dtype == torch.float32
    np.testing.assert_allclose(np.cov(double(white).T), np.eye(20), atol=1e-5)
    np.testing.assert_allclose(double(white).mean(0), np.zeros(20), atol=1e-6)


def test_squared_whitened_norm_is_the_mahalanobis_distance(gaussian):
    rows, mean, covariance = gaussian
    centered = rows - mean
    expected = (centered @ torch.linalg.inv(covariance) * centered).sum(1)
    torch.testing.assert_close(whiten(rows, mean, covariance).square().sum(1), expected)


def test_likelihood_is_differentiable_in_the_embeddings(gaussian):
    rows, mean, covariance = gaussian
    rows = rows[:3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_likelihood(x, mean, covariance, 0.2), (rows,))
    assert torch.autograd.gradcheck(lambda x: whiten(x, mean, covariance, 0.2), (rows,))


def test_the_fitted_set_overfits_its_likelihood_on_real_embeddings(images):
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    fitted, held_out = images[order[:900]].double(), images[order[900:]]
    mean, covariance = fitted.mean(0), torch.cov(fitted.T)
    inside, outside = (log_likelihood(x, mean, covariance).mean() for x in (fitted, held_out))
    assert 400 < inside < 450
    assert outside < inside - 400
    assert log_likelihood(held_out, mean, covariance, 0.05).mean() > outside + 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 20, 64])
def test_a_singular_covariance_is_told_and_used_on_its_range_and_shrinkage_mends_it(dtype, count, generator):
    rows = ellipsoid_rows(count, 64, generator).double()
    mean, covariance = rows.mean(0), torch.cov(rows.T).to(dtype)
    axes = torch.linalg.svd(rows - mean).Vh[: count - 1]  # the range, from the rows themselves
    inside = [(rows - mean) @ axes.T, axes @ covariance.double() @ axes.T]
    expected = stats.multivariate_normal(np.zeros(count - 1), double(inside[1])).logpdf(double(inside[0]))
    with pytest.warns(SingularWarning, match=f"covariance: singular, of rank {count - 1} in 64 dimensions"):
        found = log_likelihood(rows, mean, covariance)
    near = 1e-8 if dtype == torch.float64 else 1e-2
    np.testing.assert_allclose(found, expected, rtol=near)
    with pytest.warns(SingularWarning):
        white = whiten(rows, mean, covariance)
    np.testing.assert_allclose(np.linalg.matrix_rank(double(white), tol=1e-6), count - 1)
    assert bool(torch.isfinite(log_likelihood(rows, mean, covariance, 0.1)).all())


def roots(covariance: torch.Tensor) -> dict[str, torch.Tensor]:
    """Whitening matrices W with W S W^T = I by different ways."""
    spectrum, axes = np.linalg.eigh(double(covariance))
    pca = (axes / np.sqrt(spectrum)).T
    triangle = np.linalg.inv(np.linalg.cholesky(double(covariance)))
    return {name: torch.from_numpy(x) for name, x in (("pca", pca), ("zca", axes @ pca), ("cholesky", triangle))}


@pytest.mark.parametrize("name", ["pca", "zca", "cholesky"])
def test_a_whitening_matrix_stands_for_its_covariance(gaussian, name):
    rows, mean, covariance = gaussian
    root = roots(covariance)[name]
    white = whiten(rows, mean, whitening=root)
    np.testing.assert_allclose(white, double(rows - mean) @ double(root).T, rtol=1e-12)
    expected = MultivariateNormal(mean, covariance).log_prob(rows)
    torch.testing.assert_close(log_likelihood(rows, mean, whitening=root), expected, rtol=1e-10, atol=0)
    single = log_likelihood(rows, mean.float(), whitening=root.float())
    torch.testing.assert_close(single, expected, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("error::clipconformity.functional.SingularWarning")
@pytest.mark.parametrize("name", ["pca", "zca", "cholesky"])
def test_given_statistics_of_real_embeddings_agree(images, name):
    """ViT-B/32 has a condition of 2e9: the squared norm agrees to 1e-3 nats in float64 by any root."""
    rows = images.double()
    mean, covariance = rows.mean(0), torch.cov(rows.T)
    centered = double(rows - mean)
    expected = (centered * np.linalg.solve(double(covariance), centered.T).T).sum(1)
    root = roots(covariance)[name]
    for white in (whiten(rows, mean, covariance), whiten(rows, mean, whitening=root)):
        np.testing.assert_allclose(white.square().sum(1), expected, rtol=0, atol=1e-3)
    kept = whiten(rows, mean, whitening=root.float()).square().sum(1)
    np.testing.assert_allclose(kept, expected, rtol=0.02)


def turned(decades: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (5, 96) and a covariance, not along the coordinates, whose eigenvalues span so many decades."""
    turn = torch.linalg.qr(torch.randn(96, 96, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.logspace(1, 1 - decades, 96, dtype=torch.float64)
    rows = torch.randn(5, 96, generator=generator, dtype=torch.float64) * spectrum.sqrt() @ turn.T
    return rows + 9, turn * spectrum @ turn.T


@pytest.mark.filterwarnings("error::clipconformity.functional.SingularWarning")
def test_a_covariance_in_float32_is_not_refused_for_that(generator):
    """Published matrices have a condition of 3e6."""
    rows, covariance = turned(6.5, generator)
    mean = torch.full((96,), 9.0)
    found, expected = (log_likelihood(rows, mean, x) for x in (covariance.float(), covariance))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.5)


def test_a_covariance_in_float32_loses_what_is_below_its_rounding(generator):
    rows, covariance = turned(12.0, generator)
    with pytest.warns(SingularWarning, match="rank [4-6][0-9] in 96"):
        log_likelihood(rows, torch.full((96,), 9.0), covariance.float())


@pytest.mark.parametrize("decades", [1.0, 2.0, 8.0])
def test_what_rounding_may_make_is_little_more_than_what_it_makes(decades, generator):
    _, covariance = turned(decades, generator)
    made = float(torch.linalg.matrix_norm(covariance.float() - covariance, 2))
    assert made < _estimate_rounding(covariance, 10.0, torch.float32) < 6 * made


def test_eigenvalues_no_larger_than_those_below_zero_are_rounding():
    rows, mean = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).double(), torch.zeros(4)
    with pytest.warns(SingularWarning, match="rank 2 in 4 dimensions"):
        found = log_likelihood(rows, mean, torch.diag(torch.tensor([1.0, 1.0, 5e-6, -4e-6]).double()))
    assert float(found) == pytest.approx(-math.log(2 * math.pi) - 2.5)
    with pytest.raises(ValueError, match="expected eigenvalues above 0, got -0.01 to 1"):
        log_likelihood(rows, mean, torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.01]).double()))


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_rows_of_a_whitening_matrix_may_be_of_any_scale(scale):
    rows, root = torch.tensor([[2.0, 3.0 / scale]]), torch.diag(torch.tensor([1.0, scale]))
    found = log_likelihood(rows, torch.zeros(2), whitening=root)
    assert float(found) == pytest.approx(-math.log(2 * math.pi) + math.log(scale) - 6.5, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_whitening_matrix_is_told_and_used_on_its_range(dtype, data_dir):
    """80 class names in 512 dimensions: the pseudo-inverse root, as a square matrix and as its rows alone."""
    rows = torch.from_numpy(np.load(data_dir / "vitb32-text-coco-80.npy")).double()
    mean = rows.mean(0)
    spectrum, axes = torch.linalg.eigh(torch.cov(rows.T))
    axes, spectrum = axes[:, -79:], spectrum[-79:]
    expected = stats.multivariate_normal(np.zeros(79), np.diag(double(spectrum))).logpdf(double((rows - mean) @ axes))
    thin = (axes * spectrum.rsqrt()).T
    for root in (thin, axes @ thin, torch.cat([thin, torch.zeros(433, 512).double()])):
        with pytest.warns(SingularWarning, match="whitening: singular, of rank 79 in 512"):
            found = log_likelihood(rows, mean, whitening=root.to(dtype))
        np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype == torch.float64 else 1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected one of the two, got none"),
        ({"covariance": torch.eye(8), "whitening": torch.eye(8)}, "expected one of the two, got both"),
        ({"whitening": torch.eye(7)}, r"\(K, D\), K <= D, got \(8,\) and \(7, 7\)"),
        ({"whitening": torch.ones(9, 8)}, r"got \(8,\) and \(9, 8\)"),
        ({"whitening": torch.zeros(8, 8)}, "rank 1 at least"),
        ({"whitening": torch.full((8, 8), math.nan)}, "whitening: expected finite"),
        ({"whitening": torch.eye(8), "shrinkage": 0.1}, "got a whitening matrix"),
    ],
)
def test_bad_statistics_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(torch.ones(3, 8), torch.zeros(8), **options)


@pytest.mark.parametrize("function", [whiten, log_likelihood])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shrinkage": 1.1}, ValueError, "shrinkage: expected a number from 0 to 1, got 1.1"),
        ({"shrinkage": math.nan}, ValueError, "shrinkage: expected a number from 0 to 1, got nan"),
        ({"covariance": torch.zeros(8, 8)}, ValueError, "eigenvalues above 0"),
        ({"covariance": torch.zeros(8, 8), "shrinkage": 1.0}, ValueError, "eigenvalues above 0"),
        ({"covariance": -torch.eye(8)}, ValueError, "eigenvalues above 0, got -1 to -1"),
        ({"covariance": torch.eye(7)}, ValueError, r"got \(8,\) and \(7, 7\)"),
        ({"covariance": torch.full((8, 8), math.nan)}, ValueError, "expected finite"),
        ({"covariance": torch.eye(8) + torch.ones(8, 8).triu(1)}, ValueError, "symmetric"),
        ({"mean": torch.full((8,), math.inf)}, ValueError, "expected finite"),
        ({"mean": [0.0] * 8}, TypeError, "mean: expected a floating-point tensor, got list"),
        ({"embeddings": torch.ones(3, 7)}, ValueError, "embeddings has dimension 7 and mean has dimension 8"),
        ({"embeddings": torch.zeros(3, 8)}, ValueError, "embeddings: 3 of 3 rows are zero"),
        ({"embeddings": torch.full((3, 8), math.nan)}, ValueError, "embeddings: 3 of 3 rows"),
    ],
)
def test_bad_input_is_refused(function, change, error, message):
    good = {"embeddings": torch.ones(3, 8), "mean": torch.zeros(8), "covariance": torch.eye(8)}
    with pytest.raises(error, match=message):
        function(**{**good, **change})


class PassThrough(torch.nn.Module):
    """Features that came as flattened images are given on unchanged."""

    num_features = 24

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


@pytest.mark.parametrize("counts", [(400, 300), (20, 15)])
def test_frechet_distance_equals_torchmetrics_on_the_same_features(counts, generator):
    first = ellipsoid_rows(counts[0], 24, generator)
    second = ellipsoid_rows(counts[1], 24, generator, offset=0.4)
    metric = FrechetInceptionDistance(feature=PassThrough(), normalize=True).set_dtype(torch.float64)
    metric.update(first.double().view(-1, 3, 2, 4), real=False)
    metric.update(second.double().view(-1, 3, 2, 4), real=True)
    assert float(frechet_distance(first, second)) == pytest.approx(float(metric.compute()), rel=1e-5)


def test_frechet_distance_equals_scipy(generator):
    first, second = ellipsoid_rows(200, 16, generator), ellipsoid_rows(90, 16, generator, offset=-0.2)
    means = [double(x).mean(0) for x in (first, second)]
    s1, s2 = (np.cov(double(x).T) for x in (first, second))
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    assert float(frechet_distance(first.double(), second.double())) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_commuting_covariances_has_its_closed_form():
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    spread, other = torch.tensor([2.0, 0.5]).double(), torch.tensor([1.0, 3.0]).double()
    first, second = corners * spread + 9, corners * other + torch.tensor([6.0, 13.0])
    expected = 25 + 4 / 3 * float((spread - other).square().sum())
    assert float(frechet_distance(first, second)) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_is_symmetric_and_scales_with_the_square(generator):
    first, second = ellipsoid_rows(30, 40, generator).double(), ellipsoid_rows(25, 40, generator, offset=0.4).double()
    value = float(frechet_distance(first, second))
    assert float(frechet_distance(second, first)) == pytest.approx(value, rel=1e-10)
    assert float(frechet_distance(first * 1e8, second * 1e8)) == pytest.approx(value * 1e16, rel=1e-10)


def test_frechet_distance_of_a_set_to_itself_is_zero_where_the_covariance_is_singular(generator):
    rows = ellipsoid_rows(50, 300, generator).double()
    spread = float(rows.var(0).sum())
    assert 0 <= float(frechet_distance(rows, rows)) < 1e-12 * spread
    moved = frechet_distance(rows + 1e-4, rows)
    assert float(moved) == pytest.approx(300 * 1e-8, rel=1e-4)


def test_frechet_distance_of_sets_in_orthogonal_planes_is_the_sum_of_their_spreads(generator):
    turned = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64)).Q
    first = ellipsoid_rows(60, 5, generator).double() @ turned[:5]
    second = ellipsoid_rows(60, 5, generator).double() @ turned[5:10]
    expected = float((first.mean(0) - second.mean(0)).square().sum() + first.var(0).sum() + second.var(0).sum())
    assert float(frechet_distance(first, second)) == pytest.approx(expected, rel=1e-12)


def test_a_reference_set_stands_for_its_embeddings(generator):
    rows, reference = ellipsoid_rows(60, 12, generator), ellipsoid_rows(200, 12, generator, offset=0.5)
    expected = float(frechet_distance(rows, reference))
    assert float(frechet_distance(rows, cc.ReferenceSet.fit(reference))) == pytest.approx(expected, rel=1e-5)
    moments = SimpleNamespace(count=200, mean=reference.double().mean(0), covariance=torch.cov(reference.double().T))
    assert float(frechet_distance(rows, moments)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("embeddings", "reference", "error", "message"),
    [
        (torch.ones(1, 3), torch.ones(4, 3), ValueError, "embeddings: expected at least 2 samples, got 1"),
        (torch.ones(4, 3), torch.ones(1, 3), ValueError, "reference: expected at least 2 samples, got 1"),
        (torch.ones(4, 3), torch.ones(4, 2), ValueError, "embeddings has dimension 3 and reference has dimension 2"),
        (torch.ones(4, 3), torch.full((4, 3), math.nan), ValueError, "reference: 4 of 4 rows"),
        (torch.ones(4, 3), [1.0], TypeError, "reference: expected embeddings of shape .* got list"),
        (
            torch.ones(4, 3),
            SimpleNamespace(count=1, mean=torch.ones(3), covariance=torch.eye(3)),
            ValueError,
            "reference: expected at least 2 samples, got 1",
        ),
    ],
)
def test_sets_without_a_frechet_distance_are_refused(embeddings, reference, error, message):
    with pytest.raises(error, match=message):
        frechet_distance(embeddings, reference)


@pytest.mark.parametrize("size", [100, 3000])
@pytest.mark.parametrize(("cast", "error"), [(torch.float64, 1e-8), (torch.float32, 1e-2)])
def test_likelihoods_without_shrinkage_under_a_fitted_reference_equal_scipy(cast, error, size, generator):
    """Of float32 rows they are 0.003 nats off here: at a condition of 1e5 their products know no more."""
    turn = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]
    spread = torch.logspace(0, -2.5, 64)
    rows, held_out = (torch.randn(n, 64, generator=generator) * spread @ turn + 0.5 for n in (3000, 50))
    rows = rows.to(cast)
    reference = cc.ReferenceSet.fit(rows.split(size))
    found = log_likelihood(held_out.double(), reference.mean, reference.covariance)
    values = double(rows)
    expected = stats.multivariate_normal(values.mean(0), np.cov(values.T)).logpdf(double(held_out))
    np.testing.assert_allclose(found, expected, rtol=0, atol=error)


@pytest.mark.parametrize("count", [9, 12, 40])
def test_a_factor_is_one_of_the_covariance_for_few_rows_and_many(count, generator):
    rows = torch.randn(count, 12, generator=generator) + 3
    mean, factor = fit_gaussian(rows)
    torch.testing.assert_close(mean, rows.double().mean(0))
    torch.testing.assert_close(factor @ factor.T, torch.cov(rows.double().T))


def test_a_factor_has_no_roots_of_rounding(generator):
    """Cholesky goes through for some singular covariances, with a last pivot of rounding whose root is 1e-8."""
    for _ in range(40):
        half = torch.randn(12, 11, generator=generator, dtype=torch.float64)
        assert float(torch.linalg.svdvals(factorise_covariance(half @ half.T))[-1]) < 1e-12
