"""Intervals by Student's t, of a share, of a jackknife and of a bootstrap against scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from clipconformity.evaluation.geometry import compute_balanced_interval
from clipconformity.functional.resampling import (
    Estimate,
    Interval,
    PartsLeftOut,
    basic_interval,
    effective_number,
    estimate_share,
    exponentiate_interval,
    jackknife,
    joint_jackknife,
    mean_error,
    share_interval,
    student_quantile,
    student_tail,
)


@pytest.mark.parametrize("probability", [0.975, 0.95, 0.6, 0.5, 0.2, 0.025, 0.9999])
def test_student_quantiles_equal_scipy(probability):
    degrees = [*range(1, 301), 1.5, 2.25, 7.77, 30.5, 123.456]
    found = [student_quantile(probability, df) for df in degrees]
    np.testing.assert_allclose(found, scipy.stats.t.ppf(probability, degrees), rtol=1e-8, atol=1e-12)


def test_many_degrees_of_freedom_come_near_the_normal_quantile():
    assert student_quantile(0.975, 1e6) == pytest.approx(scipy.stats.norm.ppf(0.975), abs=5e-6)


@pytest.mark.parametrize("value", [0.0, 0.5, -2.1, 40.0])
def test_the_tail_of_student_equals_scipy(value):
    assert student_tail(value, 7.5) == pytest.approx(2 * scipy.stats.t.sf(abs(value), 7.5), rel=1e-10)


def share(value: float, error: float, degrees: float = 1e6) -> Estimate:
    return Estimate(torch.tensor(value), torch.tensor(error), degrees)


def test_a_share_of_independent_rows_has_the_exact_interval_and_a_noisier_one_that_of_fewer():
    error = math.sqrt(0.3 * 0.7 / 100)
    assert estimate_share(share(0.3, error), 1e6) == pytest.approx(tuple(share_interval(30, 100)), rel=1e-4)
    assert estimate_share(share(0.3, 2 * error), 1e6) == pytest.approx(tuple(share_interval(7.5, 25)), rel=1e-4)
    assert estimate_share(share(0.3, error / 9), 100) == pytest.approx(tuple(share_interval(30, 100)), rel=0.02)
    few = estimate_share(share(0.3, error, 3), 1e6)
    assert few.high - few.low > 1.4 * (share_interval(30, 100).high - share_interval(30, 100).low)


def test_a_share_of_none_or_all_has_the_interval_of_so_many_rows():
    for value, hits in ((0.0, 0), (1.0, 50)):
        assert estimate_share(share(value, 0.0), 50) == share_interval(hits, 50)
    assert all(map(math.isnan, estimate_share(share(0.3, math.nan, 0), 50)))


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (1, 20), (19, 20), (20, 20), (750, 1500), (1499, 1500)])
def test_the_interval_of_a_share_equals_scipy(hits, count):
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert share_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: student_quantile(1.0, 5), "probability: expected a number between 0 and 1, got 1.0"),
        (lambda: student_quantile(0.9, 0), "degrees: expected degrees of freedom above 0, got 0"),
        (lambda: student_quantile(0.9, math.nan), "degrees: expected degrees of freedom above 0, got nan"),
        (lambda: share_interval(5, 4), "hits: expected 0 to 4"),
        (lambda: share_interval(0, 0), "hits: expected 0 to 0 of a positive count"),
        (lambda: share_interval(2, 4, 1.0), "confidence: expected a number between 0 and 1"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("counts", [(1500, 20), (20, 1500), (40, 40), (500, 500)])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.9), (0.99, 0.9), (0.9, 0.99), (0.99, 0.99), (0.9915, 0.9915)])
def test_the_interval_of_a_balanced_accuracy_covers_it(counts, shares):
    """Taken for a share of all samples it covered 0% at 1,500 against 20, whose accuracy is known to 10%."""
    draw = np.random.default_rng(0)
    truth, seen = sum(shares) / 2, {}
    pairs = zip(*(draw.binomial(n, p, 2000) for n, p in zip(counts, shares, strict=True)), strict=True)
    covered = 0
    for hits in pairs:
        if hits not in seen:
            low, high = compute_balanced_interval([h / n for h, n in zip(hits, counts, strict=True)], counts)
            seen[hits] = low <= truth <= high
        covered += seen[hits]
    assert covered >= 0.92 * 2000


def left_out(x: torch.Tensor) -> torch.Tensor:
    """Mean without each value."""
    return (x.sum() - x) / (len(x) - 1)


def test_the_jackknife_of_a_mean_is_the_t_interval_of_scipy(generator):
    x, ones = torch.randn(15, generator=generator).double(), torch.ones(15, dtype=torch.float64)
    found = jackknife(x.mean(), left_out(x), ones)
    expected = scipy.stats.t.interval(0.9, 14, loc=float(x.mean()), scale=scipy.stats.sem(x.numpy()))
    assert found.interval(0.9) == pytest.approx(expected, rel=1e-9)
    assert float(mean_error(x, ones)) == pytest.approx(scipy.stats.sem(x.numpy()), rel=1e-9)
    with_empty = jackknife(x.mean(), torch.cat([left_out(x), x[:3]]), torch.cat([ones, 0 * ones[:3]]))
    assert with_empty.interval(0.9) == pytest.approx(expected, rel=1e-9)


def test_two_sides_have_the_degrees_of_freedom_of_welch(generator):
    """Each value in a bucket of its own, which the other side has not."""
    x, y = torch.randn(12, generator=generator).double(), 3 * torch.randn(30, generator=generator).double()
    counts = [torch.cat([torch.ones(12), torch.zeros(30)]), torch.cat([torch.zeros(12), torch.ones(30)])]
    mine = torch.cat([left_out(x), x.mean().expand(30)])
    theirs = torch.cat([y.mean().expand(12), left_out(y)])
    sides = mine - y.mean(), x.mean() - theirs
    found = joint_jackknife(x.mean() - y.mean(), mine - theirs, sides, (counts[0].double(), counts[1].double()))
    variances = [scipy.stats.sem(one.numpy()) ** 2 for one in (x, y)]
    assert found.degrees == pytest.approx(scipy.stats.ttest_ind(x.numpy(), y.numpy(), equal_var=False).df, rel=1e-9)
    assert found.parts == pytest.approx(variances, rel=1e-9)
    assert float(found.error) ** 2 == pytest.approx(sum(variances), rel=0.05)  # of 42 buckets, not of 12 and 30


def test_a_bucket_that_both_sides_hold_is_left_out_of_both(generator):
    """The difference of two equal sides is known exactly, whatever the spread of each."""
    x, ones = torch.randn(20, generator=generator).double(), torch.ones(20, dtype=torch.float64)
    without = left_out(x)
    found = joint_jackknife(0 * x.sum(), without - without, (without - x.mean(), x.mean() - without), (ones, ones))
    assert float(found.error) == 0
    assert found.parts == pytest.approx([scipy.stats.sem(x.numpy()) ** 2] * 2, rel=1e-9)


@pytest.mark.parametrize(("count", "worth"), [([3, 3, 3], 3), ([4, 1, 1], 2), ([5, 0, 0], 1), ([0, 0, 0], 0)])
def test_buckets_are_worth_kishs_number_of_equal_ones(count, worth):
    assert effective_number(torch.tensor(count).double()) == pytest.approx(worth)


@pytest.mark.parametrize(("count", "degrees"), [([3.0, 3.0], 1.0), ([3.0, 2.0], 0.0), ([8.0, 1.0, 1.0], 0.0)])
def test_two_equal_buckets_are_the_least_that_tells_an_error(count, degrees):
    sizes, left = torch.tensor(count).double(), torch.arange(len(count)).double()
    for found in (jackknife(left[0], left, sizes), joint_jackknife(left[0], left, (left,), (sizes,))):
        assert found.degrees == pytest.approx(degrees)
        assert math.isnan(found.half_width()) == (degrees == 0)


def test_a_ratio_has_a_finite_interval_however_wide_that_of_its_logarithm_is():
    assert exponentiate_interval(Interval(-800.0, 800.0)) == pytest.approx((0.0, math.exp(700)))
    assert exponentiate_interval(Interval(0.0, math.log(2))) == pytest.approx((1.0, 2.0))


@pytest.mark.parametrize(
    ("point", "bias", "draws", "ends"),
    [
        (1.0, 0.1, (0.5, 1.5), (0.525, 1.475)),  # twice the point less the quantiles 0.525 and 1.475
        (0.02, 0.01, (0.02, 0.2), (0.0, 0.1755)),  # cut at 0; the upper quantile 0.1955 less both biases
        (0.5, 0.1, (0.1, 0.3), (0.4, 0.895)),  # not above the value, 0.5 - 0.1
        (0.5, 0.1, (1.0, 1.0), (0.0, 0.8)),
        (0.5, 0.5, (0.9, 0.9), (0.0, 0.1)),
        (0.2, 0.4, (0.3, 0.5), (0.0, 0.095)),  # 0.4 - 0.305
        (0.2, 0.4, (0.5, 0.6), (0.0, 0.0)),  # an upper end below 0 is cut too
    ],
)
def test_a_basic_interval_by_hand(point, bias, draws, ends):
    drawn = torch.linspace(*draws, 1001, dtype=torch.float64)
    low, high = basic_interval(torch.tensor(point, dtype=torch.float64), bias, drawn, 0.95)
    assert (float(low), float(high)) == pytest.approx(ends, abs=1e-9)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_parts_are_left_out_with_what_that_moves(dtype, near, generator):
    """Of 900 values in blocks and seven parts, one of them empty and one of a single value."""
    values, part = torch.randn(900, generator=generator).double(), torch.randint(5, (900,), generator=generator)
    part[400] = 5
    moved = 0.1 * torch.randn(900, 7, generator=generator)
    left, plain = PartsLeftOut(7), PartsLeftOut(7)
    for rows in torch.arange(900).split(256):
        left.add(values[rows], part[rows], moved[rows].to(dtype))
        plain.add(values[rows], part[rows])
    for one in range(7):
        kept = part != one
        for found, x in ((left, values + moved[:, one]), (plain, values)):
            assert float(found.mean[one]) == pytest.approx(float(x[kept].mean()), abs=near)
            assert float(found.variance[one]) == pytest.approx(float(x[kept].var()), rel=near)
