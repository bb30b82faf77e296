"""Thin shell, ellipsoid, tilt, offset, gap and rank correlation, against closed forms, numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows, unit
from scipy import stats

from clipconformity.functional import conformity
from clipconformity.functional.geometry import ellipsoid, modality_gap, offset, thin_shell, tilt
from clipconformity.functional.ranks import rank_correlation

ONE_SET = [thin_shell, ellipsoid, tilt, offset]
SHELL = {"images": (50.149, 0.2402), "lvis": (24.762, 0.1236), "coco": (20.449, 0.1122)}
OFFSET = {"images": 1.1318, "lvis": 1.7002, "coco": 1.9962}
RATIO = {"images": (14.29, 76.056), "lvis": (93.76, 32.918), "coco": (38.75, 58.936)}
NORM_RANKS = {"images": 0.5333, "lvis": 0.9237}


@pytest.fixture
def real(request, data_dir, images, lvis) -> torch.Tensor:
    coco = torch.from_numpy(np.load(data_dir / "vitb32-text-coco-80.npy"))
    return {"images": images, "lvis": lvis.float(), "coco": coco.float()}[request.param]


def each(table: dict) -> list:
    return [pytest.param(name, figures, id=name) for name, figures in table.items()]


def flat(result) -> torch.Tensor:
    """All figures of a result as one vector."""
    parts = result if isinstance(result, tuple) else (result,)
    return torch.cat([torch.as_tensor(part, dtype=torch.float64).flatten() for part in parts if part is not None])


@pytest.mark.parametrize(("real", "figures"), each(SHELL), indirect=["real"])
def test_thin_shell_has_the_published_figures(real, figures):
    shell = thin_shell(real)
    assert float(shell.mu_squared) == pytest.approx(figures[0], abs=5.1e-4)
    assert float(shell.variance) == pytest.approx(figures[1], abs=5.1e-5)


@pytest.mark.parametrize(("real", "figure"), each(OFFSET), indirect=["real"])
def test_offset_has_the_published_figure(real, figure):
    assert float(offset(real)) == pytest.approx(figure, abs=5.1e-5)


@pytest.mark.parametrize(("real", "figures"), each(RATIO), indirect=["real"])
def test_participation_and_off_diagonal_ratio_have_the_published_figures(real, figures):
    assert float(ellipsoid(real).participation_ratio) == pytest.approx(figures[0], abs=5.1e-3)
    assert float(tilt(real).off_diagonal_ratio) == pytest.approx(figures[1], abs=5.1e-4)


def test_gap_has_the_published_figures(data_dir, images, lvis):
    assert float(modality_gap(images, lvis, paired=False).gap) == pytest.approx(0.954149, abs=5.1e-7)
    pairs = torch.from_numpy(np.load(data_dir / "vitb16-coco-pairs-500-unit.npy"))
    result = modality_gap(pairs[0], pairs[1])
    assert float(result.gap) == pytest.approx(0.851352, abs=5.1e-7)
    assert float(result.matched_cosine) == pytest.approx(0.309919, abs=5.1e-7)


@pytest.mark.parametrize(("real", "figure"), each(NORM_RANKS), indirect=["real"])
def test_norm_goes_with_conformity_on_real_embeddings(real, figure):
    x, y = torch.linalg.vector_norm(real, dim=1), conformity(real)
    result = rank_correlation(x, y)
    assert float(result.correlation) == pytest.approx(stats.spearmanr(double(x), double(y)).statistic, abs=1e-6)
    assert float(result.correlation) == pytest.approx(figure, abs=5.1e-5)
    assert 0 < result.low < result.correlation < result.high < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_figures_equal_numpy_at_any_scale(dtype, scale, generator):
    rows = ellipsoid_rows(400, 12, generator).to(dtype) * scale
    x = double(rows)
    centered, covariance = x - x.mean(0), np.cov(x.T)
    distance, spectrum = np.linalg.norm(centered, axis=1), np.linalg.eigvalsh(covariance)[::-1]
    shell, axes, tilted = thin_shell(rows), ellipsoid(rows), tilt(rows)
    assert {field.dtype for field in (*shell, *tilted, axes.spectrum, offset(rows))} == {dtype}
    near = {"rtol": 2e-6}
    np.testing.assert_allclose(shell.mu, distance.mean(), **near)
    np.testing.assert_allclose(shell.variance, distance.var(ddof=1), **near)
    np.testing.assert_allclose(shell.ratio, distance.mean() ** 2 / distance.var(ddof=1), **near)
    np.testing.assert_allclose(axes.variances, x.var(0, ddof=1), **near)
    np.testing.assert_allclose(axes.spectrum, spectrum, **near)
    np.testing.assert_allclose(axes.condition, spectrum[0] / spectrum[-1], **near)
    np.testing.assert_allclose(axes.participation_ratio, spectrum.sum() ** 2 / (spectrum**2).sum(), **near)
    off = np.abs(covariance)[~np.eye(12, dtype=bool)]
    np.testing.assert_allclose(tilted.off_diagonal_ratio, off.sum() / np.trace(covariance), **near)
    dominant = np.diag(covariance) > np.abs(covariance).sum(1) - np.diag(covariance)
    np.testing.assert_allclose(tilted.diagonally_dominant, dominant.mean(), **near)
    correlation = np.abs(np.corrcoef(x.T))[~np.eye(12, dtype=bool)].mean()
    np.testing.assert_allclose(tilted.mean_abs_correlation, correlation, **near)
    np.testing.assert_allclose(offset(rows), np.linalg.norm(x.mean(0)) / np.sqrt(np.trace(covariance)), **near)


def test_blocks_do_not_change_the_figures(generator, monkeypatch):
    rows = ellipsoid_rows(500, 16, generator)
    whole = [flat(function(rows)) for function in ONE_SET]
    monkeypatch.setattr("clipconformity.functional.linalg.BLOCK_BYTES", 16 * 4 * 7)
    for function, value in zip(ONE_SET, whole, strict=True):
        torch.testing.assert_close(flat(function(rows)), value, rtol=1e-6, atol=1e-9)


def test_a_far_offset_does_not_cost_digits(generator):
    rows = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    for function in (thin_shell, ellipsoid, tilt):
        torch.testing.assert_close(flat(function(rows + 1e6)), flat(function(rows)), rtol=1e-7, atol=1e-9)


def test_gaussian_shell_and_offset_have_their_closed_forms(generator):
    rows = 3 * torch.randn(20_000, 300, generator=generator) + 2
    shell = thin_shell(rows)
    assert float(shell.mu_squared) == pytest.approx(9 * 300, rel=0.005)  # chi: mean^2 = s^2 (D - 1/2)
    assert float(shell.variance) == pytest.approx(9 / 2, rel=0.05)
    assert float(offset(rows)) == pytest.approx(2 / 3, rel=0.01)


def test_a_perfect_shell_has_an_infinite_ratio():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert thin_shell(rows).ratio == math.inf
    assert offset(rows) == 0


def test_tilt_of_a_rotated_ellipse_has_its_closed_form():
    axis = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    angle = math.radians(20)
    rotation = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    along = (8 - 2) / 3 * math.sin(angle) * math.cos(angle)
    result = tilt(axis @ rotation + 5)
    assert float(result.off_diagonal_ratio) == pytest.approx(2 * along / (10 / 3), rel=1e-5)
    assert tilt(axis + 5).off_diagonal_ratio == pytest.approx(0, abs=1e-7)
    assert tilt(axis + 5).diagonally_dominant == 1


def test_the_permuted_value_keeps_variances_and_drops_correlations(generator):
    common = torch.randn(4000, 1, generator=generator)
    rows = common * torch.linspace(1, 3, 10) + 0.3 * torch.randn(4000, 10, generator=generator) + 4
    axes, tilted = ellipsoid(rows), tilt(rows)
    variances = axes.variances.double()
    assert float(axes.participation_ratio) < 1.1
    expected = float(variances.sum() ** 2 / variances.square().sum())
    assert float(axes.permuted_participation_ratio) == pytest.approx(expected, rel=0.02)
    assert float(tilted.mean_abs_correlation) > 0.9
    chance = math.sqrt(2 / math.pi / 4000)  # mean |r| of independent columns
    assert float(tilted.permuted_mean_abs_correlation) == pytest.approx(chance, rel=0.5)
    assert tilted.diagonally_dominant == 0
    assert tilted.permuted_diagonally_dominant == 1


def test_untilted_data_lie_at_their_permuted_value(generator):
    result = tilt(torch.randn(200, 60, generator=generator) * torch.linspace(1, 3, 60) + 1)
    assert float(result.off_diagonal_ratio) == pytest.approx(float(result.permuted_off_diagonal_ratio), rel=0.1)
    assert float(result.off_diagonal_ratio) > 2  # the effect of N alone


def test_permutations_follow_the_generator(generator):
    rows = ellipsoid_rows(50, 6, generator)
    other = tilt(rows, generator=torch.Generator().manual_seed(5))
    assert tilt(rows) == tilt(rows)
    assert tilt(rows).permuted_off_diagonal_ratio != other.permuted_off_diagonal_ratio
    assert tilt(rows).off_diagonal_ratio == other.off_diagonal_ratio


@pytest.mark.parametrize("count", [3, 8])
def test_condition_is_withheld_where_the_rank_is_below_the_dimension(count, generator):
    result = ellipsoid(ellipsoid_rows(count, 8, generator))
    assert result.condition is None
    assert result.rank == count - 1
    assert bool(torch.isfinite(result.spectrum).all() & (result.spectrum >= 0).all())
    assert ellipsoid(ellipsoid_rows(9, 8, generator)).condition is not None


def test_a_constant_dimension_costs_rank_and_no_figure_is_nan(generator):
    rows = ellipsoid_rows(100, 5, generator)
    rows[:, 2] = 0.7
    assert ellipsoid(rows).rank == 4
    without = tilt(rows[:, [0, 1, 3, 4]])
    assert float(tilt(rows).mean_abs_correlation) == pytest.approx(float(without.mean_abs_correlation), rel=1e-5)


def test_gap_equals_numpy_and_takes_sets_without_pairs(generator):
    image, text = ellipsoid_rows(60, 9, generator), ellipsoid_rows(40, 9, generator, offset=-1.0)
    result = modality_gap(image, text, paired=False)
    u, w = unit(double(image)), unit(double(text))
    assert float(result.gap) == pytest.approx(np.linalg.norm(u.mean(0) - w.mean(0)), rel=1e-6)
    assert float(result.raw_gap) == pytest.approx(
        np.linalg.norm(double(image).mean(0) - double(text).mean(0)), rel=1e-6
    )
    assert result.matched_cosine is None
    matched = modality_gap(image[:40], text).matched_cosine
    assert float(matched) == pytest.approx((u[:40] * w).sum(1).mean(), abs=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_equals_scipy(ties, generator):
    x = torch.randn(200, generator=generator)
    y = x + torch.randn(200, generator=generator)
    if ties:
        x, y = x.round(), y.round()
    expected = stats.spearmanr(double(x), double(y)).statistic
    assert float(rank_correlation(x, y).correlation) == pytest.approx(expected, abs=1e-6)
    assert float(rank_correlation(x, -y).correlation) == pytest.approx(-expected, abs=1e-6)


def test_the_interval_of_a_rank_correlation_covers_the_truth(generator):
    rho, runs, hits = 0.5, 200, 0
    truth = 6 / math.pi * math.asin(rho / 2)
    for _ in range(runs):
        x, z = torch.randn(2, 80, generator=generator)
        result = rank_correlation(x, rho * x + math.sqrt(1 - rho**2) * z, resamples=200, generator=generator)
        hits += int(result.low <= truth <= result.high)
    assert 0.89 * runs <= hits <= 0.985 * runs


def test_the_interval_of_unrelated_vectors_has_its_closed_form(generator):
    """The standard error is 1/sqrt(N - 1) there; a thousand redraws know both ends to 4%."""
    x, y = torch.randn(2, 500, generator=generator)
    for confidence in (0.5, 0.95):
        result = rank_correlation(x, y, confidence=confidence)
        half = stats.norm.ppf((1 + confidence) / 2) / math.sqrt(499)
        assert float(result.high - result.low) / 2 == pytest.approx(half, rel=0.1)


def test_rank_correlation_takes_labels_as_whole_numbers():
    labels = torch.arange(40) % 2
    assert rank_correlation(labels.float() + torch.linspace(0, 0.1, 40), labels).correlation > 0.8


def spoiled(value: float) -> torch.Tensor:
    rows = torch.eye(6) + 1
    rows[2, :] = value
    return rows


@pytest.mark.parametrize("function", ONE_SET)
@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (torch.ones(20, 4) * 0.3, ValueError, "samples that differ"),
        (torch.ones(20, 4).double() * 0.1, ValueError, "samples that differ"),
        (torch.ones(1, 4), ValueError, "at least . samples, got 1"),
        (spoiled(math.nan), ValueError, r"1 of 6 rows.*row 2"),
        (spoiled(math.inf), ValueError, r"1 of 6 rows.*row 2"),
        (spoiled(0.0), ValueError, r"1 of 6 rows.*row 2"),
        (torch.ones(3), ValueError, r"shape \(N, D\)"),
        (torch.ones(3, 3, dtype=torch.int64), TypeError, "floating-point"),
        (np.ones((3, 3)), TypeError, "torch tensor"),
    ],
)
def test_bad_rows_are_refused(function, rows, error, message):
    with pytest.raises(error, match=message):
        function(rows)


def test_too_few_for_a_property_are_refused(generator):
    two = ellipsoid_rows(2, 4, generator)
    for function in (thin_shell, ellipsoid, tilt):
        with pytest.raises(ValueError, match="at least 3 samples, got 2"):
            function(two)
    with pytest.raises(ValueError, match="at least 2 dimensions, got 1"):
        tilt(ellipsoid_rows(9, 1, generator))


def test_gap_of_sets_that_do_not_fit_is_refused(generator):
    rows = ellipsoid_rows(6, 4, generator)
    with pytest.raises(ValueError, match=r"image has 6 rows and text has 5.*paired=False"):
        modality_gap(rows, rows[:5])
    for paired in (True, False):
        with pytest.raises(ValueError, match="image has dimension 4 and text has dimension 3"):
            modality_gap(rows, rows[:, :3], paired=paired)
        with pytest.raises(ValueError, match="text: 1 of 6 rows"):
            modality_gap(rows, spoiled(math.nan)[:, :4], paired=paired)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.arange(9.0), torch.arange(9.0), "at least 10 values, got 9"),
        (torch.arange(10.0), torch.arange(11.0), r"\(10,\) and y has shape \(11,\)"),
        (torch.ones(4, 4), torch.ones(4, 4), "two vectors"),
        (torch.arange(12.0), torch.ones(12), "y: all values are equal"),
        (torch.arange(12.0), torch.full((12,), math.nan), "y: expected finite"),
    ],
)
def test_vectors_without_a_rank_correlation_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        rank_correlation(x, y)


def test_bad_options_of_a_rank_correlation_are_refused():
    x = torch.arange(12.0)
    with pytest.raises(ValueError, match="confidence"):
        rank_correlation(x, x, confidence=1.0)
    with pytest.raises(ValueError, match="resamples: expected at least 20, got 5"):
        rank_correlation(x, x, resamples=5)
    with pytest.raises(TypeError, match="y: expected a torch tensor"):
        rank_correlation(x, [1.0])


@pytest.mark.parametrize("function", ONE_SET)
def test_a_spread_of_a_few_roundings_is_taken_and_of_less_refused(function, generator):
    noise = torch.randn(50, 40, generator=generator, dtype=torch.float64)
    eps = torch.finfo(torch.float32).eps
    assert bool(torch.isfinite(flat(function((1 + 4 * eps * noise).float()))[:1]).all())
    with pytest.raises(ValueError, match="no more than rounding"):
        function((1 + 0.2 * eps * noise).double().float())
