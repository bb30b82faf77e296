"""Every dual encoder of transformers, small and random: its raw projection, its own preprocessing, its end token."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, processors
from torch.nn.functional import linear, normalize
from transformers import AutoModel, PreTrainedTokenizerFast

import clipconformity as cc
from clipconformity.encoders.registry import TINY
from clipconformity.encoders.transformers import (
    _choose_pil_backend,
    _describe_backend,
    _get_projection,
    _read_context_length,
)

START, END = 47, 48
CONTEXT = 16
SIZE = {"height": 32, "width": 32}
CROP = {"size": {"shortest_edge": 32}, "crop_size": SIZE}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = TOWER | {"image_size": 32, "patch_size": 8}
TEXT = TOWER | {"vocab_size": 200, "max_position_embeddings": CONTEXT, "pad_token_id": 0}
CLIP_TEXT = TEXT | {"bos_token_id": START, "eos_token_id": END}
EFFICIENT_NET = {
    "image_size": 32,
    "hidden_dim": 24,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "in_channels": [32],
    "out_channels": [24],
    "kernel_sizes": [3],
    "strides": [1],
    "expand_ratios": [1],
    "num_block_repeats": [1],
    "depthwise_padding": [],
}
FAMILIES = {
    "CLIP": (CLIP_TEXT, VISION, "CLIPImageProcessor", CROP),
    "MetaClip2": (CLIP_TEXT, VISION, "CLIPImageProcessor", CROP),
    "AltCLIP": (CLIP_TEXT | {"project_dim": 28, "max_position_embeddings": 17}, VISION, "CLIPImageProcessor", CROP),
    "ChineseCLIP": (TEXT, VISION, "ChineseCLIPImageProcessor", {"size": SIZE, "crop_size": SIZE}),
    "Align": (TEXT, EFFICIENT_NET, "EfficientNetImageProcessor", CROP | {"size": SIZE, "include_top": False}),
    "Siglip": (CLIP_TEXT, VISION, "SiglipImageProcessor", {"size": SIZE}),
    "Siglip2": (
        TEXT,
        TOWER | {"patch_size": 8, "num_patches": 16},
        "Siglip2ImageProcessor",
        {"patch_size": 8, "max_num_patches": 16},
    ),
}
LONG = "red " * 40
TEXTS = ["a red circle", "a blue star at the top", LONG]


def build(family):
    text, vision, processor, options = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision, projection_dim=24)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(20 if family == "Align" and parameter.ndim == 4 else 2)  # inputs shall matter
    return model, getattr(transformers, processor)(**options)


def letter_tokenizer():
    """Letters as tokens, in the form of Gemma's tokenizer, which SigLIP 2 builds anew from vocabulary and merges."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=CONTEXT, padding_side="right", model_input_names=["input_ids"], **names
    )


def save(family, folder):
    model, processor = build(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if family == "Siglip2":
        letter_tokenizer().save_pretrained(folder)
    else:
        for path in TINY.glob("*token*.json"):
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: save(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def encoders(folders):
    return {family: cc.load_encoder(folder, "cpu") for family, folder in folders.items()}


def noise(count, height=32, width=32):
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8, endpoint=False))
        for _ in range(count)
    ]


def pixels_by_hand(family, images, processor):
    pixels = torch.tensor(np.stack([np.asarray(image) for image in images])).double() / 255
    pixels = (pixels - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)  # (N, 32, 32, 3)
    if family != "Siglip2":
        return {"pixel_values": pixels.permute(0, 3, 1, 2).float()}
    patches = pixels.reshape(-1, 4, 8, 4, 8, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 8 * 8 * 3)
    mask = torch.ones(len(images), 16, dtype=torch.int32)
    shapes = torch.full((len(images), 2), 4)
    return {"pixel_values": patches.float(), "pixel_attention_mask": mask, "spatial_shapes": shapes}


def tokens_by_hand(family, texts):
    """Token ids with the end token in the last place of a text that is cut, and which of them are no padding."""
    rows = []
    for text in texts:
        if family == "Siglip2":
            ids = [5 if letter == " " else 6 + ord(letter) - ord("a") for letter in text]
            rows.append([*ids[: CONTEXT - 1], 1])
        else:
            ids = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(text, add_special_tokens=False).ids
            rows.append([START, *ids[: CONTEXT - 2], END])
    width = CONTEXT if family.startswith("Siglip") else max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


@torch.no_grad()
def projections_by_hand(family, model, pixels, ids, mask):
    vision = model.vision_model(*pixels.values())  # transformers 4 and 5 name the mask otherwise
    if family.startswith("Siglip"):  # the heads are parts of the towers, and texts have no mask
        return vision.pooler_output, model.text_model(input_ids=ids).pooler_output
    text = model.text_model(input_ids=ids, attention_mask=mask)
    pooled = text.pooler_output if family in ("CLIP", "MetaClip2") else text.last_hidden_state[:, 0]
    projection = model.text_projection
    image = vision.pooler_output if family == "Align" else linear(vision.pooler_output, model.visual_projection.weight)
    return image, linear(pooled, projection.weight, projection.bias)


