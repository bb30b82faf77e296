"""Batches that wait to be added together: whatever looks at a metric finds them added."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import ellipsoid_rows
from torchmetrics import MetricCollection

from clipconformity import Conformity, FrechetDistance, ModalityGap, ReferenceSet, VendiScore
from clipconformity.stream.chunks import MAX_ROWS
from clipconformity.stream.pending import MAX_BYTES

DIM = 16


@pytest.fixture
def rows(generator):
    return ellipsoid_rows(300, DIM, generator)


@pytest.fixture
def reference(generator):
    return ReferenceSet.fit(ellipsoid_rows(400, DIM, generator))


def waiting(metric) -> int:
    return sum(pending.count for pending in metric._pending.values())


def filled(metric, rows):
    for batch in rows.split(32):
        metric.update(batch)
    assert waiting(metric) == len(rows)
    return metric


def loaded(metric):
    metric.persistent(True)
    new = FrechetDistance(metric.reference)
    new.persistent(True)
    new.load_state_dict(metric.state_dict())
    new._update_count = 1
    return new


def merged(metric):
    new = FrechetDistance(metric.reference)
    new.merge_state(metric)
    new._update_count = 1
    return new


WAYS = {
    "itself": lambda metric: metric,
    "clone": lambda metric: metric.clone(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda metric: pickle.loads(pickle.dumps(metric)),
    "state dict": loaded,
    "merged state": merged,
    "moved": lambda metric: metric.to("cpu"),
    "double": lambda metric: metric.double(),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_made_of_a_metric_has_the_batches_that_wait(way, rows, reference):
    whole = FrechetDistance(reference)
    whole.update(rows)
    made = WAYS[way](filled(FrechetDistance(reference), rows))
    assert float(made.compute()) == pytest.approx(float(whole.compute()), rel=1e-6)
    assert made.num_samples == len(rows)


def test_reading_a_state_adds_what_waits(rows):
    metric = filled(VendiScore(embed_dim=DIM), rows)
    assert float(metric.evaluated_count.sum()) == len(rows)
    assert waiting(metric) == 0
    np.testing.assert_allclose(metric.metric_state["evaluated_raw_sum"], rows.double().sum(0), rtol=1e-12)
    with pytest.raises(AttributeError, match="evaluated_nothing"):
        _ = metric.evaluated_nothing


def test_a_state_that_is_set_replaces_what_came_before(rows):
    metric = filled(VendiScore(embed_dim=DIM), rows)
    metric.evaluated_raw_sum = torch.zeros(DIM, dtype=torch.float64)
    filled(metric, rows[:64])
    np.testing.assert_allclose(metric.evaluated_raw_sum, rows[:64].double().sum(0), rtol=1e-12)


def test_a_reset_forgets_what_waits(rows, reference):
    metric = filled(Conformity(reference), rows)
    metric.reset()
    assert waiting(metric) == 0
    filled(metric, rows[:100])
    assert metric.num_samples == 100


def test_a_copy_goes_its_own_way(rows):
    metric = filled(VendiScore(embed_dim=DIM), rows)
    other = metric.clone()
    filled(other, rows[:50])
    assert (metric.num_samples, other.num_samples) == (300, 350)


def test_a_collection_that_shares_states_has_the_batches_that_wait(rows, reference):
    shared = MetricCollection({name: Conformity(reference) for name in ("one", "two")}, compute_groups=True)
    apart = MetricCollection({name: Conformity(reference) for name in ("one", "two")}, compute_groups=False)
    for batch in rows.split(32):
        shared.update(batch)
        apart.update(batch)
    assert len(shared.compute_groups) == 1
    for name, value in apart.compute().items():
        assert float(shared.compute()[name]) == pytest.approx(float(value), rel=1e-6), name
    shared.update(rows[:32])
    assert {metric.num_samples for metric in shared.values()} == {332}


def test_batches_of_other_labels_types_and_sizes_lose_no_row(rows):
    """Those of one kind wait together; one of another kind comes after them."""
    groups, ids = torch.arange(300) // 4, [f"row {n}" for n in range(300)]
    parts = [
        (rows[:40], {}),
        (rows[40:90], {"groups": groups[40:90]}),
        (rows[90:120].double(), {}),
        (rows[120:200], {"ids": ids[120:200]}),
        (rows[200:260], {"groups": groups[200:260], "ids": ids[200:260]}),
        (rows[260:270], {}),
        (rows[270:280], {"ids": ids[270:280]}),
        (rows[280:290], {"groups": groups[280:290]}),
        (rows[290:].half(), {}),
    ]
    metric, apart = VendiScore(embed_dim=DIM), VendiScore(embed_dim=DIM)
    for part, labels in parts:
        metric.update(part, **labels)
        apart.update(part, **labels)
        assert apart.num_samples  # read, so that nothing waits
    for name in ("count", "raw_sum", "unit_sum", "grouped"):
        one, other = getattr(metric, f"evaluated_{name}"), getattr(apart, f"evaluated_{name}")
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
    samples = [found._stream().evaluated.sample() for found in (metric, apart)]
    assert torch.equal(samples[0].ids, samples[1].ids)
    assert metric._names == apart._names


def test_pairs_wait_together(generator):
    image, text = ellipsoid_rows(200, DIM, generator), ellipsoid_rows(200, DIM, generator)
    whole, small = ModalityGap(embed_dim=DIM), ModalityGap(embed_dim=DIM)
    whole.update(image, text)
    for pair in zip(image.split(16), text.split(16), strict=True):
        small.update(*pair)
    assert waiting(small) == 400
    for name, value in whole.compute().items():
        assert float(small.compute()[name]) == pytest.approx(float(value), rel=1e-6), name


@pytest.mark.parametrize("dim", [4, 512, 3000])
def test_the_memory_of_what_waits_is_bounded(dim):
    """Of rows that do not fit none is lost: they are added."""
    metric = VendiScore(embed_dim=dim)
    rows, most = torch.ones(100, dim), 0
    for _ in range(60):
        metric.update(rows)
        most = max(most, waiting(metric))
    assert most <= MAX_ROWS
    assert most * dim * 4 <= MAX_BYTES
    assert metric.num_samples == 6000


def test_what_waits_is_copied(rows):
    buffer, metric = rows[:50].clone(), VendiScore(embed_dim=DIM)
    groups = torch.arange(50)
    metric.update(buffer, groups=groups)
    buffer.zero_()
    groups.zero_()
    np.testing.assert_allclose(metric.evaluated_raw_sum, rows[:50].double().sum(0), rtol=1e-12)
    assert len(metric._stream().evaluated.sample().groups.unique()) == 50


def test_a_batch_without_rows_is_no_batch(rows):
    """Whatever its labels: it waits beside none."""
    metric = VendiScore(embed_dim=DIM)
    metric.update(rows[:0], groups=torch.arange(0), ids=[])
    assert waiting(metric) == 0
    metric.update(rows[:10])
    metric.update(rows[:0], groups=torch.arange(0))
    metric.update(rows[10:20], groups=torch.arange(10))
    assert metric.num_samples == 20
