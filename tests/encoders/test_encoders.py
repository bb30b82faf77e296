"""Encoders in use: every kind of input, raw or refused, workers, offline, and the full-size path."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.nn.functional import normalize

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.encoders import CallableEncoder, Encoder
from clipconformity.evaluation import image_source


@pytest.fixture(scope="module")
def tiny():
    return cc.load_encoder("tiny", "cpu")


@pytest.fixture(scope="module")
def photographs():
    """Crops of two photographs of 640 x 427, in turn."""
    crops = []
    for number in range(20):
        left, top = 15 * number, 8 * number
        picture = Image.fromarray(load_sample_images().images[number % 2])
        crops.append(picture.crop((left, top, left + 250, top + 240)))
    return crops


def write(images, folder):
    folder.mkdir()
    for number, image in enumerate(images):
        image.save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_pil_images_tensors_paths_and_embeddings_give_the_same_values(tiny, photographs, tmp_path):
    reference = cc.ReferenceSet.fit(tiny.encode_image(photographs[:10]), spec=tiny, modality="image")
    images = photographs[10:]
    pixels = np.stack([np.asarray(image) for image in images])
    batches = {
        "embeddings": tiny.encode_image(images),
        "pil": images,
        "uint8": torch.tensor(pixels).permute(0, 3, 1, 2),
        "float": torch.tensor(pixels).permute(0, 3, 1, 2) / 255,
        "arrays": pixels,
        "paths": write(images, tmp_path / "images"),
        "mixed": [images[0], tmp_path / "images" / "01.png", *torch.tensor(pixels[2:]).permute(0, 3, 1, 2)],
    }
    values = {}
    for name, batch in batches.items():
        metric = cc.Conformity(reference, encoder=tiny)
        metric.update(batch)
        values[name] = metric.compute()
    for name, value in values.items():
        for key, expected in values["embeddings"].items():
            torch.testing.assert_close(value[key], expected, atol=1e-6, rtol=1e-6, msg=f"{name}: {key}")


def test_embeddings_are_ordinary_tensors(tiny, photographs):
    for embeddings in (tiny.encode_image(photographs[:2]), tiny.encode_text(["a star", "a red circle"])):
        assert not embeddings.is_inference()
        assert not embeddings.requires_grad
        embeddings /= embeddings.norm(dim=1, keepdim=True)
        weight = torch.ones(embeddings.shape[1], requires_grad=True)
        (embeddings @ weight).sum().backward()
        torch.testing.assert_close(weight.grad, embeddings.sum(0))


def test_normalised_output_is_refused_with_the_way_out(tiny, photographs):
    def unit(items):
        return normalize(tiny(items))

    encoder = CallableEncoder(unit, unit, tiny.embed_dim, spec="unit")
    reference = cc.ReferenceSet.fit(tiny.encode_image(photographs))
    for batch in (photographs[:6], ["a red circle", "a star", "a blue square"]):
        metric = cc.ConformityMetrics(reference, encoder=encoder)
        metric.update(batch)
        with pytest.raises(ValueError, match=r"L2-normalised.*get_image_features.*normalize=False"):
            metric.compute()
    with pytest.raises(ValueError, match="L2-normalised"):
        cc.ReferenceSet.fit(encoder(photographs))
    with torch.no_grad():
        output = tiny.model(
            **tiny.preprocess_images(photographs), **tiny.tokenizer(["a star"] * 20, return_tensors="pt")
        )
    metric = cc.Conformity(reference)
    metric.update(output.image_embeds)  # the trap of transformers
    with pytest.raises(ValueError, match="L2-normalised"):
        metric.compute()


def rows(count, dim=4):
    return lambda items: torch.ones(count or len(items), dim, requires_grad=True) * 2


def test_a_pair_of_functions_is_an_encoder_that_is_checked(tiny, tmp_path):
    encoder = CallableEncoder(rows(0), rows(0), 4, spec="mine")
    assert isinstance(encoder, Encoder)
    assert isinstance(tiny, Encoder)
    assert encoder.id == {"weights": "mine"}
    assert repr(encoder) == "CallableEncoder('mine')"
    image = Image.new("L", (3, 5))
    assert encoder([image]).shape == (1, 4)
    assert not encoder("a dog").requires_grad
    for bad in ([], "", [" "], ["a dog", 3], [None], torch.full((1, 3, 4, 4), 2.0)):
        with pytest.raises((TypeError, ValueError), match="expected"):
            encoder(bad)
    image.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="existing file"):
        encoder(str(tmp_path / "a.png"))
    with pytest.raises(ValueError, match=r"mine: expected embeddings of shape \(2, 4\), got \(1, 4\)"):
        CallableEncoder(rows(1), rows(1), 4, spec="mine")(["a dog", "a cat"])
    with pytest.raises(ValueError, match=r"shape \(1, 5\), got \(1, 4\)"):
        CallableEncoder(rows(0), rows(0), 5, spec="mine")(image)
    with pytest.raises(TypeError, match="the encoder's output: expected a torch tensor"):
        CallableEncoder(lambda items: [1.0], rows(0), 1, spec="mine")(image)


def test_workers_give_the_same_embeddings_in_order(tiny, photographs, tmp_path, capfd):
    paths = write(photographs, tmp_path / "images")
    alone, helped = (
        list(image_source(paths, tiny, root=tmp_path / "images", batch_size=5, workers=workers)) for workers in (0, 2)
    )
    assert [batch.ids for batch in alone] == [batch.ids for batch in helped]
    assert [name for batch in helped for name in batch.ids] == [path.name for path in paths]
    for one, other in zip(alone, helped, strict=True):
        torch.testing.assert_close(one.embeddings, other.embeddings, atol=1e-6, rtol=1e-6)
    expected = tiny.encode_image(photographs)
    torch.testing.assert_close(torch.cat([b.embeddings for b in helped]), expected, atol=1e-5, rtol=1e-5)
    assert "fork" not in capfd.readouterr().err


def test_workers_report_unreadable_files_alike(tiny, photographs, tmp_path):
    paths = write(photographs[:7], tmp_path / "images")
    paths[2].write_text("not an image")
    paths[6].write_bytes(paths[6].read_bytes()[:400])
    reported, printed = [], []
    for workers in (0, 2):
        source = image_source(paths, tiny, batch_size=3, workers=workers, skip_errors=True)
        ids = [name for batch in source for name in batch.ids]
        reported.append((ids, source.skipped))
        with pytest.raises(ValueError, match=r"02\.png: cannot be read") as error:
            list(image_source(paths, tiny, batch_size=3, workers=workers))
        printed.append(str(error.value))
    assert reported[0] == reported[1]
    assert [Path(skipped["id"]).name for skipped in reported[0][1]] == ["02.png", "06.png"]
    assert printed[0] == printed[1]


def test_workers_are_sent_the_preprocessing_without_the_model(tiny, photographs):
    data = pickle.dumps(tiny.preprocess_images)
    assert len(data) < 10_000
    again = pickle.loads(data)(photographs[:2])["pixel_values"]
    assert torch.equal(again, tiny.preprocess_images(photographs[:2])["pixel_values"])


LAZY = """
import sys
import clipconformity as cc
heavy = ('open_clip', 'transformers', 'diffusers', 'matplotlib')
print('loaded:', *[name for name in heavy if name in sys.modules])
sys.modules['open_clip'] = None
try:
    cc.load_encoder('open_clip:ViT-B-32/openai')
