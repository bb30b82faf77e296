"""Karlo unCLIP on captions of MS-COCO: generate, measure, compare with the real images.

Several processes share the work with ``torchrun --nproc-per-node N examples/unclip.py ... --generate-only``; the run
without that flag finds the images and measures. Stopped in the middle, it goes on where it was.
"""

from __future__ import annotations

import _shared
import _smoke

import clipconformity as cc
from clipconformity.generators import generate_images


def main(arguments: list[str] | None = None) -> None:
    made = _shared.parser(__doc__, "unclip")
    made.add_argument("--model", default="kakaobrain/karlo-v1-alpha", help="checkpoint of UnCLIPPipeline")
    made.add_argument("--generate-only", action="store_true", help="leave measuring to a later call")
    options = _shared.parse(made, arguments)
    _shared.alone(made, options)
    coco, encoder = _shared.coco_and_encoder(options)
    if options.smoke:
        pipeline, steps = _smoke.unclip(), 2
    else:
        from diffusers import UnCLIPPipeline

        pipeline, steps = _shared.load_pipeline(UnCLIPPipeline, options.model, options.device), None
    rank, world = _shared.processes()
    names = ("prior_num_inference_steps", "decoder_num_inference_steps", "super_res_num_inference_steps")
    reference = None if options.generate_only else _shared.image_reference(coco, encoder)
    running = None if reference is None else cc.Conformity(reference, encoder=encoder)
    result = generate_images(
        pipeline,
        coco.captions.texts[: options.limit],
        options.output / "images",
        seed=options.seed,
        batch_size=options.batch_size,
        options={name: steps for name in names if steps},
        rank=rank,
        world=world,
        on_images=None if running is None else running.update,
    )
    print(f"{result.generated} images generated, {result.reused} found, {len(result.black)} black")
    if reference is not None and running is not None:
        print(f"running score: conformity {float(running.compute()['conformity_mean']):.3f}")
        measured = _shared.score_images(result.paths, encoder, reference, options.resamples)
        _shared.report(options.output, reference, {"unCLIP": measured})


if __name__ == "__main__":
    _shared.run(main)
