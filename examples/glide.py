"""Glide: a folder of its samples, or samples drawn here where glide_text2im is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import _shared
import torch
from PIL import Image

from clipconformity.data import list_images
from clipconformity.demo import draw_scene, sample_scenes
from clipconformity.generators import generate_images


def glide(device: str, guidance: float, steps: int) -> Callable[[list[str], list[int]], list[Image.Image]]:
    """Make a function of OpenAI's small Glide, base and upsampler, as its text2im notebook runs them."""
    try:
        from glide_text2im.download import load_checkpoint
        from glide_text2im.model_creation import (
            create_model_and_diffusion,
            model_and_diffusion_defaults,
            model_and_diffusion_defaults_upsampler,
        )
    except ImportError as error:
        raise SystemExit(
            "glide_text2im is not installed: pip install git+https://github.com/openai/glide-text2im, "
            "or give a folder with --samples"
        ) from error

    def load(name: str, settings: dict[str, Any], respacing: str) -> tuple[Any, Any, dict[str, Any]]:
        settings |= {"use_fp16": _shared.half(device) == torch.float16, "timestep_respacing": respacing}
        model, diffusion = create_model_and_diffusion(**settings)
        model.load_state_dict(load_checkpoint(name, torch.device(device)))
        model = model.eval().to(device)
        if settings["use_fp16"]:
            model.convert_to_fp16()
        return model, diffusion, settings

    base, base_diffusion, base_settings = load("base", model_and_diffusion_defaults(), str(steps))
    upper, upper_diffusion, upper_settings = load("upsample", model_and_diffusion_defaults_upsampler(), "fast27")

    def text(model: Any, settings: dict[str, Any], prompts: list[str]) -> dict[str, torch.Tensor]:
        words, length = model.tokenizer, settings["text_ctx"]
        encoded = [words.encode(prompt) if prompt else [] for prompt in prompts]
        pairs = [words.padded_tokens_and_mask(tokens, length) for tokens in encoded]
        return {
            "tokens": torch.tensor([tokens for tokens, _ in pairs], device=device),
            "mask": torch.tensor([mask for _, mask in pairs], dtype=torch.bool, device=device),
        }

    def guided(x: torch.Tensor, steps: torch.Tensor, **more: Any) -> torch.Tensor:
        half = x[: len(x) // 2]
        out = base(torch.cat([half, half]), steps, **more)
        eps, rest = out[:, :3], out[:, 3:]
        with_text, without = eps.chunk(2)
        eps = without + guidance * (with_text - without)
        return torch.cat([torch.cat([eps, eps]), rest], dim=1)

    def one(prompt: str, seed: int) -> Image.Image:
        torch.manual_seed(seed)  # Glide draws from the global generator, so one prompt at a time
        small = base_diffusion.p_sample_loop(
            guided,
            (2, 3, 64, 64),
            device=device,
            clip_denoised=True,
            model_kwargs=text(base, base_settings, [prompt, ""]),
        )[:1]
        base.del_cache()
        shape = (1, 3, 256, 256)
        large = upper_diffusion.ddim_sample_loop(
            upper,
            shape,
            noise=torch.randn(shape, device=device) * 0.997,
            device=device,
            clip_denoised=True,
            model_kwargs=text(upper, upper_settings, [prompt]) | {"low_res": ((small + 1) * 127.5).round() / 127.5 - 1},
        )
        upper.del_cache()
        pixels = ((large[0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())

    def call(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        with torch.no_grad(), torch.random.fork_rng():
            return [one(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    return call


def drawn(folder: Path) -> Path:
    """Draw scenes in place of samples."""
    folder.mkdir(exist_ok=True)
    for number, scene in enumerate(sample_scenes(24, seed=9, concentration=2.0)):
        draw_scene(scene, seed=number).save(folder / f"{number:03d}.png")
    return folder


def main(arguments: list[str] | None = None) -> None:
    made = _shared.parser(__doc__, "glide")
    made.add_argument("--samples", type=Path, help="folder of samples, instead of drawing them with glide_text2im")
    made.add_argument("--guidance", type=float, default=3.0, help="guidance scale")
    made.add_argument("--steps", type=int, default=100, help="denoising steps of the base model")
    options = _shared.parse(made, arguments)
    _shared.alone(made, options)
    if not 2 <= options.steps <= 1000:
        made.error(f"--steps: expected 2 to 1000, got {options.steps}")
    if not (options.smoke or options.samples):
        call = glide(options.device, options.guidance, options.steps)  # first, for it may not be installed
    coco, encoder = _shared.coco_and_encoder(options)
    reference = _shared.image_reference(coco, encoder)
    if options.smoke:
        options.samples = drawn(options.output / "samples")
    if options.samples:
        paths = list_images(options.samples)[: options.limit]
    else:
        prompts = coco.captions.texts[: options.limit]
        folder = options.output / f"images-{options.steps}-steps-guidance-{options.guidance:g}"
        paths = generate_images(call, prompts, folder, seed=options.seed, batch_size=1).paths
    scores = {"Glide": _shared.score_images(paths, encoder, reference, options.resamples)}
    _shared.report(options.output, reference, scores)


if __name__ == "__main__":
    _shared.run(main)
