"""Models of open_clip, small and random: raw projections, weights that must be named, the same as in transformers."""

import gzip
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.encoders import available_encoders
from clipconformity.encoders import open_clip as adapter
from clipconformity.encoders.registry import TINY

CONTEXT = 16
END = 49407
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": TEXT,
}
COCA = CLIP | {
    "custom_text": True,
    "vision_cfg": CLIP["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": TEXT | {"context_length": CONTEXT - 1, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": TEXT | {"context_length": CONTEXT - 1, "dim_head": 16, "n_queries": 8, "attn_pooler_heads": 2},
}
SIGLIP = CLIP | {
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": CLIP["vision_cfg"] | {"pool_type": "avg"},
    "text_cfg": TEXT
    | {
        "hf_tokenizer_name": str(TINY),
        "vocab_size": 49,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    },
}
FAMILIES = {"oc-clip": CLIP, "oc-custom": CLIP | {"custom_text": True}, "oc-coca": COCA, "oc-sig": SIGLIP}
LONG = "red " * 40
TEXTS = ["a red circle", "a blue star at the top", LONG]


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """Spec of every family: its architecture made known to open_clip, its weights in a local checkpoint."""
    folder = tmp_path_factory.mktemp("open_clip")
    reported = {}
    for name, config in FAMILIES.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")
        torch.manual_seed(0)
        model = open_clip.create_model(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)  # some start at zero, or all alike
        torch.save(model.state_dict(), folder / f"{name}.pt")
        reported[name] = f"open_clip:{name}/{folder / name}.pt"
    yield reported
    for name in FAMILIES:
        open_clip.factory._MODEL_CONFIGS.pop(name)


@pytest.fixture(scope="module")
def encoders(specs):
    return {name: cc.load_encoder(spec, "cpu") for name, spec in specs.items()}


def noise(count, height=32, width=32):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(count)]


def pixels_by_hand(images):
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((torch.tensor(np.stack([np.asarray(i) for i in images])) / 255 - mean) / std).permute(0, 3, 1, 2)


@torch.no_grad()
def text_by_hand(name, model, tokens):
    """Run the text tower's parts one by one, over tokens whose end is told by hand."""
    tower = model if name == "oc-clip" else model.text
    count = tokens.shape[1]
    x = tower.token_embedding(tokens)
    mask = torch.full((count, count), float("-inf")).triu(1)
    if name == "oc-coca":  # the embedding is that of a class token behind the words
        x = torch.cat([x, tower.cls_emb.expand(len(x), 1, -1)], 1)
        seen = torch.cat([torch.ones(len(x), 1, dtype=torch.bool), tokens != 0], 1)  # so are the weights trained
        mask = torch.full((count + 1, count + 1), float("-inf")).triu(1) + torch.where(seen, 0, float("-inf"))[:, None]
        mask = mask.repeat_interleave(2, 0)  # for every head
    x = tower.transformer(x + tower.positional_embedding[: x.shape[1]], attn_mask=None if name == "oc-sig" else mask)
    if name == "oc-coca":
        return tower.ln_final(x[:, -1]) @ tower.text_projection
    x = tower.ln_final(x)
    last = torch.full((len(x),), count - 1) if name == "oc-sig" else tokens.argmax(1)
    pooled = x[torch.arange(len(x)), last]
    return tower.text_projection(pooled) if name == "oc-sig" else pooled @ tower.text_projection


@torch.no_grad()
def image_by_hand(name, model, images):
    tower = model.visual
    x = tower.conv1(pixels_by_hand(images)).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], 1) + tower.positional_embedding
    x = tower.transformer(tower.ln_pre(x))
    if name == "oc-coca":
        pooled = tower.ln_post(tower.attn_pool(x))[:, 0]
    else:
        x = tower.ln_post(x)
        pooled = x[:, 1:].mean(1) if name == "oc-sig" else x[:, 0]
    return pooled @ tower.proj


def tokens_by_hand(name, encoder):
    start, end = (47, 48) if name == "oc-sig" else (END - 1, END)
    tokens = torch.zeros(len(TEXTS), encoder.context_length, dtype=torch.long)
    for row, text in enumerate(TEXTS):
        words = (
            encoder.tokenizer.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if name == "oc-sig"
            else encoder.tokenizer.encode(text)
        )
        ids = [start, *words[: encoder.context_length - 2], end]
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens


@pytest.mark.filterwarnings("ignore:.*is cut to the context length")
@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_are_the_projection_computed_by_hand_and_not_normalised(name, encoders):
    encoder, images = encoders[name], noise(3)
    image = image_by_hand(name, encoder.model, images)
    text = text_by_hand(name, encoder.model, tokens_by_hand(name, encoder))
    assert image.std(0).max() > 1e-3  # the inputs matter
    assert text.std(0).max() > 1e-3
    torch.testing.assert_close(encoder.encode_image(images), image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.encode_text(TEXTS), text, atol=1e-5, rtol=1e-5)
    assert (torch.cat([image, text]).norm(dim=1) - 1).abs().min() > 0.01


