"""Train the small CLIP that the package carries, measure it on scenes it has not seen, and store it.

Two transformer towers learn with NT-Xent on procedurally drawn scenes. The result is an ordinary transformers
CLIP checkpoint directory. Progress goes to standard error, the measured figures to standard output as JSON.

    python examples/train_tiny_clip.py -o tiny_checkpoint
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tiny_clip_figures import draw_sample, evaluate, figure_rows
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPModel

from clipconformity.demo import scenes as world

IMAGE_SIZE = 32
CONTEXT_LENGTH = 16
CARD = Path(__file__).with_name("tiny_clip_card.md")


class Recipe(NamedTuple):
    """What the training depends on beside the seed and the number of steps."""

    scenes: int = 20_000
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    scale_start: float = 50.0
    scale_floor: float = 50.0
    bias_std: float = 1.0
    width: int = 96
    projection: int = 64  # below the width: a LayerNorm leaves one direction without variance
    layers: int = 2
    patch: int = 8


# --- the checkpoint -----------------------------------------------------------------------------------------


def write_tokenizer(directory: Path) -> None:
    """Write a word-level tokenizer whose files transformers 4 and 5 both read.

    The configuration is written by hand: transformers 5 would name a class that transformers 4 does not have.
    The end token has the highest id: the text tower pools there, whichever of its two rules applies.
    """
    words = {word for values in world.ATTRIBUTES.values() for word in values}
    words |= {"a", "an", "the", "at", "on", "in", "of", "is", "there", "picture", "big", "little", "centre"}
    names = ["<pad>", "<unk>", *sorted(words), "<start>", "<end>"]
    ids = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<pad>", "<unk>", "<start>", "<end>"])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^a-z0-9]+"), "removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(name, ids[name]) for name in ("<start>", "<end>")]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_LENGTH,
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **special,
    }
    write_json(directory / "tokenizer_config.json", config)
    write_json(directory / "special_tokens_map.json", special)


def write_preprocessor(directory: Path) -> None:
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
        "do_convert_rgb": True,
    }
    write_json(directory / "preprocessor_config.json", config)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def build_model(directory: Path, recipe: Recipe) -> CLIPModel:
    """Two untrained towers for the tokenizer in `directory`.

    The bias of each tower's last LayerNorm starts at random instead of zero. Every embedding shares that
    offset, so the towers start as two narrow cones that point apart, as large CLIP models do.
    """
    tokens = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    tower = {
        "hidden_size": recipe.width,
        "intermediate_size": 4 * recipe.width,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.width // 24,
        "projection_dim": recipe.projection,
    }
    text = {
        "vocab_size": len(tokens),
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    vision = {"image_size": IMAGE_SIZE, "patch_size": recipe.patch}
    config = CLIPConfig(
        text_config={**tower, **text},
        vision_config={**tower, **vision},
        projection_dim=recipe.projection,
        logit_scale_init_value=math.log(recipe.scale_start),
    )
    model = CLIPModel(config)
    with torch.no_grad():
        for norm in (model.text_model.final_layer_norm, model.vision_model.post_layernorm):
            norm.bias.normal_(0, recipe.bias_std)
    return model


def store(model: CLIPModel, directory: Path) -> None:
    """Write weights and configuration so that transformers 4 and 5 read the same model."""
    model.eval().save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
    config["torch_dtype"] = "float32"  # transformers 4 does not know the newer name; 5 reads both
    write_json(directory / "config.json", config)


# --- training -----------------------------------------------------------------------------------------------


def training_tensors(directory: Path, recipe: Recipe, *, seed: int) -> dict[str, torch.Tensor]:
    """Pixels (N, 3, H, W), token ids and attention masks (N, captions, L)."""
    sample = draw_sample(recipe.scenes, seed=seed)
    tokens = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    captions = [caption for several in sample.captions for caption in several]
    words = tokens(captions, padding=True, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(directory, trust_remote_code=False)(
        sample.images, return_tensors="pt"
    ).pixel_values
    shape = (recipe.scenes, -1)
    masks = words.attention_mask.unflatten(0, shape)
    return {"pixel_values": pixels, "input_ids": words.input_ids.unflatten(0, shape), "attention_mask": masks}


def batches(data: dict[str, torch.Tensor], size: int, *, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Endless shuffled batches of different scenes, one caption drawn for each."""
    generator = torch.Generator().manual_seed(seed)
    count, captions = data["input_ids"].shape[:2]
    while True:
        for rows in torch.randperm(count, generator=generator).split(size)[: count // size]:
            choice = torch.randint(captions, (size,), generator=generator)
            texts = {name: data[name][rows, choice] for name in ("input_ids", "attention_mask")}
            yield {"pixel_values": data["pixel_values"][rows], **texts}


def train(model: CLIPModel, data: dict[str, torch.Tensor], recipe: Recipe, *, steps: int, seed: int) -> None:
    """Minimise NT-Xent, and keep the logit scale at its floor or above."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    lowest, highest = math.log(recipe.scale_floor), math.log(100.0)
    model.train()
    for step, batch in enumerate(islice(batches(data, recipe.batch, seed=seed), steps), start=1):
        loss = model(**batch, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(lowest, highest)  # a smaller scale would need wider angles
        if step % 100 == 0:
            scale = model.logit_scale.exp().item()
            report(f"step {step}/{steps}  loss {loss.item():.3f}  logit scale {scale:.1f}")


def learning_rate_factor(step: int, steps: int) -> float:
    """A linear warm-up over 100 steps, then a half cosine to zero."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def report(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


# --- the card and the command -------------------------------------------------------------------------------


def write_card(directory: Path, figures: dict[str, Any], recipe: Recipe, *, steps: int, seed: int) -> None:
    """Write the model card, with the figures measured from the stored files."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in figure_rows(figures))
    settings = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in recipe._asdict().items())
    parameters = sum(p.numel() for p in CLIPModel.from_pretrained(directory, trust_remote_code=False).parameters())
    card = CARD.read_text(encoding="utf-8").format(
        rows=rows,
        settings=settings,
        parameters=parameters,
        steps=steps,
        seed=seed,
        projection=recipe.projection,
        **{name: figures[name] for name in ("pairs", "distinct_scenes", "distinct_captions")},
        context=CONTEXT_LENGTH,
        size=IMAGE_SIZE,
    )
    (directory / "README.md").write_text(card, encoding="utf-8")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("tiny_checkpoint"), help="a directory")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the scenes and their order")
    parser.add_argument("--steps", type=int, default=1500, help="default %(default)s")
    for name, default in Recipe()._asdict().items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help="default %(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    recipe = Recipe(**{name: getattr(options, name) for name in Recipe._fields})
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_tokenizer(directory)
        write_preprocessor(directory)
        model = build_model(directory, recipe)
        data = training_tensors(directory, recipe, seed=options.seed)
        train(model, data, recipe, steps=options.steps, seed=options.seed)
        store(model, directory)
        figures = evaluate(directory)
        write_card(directory, figures, recipe, steps=options.steps, seed=options.seed)
        options.output.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            shutil.copyfile(path, options.output / path.name)  # contents only: scratch files are private
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
