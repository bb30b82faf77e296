"""Generators: what the examples make of saved small checkpoints, as they load those of the hub."""

import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import brute_conformity, check_score
from PIL import Image

import clipconformity as cc
from clipconformity.data import list_images, read_captions
from clipconformity.data.images import open_image
from clipconformity.functional import vslerp
from clipconformity.generators import read_manifest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def is_drawn(path):
    with Image.open(path) as image:
        return min(image.size) > 100 and len(set(np.asarray(image.convert("L")).ravel())) > 10


def prompted(material, model):
    return (
        "--reference", material.image_reference, "--captions", material.prompts, "--model", model,
        "--encoder", "tiny", "--device", "cpu", "--limit", 12,
    )  # fmt: skip


def unclip(material, checkpoint, *more):
    pytest.importorskip("diffusers")
    return ("unclip", *prompted(material, checkpoint("unclip")), "--steps", 2, 2, 2, *more)


def test_unclip_scores_what_its_processes_generate_and_goes_on_where_it_was(
    run, material, checkpoint, tmp_path, monkeypatch
):
    for rank in (0, 1):  # as torchrun tells them
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert "6 images generated, 0 found" in run(*unclip(material, checkpoint, "-o", tmp_path)).stdout
    assert not (tmp_path / "score.json").exists()
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    paths = list_images(tmp_path / "images")
    kept = paths[0].stat().st_mtime_ns
    paths[3].unlink()
    said = run(*unclip(material, checkpoint, "--batch-size", 1, "-o", tmp_path)).stdout
    assert "1 images generated, 11 found" in said
    assert paths[0].stat().st_mtime_ns == kept
    values = read(tmp_path / "score.json")
    check_score(values, 12)
    encoder = cc.load_encoder("tiny", "cpu")
    rows, real = (encoder.encode_image([open_image(p) for p in some]) for some in (paths, list_images(material.images)))
    assert values["conformity_mean"] == pytest.approx(brute_conformity(rows, real).mean(), abs=1e-5)
    assert f"running score: conformity {values['conformity_mean']:.3f}" in said
    prompts = read_captions(material.prompts).texts
    assert [entry["prompt"] for entry in read_manifest(tmp_path / "images")] == prompts[:12]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "unCLIP" in page
    low, high = (values[f"variety_ratio_{end}"] for end in ("low", "high"))
    assert f"({values['variety_ratio']:.2f} times, {low:.2f} to {high:.2f}" in page


@pytest.mark.parametrize(
    ("kind", "pipeline"),
    [("stable_diffusion", "StableDiffusionPipeline"), ("stable_diffusion_xl", "StableDiffusionXLPipeline")],
)
def test_stable_diffusion_compares_its_guidance_scales(run, material, checkpoint, tmp_path, kind, pipeline):
    pytest.importorskip("diffusers")
    given = prompted(material, checkpoint(kind))
    said = run("stable_diffusion", *given, "--steps", 2, "--guidance", 7.5, 1.5, "-o", tmp_path).stdout
    content = read(tmp_path / "comparison.json")
    assert list(content["runs"]) == ["guidance 1.5", "guidance 7.5"]
    for name, values in content["runs"].items():
        check_score(values, 12)
        assert name in said
    assert content["runs"]["guidance 1.5"]["conformity_mean"] != content["runs"]["guidance 7.5"]["conformity_mean"]
    assert {one["figure"] for one in content["differences"]} >= {"typicality_shift", "variety_ratio"}
    assert all(math.isfinite(one["value"]) for one in content["differences"])
    assert is_drawn(tmp_path / "guidance.png")
    assert "guidance 7.5" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert read_manifest(tmp_path / "guidance-1.5")[0]["settings"].startswith(f"{pipeline} ")


def test_one_guidance_scale_is_refused_before_anything_is_made(run, material, tmp_path):
    given = prompted(material, "none")
    said = run("stable_diffusion", *given, "--guidance", 2, 2, "-o", tmp_path / "out", status=2).stderr
    assert "two different scales" in said
    assert not (tmp_path / "out").exists()


