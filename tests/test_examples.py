"""Every example runs offline with ``--smoke`` and writes what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from clipconformity.captioning import read_results
from clipconformity.datasets import list_images
from clipconformity.generation import read_manifest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCORED = ("results.json", "comparison.png")
WRITES = {
    "unclip": SCORED,
    "stable_diffusion": (*SCORED, "guidance.png"),
    "blip": (*SCORED, "captions.json"),
    "caption_reward": SCORED,
    "compare_models": SCORED,
    "training_loop": ("history.json", "history.png"),
    "glide": SCORED,
    "clipcap": (*SCORED, "mlp-greedy.json", "mlp-beam-5.json"),
    "vslerp_unclip": ("grid.png", "results.json"),
}
NEEDS_DIFFUSERS = {"unclip", "stable_diffusion", "training_loop", "vslerp_unclip"}


def run(name, *arguments, check=True):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(EXAMPLES)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=EXAMPLES.parent,
        check=False,
        timeout=240,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def smoke(name, output, *more):
    if name in NEEDS_DIFFUSERS:
        pytest.importorskip("diffusers")
    return run(name, "--smoke", "-o", output, *more).stdout


def written(output, name):
    for file in WRITES[name]:
        if file.endswith(".png"):
            with Image.open(output / file) as image:
                assert min(image.size) > 200
        else:
            assert json.loads((output / file).read_text(encoding="utf-8"))


def test_every_example_is_tested():
    scripts = {path.stem for path in EXAMPLES.glob("*.py") if not path.stem.startswith("_")}
    assert scripts - {"tiny_clip_figures", "train_tiny_clip"} >= set(WRITES)
    for path in EXAMPLES.glob("*.py"):
        if '"--smoke"' in path.read_text(encoding="utf-8") or "_shared.parser" in path.read_text(encoding="utf-8"):
            assert path.stem in WRITES or path.stem.startswith("_"), path


@pytest.mark.parametrize("name", ["compare_models", "glide", "vslerp_unclip"])
def test_a_smoke_run_writes_its_files(name, tmp_path):
    smoke(name, tmp_path)
    written(tmp_path, name)


def test_unclip_goes_on_where_it_was(tmp_path):
    assert "24 images generated, 0 found" in smoke("unclip", tmp_path)
    written(tmp_path, "unclip")
    lost = list_images(tmp_path / "images")[3]
    before, kept = lost.read_bytes(), (tmp_path / "images" / "000004_0.png").stat().st_mtime_ns
    lost.unlink()
    assert "1 images generated, 23 found" in smoke("unclip", tmp_path, "--batch-size", 1)
    assert (tmp_path / "images" / "000004_0.png").stat().st_mtime_ns == kept
    assert len(before) > 100
    assert len(read_manifest(tmp_path / "images")) == 24


def test_stable_diffusion_scores_every_guidance_scale(tmp_path):
    smoke("stable_diffusion", tmp_path, "--guidance", 1.5, 7.5)
    written(tmp_path, "stable_diffusion")
    runs = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["runs"]
    assert list(runs) == ["guidance 1.5", "guidance 7.5"]


@pytest.mark.parametrize("kind", ["blip", "vision_encoder_decoder"])
def test_a_captioner_writes_coco_results(kind, tmp_path):
    smoke("blip", tmp_path, "--kind", kind)
    written(tmp_path, "blip")
    assert 12 < len(read_results(tmp_path / "captions.json", range(1, 61), on_missing="skip").texts) <= 24


def test_caption_reward_tells_generic_from_over_specific(tmp_path):
    said = smoke("caption_reward", tmp_path)
    written(tmp_path, "caption_reward")
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert len(content["human"]["conformity_kl"]) == 5
    assert "generic" in content["beside_people"]["generic"]
    assert "more specific" in content["beside_people"]["specific"]
    assert "people, one caption against the others" in said


def test_the_training_loop_logs_both_metrics_every_epoch(tmp_path):
    smoke("training_loop", tmp_path)
    written(tmp_path, "training_loop")
    history = json.loads((tmp_path / "history.json").read_text(encoding="utf-8"))
    assert [row["epoch"] for row in history] == [0, 1, 2]
    assert all({"ConformityKL", "FrechetDistance", "loss"} <= set(row) for row in history)
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("mapper", ["mlp", "transformer"])
def test_clipcap_captions_greedily_and_with_beams(mapper, tmp_path):
    smoke("clipcap", tmp_path, "--mapper", mapper)
    for name in ("greedy", "beam-5"):
        assert read_results(tmp_path / f"{mapper}-{name}.json").texts


def test_clipcap_refuses_other_weights(tmp_path):
    smoke("clipcap", tmp_path, "--mapper", "mlp", "--beams", 1)
    arguments = ("--smoke", "-o", tmp_path, "--mapper", "transformer", "--mapper-weights", tmp_path / "weights.pt")
    done = run("clipcap", *arguments, check=False)
    assert done.returncode == 1
    assert "other weights than expected; missing" in done.stderr


def test_help_and_a_missing_dataset_are_told():
    done = run("compare_models", "--help")
    assert "--smoke" in done.stdout
    done = run("compare_models", check=False)
    assert done.returncode == 2
    assert "give --coco" in done.stderr
