"""Published captioners on MS-COCO against people: typicality, variety, and every difference, paired by image.

Reads the results files of the public repository github.com/yxuansu/MAGIC, ``image_captioning/inference_result/mscoco``
at commit acefac619035: the outputs of ten captioners, each with the human captions of up to 5,000 images. They have no
licence, so fetch them yourself, into one folder (27 MB). Other JSON files of entries with ``image_name``,
``prediction`` and ``captions`` do as well.

One human caption of every image, the first in a seeded order, is scored as if it were a captioner's: the run
``people``. The others are the reference, of people and captioners alike. So no caption of ``people`` is in the
reference, and none is compared with captions of its own image.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import normalize

from clipconformity.data import read_captions
from clipconformity.encoders import load_encoder
from clipconformity.evaluation import Source, SourceBatch, build_reference, compare, human_spread
from clipconformity.provenance import Provenance


def read_files(folder: Path) -> tuple[dict[str, dict], dict]:
    """The caption of every image, by name of the file; and the human captions of every image."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(f"{folder}: holds no .json files; expected results files of captioners.")
    runs, people = {}, {}
    for path in paths:
        said = read_captions(path, "prediction")
        name = path.stem.replace("_result", "").replace("mscoco_in_domain_", "").replace("_run", "")
        runs[name] = dict(zip(said.groups or said.ids, said.texts, strict=True))
    human = read_captions(paths[0], "captions")
    for image, text in zip(human.groups or human.ids, human.texts, strict=True):
        people.setdefault(image, []).append(text)
    return runs, people


def encode(encoder, texts: Sequence[str]) -> torch.Tensor:
    """Raw embeddings, in batches of texts of like length, which takes half of the time."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    batches = [order[start : start + 64] for start in range(0, len(order), 64)]
    rows = torch.cat([encoder.encode_text([texts[row] for row in batch]) for batch in batches]).cpu()
    return rows[torch.tensor(order).argsort()]


def source(encoder, rows: torch.Tensor, images: Sequence) -> Source:
    """Embeddings with the image of each, by which runs are paired."""
    batch = SourceBatch(rows, [str(image) for image in images], images)
    return Source(iter([batch]), len(rows), Provenance.from_encoder(encoder, "text"), images, encoder=encoder)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results files")
    parser.add_argument("--encoder", default="st:all-MiniLM-L6-v2", help="text encoder (default: %(default)s, 90 MB)")
    parser.add_argument("--device", help="where it runs (default: CUDA if present)")
    parser.add_argument("--images", type=int, default=1000, help="how many to draw; 1,000 take 2 to 5 minutes on a CPU")
    parser.add_argument("--seed", type=int, default=0, help="of the images and the order of the human captions")
    parser.add_argument("-o", "--output", type=Path, default=Path("published-captions"), help="folder to write to")
    options = parser.parse_args(argv)

    runs, people = read_files(options.folder)
    common = sorted(set(people).intersection(*runs.values()), key=str)
    draw = random.Random(options.seed)
    images = draw.sample(common, min(options.images, len(common)))
    orders = {image: draw.sample(people[image], len(people[image])) for image in images}
    encoder = load_encoder(options.encoder, options.device)

    runs = {"people": {image: orders[image][0] for image in images}} | runs
    rows = {name: encode(encoder, [said[image] for image in images]) for name, said in runs.items()}
    places = [place for place, image in enumerate(images) for _ in orders[image][1:]]
    others = encode(encoder, [text for image in images for text in orders[image][1:]])
    dataset = f"human captions of {len(images)} images of MS-COCO, but for one of each"
    reference = build_reference(source(encoder, others, [images[place] for place in places]), dataset=dataset)
    found = compare({name: source(encoder, one, images) for name, one in rows.items()}, reference)
    every = torch.cat([rows["people"], others])
    spread = human_spread(every, [*images, *(images[place] for place in places)], seed=options.seed)

    print(found.table("markdown"))
    for name, one in rows.items():
        fit = (normalize(one)[places] * normalize(others)).sum(1).mean()
        distinct = len({runs[name][image] for image in images})
        print(f"{name}: {distinct} distinct captions; cosine {fit:.3f} to the other human ones of the same image")
    for figure in ("typicality_shift", "variety_ratio"):
        print(f"\nranks in {figure}: {found.ranks(figure)}")
        print("\n".join(found.difference("people", name, figure).text() for name in list(runs)[1:]))
    for quantity in ("typicality_shift", "variety_ratio", "self_conformity"):
        low, high = spread.one_more(quantity)
        print(f"\n{quantity} of one more person against the others, 95%: {low:.4f} to {high:.4f}")
    options.output.mkdir(parents=True, exist_ok=True)
    reported = found.to_dict() | {
        "images": images,
        "folds": {key: one.tolist() for key, one in spread._asdict().items()},
    }
    (options.output / "comparison.json").write_text(json.dumps(reported, indent=1), encoding="utf-8")
    (options.output / "differences.txt").write_text(found.table("text"), encoding="utf-8")
    found.plot(people=spread)[0].savefig(options.output / "map.png", dpi=100, bbox_inches="tight")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f"error: {error}") from None
