"""A diffusion model in training, its conformity KL logged beside FID every epoch in one MetricCollection.

The Frechet distance is that of CLIP embeddings. Each batch of samples is encoded once, and the collection takes the
embeddings. ``--lightning`` runs the same as a LightningModule, where Lightning is installed.
"""

from __future__ import annotations

import json
from typing import Any

import _shared
import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

import clipconformity as cc
from clipconformity.data.images import open_image


def pixels(paths, size: int) -> Tensor:
    """Read images as ``(N, 3, size, size)`` in -1 to 1."""
    images = [np.asarray(open_image(path).resize((size, size), Image.Resampling.BICUBIC)) for path in paths]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def loss_of(model: UNet2DModel, scheduler: DDPMScheduler, images: Tensor) -> Tensor:
    """Mean squared error of the predicted noise."""
    noise = torch.randn_like(images)
    steps = torch.randint(0, scheduler.config.num_train_timesteps, (len(images),), device=images.device)
    return torch.nn.functional.mse_loss(model(scheduler.add_noise(images, noise, steps), steps).sample, noise)


def evaluate(model, scheduler, metrics: MetricCollection, encoder, options) -> dict[str, float]:
    """Sample with the same seed each time, and read the metrics out."""
    metrics.reset()
    pipeline = DDPMPipeline(unet=model, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(options.seed)
    for start in range(0, options.samples, options.batch_size):
        count = min(options.batch_size, options.samples - start)
        found = pipeline(batch_size=count, generator=generator, num_inference_steps=options.steps)
        metrics.update(encoder.encode_image(found.images))
    kl = metrics["ConformityKL"]
    low, high = kl.interval(resamples=options.resamples)
    beside = {"low": low, "high": high, "floor": kl.noise_floor(resamples=options.resamples)}
    figures = metrics.compute() | {f"ConformityKL_{name}": value for name, value in beside.items()}
    return {name: float(value) for name, value in figures.items()}


def plain(model, scheduler, loader, metrics, encoder, options) -> list[dict[str, Any]]:
    """Train without a framework."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for epoch in range(options.epochs):
        model.train()
        total = 0.0
        for (images,) in loader:
            loss = loss_of(model, scheduler, images.to(options.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        model.eval()
        figures = evaluate(model, scheduler, metrics, encoder, options)
        note(history, epoch, {"loss": total / len(loader)} | figures)
    return history


def with_lightning(model, scheduler, loader, metrics, encoder, options) -> list[dict[str, Any]]:
    """Train the same as a LightningModule."""
    try:
        import lightning
    except ImportError as error:
        raise SystemExit("lightning is not installed: pip install lightning") from error
    history: list[dict[str, Any]] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.metrics = model, metrics
            self.losses: list[Tensor] = []

        def training_step(self, batch, _) -> Tensor:
            loss = loss_of(self.model, scheduler, batch[0])
            self.losses.append(loss.detach())
            return loss

        def on_train_epoch_end(self) -> None:
            self.model.eval()
            figures = {"loss": float(torch.stack(self.losses).mean())}
            figures |= evaluate(self.model, scheduler, self.metrics, encoder, options)
            self.model.train()
            self.losses.clear()
            self.log_dict(figures)
            note(history, self.current_epoch, figures)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        accelerator=options.device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=options.output,
    )
    trainer.fit(Module(), loader)
    return history


def note(history: list[dict[str, Any]], epoch: int, figures: dict[str, float]) -> None:
    """Keep and print an epoch's figures."""
    history.append({"epoch": epoch} | figures)
    print(", ".join(f"{name} {value:.4g}" for name, value in history[-1].items()))


def draw(path, history: list[dict[str, Any]]) -> None:
    """Draw both metrics over the epochs."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (
        ("ConformityKL", "conformity KL (nats), 95% intervals"),
        ("FrechetDistance", "Frechet distance of CLIP embeddings"),
    )
    epochs = [row["epoch"] for row in history]
    floor, low, high = ([row[f"ConformityKL_{name}"] for row in history] for name in ("floor", "low", "high"))
    axes[0].vlines(epochs, low, high, color=_shared.COLORS[0], linewidth=2)
    axes[0].plot(epochs, floor, "--", color=_shared.GREY, label="noise floor")
    axes[0].legend(frameon=False)
    for ax, (key, label), color in zip(axes, panels, _shared.COLORS, strict=False):
        ax.plot(epochs, [row[key] for row in history], "o-", color=color)
        ax.set_ylim(0, 1.15 * ax.dataLim.ymax)
        ax.set_xticks([row["epoch"] for row in history])
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    made = _shared.parser(__doc__, "training_loop")
    made.add_argument("--size", type=int, default=32, help="side of the images")
    made.add_argument("--epochs", type=int, default=20, help="epochs")
    made.add_argument("--samples", type=int, default=1000, help="samples for the metrics")
    made.add_argument("--steps", type=int, default=100, help="denoising steps of a sample")
    made.add_argument("--lightning", action="store_true", help="train with Lightning")
    options = _shared.parse(made, arguments)
    torch.manual_seed(options.seed)
    width = (64, 128, 128)
    if options.smoke:
        options.epochs, options.samples, options.steps, width = 3, 80, 4, (32, 32)
        options.batch_size = 16
    coco, encoder = _shared.coco_and_encoder(options)
    reference = _shared.image_reference(coco, encoder)
    metrics = MetricCollection([cc.ConformityKL(reference), cc.FrechetDistance(reference)])
    blocks = len(width)
    model = UNet2DModel(
        sample_size=options.size,
        layers_per_block=1,
        block_out_channels=width,
        down_block_types=("DownBlock2D",) * blocks,
        up_block_types=("UpBlock2D",) * blocks,
        norm_num_groups=8,
    ).to(options.device)
    images = pixels(coco.image_paths[: options.limit], options.size)
    loader = DataLoader(TensorDataset(images), batch_size=options.batch_size, shuffle=True)
    train = with_lightning if options.lightning else plain
    history = train(model, DDPMScheduler(), loader, metrics, encoder, options)
    (options.output / "history.json").write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
    draw(options.output / "history.png", history)
    print(f"Written: {options.output / 'history.json'} and {options.output / 'history.png'}")


if __name__ == "__main__":
    _shared.run(main)
