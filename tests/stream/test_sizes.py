"""What depends on N: Vendi scores and Frechet distances, at their own N, at equal N, by noise alone, extrapolated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from helpers import double, ellipsoid_rows, unit

import clipconformity as cc
from clipconformity.functional import frechet_distance, vendi_score
from clipconformity.stream import frechet_sizes
from clipconformity.stream.equal_n import DRAWS, draw_subsamples
from clipconformity.stream.frechet_sizes import SHARES, SPLITS, compute_noise_floor, extrapolate_to_infinite_n
from clipconformity.stream.readouts import read_outs
from clipconformity.stream.readouts.vendi import VendiReadOut
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.stream import Stream

DIM = 6


def figures(name: str, rows, others, groups=None, other_groups=None, max_samples=10_000) -> dict[str, float]:
    one = read_outs()[name]
    reference = ReferenceSet.fit(others, groups=other_groups, max_samples=max_samples)
    stream = Stream.open_against(reference, one.needs, max_samples=max_samples)
    stream.update(rows, groups=groups)
    return {key: float(value) for key, value in one.figures(stream, resamples=10).items()}


def test_subsamples_hold_no_row_twice(generator):
    sample = ReferenceSet.fit(ellipsoid_rows(40, DIM, generator)).sample
    found = list(draw_subsamples(sample, 30, generator))
    assert [len(rows.unique(dim=0)) for rows in found] == [30] * DRAWS
    assert len(torch.stack(found).unique(dim=0)) == DRAWS
    assert torch.equal(*draw_subsamples(sample, 40, generator), sample.rows.double())


# --- Vendi -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [60, 10_000])
def test_vendi_is_exact_beside_the_reference_whatever_the_row_sample(size, generator):
    rows, others = ellipsoid_rows(150, DIM, generator), ellipsoid_rows(400, DIM, generator, offset=0.5)
    found = figures("vendi", rows, others, max_samples=size)
    for prefix, side in (("", rows), ("reference_", others)):
        assert found[f"{prefix}vendi"] == pytest.approx(float(vendi_score(side.double())), rel=1e-6)
        assert found[f"{prefix}rke"] == pytest.approx(float(vendi_score(side.double(), 2)), rel=1e-6)
    u = unit(double(rows))
    pairs = (u @ u.T)[~np.eye(len(u), dtype=bool)]
    assert found["rke_unbiased"] == pytest.approx(1 / (pairs**2).mean(), rel=1e-6)


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 2.0, math.inf])
def test_the_metric_of_any_order_equals_the_function(order, generator):
    rows = ellipsoid_rows(150, DIM, generator)
    metric = cc.VendiScore(order=order, embed_dim=DIM)
    for batch in rows.split(40):
        metric.update(batch)
        metric.update(torch.ones(3, DIM), real=True)
    assert float(metric.compute()) == pytest.approx(float(vendi_score(rows, order)), rel=1e-5)
    with pytest.raises(ValueError, match="order: expected a number of at least 0"):
        cc.VendiScore(order=-1, embed_dim=DIM)


@pytest.mark.parametrize("order", [0.0, math.inf])
def test_orders_that_are_not_smooth_have_no_interval(order, generator):
    one = VendiReadOut(order)
    stream = Stream.open_against(ReferenceSet.fit(ellipsoid_rows(90, DIM, generator)), one.needs)
    stream.update(ellipsoid_rows(90, DIM, generator))
    found = one.figures(stream, resamples=10)
    assert all(math.isnan(float(found[f"vendi_{end}"])) for end in ("low", "high"))
    assert bool(found["vendi"].isfinite())


def test_sets_of_one_kind_have_the_same_vendi_score_at_equal_n_alone(generator):
    """A long tail of axes is seen the more of, the more rows there are."""
    spread = torch.logspace(0, -1.5, 64)
    many, few = (torch.randn(count, 64, generator=generator) * spread for count in (3000, 60))
    found = figures("vendi", few, many)
    assert found["reference_vendi"] > 1.1 * found["vendi"]
    assert found["vendi_n"] == 60
    assert found["vendi_equal_n"] == pytest.approx(found["vendi"], rel=1e-6)
    assert found["reference_vendi_equal_n"] == pytest.approx(found["vendi"], rel=0.05)
    assert found["vendi_ratio_low"] < 1 < found["vendi_ratio_high"]
    assert found["vendi_ratio"] == pytest.approx(found["vendi_equal_n"] / found["reference_vendi_equal_n"], rel=1e-9)


def test_groups_widen_the_intervals_and_leave_rke_between_them(generator):
    own = ellipsoid_rows(40, DIM, generator)
    groups = torch.arange(200) % 40
    rows = own[groups] + 0.1 * ellipsoid_rows(200, DIM, generator)
    others = ellipsoid_rows(300, DIM, generator)
    plain, grouped = figures("vendi", rows, others), figures("vendi", rows, others, groups)
    u = unit(double(rows))
    squares = ((u @ u.T) ** 2)[(groups[:, None] != groups).numpy()].mean()
    assert grouped["rke_unbiased"] == pytest.approx(1 / squares, rel=1e-6)
    for name in ("vendi", "rke", "rke_unbiased"):
        widths = [found[f"{name}_high"] / found[f"{name}_low"] for found in (plain, grouped)]
        assert math.log(widths[1]) > 1.5 * math.log(widths[0])


@pytest.mark.parametrize("count", [60, 400])
def test_intervals_of_vendi_and_rke_cover_what_they_say(count):
    generator = torch.Generator().manual_seed(0)
    many = unit(double(ellipsoid_rows(100_000, DIM, generator)))
    population = 1 / np.square(many.T @ many / len(many)).sum()
    others, found = ellipsoid_rows(400, DIM, generator), []
    for _ in range(100):
        found.append(figures("vendi", ellipsoid_rows(count, DIM, generator), others))
    for name in ("vendi", "rke", "rke_unbiased"):
        truth = population if name == "rke_unbiased" else np.mean([one[name] for one in found])
        hits = sum(one[f"{name}_low"] <= truth <= one[f"{name}_high"] for one in found)
        assert hits >= 87, (name, hits)


def test_repeats_of_one_row_have_one_effective_sample_and_no_figure_is_infinite(generator):
    found = figures("vendi", torch.ones(30, DIM), ellipsoid_rows(90, DIM, generator))
    assert found["vendi"] == pytest.approx(1, abs=1e-9)
    assert found["rke_unbiased"] == pytest.approx(1, abs=1e-9)
    found = figures("vendi", torch.eye(DIM)[:3] * 2, ellipsoid_rows(90, DIM, generator))
    assert math.isnan(found["rke_unbiased"])  # no two rows have anything in common
    assert not any(map(math.isinf, found.values()))


def vendi_of(order: float, rows, others) -> dict[str, float]:
    stream = Stream.open_against(ReferenceSet.fit(others), VendiReadOut(order).needs)
    stream.update(rows)
    return {key: float(value) for key, value in VendiReadOut(order).figures(stream, resamples=10).items()}


def test_what_both_sides_share_cancels_in_their_ratio(generator):
    rows = ellipsoid_rows(90, DIM, generator)
    found = vendi_of(1.0, rows, rows)
    assert (found["vendi_ratio_low"], found["vendi_ratio_high"]) == pytest.approx((1, 1), abs=1e-9)
    assert found["vendi_high"] > 1.01 * found["vendi_low"]


def test_rke_has_its_interval_whatever_the_order(generator):
    rows, others = ellipsoid_rows(90, DIM, generator), ellipsoid_rows(90, DIM, generator)
    first, second = (vendi_of(order, rows, others) for order in (0.5, 2.0))
    for name in ("rke_low", "rke_high", "rke_unbiased_low", "rke_unbiased_high"):
        assert first[name] == pytest.approx(second[name], rel=1e-9)
    assert first["vendi_low"] != pytest.approx(second["vendi_low"], rel=0.01)


# --- Frechet ---------------------------------------------------------------------------------------------------------


def closed_form(x: torch.Tensor, y: torch.Tensor) -> float:
    (m, s), (n, t) = ((double(z).mean(0), np.cov(double(z).T)) for z in (x, y))
    return float(np.square(m - n).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real))


def test_the_frechet_distance_is_the_closed_form_and_at_equal_n_a_mean_of_it(generator):
    rows, others = ellipsoid_rows(80, DIM, generator, offset=1.3), ellipsoid_rows(900, DIM, generator)
    found = figures("frechet", rows, others)
    assert found["frechet"] == pytest.approx(closed_form(rows, others), rel=1e-6)
    assert found["frechet_n"] == 80
    draws = [closed_form(rows, others[torch.randperm(900, generator=generator)[:80]]) for _ in range(100)]
    assert found["frechet_equal_n"] == pytest.approx(np.mean(draws), abs=3 * np.std(draws) / 2)
    same = figures("frechet", rows, others[:80])
    assert same["frechet_equal_n"] == pytest.approx(same["frechet"], rel=1e-6)


def gaussians(count: int, other: int, generator: torch.Generator, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    spread = torch.logspace(0, -1, 16)
    rows = torch.randn(count, 16, generator=generator) * spread * scale + 2
    return rows, torch.randn(other, 16, generator=generator) * spread + 2


def test_the_extrapolation_is_the_line_that_numpy_fits(generator, monkeypatch):
    seen = []

    def distance(first, second):
        seen.append((len(first), float((first.mean() - second.mean()).abs() + 5 / len(second))))
        return torch.tensor(seen[-1][1], dtype=torch.float64)

    monkeypatch.setattr(frechet_sizes, "_compute_distance", distance)
    sides = [ReferenceSet.fit(ellipsoid_rows(count, DIM, generator)).sample for count in (100, 300)]
    found, error = extrapolate_to_infinite_n(*sides, 100, torch.tensor(0.06).double(), generator)
    assert [size for size, _ in seen] == [50, 50, 33, 33, 25, 25]
    line, covariance = np.polyfit([1, *(100 / n for n, _ in seen)], [0.06, *(y for _, y in seen)], 1, cov=True)
    assert (float(found), float(error)) == pytest.approx((line[1], covariance[1, 1] ** 0.5))


@pytest.mark.parametrize("value", [5.0, 0.1])
def test_the_interval_of_the_extrapolation_knows_of_the_error_of_its_line(value, generator, monkeypatch):
    reported = torch.tensor(value).double(), torch.tensor(0.7).double()
    monkeypatch.setattr("clipconformity.stream.readouts.frechet.extrapolate_to_infinite_n", lambda *_: reported)
    found = figures("frechet", *gaussians(90, 300, generator, 1.2))
    half = math.hypot((found["frechet_high"] - found["frechet_low"]) / 2, 1.96 * 0.7)
    assert found["frechet_low"] > 0
    assert found["frechet_infinite_n_low"] == pytest.approx(max(value - half, 0))
    assert found["frechet_infinite_n_high"] == pytest.approx(value + half)


@pytest.mark.parametrize("scale", [1.0, 1.3])
@pytest.mark.parametrize("sizes", [(200, 200), (200, 1000)])
def test_the_extrapolation_is_near_the_distance_of_the_distributions(sizes, scale):
    generator = torch.Generator().manual_seed(3)
    truth = (scale - 1) ** 2 * float(torch.logspace(0, -1, 16).square().sum())
    found = [figures("frechet", *gaussians(*sizes, generator, scale)) for _ in range(20)]
    bias = np.mean([one["frechet"] for one in found]) - truth
    left = np.mean([one["frechet_infinite_n"] for one in found]) - truth
    assert abs(left) < 0.3 * bias
    hits = sum(one["frechet_infinite_n_low"] <= truth <= one["frechet_infinite_n_high"] for one in found)
    assert hits >= 17, hits


def test_the_extrapolation_is_withheld_where_a_subsample_has_fewer_rows_than_dimensions(generator):
    for size, known in ((max(SHARES) * 16 - 1, False), (max(SHARES) * 16, True)):
        found = figures("frechet", *gaussians(size, 500, generator, 1.0))
        for key in ("frechet_infinite_n", "frechet_infinite_n_low", "frechet_infinite_n_high"):
            assert math.isfinite(found[key]) == known


def test_the_rows_that_an_extrapolation_needs_are_told(generator):
    one = read_outs()["frechet"]
    reported = []
    for size in (20, 64):
        rows, others = gaussians(size, 500, generator, 1.0)
        stream = Stream.open_against(ReferenceSet.fit(others), one.needs)
        stream.update(rows)
        reported.append(one.notes(stream))
    assert reported == [
        ["frechet_infinite_n needs at least 64 rows of either side at 16 dimensions; there are 20."],
        [],
    ]


@pytest.mark.parametrize("dim", [DIM, 60, 100], ids=["few dimensions", "between", "more dimensions than rows"])
def test_the_floor_is_where_a_further_split_of_all_rows_would_lie(dim, generator, monkeypatch):
    """By the moments of each split, which add up to those of all rows, and Student's t of one more draw."""
    seen = []

    def distance(one, other):
        (mean, factor), (other_mean, other_factor) = one, other
        torch.testing.assert_close(50 * mean + 80 * other_mean, torch.zeros(dim).double())
        whole = 49 * factor @ factor.T + 50 * torch.outer(mean, mean)
        whole += 79 * other_factor @ other_factor.T + 80 * torch.outer(other_mean, other_mean)
        torch.testing.assert_close(whole, total)
        seen.append(float(factor.square().sum()))
        return torch.tensor(seen[-1]).double()

    monkeypatch.setattr(frechet_sizes, "factored_distance", distance)
    rows = [ellipsoid_rows(count, dim, generator) for count in (50, 80)]
    total = torch.cov(torch.cat(rows).double().T) * 129
    sides = [(side.sample, side.moments) for side in map(ReferenceSet.fit, rows)]
    found = float(compute_noise_floor(*sides, generator))
    assert len(set(seen)) == SPLITS
    further = scipy.stats.t(SPLITS - 1).ppf(0.95) * np.std(seen, ddof=1) * math.sqrt(1 + 1 / SPLITS)
    assert found == pytest.approx(np.mean(seen) + further)


