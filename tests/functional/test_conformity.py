"""Conformity and the norms as pure functions, against brute force in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import brute_conformity, brute_self_conformity, double, ellipsoid_rows

import clipconformity as cc
from clipconformity.functional import (
    conformity,
    conformity_fit,
    estimated_conformity,
    norm_statistics,
    self_conformity,
)
from clipconformity.functional.conformity import fit_lines

TOLERANCE = {torch.float16: 3e-7, torch.bfloat16: 3e-7, torch.float32: 3e-7, torch.float64: 1e-12}


@pytest.mark.parametrize(("count", "dim"), [(2, 3), (3, 1), (57, 16), (5000, 512)])
def test_conformity_equals_the_mean_of_the_cosine_matrix(count, dim, generator):
    rows = ellipsoid_rows(count, dim, generator)
    np.testing.assert_allclose(conformity(rows), brute_conformity(rows), atol=3e-7)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_conformity_is_as_exact_as_its_input(dtype, generator):
    rows = ellipsoid_rows(300, 40, generator).to(dtype)
    value = conformity(rows)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(value, brute_conformity(rows), atol=TOLERANCE[dtype], rtol=0)
    np.testing.assert_allclose(self_conformity(rows), brute_self_conformity(rows), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("size", [1, 7, 400])
def test_conformity_to_reference_embeddings_equals_brute_force(size, generator):
    rows, reference = ellipsoid_rows(50, 24, generator), ellipsoid_rows(size, 24, generator, offset=0.3)
    np.testing.assert_allclose(conformity(rows, reference), brute_conformity(rows, reference), atol=3e-7)


def test_conformity_to_a_reference_set_equals_conformity_to_its_embeddings(generator):
    rows, reference = ellipsoid_rows(50, 24, generator), ellipsoid_rows(400, 24, generator, offset=0.3)
    value = conformity(rows, cc.ReferenceSet.fit(reference))
    np.testing.assert_allclose(value, brute_conformity(rows, reference), atol=3e-7)


def test_one_sample_against_a_reference_is_enough(generator):
    row, reference = ellipsoid_rows(1, 24, generator), ellipsoid_rows(30, 24, generator)
    np.testing.assert_allclose(conformity(row, reference), brute_conformity(row, reference), atol=3e-7)


def test_conformity_ignores_the_scale_of_every_row(generator):
    rows = ellipsoid_rows(100, 16, generator).double()
    scale = torch.logspace(-6, 6, 100, dtype=torch.float64)[:, None]
    np.testing.assert_allclose(conformity(rows * scale), brute_conformity(rows), atol=1e-12)


def test_conformity_of_many_rows_builds_no_square_matrix(generator):
    rows = ellipsoid_rows(200_000, 8, generator)  # the cosine matrix would take 160 GB
    value = conformity(rows)
    some = torch.arange(0, 200_000, 20_000)
    u = double(rows) / np.linalg.norm(double(rows), axis=1, keepdims=True)
    expected = ((u[some] @ u.T).sum(1) - 1) / (len(u) - 1)
    np.testing.assert_allclose(value[some], expected, atol=1e-6, rtol=0)


def test_conformity_does_not_change_its_input(generator):
    rows = ellipsoid_rows(20, 4, generator)
    before = rows.clone()
    conformity(rows)
    norm_statistics(rows)
    assert torch.equal(rows, before)


def test_autocast_does_not_change_the_values(generator):
    rows = ellipsoid_rows(500, 64, generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = conformity(rows)
        whole = self_conformity(rows)
        estimate = estimated_conformity(rows)
        fit = conformity_fit(rows)
        norms = norm_statistics(rows)
    np.testing.assert_allclose(inside, brute_conformity(rows), atol=3e-7)
    np.testing.assert_allclose(whole, brute_self_conformity(rows), atol=3e-7)
    assert torch.equal(estimate, estimated_conformity(rows))
    np.testing.assert_allclose(fit.slope, np.polyfit(*fit_axes(rows), 1)[0], rtol=1e-4)
    np.testing.assert_allclose(norms.mean, np.linalg.norm(double(rows), axis=1).mean(), rtol=1e-6)


def test_a_gradient_is_not_kept(generator):
    rows = ellipsoid_rows(20, 4, generator).requires_grad_()
    assert not conformity(rows).requires_grad


# --- self-conformity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 100, 5000])
def test_self_conformity_of_identical_samples_is_one(count):
    assert float(self_conformity(torch.tensor([[3.0, -4.0, 12.0]]).repeat(count, 1))) == pytest.approx(1, abs=3e-6)


@pytest.mark.parametrize("function", [conformity, self_conformity])
@pytest.mark.parametrize("count", [2, 3, 7, 100, 1000])
def test_rounding_does_not_lift_a_mean_cosine_above_one(function, count):
    for row in ([3.0, -4.0, 12.0], [1.0, 1.0, 1.0], [0.1, 0.7, 0.3]):
        assert float(function(torch.tensor([row]).repeat(count, 1)).max()) <= 1


@pytest.mark.parametrize("dim", [2, 16, 100])
def test_self_conformity_of_an_orthogonal_basis_is_zero(dim):
    assert float(self_conformity(5 * torch.eye(dim))) == pytest.approx(0, abs=1e-6)


def test_self_conformity_of_opposite_samples_is_its_lower_bound():
    assert float(self_conformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))) == pytest.approx(-1)


def test_self_conformity_of_a_simplex_is_its_lower_bound():
    simplex = torch.eye(5) - 1 / 5
    assert float(self_conformity(simplex)) == pytest.approx(-1 / 4, abs=1e-6)


def test_self_conformity_is_the_mean_of_the_own_set_conformities(generator):
    rows = ellipsoid_rows(80, 12, generator)
    np.testing.assert_allclose(self_conformity(rows), brute_conformity(rows).mean(), atol=3e-7)


# --- estimated conformity and the fit --------------------------------------------------------------------------------


def estimate_oracle(rows: torch.Tensor, mean: np.ndarray | None = None) -> np.ndarray:
    values = double(rows)
    m = values.mean(0) if mean is None else mean
    return values @ m / np.linalg.norm(values, axis=1) / np.linalg.norm(m)


def fit_axes(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Estimated and exact conformity: the two axes of the fit."""
    return estimate_oracle(rows), brute_conformity(rows)


