"""What repeats: equal rows beyond the row sample, equal states in a collection."""

import pytest
import torch
from helpers import ellipsoid_rows
from torchmetrics import MetricCollection

import clipconformity as cc
from clipconformity.functional import conformity
from clipconformity.stream.layout import Layout
from clipconformity.stream.moments import Moments

DIM = 8


def repeated(count, generator):
    """Rows of 300 different contents, a few of which make up most of the set."""
    contents = ellipsoid_rows(300, DIM, torch.Generator().manual_seed(9))
    weights = 1 / torch.arange(1, 301) ** 1.3
    return contents[torch.multinomial(weights, count, replacement=True, generator=generator)]


def test_equal_rows_beyond_the_row_sample_keep_their_share(generator):
    rows = repeated(20_000, generator)
    reference = cc.ReferenceSet.fit(rows, max_samples=1000)
    exact = conformity(rows.double())
    assert len(reference.conformities) == 1000
    assert float(reference.conformities.std()) == pytest.approx(float(exact.std()), rel=0.01)
    kl = cc.ConformityKL(reference, max_samples=1000)
    kl.update(repeated(5000, generator))
    low, _ = kl.interval(resamples=100)
    assert float(low) == 0  # both are draws of one distribution


def test_the_sample_of_repeated_rows_does_not_depend_on_order_or_parts(generator):
    rows = repeated(5000, generator)
    order = torch.randperm(5000, generator=generator)
    whole = cc.ReferenceSet.fit(rows, max_samples=100)
    shuffled = cc.ReferenceSet.fit(rows[order].split(37), max_samples=100)
    parts = [cc.ReferenceSet.fit(part, max_samples=100) for part in rows.split(1700)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    for other in (shuffled, merged):
        torch.testing.assert_close(other.conformities, whole.conformities)
        assert torch.equal(other.sketch.copies, whole.sketch.copies)


def test_copies_are_counted_exactly_also_by_a_stream_that_compacts(generator):
    rows = repeated(3000, generator)
    moments = Moments(Layout(DIM, max_samples=50))
    for batch in rows.split(64):
        moments.update(batch)
    sketch = moments.sketch()
    for row, copies in zip(sketch.rows, sketch.copies, strict=True):
        assert int((rows == row).all(1).sum()) == int(copies)


def test_a_collection_keeps_metrics_of_different_references_apart(generator):
    near, far = (cc.ReferenceSet.fit(ellipsoid_rows(200, DIM, generator, offset=x)) for x in (1.0, 4.0))
    rows = ellipsoid_rows(100, DIM, generator)
    metrics = MetricCollection({"near": cc.ConformityKL(near), "far": cc.ConformityKL(far)})
    metrics.update(rows, real=True)  # left out by both, so that both states are still empty
    metrics.update(rows)
    alone = cc.ConformityKL(far)
    alone.update(rows)
    with pytest.warns(cc.LowerBoundWarning):
        found = metrics.compute()
    with pytest.warns(cc.LowerBoundWarning):
        assert float(found["far"]) == float(alone.compute())
    assert float(found["near"]) < float(found["far"])


def test_metrics_of_one_reference_share_their_state(generator):
    reference = cc.ReferenceSet.fit(ellipsoid_rows(200, DIM, generator))
    metrics = MetricCollection([cc.Conformity(reference), cc.ConformityKL(reference)])
    metrics.update(ellipsoid_rows(100, DIM, generator))
    assert ["Conformity", "ConformityKL"] in metrics.compute_groups.values()


@pytest.mark.parametrize("dim", [-1, 0, "a", 2.5])
def test_a_dimension_that_is_none_is_refused(dim):
    with pytest.raises(ValueError, match="embed_dim: expected a dimension of at least 1"):
        cc.Conformity(embed_dim=dim)


def test_a_device_that_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="device 'nonsense' cannot be used here"):
        cc.load_encoder("tiny", "nonsense")
