"""An empty batch changes nothing: a rank or a filter that has none goes on, and the other ranks do not wait for it."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import ellipsoid_rows

import clipconformity as cc

DIM = 6
SINGLE = (
    "Conformity",
    "ConformityKL",
    "EmbeddingNorm",
    "EllipsoidGeometry",
    "FrechetDistance",
    "GaussianLikelihood",
    "PRDC",
)
NONE = torch.empty(0, DIM)


@pytest.fixture(scope="module")
def rows():
    return ellipsoid_rows(200, DIM, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reference():
    return cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, torch.Generator().manual_seed(1)))


def make(name, reference):
    alone = name in ("EmbeddingNorm", "EllipsoidGeometry")
    return getattr(cc, name)(**({"embed_dim": DIM} if alone else {"reference": reference}))


def numbers(value):
    return {k: float(x) for k, x in value.items()} if isinstance(value, dict) else {"value": float(value)}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("groups", [None, [], torch.empty(0, dtype=torch.long)], ids=["none", "list", "tensor"])
def test_an_empty_batch_leaves_every_state_as_it_was(name, groups, rows, reference):
    metric = make(name, reference)
    metric.update(NONE, groups=groups)  # also as the first
    assert metric.num_samples == 0
    metric.update(rows, groups=None if groups is None else list(range(200)))
    expected = make(name, reference)
    expected.update(rows, groups=None if groups is None else list(range(200)))
    before = numbers(expected.compute())
    metric.update(NONE, groups=groups)
    metric.update(NONE, real=True)
    assert all(math.isnan(x) for x in numbers(metric(NONE, groups=groups)).values())
    assert numbers(metric.compute()) == before


@pytest.mark.parametrize("name", SINGLE)
def test_only_empty_batches_are_too_few_samples(name, reference):
    metric = make(name, reference)
    metric.update(NONE)
    with pytest.raises(ValueError, match="expected at least .* samples, got 0"):
        metric.compute()


def test_empty_pairs_leave_a_gap_as_it_was(rows):
    metrics = [cc.ModalityGap(embed_dim=DIM) for _ in range(2)]
    metrics[0].update(NONE, NONE)
    for metric in metrics:
        metric.update(rows, rows.flip(1))
    assert all(math.isnan(x) for x in numbers(metrics[0](NONE, NONE)).values())
    assert numbers(metrics[0].compute()) == numbers(metrics[1].compute())


def test_a_collection_takes_empty_batches(rows, reference):
    found, expected = (cc.ConformityMetrics(reference) for _ in range(2))
    found.update(NONE)
    for metrics in (found, expected):
        metrics.update(rows)
    assert all(math.isnan(float(x)) for x in found(NONE).values())
    assert numbers(found.compute()) == numbers(expected.compute())


def test_a_reference_takes_empty_batches(rows):
    expected = cc.ReferenceSet.fit(rows, groups=list(range(200)))
    found = cc.ReferenceSet.fit([NONE, rows[:90], NONE.numpy(), rows[90:], NONE], groups=list(range(200)))
    assert torch.allclose(found.covariance, expected.covariance, rtol=1e-9)
    assert torch.equal(found.sketch.keys, expected.sketch.keys)
    with pytest.raises(ValueError, match="expected at least 2 samples, got 0"):
        cc.ReferenceSet.fit([NONE, NONE])


@pytest.mark.parametrize("batch", [[], (), torch.empty(0, 3, 8, 8, dtype=torch.uint8)], ids=["list", "tuple", "images"])
def test_no_images_and_no_texts_reach_no_encoder_and_fix_no_modality(batch, rows):
    def refuse(_):
        raise AssertionError("the encoder was called")

    from clipconformity.encoders import CallableEncoder

    encoder = CallableEncoder(refuse, lambda texts: rows[: len(texts)], DIM, spec="mine")
    metric = cc.Conformity(encoder=encoder)
    metric.update(batch)
    metric.update(["a dog", "a cat"])
    assert metric.num_samples == 2


def test_an_empty_batch_of_another_dimension_is_refused(reference):
    with pytest.raises(ValueError, match="dimension 5"):
        cc.Conformity(reference).update(torch.empty(0, 5))
