"""vSLERP between two images with unCLIP: a grid of pictures over alpha and t.

    clipconformity reference --images coco/val2017 --encoder hf:openai/clip-vit-large-patch14 -o mean.safetensors
    python vslerp_unclip.py start.jpg end.jpg --reference mean.safetensors -o grid/

vSLERP turns about `alpha` times the mean of the image embeddings, which the reference holds: alpha 0 is slerp about the
origin, alpha 1 turns about the ellipsoid's centre. Every cell is decoded from the same noise: only the embedding
differs. Small positions, such as `--positions 0 0.1 0.2 0.3`, edit the first image a little way towards the second.
The reference is of the pipeline's own CLIP; Karlo's is OpenAI's ViT-L/14.

Downloads (estimates): kakaobrain/karlo-v1-alpha-image-variations, 8 GB; for the reference CLIP ViT-L/14, 1.7 GB.
Time (estimate): 15 pictures in a minute on one A100 GPU; in half precision 16 GB of GPU memory are enough.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import clipconformity as cc
from clipconformity import plots
from clipconformity.data.images import open_image
from clipconformity.functional import conformity, vslerp


def load(model: str, device: str) -> Any:
    """Load the pipeline, in half precision where that is fast, without a bar for every image."""
    from diffusers import UnCLIPImageVariationPipeline, pipelines

    if not hasattr(pipelines, "unclip"):  # diffusers 0.36 moved what Karlo's checkpoints name
        pipelines.unclip = importlib.import_module("diffusers.pipelines.deprecated.unclip")
    pipeline = UnCLIPImageVariationPipeline.from_pretrained(model, trust_remote_code=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, torch.float16) if device.startswith("cuda") else pipeline.to(device)


@torch.inference_mode()
def embed(pipeline: Any, paths: list[Path]) -> Tensor:
    """Raw embeddings ``(N, D)`` of the pipeline's own CLIP."""
    encoder, images = pipeline.image_encoder, [open_image(path) for path in paths]
    inputs = pipeline.feature_extractor(images=images, return_tensors="pt").pixel_values
    return encoder(inputs.to(encoder.device, encoder.dtype)).image_embeds.float().cpu().clone()


def draw(path: Path, cells: list[list[Image.Image]], alphas: list[float], positions: list[float]) -> None:
    """Draw the grid: a row for each alpha, a column for each t."""
    import matplotlib.pyplot as plt

    size = (1.3 * len(positions) + 0.8, 1.35 * len(alphas) + 0.6)
    figure, axes = plt.subplots(len(alphas), len(positions), figsize=size, layout="constrained", squeeze=False)
    for row, line in enumerate(cells):
        for column, image in enumerate(line):
            axes[row][column].imshow(image)
            axes[row][column].set(xticks=[], yticks=[])
        axes[row][0].set_ylabel(f"alpha = {alphas[row]:g}", fontsize="small")
    for ax, t in zip(axes[0], positions, strict=True):
        ax.set_title(f"t = {t:g}", fontsize="small")
    plots.save(figure, path)


def run(options: argparse.Namespace) -> None:
    """Decode every cell, and measure where it lies."""
    reference = cc.ReferenceSet.load(options.reference)
    pipeline = load(options.model, options.device)
    first, second = embed(pipeline, [options.start, options.end])
    if len(first) != len(reference.mean):
        sizes = f"{len(reference.mean)} dimensions, and the pipeline's CLIP {len(first)}"
        raise ValueError(f"{options.reference}: has {sizes}; build the reference with the CLIP of the pipeline.")
    t = torch.tensor(options.positions, dtype=torch.float64)
    cells, rows = [], []
    for alpha in options.alphas:
        path = vslerp(first, second, t, reference.mean, alpha)  # (T, D)
        noise = [torch.Generator("cpu").manual_seed(options.seed) for _ in options.positions]
        given = path.to(pipeline.image_encoder.device, pipeline.image_encoder.dtype)
        steps = {"decoder_num_inference_steps": options.steps[0], "super_res_num_inference_steps": options.steps[1]}
        cells.append(pipeline(image_embeddings=given, generator=noise, **steps).images)
        figures = {"conformity": conformity(path, reference).tolist(), "norm": path.norm(dim=1).tolist()}
        rows.append({"alpha": alpha} | figures)
    options.output.mkdir(parents=True, exist_ok=True)
    draw(options.output / "grid.png", cells, options.alphas, options.positions)
    content = json.dumps({"positions": options.positions, "rows": rows, "reference": reference.describe()}, indent=2)
    (options.output / "grid.json").write_text(content + "\n", encoding="utf-8")
    print(f"Written: grid.png and grid.json in {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends in one line, with exit status 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = "kakaobrain/karlo-v1-alpha-image-variations"
    at = [0.0, 0.25, 0.5, 0.75, 1.0]
    parser.add_argument("start", type=Path, help="first image")
    parser.add_argument("end", type=Path, help="second image")
    parser.add_argument("--reference", type=Path, required=True, help="reference of images, of the pipeline's CLIP")
    parser.add_argument("--model", default=model, help="unCLIP image variation checkpoint (default: %(default)s)")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="rows (default: 0 0.5 1)")
    parser.add_argument("--positions", type=float, nargs="+", default=at, help="columns: t (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs=2, default=(25, 7), help="decoder, upsampling (default: 25 7)")
    parser.add_argument("--device", default=device, help="where the models run (default here: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
