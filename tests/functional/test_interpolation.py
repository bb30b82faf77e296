"""slerp and vSLERP, against the unit circle, a rotation matrix and the formula of the published code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows, unit

from clipconformity.functional.interpolation import slerp, vslerp

POSITIONS = [0.0, 0.1, 0.5, 0.9, 1.0]
DTYPES = [torch.float32, torch.float64]


@pytest.fixture
def ends(generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = ellipsoid_rows(80, 32, generator)
    return rows[:40], rows[40:], rows.mean(0)


def on_circle(angle: torch.Tensor | float, radius: float = 1.0) -> torch.Tensor:
    angle = torch.as_tensor(angle, dtype=torch.float64)
    return radius * torch.stack([angle.cos(), angle.sin()], -1)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 1e-4, 9e-3, 0.011, 0.03, 0.5, 2.0, 3.1, math.pi - 1e-5])
@pytest.mark.parametrize("t", POSITIONS)
def test_slerp_walks_the_unit_circle(angle, t):
    value = slerp(on_circle(0.3), on_circle(0.3 + angle), t)
    torch.testing.assert_close(
        value, on_circle(0.3 + t * angle), rtol=0, atol=2e-15 / (math.sin(angle) if angle > 1 else 1)
    )


@pytest.mark.parametrize("angle", [1e-5, 1e-4, 1e-3])
def test_a_tiny_angle_is_not_lost_in_float32(angle):
    start, end = on_circle(0.0).float(), on_circle(angle).float()
    value = slerp(start, end, 0.25)
    assert float(value[1]) == pytest.approx(math.sin(angle / 4), rel=1e-6)


def test_slerp_equals_the_formula_on_raw_vectors(ends):
    start, end, _ = ends
    a, b = unit(double(start)), unit(double(end))
    angle = np.arccos((a * b).sum(1))[:, None]
    expected = (np.sin(0.7 * angle) * double(start) + np.sin(0.3 * angle) * double(end)) / np.sin(angle)
    np.testing.assert_allclose(slerp(start.double(), end.double(), 0.3), expected, rtol=1e-9)
    np.testing.assert_allclose(slerp(start, end, 0.3), expected, rtol=1e-5)
    np.testing.assert_allclose(slerp(start * 2.0**-40, end * 2.0**-40, 0.3) * 2.0**40, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, -2.0])
@pytest.mark.parametrize("elementwise", [False, True])
def test_vslerp_is_exact_at_both_ends(dtype, alpha, elementwise, ends):
    start, end, mean = (x.to(dtype) for x in ends)
    assert torch.equal(vslerp(start, end, 0.0, mean, alpha, elementwise_angle=elementwise), start)
    assert torch.equal(vslerp(start, end, 1.0, mean, alpha, elementwise_angle=elementwise), end)


@pytest.mark.parametrize("dtype", DTYPES)
def test_slerp_is_exact_at_both_ends(dtype, ends):
    start, end, _ = (x.to(dtype) for x in ends)
    for other in (end, start, start * (1 + 1e-6), -start, -2 * start):
        assert torch.equal(slerp(start, other, 0.0), start)
        assert torch.equal(slerp(start, other, 1.0), other)


@pytest.mark.parametrize("t", POSITIONS)
def test_vslerp_is_the_formula_about_the_shifted_centre(t, ends):
    start, end, mean = (x.double() for x in ends)
    assert torch.equal(vslerp(start, end, t, mean, 0.0), slerp(start, end, t))
    for alpha in (0.5, 1.0):
        center = alpha * mean
        expected = center + slerp(start - center, end - center, t)
        torch.testing.assert_close(vslerp(start, end, t, mean, alpha), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_the_option_reproduces_the_published_code(t, ends):
    start, end, mean = (double(x.double()) for x in ends)
    v0, v1 = start - mean, end - mean
    omega = np.arccos(unit(v0) * unit(v1))  # element by element: no sum
    expected = mean + np.sin((1 - t) * omega) / np.sin(omega) * v0 + np.sin(t * omega) / np.sin(omega) * v1
    arguments = [torch.from_numpy(x) for x in (start, end)]
    value = vslerp(*arguments, t, torch.from_numpy(mean), elementwise_angle=True)
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)
    formula = vslerp(*arguments, t, torch.from_numpy(mean))
    assert float((value - formula).abs().max()) > 0.01


def test_vslerp_stays_on_the_sphere_about_the_mean(generator):
    mean = torch.full((6,), 4.0, dtype=torch.float64)
    rows = torch.randn(2, 20, 6, generator=generator, dtype=torch.float64)
    start, end = mean + 2 * rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    for t in POSITIONS:
        radius = torch.linalg.vector_norm(vslerp(start, end, t, mean) - mean, dim=1)
        torch.testing.assert_close(radius, torch.full_like(radius, 2.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1.0, 0.3, 7.0])
def test_opposite_ends_turn_through_a_perpendicular_axis(dtype, length):
    start = torch.tensor([3.0, 0.5, 4.0], dtype=dtype)
    end = -length * start
    radius = float(torch.linalg.vector_norm(start))
    for t in (0.0, 0.2, 0.5, 0.7, 1.0):
        value = slerp(start, end, t)
        norm = (1 - t + t * length) * radius
        assert float(torch.linalg.vector_norm(value)) == pytest.approx(norm, rel=1e-6)
        assert float(value @ start) / radius / norm == pytest.approx(math.cos(math.pi * t), abs=1e-6)
    middle = slerp(start, end, 0.5)
    assert middle[1] > 0.9 * torch.linalg.vector_norm(middle)  # the axis nearest to perpendicular
    both = slerp(torch.stack([start, start]), torch.stack([end, start]), 0.5)
    torch.testing.assert_close(both, torch.stack([middle, start]))
    for elementwise in (False, True):
        mean = torch.ones(3, dtype=dtype)
        turned = vslerp(mean + start, mean + end, 0.5, mean, elementwise_angle=elementwise)
        torch.testing.assert_close(turned, mean + middle)


def test_opposite_one_hot_and_one_dimensional_ends_are_finite():
    one_hot = torch.tensor([0.0, 2.0, 0.0])
    value = vslerp(one_hot, -one_hot, 0.5, torch.zeros(3), elementwise_angle=True)
    torch.testing.assert_close(value, torch.tensor([2.0, 0.0, 0.0]))
    torch.testing.assert_close(vslerp(one_hot, one_hot, 0.3, torch.zeros(3), elementwise_angle=True), one_hot)
    assert slerp(torch.tensor([2.0]), torch.tensor([-2.0]), 0.5).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-8, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("elementwise", [False, True])
def test_gradients_equal_finite_differences_at_every_distance(distance, elementwise, generator):
    start, noise = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    end = (start + distance * noise).requires_grad_()
    start.requires_grad_()
    mean = torch.full((4,), 0.2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b, s, m: vslerp(a, b, s, m, 0.7, elementwise_angle=elementwise), (start, end, t, mean), atol=1e-5
    )
    if not elementwise:
        assert torch.autograd.gradcheck(slerp, (start, end, t), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1.0, 1 + 1e-7, 2.0, -1.0, -0.5, -1 - 1e-7])
@pytest.mark.parametrize("t", POSITIONS)
def test_gradients_are_finite_at_equal_and_opposite_ends(dtype, factor, t, generator):
    start = (torch.randn(5, 8, generator=generator, dtype=dtype)).requires_grad_()
    end = (start.detach() * factor).requires_grad_()
    for value in (slerp(start, end, t), vslerp(start, end, t, torch.zeros(8, dtype=dtype))):
        for gradient in torch.autograd.grad(value.square().sum(), (start, end), retain_graph=True):
            assert bool(torch.isfinite(gradient).all())


def test_batches_broadcast(ends):
    start, end, mean = ends
    t = torch.linspace(0, 1, 5)
    walk = vslerp(start[0], end[0], t, mean)
    assert walk.shape == (5, 32)
    torch.testing.assert_close(walk[2], vslerp(start[0], end[0], 0.5, mean))
    each = slerp(start, end[0], torch.linspace(0, 1, 40))
    torch.testing.assert_close(each[7], slerp(start[7], end[0], 7 / 39))
    assert vslerp(start.view(8, 5, 32), end.view(8, 5, 32), 0.5, mean).shape == (8, 5, 32)


@pytest.mark.parametrize(
    ("start", "end", "t", "error", "message"),
    [
        (torch.zeros(3), torch.ones(3), 0.5, ValueError, "start: 1 of 1 rows are zero"),
        (torch.ones(3), torch.full((3,), math.nan), 0.5, ValueError, "end: 1 of 1 rows are zero or hold NaN"),
        (torch.ones(3), torch.ones(4), 0.5, ValueError, "start has dimension 3 and end has dimension 4"),
        (torch.ones(2, 3), torch.ones(5, 3), 0.5, ValueError, r"\(2, 3\) and end of shape \(5, 3\) do not broadcast"),
        (torch.ones(3), torch.ones(3), math.nan, ValueError, "t: expected finite"),
        (torch.ones(3).long(), torch.ones(3), 0.5, TypeError, "start: expected a floating-point tensor"),
        (torch.tensor(1.0), torch.ones(3), 0.5, ValueError, r"start: expected shape \(\.\.\., D\)"),
    ],
)
def test_bad_ends_are_refused(start, end, t, error, message):
    with pytest.raises(error, match=message):
        slerp(start, end, t)
    with pytest.raises(error, match=message):
        vslerp(start, end, t, torch.full((3,), 0.5))


def test_bad_centres_are_refused():
    start, end = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    with pytest.raises(ValueError, match=r"start - alpha \* mean: 1 of 1 rows are zero"):
        vslerp(start, end, 0.5, start)
    with pytest.raises(ValueError, match="mean has dimension 3 and embeddings has dimension 2"):
        vslerp(start, end, 0.5, torch.ones(3))
    with pytest.raises(ValueError, match="alpha: expected a finite number"):
        vslerp(start, end, 0.5, torch.ones(2), math.inf)
