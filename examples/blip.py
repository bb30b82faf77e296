"""A captioner of transformers (BLIP, GIT, ViT-GPT2, LLaVA) on images of MS-COCO, beside what people wrote.

    clipconformity reference --coco coco/ --per-image all --encoder open_clip:ViT-B-32/openai \\
        -o coco-reference.safetensors
    python blip.py --images coco/val2017 --reference coco-reference-text.safetensors -o blip/

Stopped in the middle, it goes on where it was. Under `torchrun --nproc-per-node N` each process captions its share; the
same command without torchrun then finds the captions and scores them.

Downloads (estimates): Salesforce/blip-image-captioning-large, 1.9 GB; or microsoft/git-base-coco, 0.7 GB;
nlpconnect/vit-gpt2-image-captioning, 1 GB; llava-hf/llava-1.5-7b-hf, 14 GB. CLIP ViT-B/32 of OpenAI, 0.6 GB.
Time (estimate): 5,000 images in 10 minutes on one A100 GPU, 20 with LLaVA; 8 GB of GPU memory, LLaVA 20 GB.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

import clipconformity as cc
from clipconformity.data import list_images, merge_results
from clipconformity.evaluation import caption_source, score
from clipconformity.generators import TransformersCaptioner, caption_images, rank_path
from clipconformity.provenance import Provenance
from clipconformity.report import Run, write_report

INSTRUCTION = "Describe the image in one short sentence."


def load(model: str, device: str, prompt: str | None, beams: int, max_tokens: int) -> TransformersCaptioner:
    """Load a captioner by what its checkpoint says it is, in half precision where that is fast."""
    import transformers as tf

    kind = tf.AutoConfig.from_pretrained(model, trust_remote_code=False).model_type
    words = None
    if kind == "vision-encoder-decoder":  # it has its image processor and its tokenizer apart
        made = tf.VisionEncoderDecoderModel.from_pretrained(model, trust_remote_code=False)
        processor = tf.AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
        words = tf.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    else:
        classes = {"blip": "BlipForConditionalGeneration", "git": "GitForCausalLM"}
        known = getattr(tf, classes.get(kind, "AutoModelForImageTextToText"))
        made = known.from_pretrained(model, trust_remote_code=False)
        processor = tf.AutoProcessor.from_pretrained(model, trust_remote_code=False)
    made = made.to(device, torch.float16 if device.startswith("cuda") else torch.float32).eval()
    prompt = prompt or (INSTRUCTION if getattr(processor, "chat_template", None) else None)
    options = {"num_beams": beams, "do_sample": False}
    return TransformersCaptioner(
        made, processor, tokenizer=words, prompt=prompt, options=options, max_new_tokens=max_tokens
    )


def run(options: argparse.Namespace) -> None:
    """Caption what is missing, then score all."""
    if options.limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {options.limit}.")
    paths = list_images(options.images)[: options.limit]
    reference = cc.ReferenceSet.load(options.reference)
    encoder = cc.load_encoder(options.encoder, options.device)
    reference.provenance.check(Provenance.from_encoder(encoder, "text"))  # now, rather than once all captions are there
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun tells them
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "captions.json"
    captioner = load(options.model, options.device, options.prompt, options.beams, options.max_tokens)
    found = caption_images(
        captioner,
        paths,
        results,
        batch_size=options.batch_size,
        rank=rank,
        world=world,
        on_empty="skip",
        settings=f"{options.model} {options.prompt} {options.beams} {options.max_tokens}",
    )
    print(f"{found.generated} images captioned, {found.reused} found, {len(found.empty)} without words")
    if world > 1:
        parts = [rank_path(results, number, world) for number in range(world)]
        if all(part.is_file() for part in parts):  # this process is the last
            merge_results(parts, results)
        return
    result = score(caption_source(found.captions, encoder), reference)
    print(*result.sentences.values(), sep="\n")
    (options.output / "score.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    write_report(options.output / "report.html", [Run(Path(options.model).name, result, captions=found.captions.texts)])
    print(f"Written: captions.json, score.json and report.html in {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends in one line, with exit status 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    model = "Salesforce/blip-image-captioning-large"
    parser.add_argument("--images", type=Path, required=True, help="folder of images to caption")
    parser.add_argument("--reference", type=Path, required=True, help="reference of human captions")
    parser.add_argument("--model", default=model, help="checkpoint (default: %(default)s)")
    parser.add_argument("--prompt", help="text to go on from, or a LLaVA-like model's instruction")
    parser.add_argument("--beams", type=int, default=3, help="beams of the search (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=40, help="of a caption (default: %(default)s)")
    parser.add_argument("--encoder", default="open_clip:ViT-B-32/openai", help="the reference's (default: %(default)s)")
    parser.add_argument("--device", default=device, help="where the models run (default here: %(default)s)")
    parser.add_argument("--limit", type=int, default=5000, help="most images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="images captioned at once (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
