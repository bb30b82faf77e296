"""Quantiles of Student's t and intervals of a share against scipy, and the coverage of a balanced accuracy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from clipconformity.evaluation.geometry import balanced_interval
from clipconformity.functional.resampling import (
    Estimate,
    estimated_share,
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
    assert estimated_share(share(0.3, error), 1e6) == pytest.approx(tuple(share_interval(30, 100)), rel=1e-4)
    assert estimated_share(share(0.3, 2 * error), 1e6) == pytest.approx(tuple(share_interval(7.5, 25)), rel=1e-4)
    assert estimated_share(share(0.3, error / 9), 100) == pytest.approx(tuple(share_interval(30, 100)), rel=0.02)
    few = estimated_share(share(0.3, error, 3), 1e6)
    assert few.high - few.low > 1.4 * (share_interval(30, 100).high - share_interval(30, 100).low)


def test_a_share_of_none_or_all_has_the_interval_of_so_many_rows():
    for value, hits in ((0.0, 0), (1.0, 50)):
        assert estimated_share(share(value, 0.0), 50) == share_interval(hits, 50)
    assert all(map(math.isnan, estimated_share(share(0.3, math.nan, 0), 50)))


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
            low, high = balanced_interval([h / n for h, n in zip(hits, counts, strict=True)], counts)
            seen[hits] = low <= truth <= high
        covered += seen[hits]
    assert covered >= 0.92 * 2000
