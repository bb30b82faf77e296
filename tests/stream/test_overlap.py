"""Rows and groups that both sides share: found, counted, left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import brute_conformity, ellipsoid_rows, unit

import clipconformity as cc
from clipconformity.stream.overlap import MAX_DISTANCE, find_near_pairs
from clipconformity.stream.stream import Needs, OverlapWarning, Stream

DIM = 24
NEEDS = Needs(conformity=True, rows=True, reference=True)


def compared(rows, reference, groups=None, ids=None) -> Stream:
    stream = Stream.open_against(reference, NEEDS)
    stream.update(rows, groups=groups, ids=ids)
    return stream


def brute_pairs(rows: torch.Tensor, others: torch.Tensor, near: float) -> set[tuple[int, int]]:
    cosine = unit(rows.double().numpy()) @ unit(others.double().numpy()).T
    return {(int(a), int(b)) for a, b in zip(*np.nonzero(cosine > 1 - near), strict=True)}


@pytest.mark.parametrize("dim", [1, 2, 3, 24, 300])
@pytest.mark.parametrize("spread", [1.0, 0.01, 1e-4])
def test_near_pairs_equal_the_cosine_matrix(dim, spread, generator):
    base = ellipsoid_rows(1500, dim, generator) if dim > 2 else torch.randn(1500, dim, generator=generator)
    rows = base[:1] + spread * base
    others = torch.cat([rows[:200] * (1 + 1e-4 * torch.randn(200, dim, generator=generator)), rows[700:900].flip(0)])
    first, second = find_near_pairs(rows.double(), 1e3 * others.double())  # of any length
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    assert (
        brute_pairs(rows, others, 0.98 * MAX_DISTANCE) <= found <= brute_pairs(rows, others, 1.02 * MAX_DISTANCE)
    )  # but for rounding


@pytest.mark.parametrize(("apart", "found"), [(0.5e-5, True), (2e-5, False)])
def test_equal_rows_are_those_within_a_cosine_of_a_hundred_thousandth(apart, found, generator):
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)).Q
    rows, others = turn[:5], (1 - apart) * turn[:5] + math.sqrt(1 - (1 - apart) ** 2) * turn[5:10]
    assert len(find_near_pairs(rows, others)[0]) == (5 if found else 0)


def test_a_few_equal_rows_among_ten_thousand_are_found(generator):
    others = ellipsoid_rows(10_000, 64, generator)
    rows = torch.cat([ellipsoid_rows(5000, 64, generator), others[[17, 9_998]] * 3])
    first, second = find_near_pairs(rows, others)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(5000, 17), (5001, 9998)]


@pytest.mark.parametrize("size", [20, 50, 400])
def test_a_reference_scored_against_itself_shifts_nothing(size, generator):
    """With each row compared with itself the shift was 0.58 at 20 rows and 0.20 at 50."""
    rows = ellipsoid_rows(size, DIM, generator)
    metric = cc.Conformity(cc.ReferenceSet.fit(rows))
    metric.update(rows)
    with pytest.warns(OverlapWarning, match=f"{size} of {size} samples are also in the reference"):
        value = metric.compute()
    assert float(value["typicality_shift"]) == pytest.approx(0, abs=1e-6)
    assert float(value["spread_ratio"]) == pytest.approx(1, abs=1e-6)
    assert float(value["conformity_mean"]) == pytest.approx(brute_conformity(rows).mean(), abs=1e-6)


def test_shared_rows_leave_themselves_out_and_the_rest_stays(generator):
    reference, own = ellipsoid_rows(60, DIM, generator), ellipsoid_rows(30, DIM, generator)
    rows = torch.cat([own, reference[:10] * 2])  # another norm, the same direction
    contrast = compared_quietly(rows, cc.ReferenceSet.fit(reference))
    cosine = unit(rows.double().numpy()) @ unit(reference.double().numpy()).T
    cosine[cosine > 1 - MAX_DISTANCE] = np.nan
    assert contrast.overlap.rows == 10
    assert float(contrast.conformity.whole) == pytest.approx(np.nanmean(cosine), abs=1e-9)


def compared_quietly(rows, reference, **labels):
    with pytest.warns(OverlapWarning):
        return compared(rows, reference, **labels).contrast("test")


def test_an_encoders_last_bits_do_not_hide_an_overlap(generator):
    reference = ellipsoid_rows(300, DIM, generator)
    rows = reference[:40] * (1 + 1e-6 * torch.randn(40, DIM, generator=generator))
    assert not set(map(tuple, rows.tolist())) & set(map(tuple, reference.tolist()))
    assert compared_quietly(rows, cc.ReferenceSet.fit(reference)).overlap.rows == 40


def test_repeats_that_are_as_common_in_the_reference_are_no_overlap(generator):
    """Short captions repeat: two sets of them share rows without one being a copy of the other."""
    contents = ellipsoid_rows(50, DIM, generator)
    reference, rows = (contents[torch.randint(50, (n,), generator=generator)] for n in (800, 200))
    stream = compared(rows, cc.ReferenceSet.fit(reference))
    contrast = stream.contrast("test")
    assert contrast.overlap.rows == 0
    assert float(contrast.conformity.whole) == pytest.approx(brute_conformity(rows, reference).mean(), abs=1e-9)
    assert contrast.notes(of_one_kind=True) == []


def test_no_pair_of_one_group_is_compared(generator):
    """Images that both sides describe: without them the shift was 0.35 at 50 images."""
    images = ellipsoid_rows(50, DIM, generator)
    reference = images.repeat_interleave(5, 0) + 0.1 * torch.randn(250, DIM, generator=generator)
    rows = images + 0.1 * torch.randn(50, DIM, generator=generator)
    groups = torch.arange(50).repeat_interleave(5)
    fitted = cc.ReferenceSet.fit(reference, groups=groups)
    contrast = compared(rows, fitted, groups=torch.arange(50)).contrast("test")
    buckets = [bucket(torch.arange(50)), bucket(groups)]
    cosine = unit(rows.double().numpy()) @ unit(reference.double().numpy()).T
    cosine[buckets[0][:, None] == buckets[1][None]] = np.nan
    assert float(contrast.conformity.whole) == pytest.approx(np.nanmean(cosine), abs=1e-9)
    assert contrast.overlap.shared_groups == contrast.overlap.groups == 50
    assert abs(float(contrast.typicality_shift.value)) < 0.3
    assert "50 of 50 groups are also in the reference" in contrast.notes(of_one_kind=True)[0]
    values = np.nanmean(cosine, axis=1)
    np.testing.assert_allclose(contrast.view.good_sample().values[:, 1].sort().values, np.sort(values), atol=1e-7)


def bucket(groups: torch.Tensor) -> np.ndarray:
    from clipconformity.stream.moments import assign_buckets

    return assign_buckets(groups).numpy()


def test_shared_groups_are_paired_by_the_jackknife(generator):
    """Where both sides describe the same images, what images differ by cancels in the difference."""
    images = 3 * ellipsoid_rows(400, DIM, generator)
    draws = [images + torch.randn(400, DIM, generator=generator) for _ in range(2)]
    groups = torch.arange(400)
    reference = cc.ReferenceSet.fit(draws[0], groups=groups)
    paired = compared(draws[1], reference, groups=groups).contrast("test")
    apart = compared(draws[1], reference, groups=groups + 1000).contrast("test")
    assert float(paired.typicality_shift.error) < 0.75 * float(apart.typicality_shift.error)
    assert float(paired.log_variety_ratio.error) < 0.75 * float(apart.log_variety_ratio.error)


def test_another_modality_is_suspected_unless_both_are_known(generator):
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator, offset=2.0))
    rows = ellipsoid_rows(100, DIM, generator, offset=2.0) - 4 * reference.mean.float()
    contrast = compared(rows, reference).contrast("test")
    shift = float(contrast.typicality_shift.value)
    assert shift < -5
    assert contrast.notes(of_one_kind=False) == [
        f"the mean conformity lies {-shift:.1f} standard deviations below the reference's: are these embeddings of the "
        "other modality, or of another encoder?"
    ]
    assert contrast.notes(of_one_kind=True) == []
    assert not math.isnan(shift)


def contents(copies: list[int], start: int = 0) -> torch.Tensor:
    """Rows of a pool from one on, each as often as told."""
    pool = ellipsoid_rows(1100, DIM, torch.Generator().manual_seed(11))
    return pool[start : start + len(copies)].repeat_interleave(torch.tensor(copies), 0)


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
@pytest.mark.parametrize(("alone", "found"), [(14, 0), (15, 19)])
def test_what_is_shared_is_told_from_what_repeats_by_three_errors(alone, found, generator):
    """Ten of 100 rows come twice: 50 of their kind share 5 of those that come once, and up to 14.5 by chance."""
    reference = cc.ReferenceSet.fit(contents([1] * 90 + [2] * 5))
    shared = torch.cat([contents([1] * alone), contents([1] * 4, 90)])
    rows = torch.cat([shared, ellipsoid_rows(46 - alone, DIM, generator)])
    overlap = compared(rows, reference).contrast("test").overlap
    assert overlap.rows == found
    assert bool(overlap.own.any()) == bool(found)


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
def test_pairs_that_are_equal_by_chance_stay_in():
    """Five rows of 100 come twice: each of 50 of that kind is equal to 10/99 others."""
    reference = cc.ReferenceSet.fit(contents([1] * 90 + [2] * 5))
    overlap = compared(contents([1] * 50), reference).contrast("test").overlap
    assert overlap.pairs == pytest.approx(50 - 50 * 10 / 99)
    for without in overlap.without[1:]:
        assert float((overlap.pairs - without).sum()) == pytest.approx(overlap.pairs)


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
def test_a_row_leaves_out_one_pair_at_most():
    reference = cc.ReferenceSet.fit(contents([1] * 1000 + [2] * 10))
    rows = torch.cat([contents([1] * 10), contents([1] * 10, 1000)])
    overlap = compared(rows, reference).contrast("test").overlap
    assert (overlap.rows, overlap.pairs) == (20, 20)
