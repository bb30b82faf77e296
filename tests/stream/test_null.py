"""Redraws under one distribution: false alarms of the test and the floor, with groups and without."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from helpers import rows_with_cosine

import clipconformity as cc
from clipconformity.functional.two_sample import anderson_darling, tail_probability
from clipconformity.stream.moments import assign_buckets
from clipconformity.stream.null import MIN_GROUPS, _pooled_conformities, redraw
from clipconformity.stream.standing import make_fittable
from clipconformity.stream.stream import Needs, Stream

DIM = 16
NEEDS = Needs(conformity=True, rows=True, reference=True)


def drawn(groups: int, per_group: int, generator: torch.Generator, shift: float = 0.0, common=None) -> torch.Tensor:
    """Rows in groups that share half of the variance of their conformity."""
    shared = torch.randn(groups, generator=generator, dtype=torch.float64) if common is None else common
    own = torch.randn(groups * per_group, generator=generator, dtype=torch.float64)
    z = shared.repeat_interleave(per_group) * math.sqrt(0.5) + own * math.sqrt(0.5)
    return rows_with_cosine((0.6 + 0.05 * (z + shift)).clamp(-0.95, 0.95), DIM, generator)


def compared(rows, reference, groups=None):
    stream = Stream.open_against(reference, NEEDS)
    stream.update(rows, groups=groups)
    return stream.contrast("test")


@pytest.mark.parametrize(("groups", "per_group"), [(200, 1), (60, 5), (30, 5)])
def test_equal_distributions_seldom_differ(groups, per_group):
    """150 runs: at a level of 5% more than 12% is four standard deviations above."""
    below = 0
    for seed in range(150):
        generator = torch.Generator().manual_seed(seed)
        label = [None if per_group == 1 else torch.arange(n).repeat_interleave(per_group) for n in (120, groups)]
        reference = cc.ReferenceSet.fit(drawn(120, per_group, generator), groups=label[0])
        rows = drawn(groups, per_group, generator)
        contrast = compared(rows, reference, None if label[1] is None else label[1] + 1_000_000)
        found = redraw(contrast, 100, generator)
        pooled = found.observed[0] + found.observed[1]
        observed = anderson_darling(found.observed[0][None], found.observed[1][None], pooled)
        below += tail_probability(observed, anderson_darling(found.evaluated, found.reference, pooled)) <= 0.05
    assert below <= 18


def test_a_difference_is_seen_by_permutations_and_by_flips():
    generator = torch.Generator().manual_seed(0)
    for per_group in (1, 4):
        label = None if per_group == 1 else torch.arange(200).repeat_interleave(per_group)
        reference = cc.ReferenceSet.fit(drawn(200, per_group, generator), groups=label)
        metric = cc.ConformityKL(reference)
        metric.update(drawn(200, per_group, generator, 0.7), groups=None if label is None else label + 1000)
        assert metric.p_value(resamples=200) < 0.02


def test_the_p_value_does_not_depend_on_the_order_of_rows(generator):
    rows, reference = drawn(300, 1, generator), cc.ReferenceSet.fit(drawn(200, 1, generator))
    found = []
    for order in (torch.arange(300), rows[:, 0].argsort()):
        metric = cc.ConformityKL(reference)
        metric.update(rows[order])
        found.append((metric.p_value(resamples=100), metric.noise_floor(resamples=100)))
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_few_groups_are_worth_a_row_each(generator):
    groups = torch.arange(MIN_GROUPS - 1).repeat_interleave(4)
    reference = cc.ReferenceSet.fit(drawn(MIN_GROUPS - 1, 4, generator), groups=groups)
    contrast = compared(drawn(100, 1, generator), reference)
    observed = redraw(contrast, 10, generator).observed
    assert [float(side.sum()) for side in observed] == [100, MIN_GROUPS - 1]


def test_values_are_conformities_to_both_sides_together(generator):
    """Under one distribution a label says nothing of them: brute force, the own row left out, up to a constant."""
    rows, others = drawn(60, 1, generator), drawn(80, 1, generator)
    contrast = compared(rows, cc.ReferenceSet.fit(others))
    both = torch.cat([rows, others]).double().numpy()
    units = both / np.linalg.norm(both, axis=1, keepdims=True)
    matrix = units @ units.T
    np.fill_diagonal(matrix, np.nan)
    values = np.nanmean(matrix, 1)
    order = np.argsort(values)
    observed = redraw(contrast, 5, generator).observed
    # Cells of equal width in the same order: how many evaluated rows lie below each pooled quantile agrees.
    ours = np.cumsum(observed[0].numpy()) / 60
    pooled = np.cumsum((observed[0] + observed[1]).numpy())
    for rank in (20, 70, 120):
        below = ours[np.searchsorted(pooled, rank)]
        assert below == pytest.approx(np.isin(order[:rank], np.arange(60)).sum() / 60, abs=0.06)


def test_redraws_without_a_spread_are_fitted_without_a_warning(generator):
    """Signs of few groups can leave counts below 0 whose variance is negative."""
    cell = torch.arange(1026).double()
    base = torch.exp(-((cell - 500) ** 2) / 800).expand(9, -1).clone() * 10
    base[0, 200] -= 5 * base[0].sum() / 100
    fixed = make_fittable(base)
    assert bool((fixed[1:] == base[1:]).all())
    assert bool((fixed[0] >= 0).all())
    reference = cc.ReferenceSet.fit(drawn(60, 5, generator), groups=torch.arange(60).repeat_interleave(5))
    metric = cc.ConformityKL(reference)
    metric.update(drawn(60, 1, generator), groups=torch.arange(60) + 500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric.noise_floor(resamples=300) > 0


@pytest.mark.parametrize(("groups", "shared", "permuted"), [(49, False, True), (50, False, False), (49, True, False)])
def test_few_groups_are_permuted_unless_both_sides_have_them(groups, shared, permuted, generator):
    ids = torch.arange(groups).repeat_interleave(3)
    reference = cc.ReferenceSet.fit(drawn(groups, 3, generator), groups=ids)
    contrast = compared(drawn(groups, 3, generator), reference, ids if shared else ids + 1000)
    assert redraw(contrast, 10, generator).permuted == permuted


def test_a_redraw_that_spreads_by_a_tenth_of_the_usual_is_kept():
    """By less, its counts below 0 have taken the spread of the rest."""
    cell = torch.arange(1026).double()
    base = torch.exp(-((cell - 500) ** 2) / 800).expand(5, -1).clone() * 100
    spread = 400.0
    for row, share in ((0, 0.15), (1, 0.05)):
        taken = (1 - share) * spread * base[row].sum() / (2 * 40**2 + 1e-9)
        base[row, 460] -= taken
        base[row, 540] -= taken
    fixed = make_fittable(base)
    variances = [float(x @ cell**2 / x.sum() - (x @ cell / x.sum()) ** 2) / spread for x in base[:2]]
    assert 0.1 < variances[0] < 0.3
    assert 0 < variances[1] < 0.1
    assert torch.equal(fixed[0], base[0])
    assert float(fixed[1].min()) == 0


def test_values_of_rows_in_groups_leave_out_their_bucket(generator):
    ids = [torch.arange(60) // 3, torch.arange(90) // 3 + 10]
    rows, others = drawn(20, 3, generator), drawn(30, 3, generator)
    contrast = compared(rows, cc.ReferenceSet.fit(others, groups=ids[1]), ids[0])
    both, buckets = torch.cat([rows, others]).double().numpy(), assign_buckets(torch.cat(ids)).numpy()
    units = both / np.linalg.norm(both, axis=1, keepdims=True)
    expected = np.nanmean(np.where(buckets[:, None] == buckets[None], np.nan, units @ units.T), axis=1)
    for sample, part in ((contrast.sample, expected[:60]), (contrast.reference.sample, expected[60:])):
        np.testing.assert_allclose(np.sort(_pooled_conformities(contrast, sample, True)), np.sort(part), rtol=1e-9)
