"""Glide on captions of MS-COCO: a function, rather than a pipeline of diffusers, generates images, and they are scored.

    pip install git+https://github.com/openai/glide-text2im
    clipconformity reference --coco coco/ --encoder open_clip:ViT-B-32/openai -o coco-reference.safetensors
    python glide.py --reference coco-reference-image.safetensors --captions coco-reference-captions.json -o glide/

Stopped in the middle, it goes on where it was.
Downloads (estimates): Glide's base model and upsampler from OpenAI, 3 GB; CLIP ViT-B/32 of OpenAI, 0.6 GB.
Time (estimate): 5,000 images in 20 hours on one A100 GPU, one at a time; 8 GB of GPU memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import clipconformity as cc
from clipconformity.data import read_captions
from clipconformity.evaluation import image_source, score
from clipconformity.generators import generate_images
from clipconformity.provenance import Provenance
from clipconformity.report import Run, write_report


def load(folder: Path, device: str, guidance: float, steps: int) -> Callable[[list[str], list[int]], list[Image.Image]]:
    """Make a function of the small Glide, base and upsampler, as its text2im notebook runs them."""
    from glide_text2im import model_creation as glide
    from glide_text2im.download import load_checkpoint

    def opened(name: str, settings: dict[str, Any], respacing: str) -> tuple[Any, Any]:
        settings |= {"use_fp16": device != "cpu", "timestep_respacing": respacing}
        model, diffusion = glide.create_model_and_diffusion(**settings)
        model.load_state_dict(load_checkpoint(name, torch.device(device), cache_dir=str(folder)))
        model = model.eval().to(device)
        if settings["use_fp16"]:
            model.convert_to_fp16()
        return model, diffusion

    def text(model: Any, *prompts: str) -> dict[str, torch.Tensor]:
        words = model.tokenizer
        pairs = [words.padded_tokens_and_mask(words.encode(one) if one else [], model.text_ctx) for one in prompts]
        tokens, mask = (torch.tensor(part, device=device) for part in zip(*pairs, strict=True))
        return {"tokens": tokens, "mask": mask.bool()}

    base, base_diffusion = opened("base", glide.model_and_diffusion_defaults(), str(steps))
    upper, upper_diffusion = opened("upsample", glide.model_and_diffusion_defaults_upsampler(), "fast27")

    def guided(x: torch.Tensor, at: torch.Tensor, **more: Any) -> torch.Tensor:
        out = base(torch.cat([x[:1], x[:1]]), at, **more)  # with the prompt, and without
        reported, untold = out[:, :3].chunk(2)
        eps = untold + guidance * (reported - untold)
        return torch.cat([torch.cat([eps, eps]), out[:, 3:]], dim=1)

    @torch.no_grad()
    def call(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        (prompt,), (seed,) = prompts, seeds  # one at a time, since Glide draws from the global generator
        torch.manual_seed(seed)
        words, given = text(base, prompt, ""), {"device": device, "clip_denoised": True}
        small = base_diffusion.p_sample_loop(guided, (2, 3, 64, 64), model_kwargs=words, **given)[:1]
        noise = torch.randn((1, 3, 256, 256), device=device) * 0.997
        words = text(upper, prompt) | {"low_res": ((small + 1) * 127.5).round() / 127.5 - 1}
        large = upper_diffusion.ddim_sample_loop(upper, tuple(noise.shape), noise=noise, model_kwargs=words, **given)
        pixels = ((large[0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())]

    return call


def run(options: argparse.Namespace) -> None:
    """Generate what is missing, then score all."""
    if options.limit < 1 or not 2 <= options.steps <= 1000:
        raise ValueError(f"expected --limit from 1 on and --steps 2 to 1000, got {options.limit} and {options.steps}.")
    reference = cc.ReferenceSet.load(options.reference)
    encoder = cc.load_encoder(options.encoder, options.device)
    reference.provenance.check(Provenance.from_encoder(encoder, "image"))  # now, rather than once all images are there
    prompts = read_captions(options.captions).texts[: options.limit]
    call = load(options.model, options.device, options.guidance, options.steps)
    folder = (
        options.output / f"images-{options.steps}-steps-guidance-{options.guidance:g}"
    )  # another for other settings
    made = generate_images(call, prompts, folder, seed=options.seed, batch_size=1)
    print(f"{made.generated} images generated, {made.reused} found")
    result = score(image_source(made.paths, encoder), reference)
    print(*result.sentences.values(), sep="\n")
    (options.output / "score.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    write_report(options.output / "report.html", [Run("Glide", result, images=made.paths, captions=prompts)])
    print(f"Written: score.json and report.html in {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends in one line, with exit status 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--reference", type=Path, required=True, help="reference of real images")
    parser.add_argument("--captions", type=Path, required=True, help="file of captions: the prompts")
    parser.add_argument("--model", type=Path, default="glide_model_cache", help="folder of base.pt and upsample.pt")
    parser.add_argument("--encoder", default="open_clip:ViT-B-32/openai", help="the reference's (default: %(default)s)")
    parser.add_argument("--device", default=device, help="where the models run (default here: %(default)s)")
    parser.add_argument("--limit", type=int, default=5000, help="most prompts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="scale (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="of the base model (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