@pytest.mark.parametrize("sizes", [(60, 60), (60, 600)])
def test_the_floor_is_seldom_exceeded_by_sets_of_one_kind(sizes):
    generator = torch.Generator().manual_seed(4)
    found = [figures("frechet", *gaussians(*sizes, generator, 1.0)) for _ in range(100)]
    above = sum(one["frechet"] > one["frechet_noise_floor"] for one in found)
    assert above <= 13, above  # of 5 expected
    quantile = np.quantile([one["frechet"] for one in found], 0.95)
    assert np.mean([one["frechet_noise_floor"] for one in found]) == pytest.approx(quantile, rel=0.2)


def test_beyond_the_row_sample_the_floor_is_that_of_all_rows(generator):
    rows, others = gaussians(2000, 2000, generator, 1.0)
    found = [figures("frechet", rows, others, max_samples=size) for size in (500, 10_000)]
    assert found[0]["frechet_noise_floor"] == pytest.approx(found[1]["frechet_noise_floor"], rel=0.25)
    assert found[0]["frechet_n"] == 500


def test_groups_are_dealt_as_a_whole_so_that_the_floor_knows_of_them():
    generator = torch.Generator().manual_seed(5)

    def grouped() -> tuple[torch.Tensor, torch.Tensor]:
        own = gaussians(40, 2, generator, 1.0)[0]
        groups = torch.arange(200) % 40
        return own[groups] + 0.05 * torch.randn(200, 16, generator=generator), groups

    above = {"plain": 0, "grouped": 0}
    for _ in range(30):
        (rows, groups), (others, other_groups) = grouped(), grouped()
        for kind, labels in {"plain": (None, None), "grouped": (groups, other_groups + 1000)}.items():
            found = figures("frechet", rows, others, *labels)
            above[kind] += found["frechet"] > found["frechet_noise_floor"]
    assert above["plain"] == 30  # dealt one by one
    assert above["grouped"] <= 6, above


