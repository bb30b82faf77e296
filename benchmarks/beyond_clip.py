"""Does the geometry hold beyond CLIP? SigLIP, MiniLM, CLIP's own and the embedded model, in two tables.

Looks in the given folders for

- ``embeddings_coco.npy``, raw SigLIP B/16-224 embeddings of 1,000 images of COCO val2017: github.com/ZMFarley/Videre,
  ``core/experiments``, commit 31487566b1b6;
- ``magic_result.json``, with the human captions of 4,982 images of MS-COCO: github.com/yxuansu/MAGIC,
  ``image_captioning/inference_result/mscoco``, commit acefac619035; those of ``--images`` images are encoded;
- the embeddings of ``benchmarks/real_data.py``, and ``vitb16-coco-pairs-500-unit.npy``: ViT-B/16, L2-normalised.

None of them is part of the package. What is not there is left out, and named. The embedded model encodes 2,000 scenes.
Intervals are 95%; those of the lines and of the correlation leave out 64 parts in turn, of whole images where an image
has several rows, and compute all means anew. Takes two to five minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipconformity.data import read_captions, read_embeddings
from clipconformity.demo import draw_scene, sample_scenes, scene_captions
from clipconformity.encoders import load_encoder
from clipconformity.evaluation.geometry import PARTS, Property, compute_gap_figures, six_properties
from clipconformity.functional import conformity, conformity_fit
from clipconformity.functional.conformity import pearson
from clipconformity.functional.resampling import Interval, jackknife

LINES = ("C = a cos", "cos = a C", "r", "norm and C")
PROPERTIES = ("thin shell", "ellipsoid", "tilt", "offset")
PAPER = {
    "paper, COCO ViT-B/32, images": ("303", "long tail", "tilted", "0.94", "", "1.461", "0.9998", "below 0"),
    "paper, COCO ViT-B/32, captions": ("", "long tail", "tilted", "1.03", "", "1.411", "", "below 0"),
}


class Family(NamedTuple):
    """Rows of one model."""

    name: str
    image: Tensor | None = None
    text: Tensor | None = None
    paired: bool = False
    groups: Tensor | None = None
    """Of the texts."""
    logit_scale: float = 100.0


def families(folders: Sequence[Path], options: argparse.Namespace) -> Iterator[Family]:
    """Find or encode the rows of each model."""

    def find(name: str) -> Path | None:
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if found is None:
            print(f"beyond_clip: no {name} in the folders; left out.", file=sys.stderr)
        return found

    if path := find("embeddings_coco.npy"):
        yield Family("SigLIP B/16, 1,000 images of COCO", image=read_embeddings(path).embeddings)
    if path := find("magic_result.json"):
        yield human_captions(path, options)
    images, texts = find("vitb32-images-1803.pt"), find("vitb32-text-lvis-1203.npy")
    if images and texts:
        rows = [read_embeddings(one).embeddings.float() for one in (images, texts)]
        yield Family("ViT-B/32, 1,803 photographs and 1,203 class names", *rows)
    if path := find("vitb16-coco-pairs-500-unit.npy"):
        image, text = torch.from_numpy(np.load(path)).float()
        yield Family("ViT-B/16, 500 pairs of COCO, unit vectors", image, text, paired=True)
    yield embedded()


def human_captions(path: Path, options: argparse.Namespace) -> Family:
    """Encode all human captions of a seeded draw of images."""
    captions = read_captions(path, "captions")
    numbers = np.asarray(captions.groups)
    kept = random.Random(0).sample(sorted(set(numbers.tolist())), options.images)
    rows = np.flatnonzero(np.isin(numbers, kept))
    encoder: Any = load_encoder(options.encoder)
    texts = [captions.texts[row] for row in rows]
    embeddings = torch.cat([encoder(texts[start : start + 64]) for start in range(0, len(texts), 64)]).cpu()
    name = f"MiniLM-L6, {len(rows):,} human captions of {options.images:,} images of COCO"
    return Family(name, text=embeddings, groups=torch.from_numpy(numbers[rows]))


def embedded() -> Family:
    """Encode scenes and captions with the embedded model."""
    encoder, scenes = load_encoder("tiny"), sample_scenes(2000, seed=0)
    image = torch.cat([encoder([draw_scene(scene, seed=n)]) for n, scene in enumerate(scenes)])
    text = encoder([scene_captions(scene, count=1, seed=n)[0] for n, scene in enumerate(scenes)])
    return Family(
        "embedded model, 2,000 scenes and captions",
        image.cpu(),
        text.cpu(),
        True,
        logit_scale=float(encoder.logit_scale or 0),
    )


def lines(rows: Tensor, groups: Tensor | None) -> dict[str, tuple[float, Interval]]:
    """Both lines between conformity and its estimate, their correlation, and that of norm and conformity."""
    rows = rows.double()

    def figures(part: Tensor) -> Tensor:
        fit = conformity_fit(part)
        return torch.stack([fit.slope, fit.inverse_slope, fit.pearson, pearson(part.norm(dim=1), conformity(part))])

    names, place = (torch.arange(len(rows)) if groups is None else groups).unique(return_inverse=True)
    part = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[place] % PARTS
    left = torch.stack([figures(rows[part != number]) for number in range(PARTS)])
    sizes = torch.bincount(part, minlength=PARTS).double()
    value = figures(rows)
    found = [jackknife(value[n], left[:, n], sizes).interval() for n in range(len(LINES))]
    return {name: (float(value[n]), found[n]) for n, name in enumerate(LINES)}


def cells_of(rows: Tensor, modality: str, groups: Tensor | None) -> tuple[list[str], dict[str, Any]]:
    """The cells of a line of the first table, and every figure."""
    given: dict[str, Any] = {modality: rows, f"{modality}_groups": groups}
    properties = [one for one in six_properties(**given) if one.name in PROPERTIES]
    reported = lines(rows, groups)
    norms = rows.norm(dim=1)
    unit = float((norms - 1).abs().max()) < 1e-2  # published normalised, in whatever precision
    shown = [shown_property(one) for one in properties]
    for name, digits in zip(LINES, (3, 3, 5, 2), strict=True):
        value, ends = reported[name]
        is_void = unit and name == "norm and C"
        shown.append("" if is_void else f"{value:.{digits}f} [{ends.low:.{digits}f}, {ends.high:.{digits}f}]")
    return shown, {one.name: one._asdict() for one in properties} | reported


def shown_property(one: Property) -> str:
    digits = 0 if one.name == "thin shell" else 2 if one.name == "offset" else 1
    null = f" ({one.null:.{digits}f})" if one.name in ("ellipsoid", "tilt") and one.null is not None else ""
    return f"{one.value:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]{null} {one.verdict}"


def both(family: Family) -> list[str]:
    """The cells of a line of the second table: what needs images and texts."""
    assert family.image is not None
    assert family.text is not None
    properties = six_properties(family.image, family.text, paired=family.paired, logit_scale=family.logit_scale)
    gap = compute_gap_figures(family.image, family.text, paired=family.paired)
    found = {one.name: one for one in properties}
    apart = found["linear separability"]
    lowest = next((f"{one.value:.2g} {one.verdict}" for name, one in found.items() if "loss" in name), "no pairs")
    return [
        f"{apart.value:.3f} [{apart.low:.3f}, {apart.high:.3f}] {apart.verdict}",
        lowest,
        f"{gap['gap']:.3f} [{gap['low']:.3f}, {gap['high']:.3f}]",
    ]


def row(name: str, cells: Sequence[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="where the files are")
    parser.add_argument("--encoder", default="st:all-MiniLM-L6-v2", help="of the human captions (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="whose human captions are encoded (default: 1000)")
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    options = parser.parse_args(argv)
    row("rows", [*PROPERTIES, *LINES])
    row("---", ["---"] * 8)
    for name, cells in PAPER.items():
        row(name, cells)
    figures, pairs = {}, []
    for family in families(options.folders, options):
        for modality, rows in (("image", family.image), ("text", family.text)):
            if rows is not None:
                name = family.name if None in (family.image, family.text) else f"{family.name}: {modality}"
                cells, figures[name] = cells_of(rows, modality, family.groups if modality == "text" else None)
                row(name, cells)
        if family.image is not None and family.text is not None:
            pairs.append((family.name, both(family)))
    print()
    row("rows", ["linear separability", "alpha of the lowest loss", "modality gap"])
    row("---", ["---"] * 3)
    for name, cells in pairs:
        row(name, cells)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
