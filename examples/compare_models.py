"""Several generators against one reference, in Python: the table, the pictures and the report of a paper.

    clipconformity reference --coco coco/ --encoder open_clip:ViT-B-32/openai -o coco-reference.safetensors
    python compare_models.py unclip=unclip/images glide=glide/images \\
        --reference coco-reference-image.safetensors -o comparison/

Give the images of one prompt the same name in every folder, and what the prompts differ by cancels. The command
`clipconformity compare` does the same, and takes captions and embeddings too.

Downloads (estimate): CLIP ViT-B/32 of OpenAI, 0.6 GB.
Time (estimate): 5,000 images of each model in half a minute on one A100 GPU, and in 5 minutes on 8 CPU cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

import clipconformity as cc
from clipconformity import plots
from clipconformity.data import list_images
from clipconformity.evaluation import compare, image_source
from clipconformity.report import Run, write_report


def folder(text: str) -> tuple[str, Path]:
    """Read `NAME=DIR`."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=DIR, got {text!r}")
    return name, Path(path)


def run(options: argparse.Namespace) -> None:
    """Compare the folders, and write tables, pictures and a report."""
    images = {name: list_images(path) for name, path in options.models}
    if len(images) < len(options.models):
        raise ValueError(f"expected different names, got {', '.join(name for name, _ in options.models)}.")
    reference = cc.ReferenceSet.load(options.reference)
    encoder = cc.load_encoder(options.encoder, options.device)
    found = compare({name: image_source(paths, encoder) for name, paths in images.items()}, reference)
    print(found.table())
    print(f"ranks, from the most varied: {found.ranks('variety_ratio')}")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "comparison.json").write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    (options.output / "table.tex").write_text(found.table("latex"), encoding="utf-8")
    plots.save(found.plot()[0], options.output / "map.png")
    for figure in ("typicality_shift", "variety_ratio"):
        plots.save(found.plot_differences(figure)[0], options.output / f"{figure}.png")
    runs = [Run(name, one, images=images[name]) for name, one in found.scores.items()]
    write_report(options.output / "report.html", runs)
    written = "comparison.json, table.tex, map.png, typicality_shift.png, variety_ratio.png and report.html"
    print(f"Written: {written} in {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends in one line, with exit status 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("models", type=folder, nargs="+", metavar="NAME=DIR", help="two folders of images, or more")
    parser.add_argument("--reference", type=Path, required=True, help="reference of real images")
    parser.add_argument("--encoder", default="open_clip:ViT-B-32/openai", help="the reference's (default: %(default)s)")
    parser.add_argument("--device", default=device, help="where the encoder runs (default here: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