def test_estimated_conformity_is_the_cosine_to_the_raw_mean(generator):
    rows = ellipsoid_rows(200, 30, generator)
    np.testing.assert_allclose(estimated_conformity(rows), estimate_oracle(rows), atol=3e-7)


def test_estimated_conformity_takes_a_given_mean(generator):
    rows, mean = ellipsoid_rows(200, 30, generator), torch.randn(30, generator=generator)
    np.testing.assert_allclose(estimated_conformity(rows, mean), estimate_oracle(rows, double(mean)), atol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conformity_fit_equals_numpy_polyfit_both_ways(dtype, generator):
    rows = ellipsoid_rows(500, 20, generator).to(dtype)
    estimate, exact = fit_axes(rows)
    fit = conformity_fit(rows)
    rtol = 1e-4 if dtype == torch.float32 else 1e-9
    np.testing.assert_allclose([fit.slope, fit.intercept], np.polyfit(estimate, exact, 1), rtol=rtol, atol=rtol)
    inverse = np.polyfit(exact, estimate, 1)
    np.testing.assert_allclose([fit.inverse_slope, fit.inverse_intercept], inverse, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(fit.pearson, np.corrcoef(estimate, exact)[0, 1], rtol=rtol)


def test_conformity_fit_refuses_samples_of_equal_conformity():
    with pytest.raises(ValueError, match="same conformity"):
        conformity_fit(torch.eye(6))


# --- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_norm_statistics_equal_numpy(dtype, generator):
    rows = ellipsoid_rows(400, 24, generator).to(dtype)
    levels = (0.0, 0.1, 0.5, 0.93, 1.0)
    values = double(rows)
    norms = np.linalg.norm(values, axis=1)
    centered = np.linalg.norm(values - values.mean(0), axis=1)
    result = norm_statistics(rows, levels)
    for found, expected in [
        (result.mean, norms.mean()),
        (result.std, norms.std(ddof=1)),
        (result.quantiles, np.quantile(norms, levels)),
        (result.centered_mean, centered.mean()),
        (result.centered_std, centered.std(ddof=1)),
        (result.centered_quantiles, np.quantile(centered, levels)),
        (result.conformity_correlation, np.corrcoef(norms, brute_conformity(rows))[0, 1]),
    ]:
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_norm_statistics_survive_a_large_offset(generator):
    rows = ellipsoid_rows(400, 24, generator) + 1000
    values = double(rows)
    centered = np.linalg.norm(values - values.mean(0), axis=1)
    result = norm_statistics(rows)
    np.testing.assert_allclose(result.centered_mean, centered.mean(), rtol=1e-4)
    np.testing.assert_allclose(result.std, np.linalg.norm(values, axis=1).std(ddof=1), rtol=1e-4)


@pytest.mark.parametrize("level", [-0.1, 1.5])
def test_norm_statistics_refuse_a_level_outside_the_unit_interval(level):
    with pytest.raises(ValueError, match=r"quantile levels in \[0, 1\]"):
        norm_statistics(torch.eye(3), (level,))


# --- bad input -------------------------------------------------------------------------------------------------------

FUNCTIONS = [conformity, self_conformity, estimated_conformity, conformity_fit, norm_statistics]
everywhere = pytest.mark.parametrize("function", FUNCTIONS)


@everywhere
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_named(function, value, generator):
    rows = ellipsoid_rows(20, 5, generator)
    rows[7, 2] = value
    with pytest.raises(ValueError, match=r"1 of 20 rows are zero or hold NaN or infinite values \(first: row 7\)"):
        function(rows)


@everywhere
def test_zero_rows_are_counted(function, generator):
    rows = ellipsoid_rows(20, 5, generator)
    rows[[3, 9]] = 0
    with pytest.raises(ValueError, match=r"2 of 20 rows are zero .*first: row 3"):
        function(rows)


@everywhere
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_embeddings_that_are_not_floating_point_are_refused(function, dtype):
    with pytest.raises(TypeError, match="expected floating-point raw embeddings, got torch"):
        function(torch.ones(5, 3, dtype=dtype))


@everywhere
@pytest.mark.parametrize("value", [np.ones((5, 3)), [[1.0, 2.0]], None])
def test_what_is_no_tensor_is_refused(function, value):
    with pytest.raises(TypeError, match=r"expected a torch tensor of shape \(N, D\)"):
        function(value)


@everywhere
@pytest.mark.parametrize("shape", [(5,), (5, 1, 3), (5, 0), ()])
def test_another_shape_is_refused_and_told(function, shape):
    with pytest.raises(ValueError, match=r"expected shape \(N, D\), got \("):
        function(torch.ones(shape))


@pytest.mark.parametrize("function", [conformity, self_conformity, norm_statistics])
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_refused(function, count):
    with pytest.raises(ValueError, match=f"at least 2 samples, got {count}"):
        function(torch.ones(count, 3))


def test_a_fit_takes_three_samples():
    with pytest.raises(ValueError, match="at least 3 samples, got 2"):
        conformity_fit(torch.eye(2))


def test_no_samples_at_all_are_refused_against_a_reference():
    with pytest.raises(ValueError, match="at least 1 samples, got 0"):
        conformity(torch.ones(0, 3), torch.ones(4, 3))


def test_an_empty_reference_is_refused():
    with pytest.raises(ValueError, match="reference: expected at least 1 samples, got 0"):
        conformity(torch.ones(4, 3), torch.ones(0, 3))


def test_a_bad_row_of_the_reference_is_named(generator):
    reference = ellipsoid_rows(9, 5, generator)
    reference[4] = float("nan")
    with pytest.raises(ValueError, match=r"reference: 1 of 9 rows .*first: row 4"):
        conformity(ellipsoid_rows(3, 5, generator), reference)


@pytest.mark.parametrize("kind", ["tensor", "ReferenceSet"])
def test_a_reference_of_another_dimension_is_refused_naming_both(kind, generator):
    reference = ellipsoid_rows(20, 6, generator)
    with pytest.raises(ValueError, match="dimension 5 and reference has dimension 6"):
        conformity(torch.ones(4, 5), reference if kind == "tensor" else cc.ReferenceSet.fit(reference))


def test_a_reference_of_another_type_is_refused():
    with pytest.raises(TypeError, match="expected embeddings .* or a ReferenceSet, got str"):
        conformity(torch.ones(4, 5), "coco")


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (torch.zeros(5), "finite, non-zero vector"),
        (torch.full((5,), float("nan")), "finite, non-zero vector"),
        (torch.ones(4), r"expected shape \(5,\), got \(4,\)"),
    ],
)
def test_a_mean_without_direction_or_of_another_shape_is_refused(mean, message, generator):
    with pytest.raises(ValueError, match=message):
        estimated_conformity(ellipsoid_rows(10, 5, generator), mean)


