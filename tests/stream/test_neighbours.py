"""The read-outs of neighbours: figures, intervals, and which samples, of row samples with groups, copies and ids."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows, unit

import clipconformity as cc
from clipconformity.evaluation import Source, SourceBatch, score, write_per_sample
from clipconformity.functional import authenticity, prdc
from clipconformity.functional.resampling import jackknife_error
from clipconformity.stream.closest import CANDIDATES, Closest
from clipconformity.stream.copies import DUPLICATE, Copies
from clipconformity.stream.moments import assign_buckets
from clipconformity.stream.neighbourhood import Neighbourhood
from clipconformity.stream.parts import compute_by_part, count_independent
from clipconformity.stream.readouts.nearest import NearestReadOut
from clipconformity.stream.readouts.prdc import FIGURES, PRDCReadOut
from clipconformity.stream.stream import Stream

DIM = 8


def names(count: int, what: str = "row") -> list[str]:
    return [f"{what} {n}" for n in range(count)]


def read(one, rows, reference, groups=None, max_samples=10_000, size=64):
    stream = Stream.open_against(reference, one.needs, max_samples=max_samples)
    for part in torch.arange(len(rows)).split(size):
        own = None if groups is None else groups[part]
        stream.update(rows[part], groups=own, ids=[f"row {n}" for n in part.tolist()])
    return stream


@pytest.fixture
def sides(generator):
    reference = ellipsoid_rows(300, DIM, generator)
    return ellipsoid_rows(200, DIM, generator, offset=1.2), reference


def fit(rows, **options):
    return cc.ReferenceSet.fit(rows, ids=names(len(rows), "reference"), **options)


# --- precision and recall --------------------------------------------------------------------------------------------


def test_the_metric_is_the_function_on_all_rows(sides):
    rows, reference = sides
    metric = cc.PRDC(fit(reference), k=3)
    for part in rows.split(30):
        metric.update(part)
    expected = prdc(rows.double(), reference.double(), 3)
    assert {name: float(x) for name, x in metric.compute().items()} == pytest.approx(
        {name: float(x) for name, x in expected._asdict().items()}, rel=1e-6
    )
    assert metric.compute().keys() == dict(FIGURES).keys()


def test_beyond_the_row_sample_it_is_the_function_on_the_rows_that_are_kept(sides):
    rows, reference = sides
    stream = read(PRDCReadOut(), rows, fit(reference, max_samples=120), max_samples=90)
    kept = stream.evaluated.good_sample().rows, stream.reference.sample.rows
    assert [len(one) for one in kept] == [90, 120]
    found = PRDCReadOut().read(stream)
    assert [float(x) for x in found.values()] == [float(x) for x in prdc(*(one.double() for one in kept))]
    shuffled = read(PRDCReadOut(), rows, stream.reference, max_samples=90, size=7)
    assert PRDCReadOut().read(shuffled) == found


def test_who_is_off_the_manifold_and_who_is_not_covered_by_id(sides):
    rows, reference = sides
    far = rows.clone()
    far[[3, 7]] += torch.tensor([[90.0], [60.0]])
    stream = read(PRDCReadOut(), far, fit(reference))
    apart = np.linalg.norm(double(reference)[:, None] - double(far)[None], axis=2)
    own = np.sort(np.linalg.norm(double(reference)[:, None] - double(reference)[None], axis=2), axis=1)[:, 5]
    off = np.flatnonzero(~(apart < own[:, None]).any(0))
    missed = np.flatnonzero(~(apart < own[:, None]).any(1))
    found = PRDCReadOut().details(stream)
    assert found["off_manifold"]["count"] == len(off)
    assert found["off_manifold"]["of"] == 200
    order = off[np.argsort(-apart.min(0)[off])]
    assert found["off_manifold"]["ids"] == [f"row {n}" for n in order[:20]]
    assert order[:2].tolist() == [3, 7]
    order = missed[np.argsort(-apart.min(1)[missed])]
    assert found["uncovered"] == {
        "count": len(missed), "of": 300, "ids": [f"reference {n}" for n in order[:20]]
    }  # fmt: skip
    metric = cc.PRDC(fit(reference))
    metric.update(far, ids=names(200))
    assert metric.off_manifold()[:2] == ["row 3", "row 7"]
    assert metric.uncovered() == [f"reference {n}" for n in order]
    metric.reset()
    metric.update(far)  # without ids there is nobody to name
    assert metric.off_manifold() == []


def test_the_interval_holds_what_sets_of_these_sizes_have_on_average():
    """Of 60 runs each, of 120 samples against 240: at least 90%, and no wider than one and a half times the spread."""
    source = torch.Generator().manual_seed(3)
    values, ends = [], []
    for _ in range(60):
        stream = read(
            PRDCReadOut(),
            ellipsoid_rows(120, DIM, source, offset=1.1),
            cc.ReferenceSet.fit(ellipsoid_rows(240, DIM, source)),
            size=120,
        )
        values.append(torch.stack(list(PRDCReadOut().read(stream).values())))
        ends.append(torch.stack(list(PRDCReadOut().resample(stream, resamples=1).values())).view(4, 2))
    found, interval = torch.stack(values), torch.stack(ends)
    mean = found.mean(0)
    held = ((interval[..., 0] <= mean) & (mean <= interval[..., 1])).double().mean(0)
    assert (held >= 0.9).all()
    assert ((interval[..., 1] - interval[..., 0]).mean(0) / (2 * 1.96 * found.std(0)) < 1.6).all()


def sides_of(count: int, other: int, generator, k: int = 1, each: int = 1) -> Neighbourhood:
    samples = [
        cc.ReferenceSet.fit(ellipsoid_rows(n, DIM, generator), groups=torch.arange(n) // each + 1000 * n).sample
        for n in (count, other)
    ]
    return Neighbourhood(*samples, k)


def test_the_parts_are_as_many_as_rows_and_groups_allow_and_the_degrees_follow(generator):
    """Five times k rows and four groups a part, sixteen parts at most; four splits."""
    for count, k, each, parts in ((60, 1, 1, 12), (60, 3, 1, 4), (500, 1, 1, 16), (200, 1, 10, 5), (20, 2, 1, 2)):
        found = sides_of(count, 600, generator, k, each)._spread
        assert found[1] == 4 * (parts - 1), (count, k, each)
    assert sides_of(19, 600, generator, 2)._spread[1] == 0


def test_each_split_has_other_parts_and_their_variance_is_taken_to_that_of_the_whole(generator):
    found = sides_of(120, 200, generator, 2)
    sides = found.evaluated, found.reference
    splits = [compute_by_part(sides, 12, split, found._compute_figures) for split in range(4)]
    assert len({float(one.sum()) for one in splits}) == 4
    variance, p = torch.stack(splits).var(1).mean(0) / 12, torch.stack(splits).mean((0, 1))
    shares = [0, 1, 3]
    variance[shares] *= (found.values * (1 - found.values) / (p * (1 - p)))[shares]
    variance[2] *= found.values[2] / p[2]
    torch.testing.assert_close(found._spread[0], variance.sqrt())


def test_the_interval_of_a_density_is_of_what_can_be(generator):
    """Above 0; and where no sample is in a ball, up to what the share of samples in one may be."""
    far = ellipsoid_rows(60, DIM, generator) + 30
    far[:2] = ellipsoid_rows(2, DIM, generator)
    for rows in (far, far[2:]):
        found = Neighbourhood(*(cc.ReferenceSet.fit(x).sample for x in (rows, ellipsoid_rows(90, DIM, generator))), 2)
        density = found.intervals[2]
        assert density.low == 0
        assert density.high > 0
        assert bool(found.values[2]) == (len(rows) == 60)
        assert bool(found.values[2]) or density.high == found.intervals[0].high
    highest = [found.intervals[figure].high for figure in (0, 1, 3)]
    assert highest == pytest.approx([1 - 0.025 ** (1 / count) for count in (58, 90, 90)])


def test_rows_of_unequal_groups_are_worth_fewer():
    groups = torch.tensor([5, 7] + [9] * 8)
    assert count_independent(SimpleNamespace(groups=groups)) == 100 / 66


def test_groups_widen_the_interval(generator):
    images = ellipsoid_rows(60, DIM, generator)
    rows = images.repeat_interleave(5, 0) + 0.3 * torch.randn(300, DIM, generator=generator)
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator))
    widths = []
    for groups in (torch.arange(60).repeat_interleave(5), None):
        low, high = list(PRDCReadOut().resample(read(PRDCReadOut(), rows, reference, groups), resamples=1).values())[:2]
        widths.append(float(high - low))
    assert widths[0] > 1.3 * widths[1]


def test_too_few_rows_are_refused_and_too_few_for_an_interval_have_none(sides):
    rows, reference = sides
    metric = cc.PRDC(fit(reference))
    metric.update(rows[:5])
    with pytest.raises(ValueError, match="expected more than k = 5 samples, got 5"):
        metric.compute()
    metric.update(rows[5:30])
    assert all(math.isfinite(x) for x in metric.compute().values())
    assert all(math.isnan(end) for interval in metric.intervals().values() for end in interval)
    with pytest.raises(ValueError, match="k: expected at least 1"):
        cc.PRDC(fit(reference), k=0)


def test_unequal_numbers_are_told(sides):
    rows, reference = sides
    reported = PRDCReadOut().notes(read(PRDCReadOut(), rows, fit(reference)))
    assert "200 samples and 300 of the reference" in reported[0]
    assert PRDCReadOut().notes(read(PRDCReadOut(), rows, fit(reference[:200]))) == []


# --- nearest rows ----------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(generator):
    """200 samples of which 12 are copies of 8 reference rows, and 6 of one another."""
    reference = torch.randn(250, 24, generator=generator) + 0.5
    rows = torch.randn(200, 24, generator=generator) + 0.5
    rows[:5] = reference[7] * 1.1
    rows[5:12] = reference[100:107] + 0.001
    rows[50:56] = rows[50] + 0.001 * torch.randn(6, 24, generator=generator)
    return rows, reference


def test_nearest_figures_are_those_of_brute_force(copied):
    rows, reference = copied
    found = NearestReadOut().read(read(NearestReadOut(), rows, fit(reference)))
    u, w = unit(double(rows)), unit(double(reference))
    own, other = u @ u.T, w @ w.T
    np.fill_diagonal(own, -1)
    np.fill_diagonal(other, -1)
    assert float(found["nearest_cosine"]) == pytest.approx((u @ w.T).max(1).mean(), abs=1e-6)
    assert float(found["reference_nearest_cosine"]) == pytest.approx(other.max(1).mean(), abs=1e-6)
    assert float(found["copied_share"]) == 12 / 200
    assert float(found["repeated_share"]) == (own.max(1) >= DUPLICATE).mean() == 11 / 200
    assert float(found["reference_repeated_share"]) == 0
    assert float(found["reference_repeated_share_low"]) == 0
    assert float(found["reference_repeated_share_high"]) == pytest.approx(1 - 0.025 ** (1 / 250))


def test_it_names_what_is_copied_and_what_is_repeated(copied):
    rows, reference = copied
    found = NearestReadOut().details(read(NearestReadOut(), rows, fit(reference)))
    assert found["threshold"] == DUPLICATE
    first = found["copied"][0]
    assert (first["reference_id"], first["samples"]) == ("reference 7", 5)
    assert set(first["ids"]) < {f"row {n}" for n in range(5)}
    assert {one["reference_id"] for one in found["copied"][1:]} == {f"reference {n}" for n in range(100, 107)}
    assert [one["times"] for one in found["repeated"]] == [6, 5]
    assert {one["id"] for one in found["repeated"]} < {f"row {n}" for n in [*range(50, 56), *range(5)]}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("own", [True, False])
def test_the_mean_without_a_bucket_is_that_without_its_rows(copied, own):
    rows, reference = copied
    stream = read(NearestReadOut(), rows, fit(reference))
    mine, theirs = stream.evaluated.good_sample(), stream.reference.sample
    found = Closest.find(mine, None if own else theirs)
    buckets = (found.buckets[0], found.buckets[0] if own else torch.as_tensor(stream.reference.buckets))
    u, w = unit(double(mine.rows)), unit(double(mine.rows if own else theirs.rows))
    cosine = u @ w.T
    if own:
        np.fill_diagonal(cosine, -1)
    left_out = np.array(
        [cosine[np.ix_(buckets[0].numpy() != b, buckets[1].numpy() != b)].max(1).mean() for b in range(256)]
    )
    used = found.counts[0].numpy() + (0 if own else found.counts[1].numpy()) > 0
    spread = left_out[used] - left_out[used].mean()
    error = math.sqrt((used.sum() - 1) / used.sum() * (spread**2).sum())
    assert float(found.mean().error) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("own", [True, False])
def test_a_bucket_goes_with_a_row_and_its_nearest(own, generator):
    """Most rows are nearest to one of their own bucket, which has no further say without it."""
    images, groups = torch.randn(50, 24, generator=generator) + 0.5, torch.arange(50)
    sides = [
        cc.ReferenceSet.fit(
            images.repeat_interleave(2, 0) + 0.1 * torch.randn(100, 24, generator=generator),
            groups=groups.repeat_interleave(2),
        ).sample
        for _ in range(1 if own else 2)
    ]
    found = Closest.find(*sides)
    buckets = found.buckets[0], assign_buckets(sides[-1].groups)
    assert (found.buckets[0] == found.buckets[1]).double().mean() > 0.9
    cosine = torch.from_numpy(unit(double(sides[0].rows)) @ unit(double(sides[-1].rows)).T)
    if own:
        cosine.fill_diagonal_(-1)

    def error(mine: bool, theirs: bool) -> float:
        left = [
            cosine[(buckets[0] != b) | (not mine)][:, (buckets[1] != b) | (not theirs)].amax(1).mean()
            for b in buckets[0].unique()
        ]
        return float(jackknife_error(torch.stack(left), torch.ones(len(left))))

    estimate = found.mean()
    assert float(estimate.error) == pytest.approx(error(True, True), rel=1e-4)
    if not own:
        assert estimate.parts == pytest.approx([error(True, False) ** 2, error(False, True) ** 2], rel=1e-4)


def test_fewer_rows_than_are_looked_at_are_enough(generator):
    sample = fit(ellipsoid_rows(11, DIM, generator)).sample
    assert len(sample.keys) < CANDIDATES + 1
    cosine = unit(double(sample.rows)) @ unit(double(sample.rows)).T
    np.fill_diagonal(cosine, -1)
    np.testing.assert_allclose(Closest.find(sample).cosine, cosine.max(1), atol=1e-6)
    np.testing.assert_allclose(Closest.find(sample, sample).cosine, 1, atol=1e-6)


def test_where_only_the_own_group_is_near_the_farthest_that_was_looked_at_stands_for_others(generator):
    rows = torch.randn(1, DIM, generator=generator) + 0.01 * torch.randn(30, DIM, generator=generator)
    sample = fit(rows, groups=torch.arange(30) // 29).sample
    found = Closest.find(sample, grouped=True)
    cosine = unit(double(sample.rows)) @ unit(double(sample.rows)).T
    np.fill_diagonal(cosine, -1)
    many = (sample.groups == sample.groups.mode().values).numpy()
    alone = int((~many).argmax())
    expected = np.where(many, -np.sort(-cosine, axis=1)[:, CANDIDATES], cosine.max(1))
    reached = many & (cosine[:, alone] > expected)
    assert not reached.all()
    np.testing.assert_allclose(found.cosine, np.where(reached, cosine[:, alone], expected), atol=1e-6)


def test_near_duplicates_are_from_a_cosine_of_0_98_on(generator):
    angle = torch.acos(torch.tensor([0.979, 0.9799, 0.9801, 0.99])).repeat_interleave(2) * torch.tensor([1, -1] * 4)
    rows = torch.stack([angle.cos(), angle.sin(), torch.zeros(8)], 1) * 3
    reference = torch.tensor([3.0, 0, 0]) + torch.tensor([0.0, 0, 1e-4]) * torch.randn(20, 1, generator=generator)
    found = NearestReadOut().read(read(NearestReadOut(), rows, cc.ReferenceSet.fit(reference)))
    assert float(found["copied_share"]) == 0.5


def test_shares_of_nothing_are_known_by_the_rows_of_their_own_side(generator):
    rows, reference = (torch.randn(count, 24, generator=generator) for count in (90, 250))
    found = NearestReadOut().read(read(NearestReadOut(), rows, fit(reference)))
    for name, count in (("copied_share", 90), ("repeated_share", 90), ("reference_repeated_share", 250)):
        assert float(found[f"{name}_high"]) == pytest.approx(1 - 0.025 ** (1 / count)), name


def test_rows_of_one_group_are_no_neighbours_where_both_sides_have_groups(generator):
    images = torch.randn(80, 24, generator=generator) + 0.5
    rows, groups = images.repeat_interleave(2, 0), torch.arange(80).repeat_interleave(2)
    reference = cc.ReferenceSet.fit(rows, groups=groups)
    grouped = NearestReadOut().read(read(NearestReadOut(), images, reference, torch.arange(80)))
    alone = NearestReadOut().read(read(NearestReadOut(), images, cc.ReferenceSet.fit(rows)))
    for labels, share in ((groups, 0), (torch.arange(160), 1)):
        own = NearestReadOut().read(read(NearestReadOut(), rows + 1e-4 * rows.flip(1), reference, labels + 1000))
        assert float(own["repeated_share"]) == share
    assert float(grouped["copied_share"]) == float(grouped["reference_repeated_share"]) == 0
    assert float(alone["copied_share"]) == float(alone["reference_repeated_share"]) == 1


def test_authenticity_is_the_function_and_that_of_the_reference_leaves_each_row_out(copied):
    rows, reference = copied
    stream = read(NearestReadOut(), rows, fit(reference))
    found = NearestReadOut().read(stream)
    assert float(found["authenticity"]) == pytest.approx(float(authenticity(rows, reference)), abs=1e-6)
    left_out = [
        float(authenticity(reference[row, None], torch.cat([reference[:row], reference[row + 1 :]])))
        for row in range(len(reference))
    ]
    assert float(found["reference_authenticity"]) == pytest.approx(np.mean(left_out), abs=1e-9)
    ends = NearestReadOut().resample(stream, resamples=1)
    for name in ("authenticity", "reference_authenticity"):
        assert ends[f"{name}_low"] < found[name] < ends[f"{name}_high"]


def test_with_groups_authenticity_is_that_among_rows_of_other_groups(generator):
    """Each image of the reference is there twice, and each sample is of one of its images."""
    images = torch.randn(80, 24, generator=generator) + 0.5
    rows, groups = images.repeat_interleave(2, 0), torch.arange(80).repeat_interleave(2)
    samples = rows + 0.01 * torch.randn(160, 24, generator=generator)
    alone = NearestReadOut().read(read(NearestReadOut(), samples, cc.ReferenceSet.fit(rows)))
    assert float(alone["authenticity"]) == 1  # farther than the reference's own repeats are
    assert float(alone["reference_authenticity"]) == 0
    grouped = NearestReadOut().read(read(NearestReadOut(), samples, cc.ReferenceSet.fit(rows, groups=groups), groups))
    u, w, other = unit(double(samples)), unit(double(rows)), (groups[:, None] != groups).numpy()
    across, own = np.where(other, u @ w.T, -1), np.where(other, w @ w.T, -1)
    assert float(grouped["authenticity"]) == np.mean(across.max(1) < own.max(1)[across.argmax(1)] - 1e-6)
    assert float(grouped["reference_authenticity"]) == np.mean(own.max(1) < own.max(1)[own.argmax(1)] - 1e-6)


@pytest.mark.parametrize("copies", [0, 40])
def test_the_interval_of_authenticity_holds_what_sets_of_these_sizes_have_on_average(copies):
    """Of 60 runs each, of 120 samples against 240: at least 90%, and no wider than twice the spread."""
    source = torch.Generator().manual_seed(3)
    values, ends = [], []
    for _ in range(60):
        rows, others = ellipsoid_rows(120, DIM, source, offset=1.1), ellipsoid_rows(240, DIM, source)
        rows[:copies] = others[:copies] * 1.001
        found = Copies.find(cc.ReferenceSet.fit(rows).sample, cc.ReferenceSet.fit(others).sample, (False, False))
        values.append(found.compute_authentic())
        ends.append(torch.tensor(found.compute_authentic_intervals()))
    value, interval = torch.stack(values), torch.stack(ends)
    mean = value.mean(0)
    held = ((interval[..., 0] <= mean) & (mean <= interval[..., 1])).double().mean(0)
    assert (held >= 0.9).all(), held
    assert ((interval[..., 1] - interval[..., 0]).mean(0) / (2 * 1.96 * value.std(0)) < 2).all()


def test_groups_widen_the_interval_of_authenticity(generator):
    images = ellipsoid_rows(60, DIM, generator)
    rows = images.repeat_interleave(5, 0) + 0.3 * torch.randn(300, DIM, generator=generator)
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator)).sample
    widths = []
    for groups in (torch.arange(60).repeat_interleave(5), None):
        interval = Copies.find(cc.ReferenceSet.fit(rows, groups=groups).sample, reference, (False, False))
        low, high = interval.compute_authentic_intervals()[0]
        widths.append(high - low)
    assert widths[0] > 1.2 * widths[1]


def test_too_few_rows_have_an_authenticity_without_an_interval(generator):
    rows, others = ellipsoid_rows(20, DIM, generator), ellipsoid_rows(90, DIM, generator)
    found = Copies.find(cc.ReferenceSet.fit(rows).sample, cc.ReferenceSet.fit(others).sample, (False, False))
    assert bool(found.compute_authentic().isfinite().all())
    assert all(math.isnan(end) for interval in found.compute_authentic_intervals() for end in interval)


def test_rows_and_groups_that_intervals_need_are_told(generator):
    """50 rows at k = 5, and eight groups, of the side that has fewer."""
    reference = fit(ellipsoid_rows(90, DIM, generator))
    for one, what in ((PRDCReadOut(), "precision, recall, density and coverage"), (NearestReadOut(), "authenticity")):
        reported = {}
        for count, groups in ((49, None), (50, None), (60, torch.arange(60) % 7), (64, torch.arange(64) % 8)):
            stream = read(one, ellipsoid_rows(count, DIM, generator), reference, groups)
            reported[count] = [note for note in one.notes(stream) if "the intervals of" in note]
            assert bool(reported[count]) == any(math.isnan(x) for x in one.resample(stream, resamples=1).values())
        assert reported[49] == [f"the intervals of {what} need at least 50 rows of either side; there are 49."]
        assert reported[60] == [f"the intervals of {what} need at least 8 groups of either side; there are 6.98."]
        assert reported[50] == reported[64] == []


# --- through score ---------------------------------------------------------------------------------------------------


def scored(rows, reference, *metrics):
    batches = [SourceBatch(part, [f"row {n}" for n in at.tolist()]) for part, at in zip(
        rows.split(90), torch.arange(len(rows)).split(90), strict=True)]  # fmt: skip
    with pytest.warns(cc.OverlapWarning):
        return score(Source(iter(batches), len(rows)), reference, metrics=metrics, resamples=20)


def test_score_gives_figures_details_columns_and_says_where_it_looked(copied, tmp_path):
    rows, reference = copied
    small = fit(reference, max_samples=240)
    result = scored(rows, small, "prdc", "nearest")
    reported = result.to_dict()
    assert reported["details"].keys() == {"prdc", "nearest"}
    assert result.figures["coverage"].interval.low <= reported["coverage"] <= result.figures["coverage"].interval.high
    assert any("among the 240 that the reference keeps, of 250" in note for note in reported["notes"])
    json.dumps(reported, allow_nan=False)
    write_per_sample(tmp_path / "s.csv", result)
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == "id,conformity,norm,rank,nearest_id,nearest_cosine"
    cells = {line.split(",")[0]: line.split(",")[4:] for line in lines[1:]}
    assert len(cells) == 200
    if "reference 7" in small.sample_ids:
        assert cells["row 3"][0] == "reference 7"
        assert float(cells["row 3"][1]) == pytest.approx(1, abs=1e-6)
