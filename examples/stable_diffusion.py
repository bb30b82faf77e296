"""Stable Diffusion or SDXL at several guidance scales: how typical, and how alike, the images become.

    clipconformity reference --coco coco/ --encoder open_clip:ViT-B-32/openai -o coco-reference.safetensors
    python stable_diffusion.py --reference coco-reference-image.safetensors \\
        --captions coco-reference-captions.json -o guidance/

Guidance draws samples towards what a prompt says most often. The scales are compared on the same prompts and noise.
Stopped in the middle, it goes on where it was. Under `torchrun --nproc-per-node N` each process makes its share; the
same command without torchrun then finds the images and compares them.

Downloads (estimates): stable-diffusion-v1-5/stable-diffusion-v1-5, 5.5 GB (stabilityai/stable-diffusion-xl-base-1.0,
14 GB); CLIP ViT-B/32 of OpenAI, 0.6 GB.
Time (estimate): 5 scales of 5,000 images in 4 hours on one A100 GPU, with SDXL in 35; 8 GB of GPU memory, SDXL 24 GB.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import clipconformity as cc
from clipconformity import plots
from clipconformity.data import read_captions
from clipconformity.evaluation import Comparison, compare, image_source
from clipconformity.generators import generate_images
from clipconformity.provenance import Provenance
from clipconformity.report import Run, write_report


def load(model: str, device: str) -> Any:
    """Load a text-to-image pipeline of any kind, in half precision where that is fast."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(model, trust_remote_code=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, torch.float16) if device.startswith("cuda") else pipeline.to(device)


def draw(path: Path, guidance: Sequence[float], found: Comparison) -> None:
    """Draw typicality and variety over guidance, with 95% intervals and the real images' own as a line."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (("typicality_shift", "typicality shift (reference std)", 0), ("variety_ratio", "variety ratio", 1))
    for ax, (key, quantity, real) in zip(axes, panels, strict=True):
        value, low, high = zip(*(one.figures[key].with_ends for one in found.scores.values()), strict=True)
        plots.series(value, low, high, steps=guidance, quantity=quantity, modality="image", ax=ax)
        ax.axhline(real, color=plots.REFERENCE_COLOR, linestyle="--")
        ax.set_xlabel("guidance scale")
    plots.save(figure, path)


def run(options: argparse.Namespace) -> None:
    """Generate what is missing at every scale, then compare the scales."""
    if options.limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {options.limit}.")
    guidance = sorted(set(options.guidance))
    if len(guidance) < 2:
        raise ValueError(f"--guidance: expected two different scales at least, got {guidance[0]:g} alone.")
    prompts = read_captions(options.captions).texts[: options.limit]
    reference = cc.ReferenceSet.load(options.reference)
    encoder = cc.load_encoder(options.encoder, options.device)
    reference.provenance.check(Provenance.from_encoder(encoder, "image"))  # now, rather than once all images are there
    pipeline = load(options.model, options.device)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun tells them
    share = {"rank": rank, "world": world, "seed": options.seed, "batch_size": options.batch_size}
    images = {}
    for scale in guidance:
        folder = options.output / f"guidance-{scale:g}"
        settings = {"guidance_scale": scale, "num_inference_steps": options.steps}
        made = generate_images(pipeline, prompts, folder, options=settings, on_black="exclude", **share)
        print(f"guidance {scale:g}: {made.generated} generated, {made.reused} found, {len(made.black)} black")
        images[f"guidance {scale:g}"] = made.paths
    if world > 1:
        return
    found = compare({name: image_source(paths, encoder) for name, paths in images.items()}, reference)
    print(found.table())
    (options.output / "comparison.json").write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    draw(options.output / "guidance.png", guidance, found)
    runs = [Run(name, one, images=images[name]) for name, one in found.scores.items()]
    write_report(options.output / "report.html", runs)
    print(f"Written: comparison.json, guidance.png and report.html in {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends in one line, with exit status 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    scales = [1.5, 3.0, 5.0, 7.5, 12.0]
    parser.add_argument("--reference", type=Path, required=True, help="reference of real images")
    parser.add_argument("--captions", type=Path, required=True, help="file of captions: the prompts")
    parser.add_argument("--model", default=model, help="any text-to-image pipeline (default: %(default)s)")
    parser.add_argument("--encoder", default="open_clip:ViT-B-32/openai", help="the reference's (default: %(default)s)")
    parser.add_argument("--device", default=device, help="where the models run (default here: %(default)s)")
    parser.add_argument("--limit", type=int, default=5000, help="most prompts (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="images made at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default: %(default)s)")
    parser.add_argument("--guidance", type=float, nargs="+", default=scales, help="scales (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
