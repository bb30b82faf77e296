"""Every example runs offline with ``--smoke`` and writes what it says."""

import importlib
import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from clipconformity.data import list_images, read_results
from clipconformity.demo import sample_scenes, write_coco_scenes
from clipconformity.generators import read_manifest

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


class Done(NamedTuple):
    """What a script said, and how it ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The examples can be imported, and two of them by name."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.syspath_prepend(str(EXAMPLES))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("MPLBACKEND", "Agg")
        warnings.simplefilter("ignore")  # of third parties at import
        yield


def run(name, *arguments, check=True):
    """Call a script's ``main`` as its last line does, from the state that a new process has."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        shared, script = importlib.import_module("_shared"), importlib.import_module(name)
        try:
            shared.run(lambda: script.main([str(argument) for argument in arguments]))
        except SystemExit as end:  # a message goes to standard error, as in a process
            status = end.code if isinstance(end.code, int) else 1
            err.write("" if isinstance(end.code, int) or end.code is None else str(end.code))
    assert not check or status == 0, err.getvalue()
    return Done(status, out.getvalue(), err.getvalue())


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


@pytest.mark.parametrize("name", ["glide", "vslerp_unclip"])
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


def test_sdxl_runs_as_stable_diffusion_does(tmp_path):
    smoke("stable_diffusion", tmp_path, "--model", "stabilityai/stable-diffusion-xl-base-1.0", "--guidance", 1.5)
    written(tmp_path, "stable_diffusion")
    about = read_manifest(tmp_path / "guidance-1.5")[0]["settings"]
    assert about.startswith("StableDiffusionXLPipeline")


@pytest.mark.parametrize("kind", ["blip", "vision_encoder_decoder", "llava"])
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


@pytest.mark.slow
def test_lightning_trains_and_logs_the_same(tmp_path):
    pytest.importorskip("lightning")
    smoke("training_loop", tmp_path / "plain")
    smoke("training_loop", tmp_path / "lightning", "--lightning")
    plain, trained = (
        json.loads((tmp_path / name / "history.json").read_text(encoding="utf-8")) for name in ("plain", "lightning")
    )
    for row, other in zip(plain, trained, strict=True):
        # The encoder's rows differ in their last bits, by which they are dealt to other buckets; of so few rows the
        # redraws then differ much.
        for one in (row, other):
            assert one.pop("ConformityKL_low") <= one["ConformityKL"] <= one.pop("ConformityKL_high")
        assert other == pytest.approx(row, rel=1e-4)


def test_vslerp_edits_with_small_steps(tmp_path):
    smoke("vslerp_unclip", tmp_path, "--edit", "--alphas", 0, 1)
    written(tmp_path, "vslerp_unclip")
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert content["positions"] == [0.0, 0.1, 0.2, 0.3]
    assert [row["alpha"] for row in content["rows"]] == [0, 1]
    # Every row begins at the first image, whatever turns about.
    assert content["rows"][0]["conformity"][0] == pytest.approx(content["rows"][1]["conformity"][0], abs=1e-6)
    assert content["rows"][0]["conformity"][3] != pytest.approx(content["rows"][1]["conformity"][3], abs=1e-6)


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


# --- the same scripts on saved checkpoints, as they load those of the hub ---------------------------------------------


@pytest.fixture(scope="module")
def examples(scripts):
    return importlib.import_module("_smoke"), importlib.import_module("clipcap")


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    write_coco_scenes(root, sample_scenes(60, seed=0), seed=0)
    return root


def loaded(name, coco, output, *more):
    arguments = ("--coco", coco, "--encoder", "tiny", "--device", "cpu", "--limit", 12, "-o", output)
    return run(name, *arguments, *more).stdout


