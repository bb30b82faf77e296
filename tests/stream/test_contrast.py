"""What is told of two sides with each bucket left out, against explicit recomputation from the rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import ellipsoid_rows, rows_with_cosine, unit

import clipconformity as cc
from clipconformity.stream.moments import assign_buckets
from clipconformity.stream.row_sample import hash_labels
from clipconformity.stream.stream import Needs, Stream

DIM = 12
NEEDS = Needs(conformity=True, rows=True, reference=True)


def contrast(rows, reference, groups=None, ids=None):
    stream = Stream.open_against(reference, NEEDS)
    stream.update(rows, groups=groups, ids=ids)
    return stream.contrast("test")


class Pairs:
    """Which rows are compared with each other: none with itself, with groups none of one bucket; by brute force.

    Args:
        rows: Evaluated rows.
        others: The reference's.
        buckets: Of either.
        grouped: Whether either has groups.
    """

    def __init__(self, rows, others, buckets, grouped: tuple[bool, bool]) -> None:
        self.units = unit(rows.double().numpy()), unit(others.double().numpy())
        self.buckets = buckets
        self.left_out = [
            (buckets[a][:, None] == buckets[b][None]) & (grouped[a] and grouped[b]) for a, b in ((0, 1), (0, 0), (1, 1))
        ]
        cosines = (self.units[a] @ self.units[b].T for a, b in ((0, 1), (0, 0), (1, 1)))
        self.cosines = [np.where(out, np.nan, x) for out, x in zip(self.left_out, cosines, strict=True)]
        for own in self.cosines[1:]:
            np.fill_diagonal(own, np.nan)
        self.cosines[0][self.units[0] @ self.units[1].T > 1 - 1e-5] = np.nan  # a row that both sides have

    def figures(self, mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """Shift, log variety ratio and log spread ratio of the rows kept on either side."""
        across, within, reference = self.cosines
        own = reference[np.ix_(theirs, theirs)]
        values = np.nanmean(own, axis=1)
        shift = (np.nanmean(across[np.ix_(mine, theirs)]) - np.nanmean(own)) / values.std(ddof=1)
        variety = math.log(1 - np.nanmean(within[np.ix_(mine, mine)])) - math.log(1 - np.nanmean(own))
        # The spread is taken under the mean of the whole reference: both sides are off by another one alike.
        spreads = [np.nanmean(x, axis=1)[kept].std(ddof=1) for x, kept in ((across, mine), (reference, theirs))]
        return np.array([shift, variety, math.log(spreads[0] / spreads[1])])

    def jackknife(self, *sides: int) -> np.ndarray:
        """Standard errors, each bucket left out of the given sides."""
        left = []
        for bucket in np.unique(np.concatenate([self.buckets[side] for side in sides])):
            kept = [
                one != bucket if side in sides else np.ones(len(one), bool) for side, one in enumerate(self.buckets)
            ]
            left.append(self.figures(*kept))
        count = len(left)
        return np.sqrt((count - 1) / count * np.square(np.array(left) - np.mean(left, axis=0)).sum(0))


KINDS = ["ids", "repeats", "groups", "shared groups", "large groups", "shared rows", "renamed rows", "regrouped rows"]
KINDS += ["shared groups, regrouped rows", "grouped reference", "grouped rows"]


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_every_ratio_equals_an_explicit_jackknife(kind, generator):
    rows, others = ellipsoid_rows(80, DIM, generator, offset=1.3), ellipsoid_rows(120, DIM, generator)
    labels = [torch.arange(80), torch.arange(120) + 1000]
    if kind == "repeats":
        others[:30] = others[0]
    if kind.endswith(
        ("shared rows", "renamed rows", "regrouped rows")
    ):  # a quarter of the evaluated rows are in the reference, under the same name or another
        rows[:20] = others[40:60]
    if kind == "shared rows":
        labels[0][:20] = labels[1][40:60]
    grouped = "group" in kind and kind != "grouped reference", "group" in kind and kind != "grouped rows"
    if any(grouped):
        size = 30 if kind == "large groups" else 4
        labels = [labels[0] // size, labels[1] // size]
        if "shared groups" in kind:
            labels[1] = labels[1] - 250
    names = ["groups" if one else "ids" for one in grouped]
    labels = [
        x if one else [str(n) for n in range(len(x))] if any(grouped) else [str(n) for n in x.tolist()]
        for x, one in zip(labels, grouped, strict=True)
    ]
    reference = cc.ReferenceSet.fit(others, **{names[1]: labels[1]})
    found = contrast(rows, reference, **{names[0]: labels[0]})
    buckets = [assign_buckets(hash_labels(one, len(one), torch.device("cpu"))).numpy() for one in labels]
    pairs = Pairs(rows, others, buckets, grouped)
    estimates = found.typicality_shift, found.log_variety_ratio, found.log_spread_ratio
    everything = (np.ones(80, bool), np.ones(120, bool))
    np.testing.assert_allclose([float(x.value) for x in estimates], pairs.figures(*everything), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose([float(x.error) for x in estimates], pairs.jackknife(0, 1), rtol=1e-4)
    for side in (0, 1):
        parts = [math.sqrt(x.parts[side]) for x in estimates]
        np.testing.assert_allclose(parts, pairs.jackknife(side), rtol=1e-4)
    cells = reference.grid.counts(torch.from_numpy(np.nanmean(pairs.cosines[0], axis=1)))
    assert float((found.histograms.sum(0) - cells).abs().sum()) <= 2  # but for a row at the edge of a cell


@pytest.mark.parametrize(
    "rows",
    [
        torch.cat([torch.ones(98, DIM), torch.eye(DIM)[:2] + 0.1]),
        torch.cat([torch.ones(990, DIM), torch.eye(DIM)[:10] + 0.1]),
        torch.ones(50, DIM),
    ],
    ids=["98 equal", "990 equal", "all equal"],
)
@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
def test_nearly_equal_rows_without_ids_have_figures_and_a_reason(rows, generator):
    """All equal rows fall into one bucket: of what else there is nothing is known, and no exponential overflows."""
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator))
    found = contrast(rows, reference)
    assert math.isnan(found.variety_interval.low)
    assert found.unknown == "nearly all samples are equal, and equal rows without ids count as one"
    assert found.are_equal == (len(rows) == 50)
    with_ids = contrast(rows, reference, ids=range(len(rows)))
    assert with_ids.variety_interval.high < 1


@pytest.mark.parametrize(("jitter", "equal"), [(0.0, True), (1e-5, True), (2e-2, False)])
def test_equal_samples_are_told_whatever_an_encoder_rounds(jitter, equal, generator):
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator))
    rows = torch.ones(200, DIM) + jitter * torch.randn(200, DIM, generator=generator)
    found = contrast(rows, reference, ids=range(200))
    assert found.are_equal == equal
    assert ("all 200 samples are equal, so there is no variety." in found.notes(True)) == equal
    assert not contrast(torch.arange(1, 51)[:, None] * torch.ones(50, DIM), reference, ids=range(50)).are_equal


def test_two_groups_have_no_interval_of_their_variety(generator):
    """Without either, no pair between groups is left."""
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator))
    found = contrast(ellipsoid_rows(100, DIM, generator), reference, groups=torch.arange(100) // 50)
    assert math.isfinite(float(found.log_variety_ratio.value))
    assert math.isnan(found.variety_interval.low)
    assert "belong to one or two groups" in found.unknown


@pytest.mark.parametrize(
    ("count", "labels", "few"),
    [
        (50, {}, None),
        (49, {}, "few samples"),
        (120, {"groups": torch.arange(120) // 3}, None),
        (120, {"groups": (torch.arange(120) // 3).clamp_max(38)}, "few groups"),
    ],
)
def test_few_samples_and_groups_are_told_from_their_number_on(count, labels, few, generator):
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator))
    rows = ellipsoid_rows(count, DIM, generator)
    assert contrast(rows, reference, **labels).few == few
    other = cc.ReferenceSet.fit(rows, **labels)
    assert contrast(ellipsoid_rows(300, DIM, generator), other).few == few


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
@pytest.mark.parametrize(("contents", "few"), [(18, "few samples"), (30, None)])
def test_rows_that_repeat_are_as_few_as_their_contents(contents, few, generator):
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator))
    rows = ellipsoid_rows(contents, DIM, generator).repeat(5, 1)
    assert contrast(rows, reference).few == few


@pytest.mark.parametrize(("count", "why"), [(4, "there are too few samples"), (5, "nearly all samples are equal, ")])
def test_few_equal_rows_are_first_of_all_few(count, why, generator):
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator))
    assert contrast(torch.ones(count, DIM), reference).unknown.startswith(why)


@pytest.mark.parametrize(("shift", "suspected"), [(-4.9, False), (-5.1, True)])
def test_another_kind_is_suspected_from_five_standard_deviations_on(shift, suspected, generator):
    cosine = 0.6 + 0.02 * torch.randn(400, generator=generator)
    reference = cc.ReferenceSet.fit(rows_with_cosine(cosine, DIM, generator))
    center, spread = reference.unit_mean, reference.spread
    target = float(reference.self_conformity + shift * spread.whole) / float(center.norm())
    around = torch.linalg.qr(torch.cat([center[:, None], torch.randn(DIM, DIM - 1, generator=generator)], 1)).Q
    axis = around[:, :1] * torch.sign(around[:, :1].T @ center)
    rows = target * axis + math.sqrt(1 - target**2) * around[:, 1:]  # each at the same angle to the mean
    found = contrast(3 * rows.T, reference, ids=range(DIM - 1))
    assert float(found.typicality_shift.value) == pytest.approx(shift, abs=0.01)
    assert bool(found.notes(of_one_kind=False)) == suspected


def test_rows_near_one_point_have_their_variety(generator):
    """A mean cosine distance of 1e-8, beside 1."""
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator))
    base = ellipsoid_rows(1, DIM, generator).double()
    rows = base + 1e-4 * base.norm() / DIM**0.5 * torch.randn(60, DIM, generator=generator).double()
    u = unit(rows.numpy())
    apart = np.square(u[:, None] - u[None]).sum(-1) / 2
    expected = apart[~np.eye(60, dtype=bool)].mean() / (1 - float(reference.self_conformity))
    found = contrast(rows, reference, ids=range(60))
    assert 1e-9 < expected < 1e-7
    assert math.exp(float(found.log_variety_ratio.value)) == pytest.approx(expected, rel=1e-4)


def test_a_point_mass_in_unequal_groups_is_worth_fewer_of_them(generator):
    """A group of 20 and five of ten are worth 5.4, which may hide more than six."""
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator))
    rows = ellipsoid_rows(1, DIM, generator) + 1e-3 * torch.randn(70, DIM, generator=generator)
    found = contrast(rows, reference, groups=(torch.arange(70) // 10).clamp_min(1))
    count = found.counts[0]
    unseen = 1 - 0.025 ** float(count.square().sum() / count.sum() ** 2)
    own, towards = float(reference.self_conformity), float(found.conformity.whole)
    mixed = (1 - unseen) ** 2 + 2 * unseen * (1 - unseen) * towards + unseen**2 * own
    assert unseen == pytest.approx(1 - 0.025 ** (9 / 49))
    assert found.variety_interval.high == pytest.approx((1 - mixed) / (1 - own), rel=1e-3)
