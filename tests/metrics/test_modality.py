import copy

import pytest
import torch

import clipconformity as cc
from clipconformity.demo import draw_scene, sample_scenes


@pytest.fixture(scope="module")
def tiny():
    return cc.load_encoder("tiny", "cpu")


@pytest.fixture(scope="module")
def images():
    return [draw_scene(scene, seed=n) for n, scene in enumerate(sample_scenes(20, seed=0))]


@pytest.mark.parametrize("kind", [cc.Conformity, cc.ConformityMetrics])
@pytest.mark.parametrize("step", ["update", "forward"])
def test_the_first_batch_fixes_the_modality(kind, step, tiny, images):
    undeclared = cc.ReferenceSet.fit(tiny.encode_image(images))
    metric = kind(undeclared, encoder=tiny)
    metric.update(tiny.encode_text(["a star", "a red circle"]))  # embeddings do not say what they are of
    getattr(metric, step)(images[:3])
    with pytest.raises(ValueError, match="this is text and the batches before were image"):
        getattr(metric, step)(["a star"])
    with pytest.raises(ValueError, match="the batches before were image"):
        copy.deepcopy(metric).update("a star")
    getattr(metric, step)(torch.zeros(2, 3, 32, 32))
    metric.reset()
    getattr(metric, step)(["a star", "a red circle"])
    with pytest.raises(ValueError, match="this is image and the batches before were text"):
        getattr(metric, step)(images[0])


@pytest.mark.parametrize("kind", [cc.Conformity, cc.ConformityMetrics])
def test_a_reference_of_the_other_modality_is_refused(kind, tiny, images):
    reference = cc.ReferenceSet.fit(tiny.encode_image(images), modality="image")
    with pytest.raises(ValueError, match="this is text and the reference is image"):
        kind(reference, encoder=tiny).update(["a star"])


def test_a_gap_counts_its_pairs(tiny, images):
    metric = cc.ModalityGap(encoder=tiny)
    metric.update(images[:3], ["a star", "a red circle", "a blue square"])
    metric.update(images[3:5], ["a star", "a red circle"])
    assert metric.num_samples == 5
