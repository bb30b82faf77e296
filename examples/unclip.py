"""Karlo unCLIP on captions of MS-COCO: generate images, and score them against the real ones.

    clipconformity reference --coco coco/ --encoder open_clip:ViT-B-32/openai -o coco-reference.safetensors
    python unclip.py --reference coco-reference-image.safetensors --captions coco-reference-captions.json -o unclip/

Stopped in the middle, it goes on where it was. Under `torchrun --nproc-per-node N` each process makes its share; the
same command without torchrun then finds the images and scores them.

Downloads (estimates): kakaobrain/karlo-v1-alpha, 10 GB; CLIP ViT-B/32 of OpenAI, 0.6 GB.
Time (estimate): 5,000 images in 4 to 5 hours on one A100 GPU; in half precision 16 GB of GPU memory are enough.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import clipconformity as cc
from clipconformity.data import read_captions
from clipconformity.evaluation import image_source, score
from clipconformity.generators import generate_images
from clipconformity.provenance import Provenance
from clipconformity.report import Run, write_report

STEPS = ("prior_num_inference_steps", "decoder_num_inference_steps", "super_res_num_inference_steps")


def load(model: str, device: str) -> Any:
    """Load the pipeline, in half precision where that is fast, without a bar for every image."""
    from diffusers import UnCLIPPipeline, pipelines

    if not hasattr(pipelines, "unclip"):  # diffusers 0.36 moved what Karlo's checkpoints name
        pipelines.unclip = importlib.import_module("diffusers.pipelines.deprecated.unclip")
    pipeline = UnCLIPPipeline.from_pretrained(model, trust_remote_code=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, torch.float16) if device.startswith("cuda") else pipeline.to(device)


def run(options: argparse.Namespace) -> None:
    """Generate what is missing, then score all."""
    if options.limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {options.limit}.")
    prompts = read_captions(options.captions).texts[: options.limit]
    reference = cc.ReferenceSet.load(options.reference)
    encoder = cc.load_encoder(options.encoder, options.device)
    reference.provenance.check(Provenance.from_encoder(encoder, "image"))  # now, rather than once all images are there
    running = cc.Conformity(reference, encoder=encoder)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun tells them
    made = generate_images(
        load(options.model, options.device),
        prompts,
        options.output / "images",
        seed=options.seed,
        batch_size=options.batch_size,
        options=dict(zip(STEPS, options.steps, strict=True)),
        rank=rank,
        world=world,
        on_images=None if world > 1 else running.update,
    )
    print(f"{made.generated} images generated, {made.reused} found, {len(made.black)} black")
    if world > 1:
        return
    print(f"running score: conformity {float(running.compute()['conformity_mean']):.3f}")
    result = score(image_source(made.paths, encoder), reference)
    print(*result.sentences.values(), sep="\n")
    table = json.dumps(result.to_dict(), indent=2)
    (options.output / "score.json").write_text(table + "\n", encoding="utf-8")
    write_report(options.output / "report.html", [Run("unCLIP", result, images=made.paths, captions=prompts)])
    print(f"Written: score.json and report.html in {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends in one line, with exit status 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--reference", type=Path, required=True, help="reference of real images")
    parser.add_argument("--captions", type=Path, required=True, help="file of captions: the prompts")
    parser.add_argument("--model", default="kakaobrain/karlo-v1-alpha", help="unCLIP checkpoint (default: %(default)s)")
    parser.add_argument("--encoder", default="open_clip:ViT-B-32/openai", help="the reference's (default: %(default)s)")
    parser.add_argument("--device", default=device, help="where the models run (default here: %(default)s)")
    parser.add_argument("--limit", type=int, default=5000, help="most prompts (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="images made at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, nargs=3, default=(25, 25, 7), help="of prior, decoder and upsampling (default: 25 25 7)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
