"""A transformers captioner (BLIP by default) on MS-COCO, beside what people wrote."""

from __future__ import annotations

import _shared
import _smoke

from clipconformity.data import Captions, merge_results
from clipconformity.evaluation import caption_source, score
from clipconformity.generators import TransformersCaptioner, caption_images, rank_path

INSTRUCTION = "Describe the image in one short sentence."


def build(options):
    """Load a captioner of any of the kinds."""
    prompt = options.prompt or (INSTRUCTION if options.kind == "llava" else None)
    if options.smoke:
        model, processor, words = getattr(_smoke, options.kind)()
        return TransformersCaptioner(model, processor, tokenizer=words, prompt=prompt, max_new_tokens=8)
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    words = None
    if options.kind == "vision_encoder_decoder":
        from transformers import VisionEncoderDecoderModel as Model

        processor = AutoImageProcessor.from_pretrained(options.model, trust_remote_code=False)
        words = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    else:
        if options.kind == "blip":
            from transformers import BlipForConditionalGeneration as Model
        elif options.kind == "git":
            from transformers import GitForCausalLM as Model
        else:
            from transformers import AutoModelForImageTextToText as Model
        processor = AutoProcessor.from_pretrained(options.model, trust_remote_code=False)
    model = (
        Model.from_pretrained(options.model, trust_remote_code=False)
        .to(options.device, _shared.half(options.device))
        .eval()
    )
    return TransformersCaptioner(model, processor, tokenizer=words, prompt=prompt, options={"num_beams": options.beams})


def main(arguments: list[str] | None = None) -> None:
    made = _shared.parser(__doc__, "blip")
    made.add_argument("--model", default="Salesforce/blip-image-captioning-large", help="checkpoint")
    made.add_argument(
        "--kind", choices=("blip", "git", "vision_encoder_decoder", "llava"), default="blip", help="class"
    )
    made.add_argument("--prompt", help="text to go on from, or a LLaVA-like model's instruction")
    made.add_argument("--beams", type=int, default=3, help="beams of the search")
    options = _shared.parse(made, arguments)
    coco, encoder = _shared.coco_and_encoder(options, per_image=None)
    paths, ids = coco.image_paths[: options.limit], coco.image_ids[: options.limit]
    rank, world = _shared.processes()
    results = options.output / "captions.json"
    result = caption_images(
        build(options),
        paths,
        results,
        image_ids=ids,
        batch_size=options.batch_size,
        rank=rank,
        world=world,
        on_empty="skip",
        settings=f"{options.kind} {'smoke' if options.smoke else options.model} {options.prompt} {options.beams}",
    )
    print(f"{result.generated} images captioned, {result.reused} found, {len(result.empty)} without words")
    if world > 1:
        parts = [rank_path(results, number, world) for number in range(world)]
        if not all(part.is_file() for part in parts):
            print("this process is done; the last one to end measures")
            return
        result.captions = merge_results(parts, results)
    captions = Captions(result.captions.texts, result.captions.ids)
    reference = _shared.text_reference(coco, encoder)
    measured = score(caption_source(captions, encoder), reference, resamples=options.resamples)
    _shared.report(options.output, reference, {options.kind: measured})


if __name__ == "__main__":
    _shared.run(main)
