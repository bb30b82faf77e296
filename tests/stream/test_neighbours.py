"""The read-outs of neighbours: figures, intervals, and which samples, of row samples with groups, copies and ids."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows, unit

import clipconformity as cc
from clipconformity.evaluation import Source, SourceBatch, score, write_per_sample
from clipconformity.functional import prdc
from clipconformity.stream.closest import Closest
from clipconformity.stream.readouts.nearest import DUPLICATE, NearestReadOut
from clipconformity.stream.readouts.prdc import FIGURES, PRDCReadOut
from clipconformity.stream.stream import Stream

DIM = 8


def names(count: int, what: str = "row") -> list[str]:
    return [f"{what} {n}" for n in range(count)]


def read(one, rows, reference, groups=None, max_samples=10_000, size=64):
    stream = Stream.against(reference, one.needs, max_samples=max_samples)
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
    told = PRDCReadOut().notes(read(PRDCReadOut(), rows, fit(reference)))
    assert "200 samples and 300 of the reference" in told[0]
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
    found = Closest.of(mine, None if own else theirs)
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


def test_rows_of_one_group_are_no_neighbours_where_both_sides_have_groups(generator):
    images = torch.randn(80, 24, generator=generator) + 0.5
    rows, groups = images.repeat_interleave(2, 0), torch.arange(80).repeat_interleave(2)
    reference = cc.ReferenceSet.fit(rows, groups=groups)
    grouped = NearestReadOut().read(read(NearestReadOut(), images, reference, torch.arange(80)))
    alone = NearestReadOut().read(read(NearestReadOut(), images, cc.ReferenceSet.fit(rows)))
    assert float(grouped["copied_share"]) == float(grouped["reference_repeated_share"]) == 0
    assert float(alone["copied_share"]) == float(alone["reference_repeated_share"]) == 1


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
    told = result.to_dict()
    assert told["details"].keys() == {"prdc", "nearest"}
    assert result.figures["coverage"].interval.low <= told["coverage"] <= result.figures["coverage"].interval.high
    assert any("among the 240 that the reference keeps, of 250" in note for note in told["notes"])
    json.dumps(told, allow_nan=False)
    write_per_sample(tmp_path / "s.csv", result)
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == "id,conformity,norm,rank,nearest_id,nearest_cosine"
    cells = {line.split(",")[0]: line.split(",")[4:] for line in lines[1:]}
    assert len(cells) == 200
    if "reference 7" in small.sample_ids:
        assert cells["row 3"][0] == "reference 7"
        assert float(cells["row 3"][1]) == pytest.approx(1, abs=1e-6)