@pytest.mark.parametrize(
    ("name", "model", "more"),
    [
        ("unclip", "unclip", ()),
        ("stable_diffusion", "stable_diffusion", ("--guidance", 2, "--steps", 2)),
        ("stable_diffusion", "stable_diffusion_xl", ("--guidance", 2, "--steps", 2)),
        ("vslerp_unclip", "unclip_image_variation", ("--positions", 0, 1, "--alphas", 0)),
    ],
)
def test_a_saved_pipeline_is_loaded_and_run(examples, coco, tmp_path, name, model, more):
    pytest.importorskip("diffusers")
    getattr(examples[0], model)().save_pretrained(tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    about = json.loads(index.read_text(encoding="utf-8"))
    if "text_proj" in about:  # as the published checkpoints have it, from before diffusers moved the class
        about["text_proj"][0] = "unclip"
        index.write_text(json.dumps(about), encoding="utf-8")
    loaded(name, coco, tmp_path, "--model", tmp_path / "model", *more)
    written(tmp_path, name)


@pytest.mark.parametrize("kind", ["blip", "git", "vision_encoder_decoder", "llava"])
def test_a_saved_captioner_is_loaded_and_run(examples, coco, tmp_path, kind):
    for part in getattr(examples[0], kind)():
        if part is not None:
            part.save_pretrained(tmp_path / "model")
    loaded("blip", coco, tmp_path, "--model", tmp_path / "model", "--kind", kind)
    written(tmp_path, "blip")


def byte_level_gpt2(examples, folder):
    """Save GPT-2 with its own kind of tokenizer, of single bytes: each is a token."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    signs = [chr(code) for code in range(256) if chr(code).isprintable() and code not in (32, 160, 173)]
    signs += [chr(256 + number) for number in range(256 - len(signs))]  # as GPT-2 writes the other bytes
    words = {sign: number for number, sign in enumerate([*signs, "<|endoftext|>"])}
    GPT2Tokenizer(vocab=words, merges=[]).save_pretrained(folder)
    torch.manual_seed(3)
    ends = {"bos_token_id": 256, "eos_token_id": 256, "tie_word_embeddings": False}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=96, n_embd=32, n_layer=2, n_head=4, **ends))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("mapper", ["mlp", "transformer"])
def test_published_clipcap_files_are_loaded_and_run(examples, coco, tmp_path, mapper):
    model = byte_level_gpt2(examples, tmp_path / "gpt2")
    whole = examples[1].ClipCap(model, mapper, clip_dim=64, prefix_length=4)
    weights = dict(whole.state_dict())
    for number in range(2):  # the published files hold the masks of an older GPT-2
        weights[f"gpt.transformer.h.{number}.attn.bias"] = torch.ones(1, 1, 96, 96, dtype=torch.uint8)
        weights[f"gpt.transformer.h.{number}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(weights, tmp_path / "weights.pt")
    arguments = ("--gpt2", tmp_path / "gpt2", "--mapper", mapper, "--mapper-weights", tmp_path / "weights.pt")
    loaded("clipcap", coco, tmp_path, *arguments, "--clip", "tiny", "--prefix-length", 4, "--beams", 1)
    assert read_results(tmp_path / f"{mapper}-greedy.json").texts


def test_clipcap_has_the_layout_of_its_published_files(examples):
    from transformers import GPT2Config, GPT2LMHeadModel

    def shapes(mapper):
        gpt = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=16, n_layer=1, n_head=2))
        model = examples[1].ClipCap(gpt, mapper, clip_dim=5, prefix_length=4)
        return {
            name.removeprefix("clip_project."): tuple(value.shape)
            for name, value in model.state_dict().items()
            if not name.startswith("gpt.")
        }

    # As the authors' code names and shapes them, for an embedding of 5, a GPT-2 of width 16 and a prefix of 4.
    assert shapes("mlp") == {
        "model.0.weight": (32, 5),
        "model.0.bias": (32,),
        "model.2.weight": (64, 32),
        "model.2.bias": (64,),
    }
    layer = {
        "norm1.weight": (16,),
        "norm1.bias": (16,),
        "attn.to_queries.weight": (16, 16),
        "attn.to_keys_values.weight": (32, 16),
        "attn.project.weight": (16, 16),
        "attn.project.bias": (16,),
        "norm2.weight": (16,),
        "norm2.bias": (16,),
        "mlp.fc1.weight": (32, 16),
        "mlp.fc1.bias": (32,),
        "mlp.fc2.weight": (16, 32),
        "mlp.fc2.bias": (16,),
    }
    layers = {f"transformer.layers.{n}.{name}": shape for n in range(8) for name, shape in layer.items()}
    ends = {"linear.weight": (64, 5), "linear.bias": (64,), "prefix_const": (4, 16)}
    assert shapes("transformer") == layers | ends


@pytest.mark.parametrize("mapper", ["mlp", "transformer"])
def test_clipcap_goes_on_greedily_to_the_first_full_stop(examples, tmp_path, mapper):
    from transformers import AutoTokenizer

    gpt = byte_level_gpt2(examples, tmp_path)
    model = examples[1].ClipCap(gpt.eval(), mapper, clip_dim=6, prefix_length=4, layers=2).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    embeddings = 3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))

    def by_hand(embedding, stop):
        given, found = model.clip_project(embedding[None]).view(1, 4, -1), []
        while len(found) < 12 and (not found or found[-1] != stop):
            found.append(int(gpt(inputs_embeds=given).logits[0, -1].argmax()))
            given = torch.cat([given, gpt.transformer.wte(torch.tensor([[found[-1]]]))], dim=1)
        return found

    with torch.no_grad():
        for weight in model.clip_project.parameters():
            weight.mul_(4)  # so that embeddings make a difference
        endless = [by_hand(embedding, None) for embedding in embeddings]
        firsts = {token: {row.index(token) if token in row else 12 for row in endless} for token in range(256)}
        stop = max(firsts, key=lambda token: len(firsts[token]))  # an ordinary token, come to at different places
        wanted = [by_hand(embedding, stop) for embedding in embeddings]
    assert len({len(tokens) for tokens in wanted}) > 1
    found = model.caption(embeddings, tokenizer, stop, beams=1, max_new_tokens=12)
    assert found == [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in wanted]
    together = model.caption(embeddings, tokenizer, stop, beams=3, max_new_tokens=12)
    alone = [model.caption(one[None], tokenizer, stop, beams=3, max_new_tokens=12)[0] for one in embeddings]
    assert together == alone


@pytest.mark.slow
def test_a_script_runs_as_a_process_and_tells_what_is_missing(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(EXAMPLES.parent)}

    def process(*arguments):
        command = [sys.executable, str(EXAMPLES / "compare_models.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)

    assert "--smoke" in process("--help").stdout
    done = process()
    assert done.returncode == 2
    assert "give --coco" in done.stderr
    assert process("--smoke", "-o", str(tmp_path)).returncode == 0
    written(tmp_path, "compare_models")
