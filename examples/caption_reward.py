r"""Published caption files beside what people wrote: where captioners are generic, and where super-human.

    clipconformity reference --coco coco/ --karpathy dataset_coco.json --split test --per-image all \
        --encoder open_clip:ViT-B-32/openai -o coco-reference.safetensors
    python caption_reward.py cider=cider.json clip=clip_s.json --reference coco-reference-text.safetensors \
        --captions coco-reference-captions.json -o rewards/

Each file holds COCO results, such as CLIP-Caption-Reward publishes for its rewards. The yardstick is what people give
among themselves: one caption of every image against the others. A captioner above the range of one more person is
more typical than people (generic); one below it is less typical (more specific than people are).

Downloads (estimate): CLIP ViT-B/32 of OpenAI, 0.6 GB; the caption files by hand, a few MB each.
Time (estimate): 25,000 human captions and 5,000 of each captioner in a minute on one A100 GPU, 10 minutes on 8 cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

import clipconformity as cc
from clipconformity import plots
from clipconformity.data import read_captions, read_results
from clipconformity.evaluation import caption_source, compare, human_spread
from clipconformity.report import Run, write_report


def results_file(text: str) -> tuple[str, Path]:
    """Read `NAME=FILE`."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, got {text!r}")
    return name, Path(path)


def placed(shift: float, low: float, high: float) -> str:
    """Place a captioner beside people."""
    if low <= shift <= high:
        return "as one more person"
    return "more typical than people: generic" if shift > high else "less typical than people: more specific"


def run(options: argparse.Namespace) -> None:
    """Measure people by each other, then compare the captioners beside them."""
    people = read_captions(options.captions)
    if people.groups is None:
        raise ValueError(f"{options.captions}: names no images; expected human captions of each, as COCO annotations.")
    images = list(dict.fromkeys(people.groups))
    captions = {name: read_results(path, images, on_missing="skip") for name, path in options.results}
    if len(captions) < len(options.results):
        raise ValueError(f"expected different names, got {', '.join(name for name, _ in options.results)}.")
    for name, one in captions.items():
        if len(one.texts) < len(images):
            print(f"{name}: {len(images) - len(one.texts)} of {len(images)} images have no caption")
    reference = cc.ReferenceSet.load(options.reference)
    encoder = cc.load_encoder(options.encoder, options.device)
    found = compare({name: caption_source(one, encoder) for name, one in captions.items()}, reference)
    rows = torch.cat([batch.embeddings.cpu() for batch in caption_source(people, encoder)])
    human = human_spread(rows, people.groups, seed=options.seed)
    low, high = human.one_more()
    places = {name: placed(one.typicality_shift, low, high) for name, one in found.scores.items()}
    print(found.table())
    print(f"one more person would have a typicality shift of {low:+.2f} to {high:+.2f}")
    for name, words in places.items():
        print(f"{name}: typicality shift {found.scores[name].typicality_shift:+.2f}, {words}")
    options.output.mkdir(parents=True, exist_ok=True)
    beside = {"human": {name: values.tolist() for name, values in human._asdict().items()}, "beside_people": places}
    content = json.dumps(found.to_dict() | beside, indent=2)
    (options.output / "comparison.json").write_text(content + "\n", encoding="utf-8")
    plots.save(found.plot(people=human)[0], options.output / "map.png")
    runs = [Run(name, one, captions=captions[name].texts) for name, one in found.scores.items()]
    write_report(options.output / "report.html", runs)
    print(f"Written: comparison.json, map.png and report.html in {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends in one line, with exit status 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("results", type=results_file, nargs="+", metavar="NAME=FILE", help="two results files, or more")
    parser.add_argument("--reference", type=Path, required=True, help="reference of human captions")
    parser.add_argument("--captions", type=Path, required=True, help="human captions, two of every image or more")
    parser.add_argument("--encoder", default="open_clip:ViT-B-32/openai", help="the reference's (default: %(default)s)")
    parser.add_argument("--device", default=device, help="where the encoder runs (default here: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of human captions (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
