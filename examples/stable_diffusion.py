"""Stable Diffusion or SDXL at several guidance scales: how typical and how alike the images become.

Guidance draws samples towards what the prompt says most often: conformity to the real images and self-conformity are
drawn against its scale, with the real images' own as a line.
"""

from __future__ import annotations

from pathlib import Path

import _shared
import _smoke

from clipconformity.evaluation import Score
from clipconformity.generators import generate_images
from clipconformity.stream.reference import ReferenceSet


def draw(path: Path, reference: ReferenceSet, scores: dict[float, Score]) -> None:
    """Draw both conformities against guidance."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (
        ("conformity_mean", "conformity to the real images", float(reference.conformities.mean())),
        ("self_conformity_mean", "self-conformity", float(reference.self_conformity)),
    )
    for ax, (key, label, real) in zip(axes, panels, strict=True):
        ax.axhline(real, color=_shared.GREY, linestyle="--", label="real images")
        errors = [one.figures[key].half_width for one in scores.values()]
        values = [one.value(key) for one in scores.values()]
        ax.errorbar(list(scores), values, yerr=errors, fmt="o-", color=_shared.COLORS[0], label="generated")
        ax.set_xlabel("guidance scale; bars: 95% intervals")
        ax.set_ylabel(label)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    made = _shared.parser(__doc__, "stable_diffusion")
    made.add_argument("--model", default="stable-diffusion-v1-5/stable-diffusion-v1-5", help="any text-to-image model")
    made.add_argument("--guidance", type=float, nargs="+", default=[1.5, 3.0, 5.0, 7.5, 12.0], help="scales to try")
    made.add_argument("--steps", type=int, default=30, help="denoising steps")
    made.add_argument("--keep-black", action="store_true", help="count images that a safety checker blacked out")
    made.add_argument("--generate-only", action="store_true", help="leave measuring to a later call")
    options = _shared.parse(made, arguments)
    _shared.alone(made, options)
    coco, encoder = _shared.coco_and_encoder(options)
    if options.smoke:
        xl = "xl" in options.model.lower()
        pipeline = _smoke.stable_diffusion_xl() if xl else _smoke.stable_diffusion()
        options.steps, options.guidance = 2, options.guidance[:3]
    else:
        from diffusers import DiffusionPipeline

        pipeline = _shared.load_pipeline(DiffusionPipeline, options.model, options.device)
    rank, world = _shared.processes()
    reference = None if options.generate_only else _shared.image_reference(coco, encoder)
    scores: dict[float, Score] = {}
    for scale in options.guidance:
        result = generate_images(
            pipeline,
            coco.captions.texts[: options.limit],
            options.output / f"guidance-{scale:g}",
            seed=options.seed,
            batch_size=options.batch_size,
            options={"guidance_scale": scale, "num_inference_steps": options.steps},
            rank=rank,
            world=world,
            on_black="keep" if options.keep_black else "exclude",
        )
        print(f"guidance {scale:g}: {result.generated} generated, {result.reused} found, {len(result.black)} black")
        if reference is None:
            continue
        scores[scale] = _shared.score_images(result.paths, encoder, reference, options.resamples)
    if reference is None:
        return
    draw(options.output / "guidance.png", reference, scores)
    print(f"Written: {options.output / 'guidance.png'}")
    _shared.report(options.output, reference, {f"guidance {scale:g}": one for scale, one in scores.items()})


if __name__ == "__main__":
    _shared.run(main)
