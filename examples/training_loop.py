"""A diffusion model in training: conformity KL with its interval, and the Frechet distance, logged every epoch.

    clipconformity reference --images photos/ --encoder open_clip:ViT-B-32/openai -o photos-reference.safetensors
    python training_loop.py --images photos/ --reference photos-reference.safetensors -o training/

A DDPM goes on from its checkpoint with your images. Each batch of samples is encoded once, and the MetricCollection
takes the embeddings. How to log the same in Lightning stands in the documentation, "In a training loop".
Downloads (estimates): google/ddpm-cifar10-32, 0.15 GB; CLIP ViT-B/32 of OpenAI, 0.6 GB.
Time (estimate): 20 epochs of 5,000 images of 32 x 32, with 1,000 samples after each, in an hour on one A100 GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

import clipconformity as cc
from clipconformity import plots
from clipconformity.data import list_images
from clipconformity.data.images import open_image
from clipconformity.provenance import Provenance


def pixels(folder: Path, size: int) -> Tensor:
    """Read images as ``(N, 3, size, size)`` in -1 to 1."""
    images = [open_image(path).resize((size, size)) for path in list_images(folder)]
    return torch.from_numpy(np.stack([np.asarray(one) for one in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(pipeline: Any, loader: DataLoader, optimizer: torch.optim.Optimizer) -> float:
    """Train for an epoch; give the mean squared error of the predicted noise."""
    pipeline.unet.train()
    scheduler, losses = pipeline.scheduler, []
    for images in loader:
        images = images.to(pipeline.device)
        noise = torch.randn_like(images)
        steps = torch.randint(0, scheduler.config.num_train_timesteps, (len(images),), device=images.device)
        noisy = scheduler.add_noise(images, noise, steps)
        loss = torch.nn.functional.mse_loss(pipeline.unet(noisy, steps).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def evaluate(pipeline: Any, metrics: MetricCollection, encoder: Any, options: argparse.Namespace) -> dict[str, float]:
    """Sample with the same seed each time, and read the metrics out."""
    pipeline.unet.eval()
    metrics.reset()
    generator = torch.Generator().manual_seed(options.seed)
    for part in torch.arange(options.samples).split(options.batch_size):
        found = pipeline(batch_size=len(part), generator=generator, num_inference_steps=options.steps)
        metrics.update(encoder.encode_image(found.images))
    figures, kl = metrics.compute(), metrics["ConformityKL"]
    figures |= kl.interval()._asdict() | {"noise_floor": kl.noise_floor()}
    return {name: float(value) for name, value in figures.items()}


def run(options: argparse.Namespace) -> None:
    """Train, and measure after every epoch."""
    from diffusers import DDPMPipeline

    if options.epochs < 1 or options.samples < 1:
        raise ValueError(f"expected 1 or more --epochs and --samples, got {options.epochs} and {options.samples}.")
    torch.manual_seed(options.seed)
    reference, encoder = cc.ReferenceSet.load(options.reference), cc.load_encoder(options.encoder)
    reference.provenance.check(Provenance.from_encoder(encoder, "image"))  # now, rather than after an epoch
    metrics = MetricCollection([cc.ConformityKL(reference), cc.FrechetDistance(reference)])
    pipeline = DDPMPipeline.from_pretrained(options.model, trust_remote_code=False).to(encoder.device)
    pipeline.set_progress_bar_config(disable=True)
    loader = DataLoader(pixels(options.images, pipeline.unet.config.sample_size), options.batch_size, shuffle=True)
    optimizer = torch.optim.AdamW(pipeline.unet.parameters(), lr=1e-4)
    history: list[dict[str, float]] = []
    for epoch in range(options.epochs):
        row = {"epoch": epoch + 1, "loss": train(pipeline, loader, optimizer)}
        history.append(row | evaluate(pipeline, metrics, encoder, options))
        print(", ".join(f"{name} {value:.4g}" for name, value in history[-1].items()), flush=True)
    pipeline.save_pretrained(options.output / "model")
    (options.output / "history.json").write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
    names = ("epoch", "ConformityKL", "low", "high", "noise_floor", "FrechetDistance")
    steps, kl, low, high, floor, frechet = ([row[name] for row in history] for name in names)
    plots.save(plots.series(kl, low, high, steps=steps, floor=floor[-1])[0], options.output / "kl.png")
    plots.save(plots.series(frechet, steps=steps, quantity="Frechet distance")[0], options.output / "frechet.png")
    print(f"Written: model, history.json, kl.png and frechet.png in {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends in one line, with exit status 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, required=True, help="folder of images to train on")
    parser.add_argument("--reference", type=Path, required=True, help="reference of real images")
    parser.add_argument("--model", default="google/ddpm-cifar10-32", help="DDPM to go on from (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="made for the metrics (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="denoising steps of a sample (default: %(default)s)")
    parser.add_argument("--encoder", default="open_clip:ViT-B-32/openai", help="the reference's (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of training and samples (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