def test_models_are_compared_with_a_table_pictures_and_a_report(run, material, tmp_path):
    single = tmp_path / "single"
    single.mkdir()
    images = list_images(material.images)
    for path in images:  # the same drawing under every name
        (single / path.name).write_bytes(images[0].read_bytes())
    given = (f"real={material.images}", f"single={single}", "--reference", material.image_reference)
    said = run("compare_models", *given, "--encoder", "tiny", "--device", "cpu", "-o", tmp_path).stdout
    assert "real is more varied than single" in said
    assert "{'real': 1, 'single': 2}" in said
    content = read(tmp_path / "comparison.json")
    for name in ("real", "single"):
        check_score(content["runs"][name], 60)
        for file in ("table.tex", "report.html"):
            assert name in (tmp_path / file).read_text(encoding="utf-8")
    assert content["runs"]["real"]["variety_ratio"] == pytest.approx(1, abs=1e-4)
    assert content["ranks"]["variety_ratio"] == {"real": 1, "single": 2}
    assert all(is_drawn(tmp_path / f"{name}.png") for name in ("map", "typicality_shift", "variety_ratio"))
    twice = run("compare_models", given[0], *given, "-o", tmp_path, status=2).stderr
    assert "expected different names, got real, real, single" in twice


def test_vslerp_draws_a_grid_along_the_paths_of_the_formula(run, material, checkpoint, tmp_path):
    pytest.importorskip("diffusers")
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    folder = checkpoint("unclip_image_variation")
    clip = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    processor = CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
    paths = list_images(material.images)
    with torch.no_grad():
        pixels = processor(images=[open_image(path) for path in paths], return_tensors="pt").pixel_values
        rows = clip(pixels).image_embeds
    cc.ReferenceSet.fit(rows, modality="image").save(tmp_path / "mean.safetensors")
    given = (paths[0], paths[1], "--model", folder, "--device", "cpu", "--steps", 3, 2)
    where = ("--positions", 0, 0.4, 1, "--alphas", 0, 1)
    run("vslerp_unclip", *given, *where, "--reference", tmp_path / "mean.safetensors", "-o", tmp_path)
    content = read(tmp_path / "grid.json")
    assert content["positions"] == [0.0, 0.4, 1.0]
    assert [row["alpha"] for row in content["rows"]] == [0, 1]
    t = torch.tensor(content["positions"], dtype=torch.float64)
    for row in content["rows"]:
        along = vslerp(rows[0], rows[1], t, rows.double().mean(0), row["alpha"])
        assert row["conformity"] == pytest.approx(brute_conformity(along, rows).tolist(), abs=1e-4)
        assert row["norm"] == pytest.approx(along.norm(dim=1).tolist(), rel=1e-4)
    middle = [row["conformity"][1] for row in content["rows"]]
    assert abs(middle[0] - middle[1]) > 1e-5  # alpha matters between the ends
    assert is_drawn(tmp_path / "grid.png")
    wrong = ("--reference", material.image_reference, "-o", tmp_path / "out")
    assert "64 dimensions, and the pipeline's CLIP 32" in run("vslerp_unclip", *given, *wrong, status=2).stderr


def test_the_training_loop_logs_both_metrics_every_epoch(run, material, checkpoint, tmp_path):
    pytest.importorskip("diffusers")
    given = ("--images", material.images, "--reference", material.image_reference, "--model", checkpoint("ddpm"))
    size = ("--epochs", 2, "--samples", 24, "--steps", 3, "--batch-size", 16)
    run("training_loop", *given, "--encoder", "tiny", *size, "-o", tmp_path)
    history = read(tmp_path / "history.json")
    assert [row["epoch"] for row in history] == [1, 2]
    for row in history:
        assert all(math.isfinite(value) for value in row.values())
        assert row["low"] <= row["ConformityKL"] <= row["high"]
        assert row["FrechetDistance"] > 0
    assert history[-1]["loss"] < history[0]["loss"]
    assert is_drawn(tmp_path / "kl.png")
    assert is_drawn(tmp_path / "frechet.png")
    from diffusers import UNet2DModel

    old, new = (UNet2DModel.from_pretrained(folder / "unet") for folder in (checkpoint("ddpm"), tmp_path / "model"))
    assert not torch.equal(old.conv_in.weight, new.conv_in.weight)  # what is saved is the trained one


class SmallGlide(torch.nn.Module):
    """What glide_text2im's models are called with, from one convolution."""

    text_ctx = 8

    class tokenizer:  # noqa: N801 - as an attribute of the model
        encode = staticmethod(lambda text: [ord(sign) % 7 + 1 for sign in text])
        padded_tokens_and_mask = staticmethod(
            lambda tokens, size: ((tokens + [0] * size)[:size], ([True] * len(tokens) + [False] * size)[:size])
        )

    def __init__(self, channels):
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, 6, 1)

    def forward(self, x, steps, tokens, mask, low_res=None):
        if low_res is not None:
            x = torch.cat([x, torch.nn.functional.interpolate(low_res, x.shape[2:])], 1)
        return self.layer(x) + (tokens * mask).float().mean(1)[:, None, None, None] / 7