except ImportError as error:
    print(error)
from clipconformity.encoders import available_encoders
print(available_encoders()['open_clip'])
cc.load_encoder('tiny')
print('loaded:', *[name for name in heavy if name in sys.modules])
"""


@pytest.mark.slow
def test_model_libraries_load_when_used_and_an_absent_one_names_its_extra():
    lazy, absent, listed, used = run_python(LAZY).splitlines()
    assert lazy == "loaded:"
    assert "open_clip:ViT-B-32/openai" in absent
    assert "pip install 'clipconformity[open_clip]'" in absent
    assert "'installed': None" in listed
    assert "transformers" in used  # the check can fail


@pytest.mark.parametrize(
    "spec", ["open_clip:ViT-B-32/openai", "open_clip:hf-hub:nobody/none", "hf:nobody/none", "hf:", "hf:a b"]
)
def test_a_download_without_a_network_says_what_to_do(spec, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="download the model elsewhere and give its directory or checkpoint"):
        cc.load_encoder(spec, "cpu")


def test_the_command_tells_a_failed_download_in_one_line(photographs, tmp_path):
    write(photographs[:2], tmp_path / "images")
    command = [sys.executable, "-m", "clipconformity", "embed", "--images", str(tmp_path / "images")]
    run = subprocess.run(
        [*command, "--encoder", "hf:nobody/none", "-o", str(tmp_path / "out.safetensors")],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith("clipconformity: error: hf:nobody/none: could not be loaded")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.slow
def test_a_full_size_model_scores_real_photographs(photographs, tmp_path, capsys):
    real, evaluated = (
        write(photographs[start::4] + photographs[start + 1 :: 4], tmp_path / f"{start}") for start in (0, 2)
    )
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval()
    torch.save(model.state_dict(), tmp_path / "b32.pt")
    common = ["--encoder", f"open_clip:ViT-B-32/{tmp_path}/b32.pt", "--device", "cpu", "--batch-size", "5"]
    saved = str(tmp_path / "reference.safetensors")
    assert main(["reference", "--images", str(tmp_path / "0"), *common, "-o", saved]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["embed_dim"], printed["count"], printed["modality"]) == (512, 10, "image")
    assert main(["score", "--images", str(tmp_path / "2"), *common, "--reference", saved, "--resamples", "50"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["count"] == 10
    preprocess = open_clip.image_transform(224, is_train=False)
    with torch.no_grad():
        ours, theirs = (
            normalize(model.encode_image(torch.stack([preprocess(Image.open(p)) for p in paths])).double())
            for paths in (evaluated, real)
        )
    assert scored["conformity_mean"] == pytest.approx(float((ours @ theirs.T).mean()), abs=1e-5)
