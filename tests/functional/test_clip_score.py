"""CLIPScore against torchmetrics and the definition, RefCLIPScore against the published steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows, unit
from lightning_utilities.core.imports import RequirementCache

import clipconformity as cc
from clipconformity.functional import clip_score, ref_clip_score


@pytest.fixture
def pair(generator):
    image, text = ellipsoid_rows(200, 8, generator), ellipsoid_rows(200, 8, generator)
    image[:20] *= -1
    return image, text


def cosines(rows: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    return (unit(double(rows)) * unit(double(others))).sum(1)


def test_clip_score_is_the_definition_per_pair(pair):
    np.testing.assert_allclose(clip_score(*pair), 100 * np.maximum(cosines(*pair), 0), rtol=1e-5, atol=1e-5)
    assert (clip_score(*pair)[:20] == 0).any()
    assert clip_score(pair[0].double(), pair[1]).dtype == torch.float64


class PassingThrough:
    """A model and a processor in one whose features are the entries of the image, and a numbered row for a text."""

    config = None

    def __init__(self, texts: torch.Tensor) -> None:
        self.texts = texts

    def to(self, device):
        return self

    def __call__(self, images=None, text=None, **options):
        if images is not None:
            return {"pixel_values": torch.stack(images)}
        return {"input_ids": self.texts[[int(word) for word in text]], "attention_mask": torch.ones(1)}

    def get_image_features(self, pixels):
        return pixels.flatten(1)

    def get_text_features(self, rows, mask):
        return rows


@pytest.mark.skipif(
    not RequirementCache("torchmetrics>=1.8"),
    reason="the CLIPScore of an older torchmetrics takes no other model",
)
def test_the_metric_equals_that_of_torchmetrics_on_the_same_features(pair):
    from torchmetrics.multimodal import CLIPScore

    image, text = (rows[20:] + 3 for rows in pair)
    published = CLIPScore(lambda: (PassingThrough(text),) * 2)
    metric = cc.CLIPScore(embed_dim=8)
    for rows in torch.arange(180).split(70):
        published.update(list(image[rows][:, None, None]), [str(row) for row in rows.tolist()])
        metric.update(image[rows], text[rows])
    assert cosines(image, text).min() > 0
    assert float(metric.compute()) == pytest.approx(float(published.compute()), rel=1e-6)
    assert float(metric.compute()) == pytest.approx(float(clip_score(image, text).mean()), rel=1e-6)


def test_real_pairs_have_their_known_cosine(data_dir):
    image, text = torch.from_numpy(np.load(data_dir / "vitb16-coco-pairs-500-unit.npy"))
    assert float(clip_score(image, text).mean()) == pytest.approx(30.9919, abs=1e-3)


def test_ref_clip_score_is_that_of_the_published_steps(pair, generator):
    image, text = pair
    references = [ellipsoid_rows(1 + n % 4, 8, generator) * (-1 if n % 7 == 0 else 1) for n in range(200)]
    fit = 2.5 * np.clip(cosines(image, text), 0, None)
    nearest = np.array(
        [np.max(unit(double(own)) @ unit(double(text[n : n + 1]))[0]) for n, own in enumerate(references)]
    ).clip(0)
    mean = np.divide(2 * fit * nearest, fit + nearest, out=np.zeros(200), where=fit + nearest > 0)
    found = ref_clip_score(image, text, references)
    np.testing.assert_allclose(found, 100 * mean, rtol=1e-4, atol=1e-4)
    assert 0 < (found == 0).sum() < 60
    stacked = torch.stack([own[:1] for own in references])
    np.testing.assert_allclose(
        ref_clip_score(image, text, stacked), ref_clip_score(image, text, list(stacked)), rtol=1e-6
    )


BAD = {
    "lengths": (lambda x: clip_score(x, x[:3]), "image has 20 rows and text has 3"),
    "dimension": (lambda x: clip_score(x, x[:, :2]), "image has dimension 4 and text has dimension 2"),
    "zero": (lambda x: clip_score(x, 0 * x), "text: 20 of 20 rows are zero"),
    "few references": (lambda x: ref_clip_score(x, x, [x]), "expected those of each of the 20 captions, got 1"),
    "no reference": (lambda x: ref_clip_score(x, x, [x[:0]] * 20), "references: expected at least 1 samples, got 0"),
    "their dimension": (lambda x: ref_clip_score(x, x, x[:, None, :2]), "references has dimension 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, generator):
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        call(torch.randn(20, 4, generator=generator))
