"""Images and captions joined by id."""

from __future__ import annotations

import pytest
import torch
from helpers import ellipsoid_rows

import clipconformity as cc
from clipconformity.evaluation import Source, SourceBatch, paired_source, score
from clipconformity.functional import clip_score
from clipconformity.provenance import Provenance

COUNT = 90


def source(rows, ids, size=25, groups=None, spec="tiny", modality=None):
    parts = torch.arange(len(rows)).split(size)
    batches = [
        SourceBatch(
            rows[part], [ids[n] for n in part.tolist()],
            groups=None if groups is None else [groups[n] for n in part.tolist()],
        )
        for part in parts
    ]  # fmt: skip
    return Source(iter(batches), len(rows), Provenance(spec, None, modality))


@pytest.fixture
def pair(generator):
    return ellipsoid_rows(COUNT, 8, generator), ellipsoid_rows(COUNT, 8, generator)


@pytest.fixture
def reference(generator):
    return cc.ReferenceSet.fit(ellipsoid_rows(200, 8, generator), spec="tiny")


@pytest.mark.parametrize("size", [1, 7, 90])
@pytest.mark.parametrize("scored", ["image", "text"])
def test_pairs_are_found_whatever_order_and_batches(pair, reference, scored, size):
    image, text = pair
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1)).tolist()
    images = source(image, [f"folder/COCO_val2014_{n:012d}.jpg" for n in range(COUNT)], size)
    captions = source(text[order], [f"c{n}" for n in order], 30, groups=order)
    joined = paired_source(images, captions, scored=scored)
    result = score(joined, reference, resamples=20)
    expected = clip_score(image, text)
    assert result.value("clip_score") == pytest.approx(float(expected.mean()), rel=1e-5)
    error = float(expected.std()) / COUNT**0.5
    assert result.figures["clip_score"].error == pytest.approx(error, rel=0.15)
    numbers = range(COUNT) if scored == "image" else order
    assert result.columns["clip_score"] == pytest.approx([float(expected[n]) for n in numbers], rel=1e-4)
    first = result.ids[3]
    assert joined.partner_of[first].endswith(f"c{3}" if scored == "image" else f"{order[3]:012d}.jpg")


def test_lines_of_a_file_belong_to_images_of_their_number(pair, reference):
    image, text = pair
    images = source(image, [f"{n + 1:05d}.png" for n in range(COUNT)])
    captions = source(text, [str(n + 1) for n in range(COUNT)])
    result = score(paired_source(images, captions, scored="image"), reference, resamples=20)
    assert result.value("clip_score") == pytest.approx(float(clip_score(image, text).mean()), rel=1e-5)


def test_samples_without_a_partner_are_left_out_with_their_groups(pair):
    image, text = pair
    captions, groups = [f"c{n}" for n in range(COUNT)], list(range(COUNT))

    def joined(people=COUNT, **options):
        references = source(text[:people], captions[:people], groups=groups[:people])
        images = source(image[5:], [f"{n}.png" for n in range(5, COUNT)])
        mine = source(text[5 * (not options) :], captions[5 * (not options) :], groups=groups[5 * (not options) :])
        return paired_source(images, mine, scored="text", references=references, **options)

    found = joined(on_missing="skip")
    batches = list(found.batches)
    assert [group for batch in batches for group in batch.groups] == groups[5:]
    assert [name for batch in batches for name in batch.ids] == captions[5:]
    assert torch.equal(torch.cat([batch.partners.embeddings for batch in batches]), image[5:])
    assert [one["id"] for one in found.skipped] == captions[:5]
    with pytest.raises(ValueError, match="10 of the 10 samples of a batch have no image or reference of their id"):
        list(joined(people=COUNT - 10).batches)


def test_what_does_not_fit_is_refused(pair, reference):
    image, text = pair
    names = [f"{n}.png" for n in range(COUNT)]

    def joined(images=None, captions=None, **options):
        images = source(image, names) if images is None else images
        captions = source(text, [str(n) for n in range(COUNT)]) if captions is None else captions
        return paired_source(images, captions, **{"scored": "image"} | options)

    for scored in ("image", "text"):
        twice = source(image, ["a/1.png", "b/1.png", *names[2:]])
        with pytest.raises(ValueError, match="two images have the id '1'"):
            score(joined(twice, scored=scored), reference, resamples=20)
    with pytest.raises(ValueError, match="scored: expected 'image' or 'text', got 'both'"):
        joined(scored="both")
    with pytest.raises(ValueError, match="reference captions judge captions"):
        joined(references=source(text, names))
    with pytest.raises(ValueError, match="the images come from encoder 'tiny' and the captions from 'other'"):
        joined(captions=source(text, names, spec="other"))
    with pytest.raises(ValueError, match="25 of the 25 samples of a batch have no caption of their id: 0.png, 1.png"):
        score(joined(captions=source(text, [f"x{n}" for n in range(COUNT)])), reference, resamples=20)
    with pytest.raises(TypeError, match="source: expected a Source, got Tensor"):
        joined(image)
    bad = text.clone()
    bad[4] = 0
    with pytest.raises(ValueError, match="1 of 90 pairs held a row that was zero"):
        score(joined(captions=source(bad, [str(n) for n in range(COUNT)])), reference, resamples=20)
    with pytest.raises(ValueError, match="'clip_score' needs images and captions together"):
        score(source(image, names), reference, metrics=["clip_score"], resamples=20)
