"""SDXL, Midjourney and photographs against MS-COCO, from published raw SigLIP embeddings: typicality, variety, CMMD.

Reads the .npy files of the public repository github.com/ZMFarley/Videre, ``core/experiments`` at commit 31487566b1b6:
raw embeddings of SigLIP B/16-224 of 1,000 or 500 images each. They have no licence, so fetch them yourself, into one
folder (20 MB). The reference is ``embeddings_coco.npy``: 1,000 images of COCO val2017. The next 500 of them are the
yardstick: what real images of the same kind score.

No run drew COCO's prompts, so that what differs is the subject as well as the generator: the photographs show it.
Takes a minute on one CPU core, and no model.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from clipconformity.evaluation import build_reference, compare, embedding_source

REFERENCE = "embeddings_coco.npy"
# Those of one size compare in the figures that grow with it; the larger sets of the same kinds are the check. The file
# of 500 photographs is the first half of the other one: four of its eight subjects.
RUNS = {
    "COCO, 500 others": "test_coco_embeddings.npy",
    "photographs, 4 subjects": "test_natural_embeddings.npy",
    "SDXL, 500": "test_ai_embeddings.npy",
    "Midjourney, 500": "test_midjourney_embeddings.npy",
    "photographs, 8 subjects": "embeddings_natural_images.npy",
    "SDXL, 1000": "embeddings_stableDiffXL.npy",
    "Midjourney, 1000": "embeddings_midjourney.npy",
}
TABLES = (
    ("conformity_mean", "self_conformity_mean", "typicality_shift", "variety_ratio", "p_value"),
    ("cmmd", "cmmd_unbiased", "cosine_mmd", "cosine_mmd_typicality", "cosine_mmd_variety"),
    ("precision", "recall", "density", "coverage", "vendi", "vendi_equal_n", "reference_vendi_equal_n"),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the .npy files")
    parser.add_argument("-o", "--output", type=Path, default=Path("published-generators"), help="folder to write to")
    options = parser.parse_args(argv)

    reference = build_reference(
        embedding_source([options.folder / REFERENCE], modality="image"), dataset="1,000 images of MS-COCO val2017"
    )
    sources = {name: embedding_source([options.folder / file], modality="image") for name, file in RUNS.items()}
    found = compare(sources, reference, metrics=("cosine_mmd", "cmmd", "prdc", "vendi"))

    for figures in TABLES:
        print(found.table("markdown", figures))
    for name, one in found.scores.items():
        print(f"{name}: {one.sentences['typical']}; {one.sentences['varied']}.")
    yardstick, *others = RUNS
    for figure in ("typicality_shift", "variety_ratio"):
        print(f"\nranks in {figure}: {found.ranks(figure)}")
        print("\n".join(found.difference(yardstick, name, figure).text() for name in others))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "comparison.json").write_text(json.dumps(found.to_dict(), indent=1), encoding="utf-8")
    (options.output / "differences.txt").write_text(found.table("text"), encoding="utf-8")
    found.plot()[0].savefig(options.output / "map.png", dpi=100, bbox_inches="tight")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
