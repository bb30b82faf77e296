"""Published captioners on MS-COCO against people: typicality, variety, and every difference, paired by image.

Reads the results files of the public repository github.com/yxuansu/MAGIC, from
``image_captioning/inference_result/mscoco`` (commit acefac619035): the outputs of ten captioners, each with the five human
captions of up to 5,000 images. They have no licence, so fetch them yourself into one folder, the baselines beside
``magic_result.json``. Any other JSON files of entries with ``image_name``, ``prediction`` and ``captions`` do as well.

One human caption of every image, in a seeded order, is left out and scored as if it were a captioner's: the row ``people``.
The others of the image are the reference, for people and captioners alike. No caption of the row is in the reference, and
none is compared with captions of its own image.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from clipconformity.data import read_captions
from clipconformity.encoders import load_encoder
from clipconformity.evaluation import Source, SourceBatch, build_reference, compare, human_spread
from clipconformity.provenance import Provenance


def read_files(folder: Path) -> dict[str, dict[int | str, str]]:
    """The caption of every image, by name of the file."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(f"{folder}: holds no .json files; expected results files of captioners.")
    found = {}
    for path in paths:
        captions = read_captions(path, "prediction")
        name = path.stem.replace("_result", "").replace("mscoco_in_domain_", "").replace("_run", "")
        found[name] = dict(zip(captions.groups or captions.ids, captions.texts, strict=True))
    return found


def read_people(folder: Path) -> dict[int | str, list[str]]:
    """Human captions of every image, from the first file."""
    captions = read_captions(sorted(folder.glob("*.json"))[0], "captions")
    found: dict[int | str, list[str]] = {}
    for image, text in zip(captions.groups or captions.ids, captions.texts, strict=True):
        found.setdefault(image, []).append(text)
    return found


def encode(encoder, texts: Sequence[str]) -> torch.Tensor:
    """Raw embeddings, in batches of texts of like length, which takes half of the time."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    batches = [order[start : start + 64] for start in range(0, len(order), 64)]
    rows = torch.cat([encoder.encode_text([texts[row] for row in batch]) for batch in batches]).cpu()
    return rows[torch.tensor(order).argsort()]


def source(encoder, rows: torch.Tensor, images: Sequence[int | str]) -> Source:
    """Embeddings with the image of each, by which runs are paired."""
    batch = SourceBatch(rows, [str(image) for image in images], images)
    return Source(iter([batch]), len(rows), Provenance.of(encoder, "text"), images, encoder=encoder)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results files")
    parser.add_argument("--encoder", default="st:all-MiniLM-L6-v2", help="text encoder (default: %(default)s, 90 MB)")
    parser.add_argument("--device", help="where it runs (default: CUDA if present)")
    parser.add_argument("--images", type=int, default=1000, help="images drawn from those that all files have; 1,000 "
                        "take five minutes on two CPU cores (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the images and of the human captions' order")
    parser.add_argument("-o", "--output", type=Path, default=Path("published-captions"), help="folder to write to")
    options = parser.parse_args(argv)

    runs, people = read_files(options.folder), read_people(options.folder)
    common = sorted(set(people).intersection(*runs.values()), key=str)
    draw = random.Random(options.seed)
    images = draw.sample(common, min(options.images, len(common)))
    orders = {image: draw.sample(people[image], len(people[image])) for image in images}
    encoder = load_encoder(options.encoder, options.device)

    # All human captions, the one that is left out first of each image.
    texts = [text for image in images for text in orders[image]]
    of = [image for image in images for _ in orders[image]]
    left = [place for place in range(len(of)) if place == 0 or of[place] != of[place - 1]]
    others = sorted(set(range(len(of))) - set(left))
    human = encode(encoder, texts)
    dataset = f"human captions of {len(images)} images of MS-COCO, one of each left out"
    reference = build_reference(source(encoder, human[others], [of[place] for place in others]), dataset=dataset)
    sources = {name: source(encoder, encode(encoder, [said[i] for i in images]), images) for name, said in runs.items()}
    found = compare({"people": source(encoder, human[left], images), **sources}, reference)
    spread = human_spread(human, of, seed=options.seed)

    print(found.table("markdown"))
    for name, said in runs.items():
        print(f"{name}: {len({said[image] for image in images})} distinct captions of {len(images)}")
    for figure in ("typicality_shift", "variety_ratio"):
        print(f"\nranks in {figure}: {found.ranks(figure)}")
        print("\n".join(found.difference("people", name, figure).text() for name in runs))
    for quantity in ("typicality_shift", "spread_ratio", "self_conformity"):
        low, high = spread.one_more(quantity)
        print(f"{quantity} of one more person, against the others, 95%: {low:.4f} to {high:.4f}")
    options.output.mkdir(parents=True, exist_ok=True)
    told = found.to_dict() | {"images": images, "people": {key: value.tolist() for key, value in spread._asdict().items()}}
    (options.output / "comparison.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    (options.output / "differences.txt").write_text(found.table("text"), encoding="utf-8")
    found.plot()[0].savefig(options.output / "map.png", dpi=150, bbox_inches="tight")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