@pytest.mark.filterwarnings("ignore:.*is cut to the context length")
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_the_projection_computed_by_hand_and_not_normalised(family, encoders, folders):
    encoder, images = encoders[family], noise(3)
    model = AutoModel.from_pretrained(folders[family]).eval()
    pixels = pixels_by_hand(family, images, encoder.processor)
    ids, mask = tokens_by_hand(family, TEXTS)
    image, text = projections_by_hand(family, model, pixels, ids, mask)
    assert image.std(0).max() > 1e-3  # the inputs matter
    assert text.std(0).max() > 1e-3
    torch.testing.assert_close(encoder.encode_image(images), image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.encode_text(TEXTS), text, atol=1e-5, rtol=1e-5)
    assert (torch.cat([image, text]).norm(dim=1) - 1).abs().min() > 0.01
    with torch.no_grad():  # the trap: the model's own output is normalised
        words = {"input_ids": ids} if family.startswith("Siglip") else {"input_ids": ids, "attention_mask": mask}
        output = model(**pixels, **words)
    torch.testing.assert_close(output.image_embeds, normalize(image), atol=1e-5, rtol=1e-5)
    assert encoder.embed_dim == image.shape[1] == text.shape[1]
    assert encoder.context_length == CONTEXT
    assert encoder.logit_scale > 0


@pytest.mark.filterwarnings("ignore:.*is cut to the context length")
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_does_not_matter(family, encoders):
    images = [*noise(2), *noise(1, 40, 55), *noise(1, 200, 33)]
    for encode, items in ((encoders[family].encode_image, images), (encoders[family].encode_text, TEXTS)):
        one_by_one = torch.cat([encode([item]) for item in items])
        torch.testing.assert_close(encode(items), one_by_one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "I;16", "F"])
def test_every_mode_and_size_gives_finite_embeddings(family, mode, encoders):
    images = []
    for height, width in ((1, 1), (7, 90), (32, 32), (101, 64)):
        grey = np.random.default_rng(1).integers(0, 65536, (height, width)).astype(np.uint16)
        images.append(
            Image.fromarray(grey)
            if mode == "I;16"
            else Image.fromarray(grey.astype(np.float32) / 65535)
            if mode == "F"
            else noise(1, height, width)[0].convert(mode)
        )
    embeddings = encoders[family].encode_image(images)
    assert embeddings.shape == (4, encoders[family].embed_dim)
    assert embeddings.dtype == torch.float32
    assert torch.isfinite(embeddings).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_are_cut_are_counted_and_told_of_once(family, folders, recwarn):
    encoder = cc.load_encoder(folders[family], "cpu")
    fits = "abcdefgh" if family == "Siglip2" else "red " * (CONTEXT - 2)
    encoder.encode_text([fits, "a star"])
    assert encoder.truncated == 0
    with pytest.warns(UserWarning, match=r"tokens is cut to the context length of 16, its end token kept"):
        encoder.encode_text([LONG, "a star", "red " * (CONTEXT - 1)])
    assert encoder.truncated == 2
    encoder.encode_text([LONG])
    assert encoder.truncated == 3
    assert not recwarn.list


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_says_what_decides_on_the_embeddings(family, encoders, folders):
    encoder = encoders[family]
    assert encoder.id["backend"] == "pil"
    assert encoder.id == cc.load_encoder(folders[family], "cpu").id
    assert "/" not in str(encoder.id)
    assert " at 0x" not in str(encoder.id)
    size = "max_num_patches" if family == "Siglip2" else "size"
    for part in ("image_mean", "image_std", "resample", size):
        assert part in encoder.id["preprocessing"]


def test_identity_changes_with_weights_preprocessing_and_activation_only(folders, tmp_path):
    def changed(name, model=None, processor=None, dtype=None):
        shutil.copytree(folders["CLIP"], tmp_path / name)
        if model is not None:
            model.to(dtype).save_pretrained(tmp_path / name)
        if processor is not None:
            processor.save_pretrained(tmp_path / name)
        return cc.load_encoder(tmp_path / name, "cpu").id

    model, _ = build("CLIP")
    model.bfloat16().float()
    single, half = changed("single", model, dtype=torch.float32), changed("half", model, dtype=torch.bfloat16)
    assert single == half
    model.float()
    model.logit_scale.data += 0.125
    assert changed("weights", model)["weights"] != single["weights"]
    model.logit_scale.data -= 0.125
    model.config.text_config.hidden_act = model.config.vision_config.hidden_act = "gelu"
    assert changed("activation", model)["weights"] != single["weights"]
    other = changed("pixels", processor=transformers.CLIPImageProcessor(**CROP, resample=2))
    original = changed("copy")
    assert other["preprocessing"] != original["preprocessing"]
    assert other["weights"] == original["weights"]


