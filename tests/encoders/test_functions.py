"""Encoders that a function of the user's makes, from the command line and nowhere else."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.demo import draw_scene, sample_scenes
from clipconformity.encoders.callables import CallableEncoder, is_function
from clipconformity.stream.reference import ReferenceSet

MODULE = """
import torch
from pathlib import Path
from clipconformity.encoders import CallableEncoder
Path("ran").write_text("ran")
def images(batch):
    return torch.stack([torch.tensor([*image.resize((1, 1)).getpixel((0, 0)), 50.0]) for image in batch])
def texts(batch):
    return torch.stack([torch.tensor([len(text), text.count("a"), 5.0, 50.0]) for text in batch]).float()
def make():
    return CallableEncoder(images, texts, 4, spec="mine")
number = 3
def nothing():
    return None
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_encoder_of_colours.py").write_text(MODULE)
    (tmp_path / "images").mkdir()
    for number, scene in enumerate(sample_scenes(40, seed=0)):
        draw_scene(scene, seed=number).save(tmp_path / "images" / f"{number:02d}.png")
    (tmp_path / "images" / "40.png").write_bytes(b"no image")
    (tmp_path / "c.txt").write_text("\n".join(f"a {'a' * n} b {n}" for n in range(30)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_encoder_of_colours", None)


FUNCTION = ["--encoder", "my_encoder_of_colours:make"]


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
def test_images_and_captions_go_through_it(folder, capsys):
    made = ["reference", "--images", "images", *FUNCTION, "-o", "r.safetensors"]
    assert main(made) == 2
    assert "40.png" in capsys.readouterr().err
    assert main([*made, "--on-error", "skip", "--batch-size", "7"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert (reported["count"], reported["spec"], reported["skipped"]["count"]) == (40, "mine", 1)
    command = ["score", "--images", "images", *FUNCTION, "--reference", "r.safetensors", "--on-error", "skip"]
    (folder / "images" / "00.png").unlink()
    assert main([*command, "--resamples", "20"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 39
    assert main(["embed", "--captions", "c.txt", *FUNCTION, "-o", "e.safetensors"]) == 0
    assert json.loads(capsys.readouterr().out)["embed_dim"] == 4


def test_a_file_does_not_run_it(folder, capsys):
    rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)) + 3
    ReferenceSet.fit(rows, spec="my_encoder_of_colours:make", modality="image").save("r.safetensors")
    assert main(["score", "--images", "images", "--reference", "r.safetensors"]) == 2
    assert "pass --encoder 'my_encoder_of_colours:make' to load it" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown"):
        cc.load_encoder("my_encoder_of_colours:make")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_encoder_of_colours:absent", "cannot be imported"),
        ("my_encoder_of_colours:number", "expected a function that makes an encoder, got int"),
        ("my_encoder_of_colours:nothing", "expected it to make an encoder.*got NoneType"),
        ("absent_module:make", "is unknown"),
        ("hff:openai/clip", "did you mean 'hf:"),
    ],
)
def test_what_makes_no_encoder_is_told_in_one_line(spec, message, folder, capsys):
    assert main(["embed", "--captions", "c.txt", "--encoder", spec, "-o", "e.safetensors"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1

    assert re.search(message, err)


def test_specs_of_the_library_are_none(folder):
    assert is_function("my_encoder_of_colours:make")
    assert is_function("collections.abc:Sequence")
    for spec in ("tiny", "hf:json", "open_clip:ViT-B-32/openai", "images", "a/b:c", "no_such_module:make"):
        assert not is_function(spec)


def test_an_encoder_of_one_modality_refuses_the_other():
    images = CallableEncoder(lambda batch: torch.ones(len(batch), 2), None, 2, spec="seer")
    texts = CallableEncoder(None, lambda batch: torch.ones(len(batch), 2), 2, spec="reader")
    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert images(pixels).shape == texts("a dog").shape == (1, 2)
    with pytest.raises(TypeError, match="seer: takes no texts; give images"):
        images("a dog")
    with pytest.raises(TypeError, match="reader: takes no images; give texts"):
        texts(pixels)
