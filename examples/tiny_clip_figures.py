"""Measure a checkpoint of the small CLIP on scenes it has not seen, as its model card states it.

    python examples/tiny_clip_figures.py tiny_checkpoint

Prints JSON. The formulas are written out here, apart from the library, so that each can check the other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from clipconformity.demo import scenes as world

ALPHAS: list[float] = (np.arange(-20, 21) / 20).tolist()


class Sample(NamedTuple):
    """Scenes with one drawing and several captions each."""

    scenes: list[world.Scene]
    images: list[Image.Image]
    captions: list[list[str]]

    @property
    def first_captions(self) -> list[str]:
        """One caption of each scene."""
        return [several[0] for several in self.captions]


def draw_sample(count: int, *, seed: int, concentration: float = 1.0) -> Sample:
    """Draw scenes, one image of each, and captions; another seed gives other drawings of other scenes."""
    drawn = world.sample_scenes(count, seed=seed, concentration=concentration)
    seeds = np.random.SeedSequence([seed, count]).generate_state(2 * count).tolist()
    images = [world.draw_scene(s, seed=k) for s, k in zip(drawn, seeds[:count], strict=True)]
    captions = [world.scene_captions(s, seed=k) for s, k in zip(drawn, seeds[count:], strict=True)]
    return Sample(drawn, images, captions)


class Embedder:
    """Raw projections, before L2 normalisation, from a stored checkpoint."""

    def __init__(self, directory: Path) -> None:
        self.model = CLIPModel.from_pretrained(directory, trust_remote_code=False).float().eval()
        self.tokens = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        self.processor = AutoImageProcessor.from_pretrained(directory, trust_remote_code=False)
        self.logit_scale = self.model.logit_scale.exp().item()

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Raw image embeddings (N, D)."""
        pixels = self.processor(list(images), return_tensors="pt").pixel_values
        pooled = [self.model.vision_model(pixel_values=part).pooler_output for part in pixels.split(500)]
        return self.model.visual_projection(torch.cat(pooled))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Raw text embeddings (N, D)."""
        batch = self.tokens(list(texts), padding=True, truncation=True, return_tensors="pt")
        output = self.model.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return self.model.text_projection(output.pooler_output)


def unit_mean(embeddings: torch.Tensor) -> torch.Tensor:
    return F.normalize(embeddings, dim=-1).mean(dim=0)


def conformity(embeddings: torch.Tensor, reference_unit_mean: torch.Tensor) -> torch.Tensor:
    return F.normalize(embeddings, dim=-1) @ reference_unit_mean


def offset(embeddings: torch.Tensor) -> float:
    return (embeddings.mean(dim=0).norm() / embeddings.var(dim=0).sum().sqrt()).item()


def nt_xent(image: torch.Tensor, text: torch.Tensor, logit_scale: float) -> float:
    logits = logit_scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    labels = torch.arange(len(logits))
    return ((F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2).item()


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Rank correlation; ties take their mean rank."""

    def ranks(values: torch.Tensor) -> np.ndarray:
        _, inverse, counts = np.unique(values.numpy(), return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def binned_kl(evaluated: torch.Tensor, reference: torch.Tensor, bins: int = 20) -> float:
    """KL(evaluated, reference) in nats over the reference's quantile bins, half a count added to each."""
    edges = torch.quantile(reference, torch.linspace(0, 1, bins + 1)[1:-1])
    counts = [torch.bincount(torch.bucketize(v, edges), minlength=bins) + 0.5 for v in (evaluated, reference)]
    p, q = (c / c.sum() for c in counts)
    return (p * (p / q).log()).sum().item()


def retrieval(image: torch.Tensor, text: torch.Tensor, sample: Sample) -> dict[str, float]:
    """Share of images whose nearest caption is their own, has its words, or is true; and the reverse."""
    scenes, captions = sample.scenes, sample.first_captions
    cosines = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    to_text, to_image = cosines.argmax(dim=1).tolist(), cosines.argmax(dim=0).tolist()
    pairs = list(enumerate(to_text))
    true_image = [world.caption_is_true(captions[j], scenes[i]) for j, i in enumerate(to_image)]
    chance = [[world.caption_is_true(c, s) for c in captions] for s in scenes[:200]]
    return {
        "own_caption": float(np.mean([i == j for i, j in pairs])),
        "same_words": float(np.mean([captions[i] == captions[j] for i, j in pairs])),
        "true_caption": float(np.mean([world.caption_is_true(captions[j], scenes[i]) for i, j in pairs])),
        "true_image": float(np.mean(true_image)),
        "chance_of_true": float(np.mean(chance)),
    }


def evaluate(directory: Path, *, seed: int = 10_007, count: int = 1000) -> dict[str, Any]:
    """The figures of the model card, on `count` scenes drawn with a seed of their own."""
    embed, sample = Embedder(directory), draw_sample(count, seed=seed)
    image, text = embed.images(sample.images), embed.texts(sample.first_captions)
    frequency = torch.tensor([world.scene_log_frequency(scene) for scene in sample.scenes])
    cosines = {"image": conformity(image, unit_mean(image)), "text": conformity(text, unit_mean(text))}
    losses = shift_losses(image, text, embed.logit_scale)
    losses_500 = shift_losses(image[:500], text[:500], embed.logit_scale)
    figures = {
        "pairs": count,
        "distinct_scenes": len(set(sample.scenes)),
        "distinct_captions": len(set(sample.first_captions)),
        "logit_scale": embed.logit_scale,
        "offset": {"image": offset(image), "text": offset(text)},
        "modality_gap": (unit_mean(image) - unit_mean(text)).norm().item(),
        "matched_cosine": F.cosine_similarity(image, text).mean().item(),
        "self_conformity": {k: (count * c.mean().item() - 1) / (count - 1) for k, c in cosines.items()},
        "conformity_log_frequency": {k: spearman(c, frequency) for k, c in cosines.items()},
        "norm_conformity": {k: spearman(v.norm(dim=1), cosines[k]) for k, v in (("image", image), ("text", text))},
        "nt_xent": {f"{a:g}": losses[a] for a in (-0.5, -0.25, 0.0, 0.25, 0.5, 1.0)},
        "lowest_alpha": min(losses, key=losses.__getitem__),
        "lowest_alpha_500": min(losses_500, key=losses_500.__getitem__),
        "retrieval": retrieval(image, text, sample),
    }
    return figures | evaluate_typicality(embed, seed=seed + 1, count=count)


def shift_losses(image: torch.Tensor, text: torch.Tensor, logit_scale: float) -> dict[float, float]:
    """NT-Xent after v -> v - alpha * m, each modality with its own raw mean m, for every alpha."""
    means = image.mean(dim=0), text.mean(dim=0)
    return {a: nt_xent(image - a * means[0], text - a * means[1], logit_scale) for a in ALPHAS}


def evaluate_typicality(embed: Embedder, *, seed: int, count: int) -> dict[str, Any]:
    """How collapsed generators and generic captions stand to a reference of 3,000 other scenes."""
    reference = draw_sample(3000, seed=seed)
    image = embed.images(reference.images)
    image_mean = unit_mean(image)
    text_mean = unit_mean(embed.texts([c for captions in reference.captions for c in captions]))
    real = conformity(image, image_mean)
    collapse = {}
    for number, concentration in enumerate((1.0, 1.25, 1.5, 2.0, 3.0), start=1):
        sample = draw_sample(count, seed=seed + number, concentration=concentration)
        values = conformity(embed.images(sample.images), image_mean)
        collapse[f"{concentration:g}"] = {"conformity": values.mean().item(), "kl": binned_kl(values, real)}
    texts = {
        "generic": [world.generic_caption(scene) for scene in reference.scenes],
        "human_like": reference.first_captions,
        "specific": [world.specific_caption(scene) for scene in reference.scenes],
    }
    return {
        "image_conformity_std": real.std().item(),
        "concentration": collapse,
        "captions": {name: conformity(embed.texts(t), text_mean).mean().item() for name, t in texts.items()},
    }


def figure_rows(f: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the card's table of figures."""

    def two(name: str) -> str:
        return f"image {f[name]['image']:.3f}, text {f[name]['text']:.3f}"

    hits, by_concentration = f["retrieval"], f["concentration"]
    return [
        ("offset, abs(m)/sqrt(trace of the covariance)", two("offset")),
        ("modality gap, abs(m_u(image) - m_u(text))", f"{f['modality_gap']:.3f}"),
        ("mean matched cosine", f"{f['matched_cosine']:.3f}"),
        ("self-conformity", two("self_conformity")),
        ("Spearman of conformity (own set) and log-frequency of the scene", two("conformity_log_frequency")),
        ("Spearman of norm and conformity", two("norm_conformity")),
        ("logit scale, learned", f"{f['logit_scale']:.1f}"),
        (f"NT-Xent of all {f['pairs']:,} pairs at alpha", per_key(f["nt_xent"], "{:.3f}")),
        (
            "alpha of the lowest NT-Xent, steps of 0.05",
            f"{f['lowest_alpha']:g}; {f['lowest_alpha_500']:g} on 500",
        ),
        (f"nearest of {f['pairs']:,} captions is true of the image", f"{hits['true_caption']:.1%}"),
        ("... is the image's own", f"{hits['own_caption']:.1%}; equal words {hits['same_words']:.1%}"),
        ("... by chance, a random caption is true", f"{hits['chance_of_true']:.1%}"),
        (f"caption is true of the nearest of {f['pairs']:,} images", f"{hits['true_image']:.1%}"),
        (
            "mean conformity of images to 3,000 others, at concentration",
            per_key({k: v["conformity"] for k, v in by_concentration.items()}, "{:.3f}"),
        ),
        (
            "KL to those (20 quantile bins), at concentration",
            per_key({k: v["kl"] for k, v in by_concentration.items()}, "{:.2f}"),
        ),
        ("mean conformity of captions to 15,000 others", per_key(f["captions"], "{:.3f}")),
    ]


def per_key(values: dict[str, float], pattern: str) -> str:
    return ", ".join(f"{key.replace('_', '-')}: {pattern.format(value)}" for key, value in values.items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="a checkpoint")
    parser.add_argument("--seed", type=int, default=10_007, help="of the scenes, default %(default)s")
    parser.add_argument("--count", type=int, default=1000, help="pairs, default %(default)s")
    options = parser.parse_args(arguments)
    print(json.dumps(evaluate(options.directory, seed=options.seed, count=options.count), indent=2))


if __name__ == "__main__":
    main()
