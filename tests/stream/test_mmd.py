"""The read-outs of cosine MMD and CMMD: pairs between groups, intervals, and the test whether there is a difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows, unit

import clipconformity as cc
from clipconformity.functional import cmmd, cosine_mmd, mmd_halves
from clipconformity.functional.mmd import third_order
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.mmd import compute_noise, discrepancy, squares_discrepancy
from clipconformity.stream.moments import Moments, assign_buckets
from clipconformity.stream.pairs import find_pairs_in_groups, own_squares
from clipconformity.stream.readouts import read_outs
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.row_sample import hash_labels
from clipconformity.stream.stream import Needs, Stream

DIM = 6
NEEDS = Needs(rows=True, unit_second_moment=True, reference=True)


def contrasted(rows, others, groups=None, other_groups=None, ids=None, other_ids=None, max_samples=10_000) -> Contrast:
    reference = ReferenceSet.fit(others, groups=other_groups, ids=other_ids, max_samples=max_samples)
    stream = Stream.open_against(reference, NEEDS, max_samples=max_samples)
    stream.update(rows, groups=groups, ids=ids)
    return stream.contrast("test")


def in_groups(count: int, generator: torch.Generator, size: int = 4, alike: float = 0.7) -> tuple:
    """Rows that go with the others of their group."""
    groups = torch.arange(count) // size
    own = ellipsoid_rows(int(groups.max()) + 1, DIM, generator)
    return alike * own[groups] + (1 - alike) * ellipsoid_rows(count, DIM, generator), groups


def apart(groups: torch.Tensor, others: torch.Tensor, *, buckets: bool) -> np.ndarray:
    """Which pairs are of different groups, or of different buckets."""
    first, second = groups, others
    if buckets:
        first, second = (assign_buckets(hash_labels(x, len(x), torch.device("cpu"))) for x in (groups, others))
    return (first[:, None] != second[None]).numpy()


def brute_discrepancy(rows, others, groups, other_groups, power: int, *, buckets: bool) -> float:
    u, w = unit(double(rows)), unit(double(others))
    means = [
        (a @ b.T)[apart(x, y, buckets=buckets)].__pow__(power).mean()
        for a, b, x, y in ((u, u, groups, groups), (w, w, other_groups, other_groups), (u, w, groups, other_groups))
    ]
    return means[0] + means[1] - 2 * means[2]


@pytest.mark.parametrize("shared", [False, True], ids=["other groups", "shared groups"])
def test_with_groups_the_pairs_are_of_different_ones(shared, generator):
    rows, groups = in_groups(120, generator)
    others, other_groups = in_groups(300, generator)
    other_groups = other_groups + (0 if shared else 1000)
    contrast = contrasted(rows, others, groups, other_groups)
    whole = brute_discrepancy(rows, others, groups, other_groups, 1, buckets=True)
    assert float(discrepancy(contrast).whole.value) == pytest.approx(whole, rel=1e-6)
    squares = brute_discrepancy(rows, others, groups, other_groups, 2, buckets=False)
    assert float(squares_discrepancy(contrast)) == pytest.approx(squares, rel=1e-5)
    figures = read_outs()["cmmd"].read(stream_of(contrast))
    assert float(figures["cmmd_unbiased"]) == pytest.approx(float(third_order(whole, squares)), rel=1e-5)
    assert float(figures["cmmd"]) == pytest.approx(float(cmmd(rows, others)), rel=1e-3)  # as published: all pairs


def stream_of(contrast: Contrast) -> Stream:
    stream = Stream.open_against(contrast.reference, NEEDS)
    stream.sides["evaluated"] = contrast.evaluated
    return stream


@pytest.mark.parametrize("size", [1, 7, 600])
def test_pairs_in_groups_are_found_in_blocks_of_any_size(size, generator, monkeypatch):
    monkeypatch.setattr("clipconformity.stream.pairs.BLOCK", size)
    sides, both = [], []
    for count in (200, 330):
        rows = ellipsoid_rows(count, DIM, generator)
        groups = torch.randint(40, (count,), generator=generator) ** 2 // 40  # of unequal size
        side = Moments(ReferenceSet.fit(rows).moments.layout)
        side.update(rows, groups)
        sides.append((side.good_sample(), side))
        both.append((unit(double(rows)), groups.numpy()))
    (u, x), (w, y) = both
    for found, cosines, same in (
        (find_pairs_in_groups(sides[0]), u @ u.T, (x[:, None] == x) & ~np.eye(len(x), dtype=bool)),
        (find_pairs_in_groups(*sides), u @ w.T, x[:, None] == y),
    ):
        assert found.pairs == pytest.approx(same.sum(), rel=1e-12)
        assert found.squares == pytest.approx((cosines**2)[same].sum(), rel=1e-6)


def test_beyond_the_row_sample_the_pairs_in_groups_are_estimated(generator):
    rows, groups = in_groups(4000, generator, size=50)
    whole, part = (Moments(ReferenceSet.fit(rows, max_samples=size).moments.layout) for size in (4000, 1500))
    for side in (whole, part):
        side.update(rows, groups)
    all_pairs = float(whole.total) ** 2
    found, exact = (find_pairs_in_groups((side.good_sample(), side)) for side in (part, whole))
    assert found.pairs == pytest.approx(exact.pairs, rel=0.05)
    assert abs(found.squares - exact.squares) < 1e-3 * all_pairs
    expected = own_squares(whole.good_sample(), whole)
    assert float(own_squares(part.good_sample(), part)) == pytest.approx(float(expected), rel=1e-3)


def test_beyond_the_row_sample_one_group_has_all_pairs(generator):
    """Pairs of a row with itself are neither among those that are counted nor among all."""
    sides = []
    for count in (400, 300):
        side = Moments(ReferenceSet.fit(ellipsoid_rows(count, DIM, generator), max_samples=90).moments.layout)
        side.update(ellipsoid_rows(count, DIM, generator), torch.zeros(count, dtype=torch.int64))
        sides.append((side.good_sample(), side))
    assert [len(sample.keys) for sample, _ in sides] == [90, 90]
    assert find_pairs_in_groups(sides[0]).pairs == 400 * 399
    assert find_pairs_in_groups(*sides).pairs == 400 * 300


def test_groups_of_one_side_alone_are_no_groups_of_both(generator):
    rows, groups = in_groups(80, generator)
    others = ellipsoid_rows(90, DIM, generator)
    contrast = contrasted(rows, others, [str(n) for n in groups.tolist()], other_ids=[str(n) for n in range(90)])
    u, w = unit(double(rows)), unit(double(others))
    expected = ((u @ u.T) ** 2)[apart(groups, groups, buckets=False)].mean() - 2 * ((u @ w.T) ** 2).mean()
    expected += ((w @ w.T) ** 2)[~np.eye(90, dtype=bool)].mean()
    assert float(squares_discrepancy(contrast)) == pytest.approx(expected, rel=1e-6)


def test_the_read_outs_have_the_interval_of_the_discrepancy_and_its_noise(generator):
    contrast = contrasted(ellipsoid_rows(80, DIM, generator, offset=1.3), ellipsoid_rows(90, DIM, generator))
    whole = discrepancy(contrast).whole
    figures = read_outs()["cmmd"].read(stream_of(contrast))
    half = 1000 * np.exp(-0.01) * 0.01 * whole.half_width()
    for name in ("cmmd", "cmmd_unbiased"):
        assert float(figures[f"{name}_high"] - figures[name]) == pytest.approx(half, rel=1e-9)
        assert float(figures[name] - figures[f"{name}_low"]) == pytest.approx(half, rel=1e-9)
    found = read_outs()["cosine_mmd"].figures(stream_of(contrast), resamples=200)
    expected = compute_noise(contrast, 0.95, 200, torch.Generator().manual_seed(0))
    assert (float(found["cosine_mmd_noise_floor"]), float(found["cosine_mmd_p_value"])) == tuple(expected)
    one = contrasted(ellipsoid_rows(50, DIM, generator), ellipsoid_rows(90, DIM, generator), torch.zeros(50).long())
    with pytest.raises(ValueError, match="all samples belong to one group"):
        compute_noise(one, 0.95, 20, generator)


def test_all_rows_of_one_group_are_taken_as_they_are(generator):
    rows = ellipsoid_rows(50, DIM, generator)
    contrast = contrasted(rows, ellipsoid_rows(90, DIM, generator), torch.zeros(50, dtype=torch.long))
    found = read_outs()["cosine_mmd"].figures(stream_of(contrast), resamples=20)
    assert float(found["cosine_mmd"]) == pytest.approx(float(cosine_mmd(rows, contrast.reference)), rel=1e-6)
    unknown = {name for name, value in found.items() if not bool(value.isfinite())}
    halves = ("cosine_mmd", "cosine_mmd_typicality", "cosine_mmd_variety")
    assert unknown == {"cosine_mmd_noise_floor", "cosine_mmd_p_value"} | {
        f"{name}_{end}" for name in halves for end in ("low", "high")
    }
    assert np.isfinite(float(read_outs()["cmmd"].read(stream_of(contrast))["cmmd_unbiased"]))


def test_what_both_sides_share_is_left_out(generator):
    """A reference that holds the samples themselves gives what it gives of others of their kind."""
    everything = ellipsoid_rows(900, DIM, generator)
    rows, others = everything[:200], everything[200:]
    with pytest.warns(UserWarning, match="also in the reference"):
        contrast = contrasted(rows, everything)
    found = float(discrepancy(contrast).whole.value)
    u, all_of_them = unit(double(rows)), unit(double(everything))
    cosines = u @ all_of_them.T
    cosines[np.arange(200), np.arange(200)] = np.nan
    own = [(x @ x.T)[~np.eye(len(x), dtype=bool)].mean() for x in (u, all_of_them)]
    assert found == pytest.approx(sum(own) - 2 * np.nanmean(cosines), abs=1e-9)
    assert abs(found - float(cosine_mmd(rows, others))) < 2e-3
    squares = [((x @ x.T) ** 2)[~np.eye(len(x), dtype=bool)].mean() for x in (u, all_of_them)]
    expected = sum(squares) - 2 * np.nanmean(cosines**2)
    assert float(squares_discrepancy(contrast)) == pytest.approx(expected, abs=1e-8)


def test_the_errors_are_those_of_leaving_each_bucket_out_of_one_side_or_of_both(generator):
    (rows, groups), (others, other_groups) = in_groups(60, generator), in_groups(100, generator)
    found = discrepancy(contrasted(rows, others, groups, other_groups))
    sides = [
        (unit(double(x)), assign_buckets(hash_labels(labels, len(labels), torch.device("cpu"))).numpy())
        for x, labels in ((rows, groups), (others, other_groups))
    ]

    def mean(first, second):
        return (first[0] @ second[0].T)[first[1][:, None] != second[1]].mean()

    def halves(mine, theirs):
        own, other, across = mean(mine, mine), mean(theirs, theirs), mean(mine, theirs)
        return np.array([own + other - 2 * across, 2 * (other - across), own - other])

    def error(without) -> np.ndarray:
        """Of the whole and its halves, where ``without`` says which sides lack each bucket."""
        used = np.unique(np.concatenate([buckets for (_, buckets), left in zip(sides, without, strict=True) if left]))
        values = np.stack([
            halves(*(
                (u[buckets != one], buckets[buckets != one]) if left else (u, buckets)
                for (u, buckets), left in zip(sides, without, strict=True)
            ))
            for one in used
        ])  # fmt: skip
        return np.sqrt((len(used) - 1) / len(used) * np.square(values - values.mean(0)).sum(0))

    both, mine, theirs = (error(without) for without in ((True, True), (True, False), (False, True)))
    for place, estimate in enumerate(found):
        assert float(estimate.error) == pytest.approx(both[place], rel=1e-6)
        assert estimate.parts == pytest.approx((mine[place] ** 2, theirs[place] ** 2), rel=1e-6)


@pytest.mark.parametrize("sizes", [(30, 600), (300, 300)])
def test_intervals_cover_the_truth_where_the_sets_differ(sizes):
    generator = torch.Generator().manual_seed(0)
    narrow = {"offset": 1.3}
    many = ellipsoid_rows(60_000, DIM, generator, **narrow), ellipsoid_rows(60_000, DIM, generator)
    truth = dict(zip(("typicality", "variety"), map(float, mmd_halves(*many)), strict=True))
    truth["whole"] = sum(truth.values())
    hits = dict.fromkeys(truth, 0)
    for _ in range(100):
        found = discrepancy(
            contrasted(ellipsoid_rows(sizes[0], DIM, generator, **narrow), ellipsoid_rows(sizes[1], DIM, generator))
        )
        for name in hits:
            low, high = getattr(found, name).interval()
            hits[name] += low <= truth[name] <= high
    assert min(hits.values()) >= 87, hits  # of 95 expected; 86 or fewer come by chance once in 4,000


@pytest.mark.parametrize("kind", ["rows", "small against large", "groups", "shared groups"])
def test_false_alarms_are_as_often_as_the_level_says(kind):
    generator = torch.Generator().manual_seed(1)
    p_values, floors, values = [], [], []
    for run in range(150):
        groups = other_groups = None
        if "groups" in kind:
            rows, groups = in_groups(80, generator)
            others, other_groups = in_groups(240, generator)
            if kind == "shared groups":
                own = ellipsoid_rows(60, DIM, generator)
                rows = 0.7 * own[groups] + 0.3 * ellipsoid_rows(80, DIM, generator)
                others = 0.7 * own[other_groups] + 0.3 * ellipsoid_rows(240, DIM, generator)
            else:
                other_groups = other_groups + 10_000
        else:
            rows = ellipsoid_rows(20 if kind == "small against large" else 200, DIM, generator)
            others = ellipsoid_rows(200, DIM, generator)
        contrast = contrasted(rows, others, groups, other_groups)
        found = compute_noise(contrast, 0.95, 200, torch.Generator().manual_seed(run))
        p_values.append(found.p_value)
        floors.append(found.floor)
        values.append(float(discrepancy(contrast).whole.value))
    alarms, above = (np.array(p_values) <= 0.05).sum(), (np.array(values) > floors).sum()
    assert alarms <= 16, alarms  # of 7.5 expected; more come by chance once in 700
    assert above <= 18, above
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.1)
    assert np.mean(floors) == pytest.approx(np.quantile(values, 0.95), rel=0.4)


def test_a_difference_is_found_and_the_p_value_is_no_smaller_than_the_draws_allow(generator):
    contrast = contrasted(ellipsoid_rows(300, DIM, generator, offset=1.5), ellipsoid_rows(300, DIM, generator))
    found = compute_noise(contrast, 0.95, 199, generator)
    assert found.p_value == 1 / 200
    assert 0 < found.floor < float(discrepancy(contrast).whole.value)


def test_the_metric_gives_what_the_function_gives_and_its_halves(generator):
    rows, others = ellipsoid_rows(200, DIM, generator, offset=1.8), ellipsoid_rows(500, DIM, generator)
    reference = cc.ReferenceSet.fit(others)
    metric = cc.CosineMMD(reference)
    for batch in rows.split(33):
        metric.update(batch)
    assert float(metric.compute()) == pytest.approx(float(cosine_mmd(rows, others)), rel=1e-5)
    for found, expected in zip(metric.halves(), mmd_halves(rows, others), strict=True):
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
    low, high = metric.interval()
    assert low < float(metric.compute()) < high
    assert metric.noise_floor() < float(metric.compute())
    assert metric.p_value(resamples=99) == 0.01
    for unbiased in (False, True):
        metric = cc.CMMD(reference, unbiased=unbiased)
        metric.update(rows)
        assert float(metric.compute()) == pytest.approx(float(cmmd(rows, others, unbiased=unbiased)), rel=1e-3)


def test_real_rows_serve_as_the_reference(generator):
    rows, others = ellipsoid_rows(200, DIM, generator, offset=1.3), ellipsoid_rows(500, DIM, generator)
    for metric, function in ((cc.CosineMMD(embed_dim=DIM), cosine_mmd), (cc.CMMD(embed_dim=DIM), cmmd)):
        metric.update(others, real=True)
        metric.update(rows)
        assert float(metric.compute()) == pytest.approx(float(function(rows, others)), rel=1e-3)