def one_step(model, shape, noise=None, *, device, clip_denoised, model_kwargs):
    x = torch.randn(shape, device=device) if noise is None else noise
    return (x - model(x, torch.zeros(len(x)), **model_kwargs)[:, :3]).clamp(-1, 1)


@pytest.fixture
def glide(monkeypatch, tmp_path):
    """A folder with base.pt and upsample.pt, and a package that opens them as glide_text2im does."""
    torch.manual_seed(5)
    for name, channels in (("base", 3), ("upsample", 6)):
        torch.save(SmallGlide(channels).state_dict(), tmp_path / f"{name}.pt")
    creation, download = (types.ModuleType(f"glide_text2im.{name}") for name in ("model_creation", "download"))
    creation.model_and_diffusion_defaults = lambda: {"super_res": False}
    creation.model_and_diffusion_defaults_upsampler = lambda: {"super_res": True}

    def create(super_res, use_fp16, timestep_respacing):
        diffusion = types.SimpleNamespace(p_sample_loop=one_step, ddim_sample_loop=one_step)
        return SmallGlide(6 if super_res else 3), diffusion

    creation.create_model_and_diffusion = create
    download.load_checkpoint = lambda name, device, cache_dir: torch.load(
        Path(cache_dir) / f"{name}.pt", map_location=device, weights_only=True
    )
    package = types.ModuleType("glide_text2im")
    package.model_creation, package.download = creation, download
    for module in (package, creation, download):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return tmp_path


def test_glide_is_guided_by_the_prompt_and_scored(run, material, glide):
    given = prompted(material, glide)
    assert "12 images generated, 0 found" in run("glide", *given, "--guidance", 3, "-o", glide / "out").stdout
    check_score(read(glide / "out" / "score.json"), 12)
    assert "Glide" in (glide / "out" / "report.html").read_text(encoding="utf-8")
    base, upper = SmallGlide(3), SmallGlide(6)
    for model, name in ((base, "base"), (upper, "upsample")):
        model.load_state_dict(torch.load(glide / f"{name}.pt", weights_only=True))
    entry = read_manifest(glide / "out" / "images-100-steps-guidance-3")[4]
    tokens = SmallGlide.tokenizer.encode(entry["prompt"])[:8]
    tokens = torch.tensor([tokens + [0] * (8 - len(tokens))])
    torch.manual_seed(entry["seed"])
    with torch.no_grad():  # by hand: the noise that the prompt predicts, three times as far from that without
        x = torch.randn(2, 3, 64, 64)[:1]
        reported, untold = (base(x, None, one, one > 0)[:, :3] for one in (tokens, torch.zeros_like(tokens)))
        small = (x - (untold + 3 * (reported - untold))).clamp(-1, 1)
        x = torch.randn(1, 3, 256, 256) * 0.997
        low_res = ((small + 1) * 127.5).round() / 127.5 - 1
        large = (x - upper(x, None, tokens, tokens > 0, low_res)[:, :3]).clamp(-1, 1)
    wanted = ((large[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    found = np.asarray(Image.open(glide / "out" / "images-100-steps-guidance-3" / entry["file"]))
    assert found.shape == (256, 256, 3)
    assert np.abs(found - wanted).max() <= 1
    assert found.std() > 10


@pytest.mark.slow
def test_unclip_under_torchrun_makes_the_images_of_one_process(material, checkpoint, tmp_path):
    name, *given = unclip(material, checkpoint, "--batch-size", 2)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}

    def process(*before, output):
        command = [sys.executable, *before, EXAMPLES / f"{name}.py", *given, "-o", output]
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, env=environment, check=False, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert process(*torchrun, output=tmp_path / "two").count("6 images generated, 0 found") == 2
    assert "0 images generated, 12 found" in process(output=tmp_path / "two")
    assert "12 images generated, 0 found" in process(output=tmp_path / "one")
    one, two = (
        {path.name: np.asarray(Image.open(path)) for path in list_images(tmp_path / run / "images")}
        for run in ("one", "two")
    )
    assert one.keys() == two.keys()
    apart = np.concatenate([(one[name] != two[name]).ravel() for name in one])
    assert apart.mean() < 0.01  # batches hold other prompts together, so that products round otherwise
