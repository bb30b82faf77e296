"""Typicality and variety with each bucket left out, against explicit recomputation from the rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import ellipsoid_rows, unit

import clipconformity as cc
from clipconformity.stream.moments import bucket_of
from clipconformity.stream.row_sample import hash_labels
from clipconformity.stream.stream import Needs, Stream

DIM = 12
NEEDS = Needs(conformity=True, rows=True, reference=True)


def contrast(rows, reference, groups=None, ids=None):
    stream = Stream.against(reference, NEEDS)
    stream.update(rows, groups=groups, ids=ids)
    return stream.contrast("test")


def brute(rows, others, mine, theirs, grouped: bool) -> tuple[float, float]:
    """Shift and log variety ratio of rows in buckets, over all pairs; with groups none inside a bucket."""
    u, w = unit(rows.double().numpy()), unit(others.double().numpy())

    def mean(a, b, same):
        return np.nanmean(np.where(same, np.nan, a @ b.T))

    def own(a, bucket):
        return bucket[:, None] == bucket[None] if grouped else np.eye(len(a), dtype=bool)

    same_ww = own(w, theirs)
    across = mine[:, None] == theirs[None] if grouped else np.zeros((len(u), len(w)), dtype=bool)
    values = np.nanmean(np.where(same_ww, np.nan, w @ w.T), axis=1)
    inner = mean(w, w, same_ww)
    shift = (mean(u, w, across) - inner) / values.std(ddof=1)
    return shift, math.log(1 - mean(u, u, own(u, mine))) - math.log(1 - inner)


def jackknife(rows, others, mine, theirs, grouped) -> tuple[np.ndarray, np.ndarray]:
    whole = np.array(brute(rows, others, mine, theirs, grouped))
    left = []
    for bucket in np.unique(np.concatenate([mine, theirs])):
        a, b = mine != bucket, theirs != bucket
        left.append(brute(rows[torch.from_numpy(a)], others[torch.from_numpy(b)], mine[a], theirs[b], grouped))
    left = np.array(left)
    count = len(left)
    return whole, np.sqrt((count - 1) / count * np.square(left - left.mean(0)).sum(0))


@pytest.mark.parametrize("kind", ["ids", "repeats", "groups", "shared groups", "large groups"])
def test_shift_and_variety_equal_an_explicit_jackknife(kind, generator):
    rows, others = ellipsoid_rows(80, DIM, generator, offset=1.3), ellipsoid_rows(120, DIM, generator)
    if kind == "repeats":
        others[:30] = others[0]
    labels = [torch.arange(80), torch.arange(120) + 1000]
    if "groups" in kind:
        size = 30 if kind == "large groups" else 4
        labels = [labels[0] // size, labels[1] // size]
        if kind == "shared groups":
            labels[1] = labels[1] - 250
    grouped = "groups" in kind
    name = "groups" if grouped else "ids"
    if not grouped:
        labels = [[str(x) for x in one.tolist()] for one in labels]
    reference = cc.ReferenceSet.fit(others, **{name: labels[1]})
    found = contrast(rows, reference, **{name: labels[0]})
    buckets = [bucket_of(hash_labels(one, len(one), torch.device("cpu"))).numpy() for one in labels]
    whole, error = jackknife(rows, others, *buckets, grouped)
    estimates = found.typicality_shift, found.log_variety_ratio
    np.testing.assert_allclose([float(one.value) for one in estimates], whole, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose([float(one.error) for one in estimates], error, rtol=1e-4)


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
    assert found.unknown == "nearly all samples are equal"
    with_ids = contrast(rows, reference, ids=range(len(rows)))
    assert with_ids.variety_interval.high < 1


def test_two_groups_have_no_interval_of_their_variety(generator):
    """Without either, no pair between groups is left."""
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator))
    found = contrast(ellipsoid_rows(100, DIM, generator), reference, groups=torch.arange(100) // 50)
    assert math.isfinite(float(found.log_variety_ratio.value))
    assert math.isnan(found.variety_interval.low)
    assert "belong to one or two groups" in found.unknown