def test_coca_normalises_unless_told_otherwise(encoders):
    encoder, images = encoders["oc-coca"], noise(2)
    with torch.no_grad():
        trap = encoder.model.encode_image(pixels_by_hand(images))
    torch.testing.assert_close(trap.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(trap, normalize(encoder.encode_image(images)), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is cut to the context length")
@pytest.mark.parametrize("name", FAMILIES)
def test_batch_size_does_not_matter(name, encoders):
    images = [*noise(2), *noise(1, 40, 55), *noise(1, 200, 33)]
    for encode, items in ((encoders[name].encode_image, images), (encoders[name].encode_text, TEXTS)):
        one_by_one = torch.cat([encode([item]) for item in items])
        torch.testing.assert_close(encode(items), one_by_one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_and_size_gives_finite_embeddings(mode, encoders):
    sizes = ((1, 1), (7, 90), (32, 32), (101, 64))
    for encoder in encoders.values():
        embeddings = encoder.encode_image(
            [
                Image.new("LAB", (width, height)) if mode == "LAB" else noise(1, height, width)[0].convert(mode)
                for height, width in sizes
            ]
        )
        assert embeddings.shape == (4, 24)
        assert torch.isfinite(embeddings).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_that_are_cut_keep_their_end_token_and_are_counted(name, specs, recwarn):
    encoder = cc.load_encoder(specs[name], "cpu")
    fits = "red " * (encoder.context_length - 2)
    encoder.encode_text([fits, "a star"])
    assert encoder.truncated == 0
    cut = encoder.tokenizer([LONG])[0]
    assert len(cut) == encoder.context_length
    assert cut[-1] == (48 if name == "oc-sig" else END)
    with pytest.warns(UserWarning, match="a text of 42 tokens is cut to the context length"):
        encoder.encode_text([LONG, fits, fits + "red"])
    encoder.encode_text(LONG)
    assert encoder.truncated == 3
    assert not recwarn.list


def test_a_few_letters_of_many_bytes_are_counted_too(specs):
    encoder = cc.load_encoder(specs["oc-clip"], "cpu")
    with pytest.warns(UserWarning, match="is cut to the context length"):
        encoder.encode_text("\u0d05\u0d06\u0d07\u0d08\u0d09\u0d0a\u0d0b\u0d0c")
    assert encoder.truncated == 1


def hugging_face_state(model):
    """Weights of an open_clip CLIP under the names that transformers gives them."""
    state = model.state_dict()
    moved = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    norms = {"ln_final": "text_model.final_layer_norm", "visual.ln_pre": "vision_model.pre_layrnorm"}
    for mine, theirs in (norms | {"visual.ln_post": "vision_model.post_layernorm"}).items():
        for part in ("weight", "bias"):
            moved[f"{theirs}.{part}"] = state[f"{mine}.{part}"]
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for tower, prefix in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
        for layer in range(2):
            mine, theirs = f"{prefix}.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            for part in ("weight", "bias"):
                for old, new in parts.items():
                    moved[f"{theirs}.{new}.{part}"] = state[f"{mine}.{old}.{part}"]
                for name, value in zip("qkv", state[f"{mine}.attn.in_proj_{part}"].chunk(3), strict=True):
                    moved[f"{theirs}.self_attn.{name}_proj.{part}"] = value
    return {name: value.contiguous() for name, value in moved.items()}


def write_clip_tokenizer(folder):
    """Write the tokenizer that open_clip bundles in the files of transformers' CLIP."""
    simple = open_clip.tokenizer.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in simple.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    bundled = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(bundled.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.filterwarnings("ignore:.*is cut to the context length")
def test_open_clip_and_transformers_agree_from_the_same_weights(encoders, tmp_path):
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"hidden_act": "gelu"}
    text = {"vocab_size": 49408, "max_position_embeddings": CONTEXT, "bos_token_id": END - 1, "eos_token_id": END}
    config = CLIPConfig(
        text_config=tower | text | {"pad_token_id": END},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    model = CLIPModel(config)
    model.load_state_dict(hugging_face_state(encoders["oc-clip"].model))
    model.save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(tmp_path)
    write_clip_tokenizer(tmp_path)
    mine, theirs = encoders["oc-clip"], cc.load_encoder(tmp_path, "cpu")
    images = [*noise(2), *noise(1, 40, 50), *noise(1, 64, 48), noise(1)[0].convert("L"), noise(1)[0].convert("P")]
    torch.testing.assert_close(theirs.encode_image(images), mine.encode_image(images), atol=1e-5, rtol=1e-5)
    texts = [*TEXTS, "A photo of TWO dogs, isn't it?", "caf\u00e9 \u2014 3.14", LONG + "blue"]
    torch.testing.assert_close(theirs.encode_text(texts), mine.encode_text(texts), atol=1e-5, rtol=1e-5)
    assert theirs.truncated == mine.truncated > 0 or mine.truncated > theirs.truncated > 0
    assert theirs.logit_scale == pytest.approx(mine.logit_scale)
    assert theirs.context_length == mine.context_length


def test_identity_holds_weights_and_pixels_but_no_place(encoders, specs, tmp_path):
    known = encoders["oc-clip"].id
    source = Path(specs["oc-clip"].partition("/")[2])
    state = torch.load(source, weights_only=True)
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "moved.pt")
    assert cc.load_encoder(f"open_clip:oc-clip/{tmp_path}/moved.pt", "cpu").id == known
    assert str(tmp_path) not in str(known)
    assert " at 0x" not in str(known)
    assert "Resize(size=32, interpolation=bicubic" in known["preprocessing"]
    assert "mean=(0.48145466" in known["preprocessing"]
    state["logit_scale"] += 0.1
    torch.save(state, tmp_path / "other.pt")
    assert cc.load_encoder(f"open_clip:oc-clip/{tmp_path}/other.pt", "cpu").id["weights"] != known["weights"]
    (tmp_path / "oc-quick.json").write_text(json.dumps(CLIP | {"quick_gelu": True}))
    open_clip.add_model_config(tmp_path / "oc-quick.json")
    quick = cc.load_encoder(f"open_clip:oc-quick/{source}", "cpu")
    open_clip.factory._MODEL_CONFIGS.pop("oc-quick")
    assert quick.id["weights"] != known["weights"]  # the same numbers under another activation


def test_weights_trained_with_quick_gelu_run_with_it():
    assert adapter._find_weights(open_clip, "ViT-B-32", "openai", "x") == {
        "pretrained": "openai",
        "force_quick_gelu": True,
    }
    assert not adapter._find_weights(open_clip, "ViT-B-32", "laion2b_s34b_b79k", "x")["force_quick_gelu"]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("open_clip:", ValueError, "expected 'open_clip:MODEL/PRETRAINED'"),
        ("open_clip:/openai", ValueError, "expected 'open_clip:MODEL/PRETRAINED'"),
        ("open_clip:ViT-B-23/openai", ValueError, "knows no model 'ViT-B-23'; did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/opnai", ValueError, "no weights 'opnai' for ViT-B-32; did you mean 'openai'"),
        ("open_clip:vitb32/openai", ValueError, "knows no model 'vitb32'; did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/laion2b", ValueError, r"; did you mean 'laion2b_e16' or 'laion2b_s34b_b79k'\?$"),
        ("open_clip:ViT-B-32/banana", ValueError, r"; `clipconformity encoders open_clip:ViT-B-32/` lists what there"),
        ("open_clip:banana/openai", ValueError, r"; `clipconformity encoders open_clip:` lists what there is\.$"),
        ("open_clip:RN50x4/laion2b", ValueError, r"no weights 'laion2b' for RN50x4; it has 'openai'\.$"),
        ("open_clip:ViT-B-32", ValueError, r"without weights the model is random; .* tags are: openai, "),
        ("open_clip:ViT-B-32//no/such.pt", FileNotFoundError, r"/no/such\.pt: no such checkpoint"),
        ("open_clip:local-dir:/no/such", FileNotFoundError, "could not be loaded"),
    ],
)
def test_what_cannot_be_loaded_is_told_with_the_way_out(spec, error, message):
    with pytest.raises(error, match=message):
        cc.load_encoder(spec, "cpu")


def test_the_command_that_an_unknown_tag_is_answered_with_lists_its_tags(capsys):
    assert main(["encoders", "open_clip:ViT-B-32/"]) == 0
    listed = {one["spec"] for one in json.loads(capsys.readouterr().out)["encoders"]}
    tags = open_clip.list_pretrained_tags_by_model("ViT-B-32")
    assert listed == {f"open_clip:ViT-B-32/{tag}" for tag in tags}


def test_a_checkpoint_of_another_model_is_refused(specs):
    checkpoint = specs["oc-sig"].partition("/")[2]
    with pytest.raises(ValueError, match="open_clip could not load it"):
        cc.load_encoder(f"open_clip:oc-clip/{checkpoint}", "cpu")


def test_the_list_of_encoders_says_what_is_installed(monkeypatch):
    listed = available_encoders()
    known = {model["spec"]: model for model in listed["open_clip"]["models"]}
    assert known["open_clip:ViT-B-32/PRETRAINED"]["embed_dim"] == 512
    assert known["open_clip:ViT-B-32/PRETRAINED"]["resolution"] == 224
    assert "openai" in known["open_clip:ViT-B-32/PRETRAINED"]["pretrained"]
    assert listed["tiny"]["embed_dim"] == 64
    assert listed["hf"]["installed"]
    monkeypatch.setattr("clipconformity.encoders.registry.find_spec", lambda name: None)
    absent = available_encoders()["open_clip"]
    assert absent == {"installed": None, "install": "pip install 'clipconformity[open_clip]'"}
