"""The CLIPScore of streamed pairs: its interval, groups and errors."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import ellipsoid_rows

import clipconformity as cc
from clipconformity.functional import clip_score


@pytest.fixture
def pair(generator):
    return ellipsoid_rows(400, 6, generator), ellipsoid_rows(400, 6, generator)


def made(image, text, **options):
    metric = cc.CLIPScore(embed_dim=6)
    metric.update(image, text, **options)
    return metric


def test_its_interval_is_that_of_a_mean_of_independent_pairs(pair):
    scores = clip_score(*pair).double()
    low, high = made(*pair).interval()
    assert (low + high) / 2 == pytest.approx(float(scores.mean()), rel=1e-6)
    assert high - low == pytest.approx(2 * 1.97 * float(scores.std()) / 20, rel=0.15)
    assert made(*pair).num_samples == 400


def test_pairs_of_one_group_are_no_independent_pairs(pair):
    image, text = (rows[:80].repeat(5, 1) for rows in pair)
    alone = made(pair[0][:80], pair[1][:80]).interval()
    grouped = made(image, text, groups=torch.arange(80).repeat(5)).interval()
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.25)
    assert math.isnan(made(image, text, groups=torch.zeros(400, dtype=torch.long)).interval().low)


def test_ids_deal_pairs_and_order_changes_nothing(pair):
    ids = [f"image {n}" for n in range(400)]
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    shuffled = made(pair[0][order], pair[1][order], ids=[ids[n] for n in order]).interval()
    assert tuple(shuffled) == pytest.approx(tuple(made(*pair, ids=ids).interval()), rel=1e-9)
    assert tuple(shuffled) != pytest.approx(tuple(made(*pair).interval()), rel=1e-6)


def test_an_encoder_is_called_once_for_either_side():
    tiny = cc.load_encoder("tiny", "cpu")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = ["a star", "a red circle", "two squares"]
    metric = cc.CLIPScore(encoder=tiny)
    value = metric(images, texts)
    expected = clip_score(tiny.encode_image(images), tiny.encode_text(texts)).mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(metric.compute(), expected)


def test_bad_pairs_are_refused(pair):
    metric = made(*pair)
    metric.update(pair[0][:2], 0 * pair[1][:2])
    with pytest.raises(ValueError, match="2 of 402 pairs held a row that was zero, NaN"):
        metric.compute()
    with pytest.raises(ValueError, match="expected pairs, got 400 images and 3 texts"):
        made(pair[0], pair[1][:3])
    with pytest.raises(ValueError, match="expected at least 2 samples, got 1"):
        made(pair[0][:1], pair[1][:1]).compute()
    with pytest.raises(TypeError, match="takes no reference"):
        cc.CLIPScore(cc.ReferenceSet.fit(pair[0]))
    with pytest.raises(ValueError, match="has dimension 5"):
        made(pair[0][:, :5], pair[1][:, :5])
