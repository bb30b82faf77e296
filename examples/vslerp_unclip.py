"""vSLERP between two images with unCLIP: a grid of pictures over alpha and t.

vSLERP turns about ``alpha`` times the mean of the image embeddings: alpha 0 is slerp about the origin, alpha 1 turns
about the ellipsoid's centre. Every cell is decoded from the same noise, so that only the embedding differs. With
``--edit`` the first image stays and is moved a little way (small t) towards the second, at several alphas.
"""

from __future__ import annotations

import json
from pathlib import Path

import _shared
import _smoke
import torch
from PIL import Image
from torch import Tensor

from clipconformity.data import read_coco
from clipconformity.data.images import open_image
from clipconformity.functional import conformity, vslerp

EDIT = (0.0, 0.1, 0.2, 0.3)


def embed(pipeline, images: list[Image.Image]) -> Tensor:
    """Raw embeddings ``(N, D)`` of the pipeline's own CLIP."""
    inputs = pipeline.feature_extractor(images=images, return_tensors="pt").pixel_values
    encoder = pipeline.image_encoder
    with torch.inference_mode():
        return encoder(inputs.to(encoder.device, encoder.dtype)).image_embeds.float().clone()


def draw(path: Path, cells: list[list[Image.Image]], alphas: list[float], positions: list[float]) -> None:
    """Draw the grid: a row for each alpha, a column for each t."""
    import matplotlib.pyplot as plt

    size = (1.3 * len(positions) + 0.8, 1.35 * len(alphas) + 0.6)
    figure, axes = plt.subplots(len(alphas), len(positions), figsize=size, layout="constrained", squeeze=False)
    for row, (line, alpha) in enumerate(zip(cells, alphas, strict=True)):
        for column, (image, t) in enumerate(zip(line, positions, strict=True)):
            ax = axes[row][column]
            ax.imshow(image)
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(f"t = {t:g}", fontsize="small")
            if column == 0:
                ax.set_ylabel(f"alpha = {alpha:g}", fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    made = _shared.parser(__doc__, "vslerp_unclip")
    made.add_argument("--model", default="kakaobrain/karlo-v1-alpha-image-variations", help="checkpoint")
    made.add_argument("--start", type=Path, help="first image; by default the first of the split")
    made.add_argument("--end", type=Path, help="second image; by default the second of the split")
    made.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="rows")
    made.add_argument("--positions", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0], help="columns: t")
    made.add_argument("--edit", action="store_true", help=f"small steps, t of {', '.join(map(str, EDIT))}")
    options = _shared.parse(made, arguments)
    positions = list(EDIT) if options.edit else options.positions
    steps: dict[str, int] = {}
    if options.smoke:
        pipeline = _smoke.unclip_image_variation()
        steps = {"decoder_num_inference_steps": 3, "super_res_num_inference_steps": 2}
    else:
        from diffusers import UnCLIPImageVariationPipeline

        pipeline = _shared.load_pipeline(UnCLIPImageVariationPipeline, options.model, options.device)
    coco = read_coco(options.coco, options.split, seed=options.seed)
    paths = coco.image_paths[: options.limit]
    rows = torch.cat(
        [
            embed(pipeline, [open_image(path) for path in paths[start : start + options.batch_size]])
            for start in range(0, len(paths), options.batch_size)
        ]
    )
    first, second = embed(pipeline, [open_image(options.start or paths[0]), open_image(options.end or paths[1])])
    mean = rows.double().mean(0)
    t = torch.tensor(positions, dtype=torch.float64)
    cells, figures = [], []
    for alpha in options.alphas:
        path = vslerp(first, second, t, mean, alpha)  # (T, D)
        noise = [torch.Generator("cpu").manual_seed(options.seed) for _ in positions]
        images = pipeline(
            image_embeddings=path.to(pipeline.image_encoder.dtype).to(pipeline.image_encoder.device),
            generator=noise,
            **steps,
        ).images
        cells.append(images)
        typical, norms = conformity(path, rows), path.norm(dim=1)
        figures.append({"alpha": alpha, "conformity": typical.tolist(), "norm": norms.tolist()})
    draw(options.output / "grid.png", cells, options.alphas, positions)
    content = {"positions": positions, "rows": figures, "dataset": coco.name, "images": len(paths)}
    (options.output / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"Written: {options.output / 'grid.png'} and {options.output / 'results.json'}")


if __name__ == "__main__":
    _shared.run(main)