def test_the_function_and_the_metric_agree(generator):
    rows, others = gaussians(90, 300, generator, 1.2)
    metric = cc.FrechetDistance(cc.ReferenceSet.fit(others))
    metric.update(rows)
    assert float(metric.compute()) == pytest.approx(float(frechet_distance(rows, others)), rel=1e-5)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [70, 10_000], ids=["beyond the row sample", "all rows kept"])
@pytest.mark.parametrize("name", ["cosine_mmd", "cmmd", "vendi", "frechet"])
def test_no_figure_depends_on_order_batches_or_parts(name, size, generator):
    rows, others = ellipsoid_rows(200, DIM, generator, offset=1.2), ellipsoid_rows(500, DIM, generator)
    groups, other_groups = torch.arange(200) // 2, torch.arange(500) // 2
    one = read_outs()[name]
    whole = ReferenceSet.fit(others, groups=other_groups, max_samples=size)
    parts = [
        ReferenceSet.fit(others[part], groups=other_groups[part], max_samples=size)
        for part in (slice(0, 90), slice(90, 500))
    ]
    order = rows[:, 0].argsort()

    def figures_of(reference, batches) -> dict[str, float]:
        streams = []
        for indices in batches:
            streams.append(Stream.open_against(reference, one.needs, max_samples=size))
            for index in indices:
                streams[-1].update(rows[index], groups=groups[index])
        first, *further = streams
        for other in further:
            first.sides["evaluated"] = first.evaluated.merge(other.evaluated)
        return {key: float(value) for key, value in one.figures(first, resamples=50).items()}

    expected = figures_of(whole, [[torch.arange(200)]])
    for found in (
        figures_of(whole, [order.split(17)]),
        figures_of(parts[0].merge(parts[1]), [[order[:120]], order[120:].split(30)]),
    ):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)
