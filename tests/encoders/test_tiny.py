"""The embedded default: raw projections through the ordinary path, and a world whose truth is known."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoTokenizer, CLIPModel

import clipconformity as cc
from clipconformity.demo import (
    draw_scene,
    generic_caption,
    sample_scenes,
    scene_captions,
    scene_log_frequency,
    specific_caption,
)
from clipconformity.encoders.registry import TINY
from clipconformity.functional import conformity, self_conformity


@pytest.fixture(scope="session")
def tiny():
    return cc.load_encoder("tiny", device="cpu")


def drawn(scenes, seed=0):
    return [draw_scene(scene, seed=seed + number) for number, scene in enumerate(scenes)]


@pytest.fixture(scope="session")
def real(tiny):
    return tiny.encode_image(drawn(sample_scenes(1000, seed=11)))


def test_package_files_take_at_most_3_mb():
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 3e6


def test_embeddings_are_the_projection_computed_by_hand(tiny):
    model = CLIPModel.from_pretrained(TINY).float().eval()
    image = drawn(sample_scenes(3, seed=1))
    pixels = torch.tensor(np.stack([np.asarray(i) for i in image])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        pooled = model.vision_model((pixels - 0.5) / 0.25).pooler_output
        by_hand = pooled @ model.visual_projection.weight.T
    torch.testing.assert_close(tiny.encode_image(image), by_hand, atol=1e-5, rtol=1e-5)
    assert tiny.encode_image(image).norm(dim=1).min() > 2  # raw, not normalised

    words = AutoTokenizer.from_pretrained(TINY)(["a large red circle"], return_tensors="pt")
    with torch.no_grad():
        by_hand = model.text_model(**words).pooler_output @ model.text_projection.weight.T
    torch.testing.assert_close(tiny.encode_text("a large red circle"), by_hand, atol=1e-5, rtol=1e-5)


def test_batch_size_does_not_matter(tiny):
    scenes = sample_scenes(9, seed=2)
    captions = [specific_caption(s) if n % 2 else generic_caption(s) for n, s in enumerate(scenes)]
    for encode, items in ((tiny.encode_image, drawn(scenes)), (tiny.encode_text, captions)):
        one_by_one = torch.cat([encode([item]) for item in items])
        torch.testing.assert_close(encode(items), one_by_one, atol=1e-5, rtol=1e-5)


def test_long_texts_are_cut_and_counted_and_keep_their_end_token():
    encoder = cc.load_encoder("tiny", device="cpu")
    long = "red " * 40
    with_end = encoder.tokenizer([long], truncation=True, max_length=encoder.context_length)["input_ids"][0]
    assert len(with_end) == encoder.context_length
    assert with_end[-1] == encoder.tokenizer.eos_token_id
    with pytest.warns(UserWarning, match="a text of 42 tokens is cut to the context length of 16"):
        encoder.encode_text([long, "a red circle"])
    assert encoder.truncated == 1


def test_dispatch_tells_texts_from_images(tiny, tmp_path):
    image = drawn(sample_scenes(1, seed=3))
    assert torch.equal(tiny(image), tiny.encode_image(image))
    assert torch.equal(tiny(["a star"]), tiny.encode_text(["a star"]))
    assert torch.equal(tiny("a star"), tiny.encode_text("a star"))
    image[0].save(tmp_path / "a.png")
    assert torch.equal(tiny(tmp_path / "a.png"), tiny(image))
    with pytest.raises(ValueError, match="existing file; give pathlib.Path"):
        tiny([str(tmp_path / "a.png")])


@pytest.mark.parametrize("bad", [[], "", [" "], ["a star", ""], [None], [3]])
def test_what_is_neither_is_refused(tiny, bad):
    with pytest.raises((TypeError, ValueError), match="expected"):
        tiny(bad)


def test_metrics_take_images_texts_and_embeddings_alike(tiny, real):
    reference = cc.ReferenceSet.fit(real, spec=tiny, modality="image")
    images = drawn(sample_scenes(40, seed=4))
    from_images, from_embeddings = (cc.ConformityMetrics(reference, encoder=tiny) for _ in range(2))
    from_images.update(images[:25])
    from_images.update(torch.tensor(np.stack([np.asarray(i) for i in images[25:]])).permute(0, 3, 1, 2))
    from_embeddings.update(tiny.encode_image(images))
    for name, value in from_embeddings.compute().items():
        torch.testing.assert_close(from_images.compute()[name], value, atol=1e-4, rtol=1e-3)


def test_a_pickle_holds_the_spec_and_a_clone_shares_the_encoder(tiny, real):
    metric = cc.Conformity(encoder=tiny)
    metric.update(real)
    assert metric.clone().encoder is tiny
    assert not metric.state_dict()
    assert not list(metric.parameters())
    data = pickle.dumps(metric)
    loaded = pickle.loads(data)
    assert loaded.encoder is not tiny
    assert loaded.encoder.spec == "tiny"
    loaded.update(drawn(sample_scenes(2, seed=5)))
    assert len(data) < sum(p.numel() for p in tiny.model.parameters()) * 4 + real.numel() * 4 + 3e6


def test_a_reference_of_another_encoder_is_refused_and_another_precision_warned_of(tiny, real):
    reference = cc.ReferenceSet.fit(real, spec=tiny)
    other = copy.copy(tiny)
    other.__dict__["id"] = tiny.id | {"weights": "0" * 32}
    with pytest.raises(ValueError, match=r"weights of the encoder: the reference \(tiny\)"):
        cc.Conformity(reference, encoder=other)
    other.__dict__["id"] = tiny.id | {"precision": "bfloat16"}
    with pytest.warns(UserWarning, match="precision of the encoder"):
        cc.Conformity(reference, encoder=other)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tinny", "did you mean 'tiny'"),
        ("openclip:ViT-B-32/openai", "did you mean 'open_clip:ViT-B-32/openai'"),
        ("openai/clip-vit-base-patch32", "did you mean 'hf:openai/clip-vit-base-patch32'"),
        ("/no/such/folder", "is unknown"),
    ],
)
def test_unknown_encoders_get_near_ones_suggested(spec, message):
    with pytest.raises(ValueError, match=message):
        cc.load_encoder(spec)


@pytest.mark.slow
def test_it_loads_without_torchvision_and_gives_the_same(tiny):
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import clipconformity as cc\n"
        "from clipconformity.demo import draw_scene, sample_scenes\n"
        "encoder = cc.load_encoder('tiny', device='cpu')\n"
        "out = encoder([draw_scene(s, seed=9) for s in sample_scenes(2, seed=9)])\n"
        "print(float(out.double().sum()))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    expected = tiny([draw_scene(s, seed=9) for s in sample_scenes(2, seed=9)]).double().sum()
    assert float(out) == pytest.approx(float(expected), abs=1e-3)


# The ground truth: in this world the frequency of every scene is known.


@pytest.mark.parametrize("modality", ["image", "text"])
def test_conformity_follows_frequency(tiny, modality):
    scenes = sample_scenes(1000, seed=21)
    if modality == "image":
        embeddings = tiny.encode_image(drawn(scenes, seed=500))
    else:
        embeddings = tiny.encode_text([scene_captions(s, count=1, seed=n)[0] for n, s in enumerate(scenes)])
    correlation = spearmanr(conformity(embeddings).numpy(), [scene_log_frequency(s) for s in scenes])
    assert correlation.statistic >= 0.4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")  # two scenes are drawn alike
def test_conformity_and_kl_rise_with_the_collapse_toward_common_scenes(tiny, real):
    reference = cc.ReferenceSet.fit(real)
    means, divergences = [], []
    for concentration in (1.0, 1.25, 1.5, 2.0, 3.0):
        metrics = cc.ConformityMetrics(reference)
        metrics.update(tiny.encode_image(drawn(sample_scenes(1000, seed=31, concentration=concentration), seed=900)))
        values = metrics.compute()
        means.append(float(values["conformity_mean"]))
        divergences.append(float(values["conformity_kl"]))
    assert means == sorted(means)
    assert divergences == sorted(divergences)
    assert means[-1] - means[0] > 0.05
    assert divergences[-1] > 1


def test_self_conformity_rises_with_repetition(tiny):
    varied = sample_scenes(600, seed=41)
    values = []
    for repeated in (0, 120, 240, 480, 600):
        scenes = [varied[0]] * repeated + varied[repeated:]
        values.append(float(self_conformity(tiny.encode_image(drawn(scenes, seed=1300)))))
    assert values == sorted(values)
    assert values[-1] > 0.9
    assert values[0] < 0.5


def test_generic_captions_are_more_typical_and_specific_ones_less(tiny):
    human = tiny.encode_text([c for n, s in enumerate(sample_scenes(400, seed=51)) for c in scene_captions(s, seed=n)])
    scenes = sample_scenes(400, seed=52)
    generic, own, specific = (
        float(conformity(tiny.encode_text(texts), human).mean())
        for texts in (
            [generic_caption(s) for s in scenes],
            [scene_captions(s, count=1, seed=7000 + n)[0] for n, s in enumerate(scenes)],
            [specific_caption(s) for s in scenes],
        )
    )
    assert specific + 0.05 < own < generic - 0.05
