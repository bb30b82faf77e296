"""Both sides of a divergence: what rows in groups are worth, and redraws of the reference, against explicit ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows, rows_with_cosine, unit
from scipy import stats

import clipconformity as cc
from clipconformity.functional.density import CELLS
from clipconformity.functional.divergence import Side, excess_kurtosis
from clipconformity.stream import standing
from clipconformity.stream.readouts import read_outs
from clipconformity.stream.standing import (
    Standing,
    bucket_weights,
    design_effect,
    make_evaluated_side,
    make_reference_side,
    redraw_reference,
)
from clipconformity.stream.stream import Needs, Stream

DIM = 16
NEEDS = Needs(conformity=True, rows=True, reference=True)


def drawn(count: int, generator: torch.Generator, shift: float = 0.0, spread: float = 1.0) -> torch.Tensor:
    z = shift + spread * torch.randn(count, generator=generator, dtype=torch.float64)
    return rows_with_cosine((0.6 + 0.05 * z).clamp(-0.95, 0.95), DIM, generator)


def streamed(rows, reference, groups=None) -> Stream:
    stream = Stream.open_against(reference, NEEDS)
    stream.update(rows, groups=groups)
    return stream


def in_cells(*clusters: dict[int, int]) -> torch.Tensor:
    """Histograms of clusters: for each the number of rows by cell."""
    counts = torch.zeros(len(clusters), CELLS + 2, dtype=torch.float64)
    for cluster, cells in enumerate(clusters):
        for cell, number in cells.items():
            counts[cluster, cell] = number
    return counts


# --- what rows in groups are worth -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clusters", "effect"),
    [
        ([{500: 4}, {510: 4}, {490: 4}, {505: 4}], 4.0),  # copies: four are worth one, for the mean and the spread
        ([{495: 2, 505: 2}, {480: 2, 520: 2}, {499: 2, 501: 2}], 2.0),  # the mean is known exactly, the spread by one
        ([{490: 3}, {510: 3}, {490: 3}, {510: 3}], 2.0),  # the spread is known exactly, the mean by a third; 1 for 0/0
        ([{500: 1}, {510: 1}, {487: 1}], 1.0),
        ([{490: 1, 510: 1}, {490: 1, 510: 1}], 1.0),  # never more than they are
    ],
)
def test_a_design_effect_is_the_mean_of_those_of_the_mean_and_of_the_spread(clusters, effect):
    histogram = in_cells(*clusters)
    assert design_effect(histogram) == pytest.approx(effect)
    total = float(histogram.sum())
    assert make_evaluated_side(histogram, grouped=True).effective == pytest.approx(total / effect)
    assert make_evaluated_side(histogram, grouped=False).effective == total


def test_copies_in_groups_are_worth_one_row_each(generator):
    rows = drawn(200, generator)
    groups = torch.arange(200).repeat_interleave(4)
    reference = cc.ReferenceSet.fit(rows.repeat_interleave(4, 0), groups=groups)
    assert make_reference_side(reference).effective == pytest.approx(200)
    assert make_reference_side(cc.ReferenceSet.fit(rows)).effective == 200


@pytest.mark.parametrize(
    ("shape", "kurtosis", "heavy"),
    [(stats.norm, 0.0, False), (stats.uniform, -1.2, False), (stats.laplace, 3.0, True), (stats.logistic, 1.2, True)],
)
def test_heavy_tails_are_those_of_an_excess_kurtosis_above_one(shape, kurtosis, heavy):
    counts = torch.from_numpy(np.diff(shape.cdf((np.arange(CELLS + 3) - CELLS / 2) / 25)))
    assert excess_kurtosis(counts) == pytest.approx(kurtosis, abs=0.02)
    other = Side(torch.from_numpy(np.diff(stats.norm.cdf((np.arange(CELLS + 3) - CELLS / 2) / 25))), 1000.0)
    for sides in ((Side(counts, 1000.0), other), (other, Side(counts, 1000.0))):
        assert Standing(*sides, counts[None], None).heavy_tails == heavy  # type: ignore[arg-type]


# --- redraws of the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 1])
def test_a_redrawn_reference_is_that_of_the_redrawn_rows(size, generator):
    """Under the mean of the redrawn buckets, the own row or bucket left out as often as it was drawn.

    The evaluated rows are taken to stay, and the reference to move by what the mean moves towards theirs.
    """
    rows = drawn(1000 // size, generator).repeat_interleave(size, 0)
    rows = rows + (size > 1) * 2 * torch.randn(1000, DIM, generator=generator)
    reference = cc.ReferenceSet.fit(rows, groups=None if size == 1 else torch.arange(1000) // size)
    weights = bucket_weights(reference.moments["count"], 70, generator)  # more than are worked through at once
    towards = reference.unit_mean + 0.1 * torch.randn(DIM, generator=generator, dtype=torch.float64)
    found = redraw_reference(reference, towards, weights)
    u, bucket = unit(reference.sample.rows.double().numpy()), reference.buckets.numpy()
    together = np.eye(len(u), dtype=bool) if size == 1 else bucket[:, None] == bucket[None]
    cosines = np.where(together, 0.0, u @ u.T)
    place = (torch.arange(CELLS + 2) - CELLS // 2 - 0.5).double()  # middle of each cell
    errors = []
    for histogram, weight in zip(found, weights.numpy(), strict=True):
        often = weight[bucket]
        moved = (often @ u / often.sum() - double(reference.unit_mean)) @ double(towards)
        values = cosines @ often / (~together @ often) - moved
        expected = (often @ values / often.sum() - reference.grid.center) / reference.grid.cell
        assert float(histogram.sum()) == pytest.approx(often.sum())
        errors.append(float(histogram @ place / histogram.sum()) - expected)
    # In cells, of which the own row or bucket takes one off: the code leaves out what is of the order of 1/N^2.
    assert abs(np.mean(errors)) < 0.1
    assert np.abs(errors).max() < 0.35


def test_buckets_that_both_sides_share_are_drawn_together(generator):
    """Where both sides describe the same images, what these differ by cancels in the interval."""
    images = 3 * ellipsoid_rows(300, DIM, generator)
    draws = [images + torch.randn(300, DIM, generator=generator) for _ in range(2)]
    groups = torch.arange(300)
    reference = cc.ReferenceSet.fit(draws[0], groups=groups)
    moved = draws[1] + 0.15 * reference.mean.float()
    widths = []
    for labels in (groups, groups + 1000):
        low, high = Standing.from_stream(streamed(moved, reference, labels)).interval(0.95, 200, None)
        widths.append(high - low)
    assert widths[0] < 0.75 * widths[1]


def test_an_interval_is_freed_of_the_bias_that_the_value_is(generator, monkeypatch):
    found = Standing.from_stream(streamed(drawn(100, generator, 0.5), cc.ReferenceSet.fit(drawn(300, generator))))
    given = []
    ends = torch.zeros((), dtype=torch.float64)
    monkeypatch.setattr(standing, "basic_interval", lambda *args: given.append(args) or (ends, ends))
    found.interval(0.9, 20, None)
    point, bias, draws, confidence = given[0]
    assert float(point) - bias == pytest.approx(float(found.divergences().forward))
    assert bias > 1 / 100 + 1 / 300  # of two free parameters and more on either side
    assert (len(draws), confidence) == (20, 0.9)


# --- under one distribution ------------------------------------------------------------------------------------------


def test_few_groups_of_independent_rows_have_the_floor_of_their_rows(generator):
    """One row of each group is permuted, of which there are a fifth: the floor is that of all."""
    floors = []
    for size in (5, 1):
        values = []
        for seed in range(5):
            draw = torch.Generator().manual_seed(seed)
            groups = [torch.arange(200) // size + start for start in (0, 1000)]
            reference = cc.ReferenceSet.fit(drawn(200, draw), groups=groups[0] if size > 1 else None)
            found = Standing.from_stream(streamed(drawn(200, draw), reference, groups[1] if size > 1 else None))
            values.append(found.redraw_null(0.95, 100, None).floor)
        floors.append(np.mean(values))
    assert floors[0] == pytest.approx(floors[1], rel=0.5)


def test_the_floor_is_smoothed_by_counts_that_are_not_below_zero(generator, monkeypatch):
    """Signs of buckets leave some below 0; with those the smoothing was at times one that raised the floor by half."""
    groups = torch.arange(60).repeat_interleave(5)
    rows = (drawn(60, generator).repeat_interleave(5, 0) + torch.randn(300, DIM, generator=generator) for _ in range(2))
    reference = cc.ReferenceSet.fit(next(rows), groups=groups)
    found = Standing.from_stream(streamed(next(rows), reference, groups + 500))
    sides, redraws = [], []
    settle, draw = standing.plan_readout, standing.redraw
    monkeypatch.setattr(standing, "plan_readout", lambda *given: sides.extend(given) or settle(*given))
    monkeypatch.setattr(standing, "redraw", lambda *given: redraws.append(draw(*given)) or redraws[0])
    found.redraw_null(0.95, 40, None)
    assert bool((redraws[0].evaluated < 0).any())
    assert len(sides) == 8
    assert all(float(side.counts.min()) >= 0 for side in sides)


def test_the_read_out_has_the_95_percent_interval_and_floor(generator):
    stream = streamed(drawn(150, generator, 0.6), cc.ReferenceSet.fit(drawn(300, generator)))
    value = {name: float(x) for name, x in read_outs()["conformity_kl"].figures(stream, resamples=60).items()}
    found = Standing.from_stream(stream)
    assert (value["kl_low"], value["kl_high"]) == pytest.approx(tuple(found.interval(0.95, 60, None)))
    assert value["noise_floor"] == pytest.approx(found.redraw_null(0.95, 60, None).floor)
    assert value["conformity_kl"] == pytest.approx(float(found.divergences().forward))
    assert value["reverse_kl"] == pytest.approx(float(found.divergences().reverse))
    assert value["reverse_kl"] != pytest.approx(value["conformity_kl"], rel=1e-3)