def test_a_set_whose_mean_is_zero_has_no_estimate():
    with pytest.raises(ValueError, match="direction of a zero mean is undefined"):
        estimated_conformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_centred_norms_far_from_the_origin_are_those_about_the_exact_mean(offset, generator):
    """A mean rounded to float32 is off by 0.004 there, as much as a small spread."""
    rows = (torch.randn(500, 16, generator=generator) * 0.05 + offset).float()
    values = double(rows)
    distance = np.linalg.norm(values - values.mean(0), axis=1)
    found = norm_statistics(rows, levels=(0.0, 0.5))
    np.testing.assert_allclose(found.centered_mean, distance.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.centered_std, distance.std(ddof=1), rtol=1e-6)
    np.testing.assert_allclose(found.centered_quantiles, np.quantile(distance, [0.0, 0.5]), rtol=1e-6)


@pytest.mark.parametrize(("spread", "fitted"), [(3e-7, True), (3e-8, False)])
def test_a_line_is_fitted_where_conformity_varies_beyond_rounding(spread, fitted):
    exact = 0.5 + spread * torch.linspace(-1, 1, 20, dtype=torch.float64)
    for pair in ((exact, 100 * exact), (100 * exact, exact)):
        if fitted:
            assert float(fit_lines(*pair).pearson) == pytest.approx(1)
        else:
            with pytest.raises(ValueError, match="all samples have the same conformity"):
                fit_lines(*pair)