@pytest.mark.parametrize("family", ["CLIP", "Siglip2", "Align"])
def test_bfloat16_runs_by_autocast_and_gives_float32(family, encoders, folders):
    single, half = encoders[family], cc.load_encoder(folders[family], "cpu", dtype=torch.bfloat16)
    for encode in ("encode_image", "encode_text"):
        items = noise(4) if encode == "encode_image" else ["a red circle", "a star"]
        exact, rough = getattr(single, encode)(items), getattr(half, encode)(items)
        assert rough.dtype == torch.float32
        assert not torch.equal(exact, rough)
        assert torch.cosine_similarity(exact, rough).min() > 0.99
    assert half.id == single.id | {"precision": "bfloat16"}
    with pytest.raises(ValueError, match=r"dtype: expected torch\.float32"):
        cc.load_encoder(folders[family], "cpu", dtype=torch.float64)


def test_an_autocast_around_it_does_not_lower_the_precision(encoders):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoders["CLIP"].encode_image(noise(2))
    assert torch.equal(inside, encoders["CLIP"].encode_image(noise(2)))


def test_transformers_4_and_5_are_asked_alike():
    for version in ("4.40.0", "4.57.3", "5.0.0rc1", "5.3.0"):
        assert _choose_pil_backend(version) == {"use_fast": False}
    for version in ("5.4.0", "5.4.0.dev0", "5.23.0", "6.0.0"):
        assert _choose_pil_backend(version) == {"backend": "pil"}
    rows = torch.ones(2, 3)
    assert _get_projection(rows) is rows
    assert _get_projection(SimpleNamespace(pooler_output=rows, last_hidden_state=None)) is rows


def test_the_backend_is_told_as_it_is():
    class CLIPImageProcessorFast:
        pass

    class CLIPImageProcessor:
        pass

    assert _describe_backend(CLIPImageProcessorFast()) == "torchvision"
    assert _describe_backend(CLIPImageProcessor()) == "pil"
    assert _describe_backend(SimpleNamespace(backend="torchvision")) == "torchvision"


def test_context_length_is_the_smaller_of_model_and_tokenizer():
    def length(limit, positions=77, family="clip"):
        text = SimpleNamespace(max_position_embeddings=positions, pad_token_id=1)
        return _read_context_length(
            SimpleNamespace(text_config=text, model_type=family), SimpleNamespace(model_max_length=limit)
        )

    assert length(10**30) == 77
    assert length(64) == 64
    assert length(10**30, 514, "altclip") == 512  # two positions are the padding's
    with pytest.raises(ValueError, match="gives its context length"):
        length(10**30, None)


def test_a_checkpoint_without_all_weights_is_refused(folders, tmp_path):
    shutil.copytree(folders["CLIP"], tmp_path / "half")
    model, _ = build("CLIP")
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("text_projection")}
    model.save_pretrained(tmp_path / "half", state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks 1 weights of CLIPModel, such as text_projection\.weight"):
        cc.load_encoder(tmp_path / "half", "cpu")


def test_a_model_of_texts_alone_is_refused(tmp_path):
    transformers.BertModel(transformers.BertConfig(**TEXT)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel has no image and text tower; expected a CLIP-like model"):
        cc.load_encoder(tmp_path, "cpu")


def test_a_folder_without_a_checkpoint_or_its_parts_is_refused(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises((OSError, ValueError), match="empty: ") as error:
        cc.load_encoder(tmp_path / "empty", "cpu")
    assert "\n" not in str(error.value)
    shutil.copytree(folders["CLIP"], tmp_path / "blind")
    (tmp_path / "blind" / "preprocessor_config.json").unlink()
    with pytest.raises((OSError, ValueError), match="blind: "):
        cc.load_encoder(tmp_path / "blind", "cpu")
    shutil.copytree(folders["CLIP"], tmp_path / "cut")
    data = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises((OSError, ValueError), match="cut: "):
        cc.load_encoder(tmp_path / "cut", "cpu")


@pytest.mark.slow
def test_without_torchvision_every_family_gives_the_same(folders, encoders):
    code = (
        "import json, sys\n"
        "sys.modules['torchvision'] = None\n"
        "import numpy as np\n"
        "import clipconformity as cc\n"
        "pixels = np.random.default_rng(3).integers(0, 256, (2, 40, 56, 3), dtype=np.uint8)\n"
        "loaded = [cc.load_encoder(folder, 'cpu') for folder in sys.argv[1:]]\n"
        "print(json.dumps([[encoder.encode_image(pixels).tolist(), encoder.id] for encoder in loaded]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, folders.values())], check=True, capture_output=True, text=True
    )
    pixels = np.random.default_rng(3).integers(0, 256, (2, 40, 56, 3), dtype=np.uint8)
    for (embeddings, identity), encoder in zip(json.loads(run.stdout), encoders.values(), strict=True):
        assert identity == encoder.id
        torch.testing.assert_close(torch.tensor(embeddings), encoder.encode_image(pixels), atol=1e-5, rtol=1e-5)
