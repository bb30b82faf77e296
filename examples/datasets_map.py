"""Images, captions or embeddings of Hugging Face datasets: `map` embeds them in several processes, then a score.

    python datasets_map.py --real coco.parquet --generated made/ --encoder open_clip:ViT-B-32/openai -o scored/
    python datasets_map.py --real real.parquet --generated made.parquet --column embeddings --modality image -o scored/

Takes a folder of images, a file (.parquet, .json, .jsonl, .csv), or a name on the hub. The output holds score.json,
reference.safetensors, and the embeddings in real/ and generated/, which any command takes as --embeddings. It needs
the package `datasets`: pip install "clipconformity[datasets]".
To try it offline, take `--encoder tiny --processes 2`, the model in the package.

Downloads (estimate): CLIP ViT-B/32 of OpenAI, 0.6 GB; none with embeddings.
Time (estimate): 5,000 images on either side in a minute on one A100 GPU, and in 6 minutes on 8 CPU cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import clipconformity as cc
from clipconformity.data import write_embeddings
from clipconformity.data.images import to_rgb
from clipconformity.evaluation import build_reference, embedding_source, score
from clipconformity.functional.validation import check_matrix
from clipconformity.provenance import Provenance
from clipconformity.stream.row_sample import hash_labels

BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}


class Embed:
    """Embeds batches by a plan, and names each row by a column or by its place; each process has its own."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.plan = dict(plan)
        self.encoder: Any = None

    def __call__(self, batch: Mapping[str, Any], places: Sequence[int], rank: int | None) -> dict[str, Any]:
        """Give the embeddings of a batch, their names and their groups."""
        values, side, ids, groups = (batch[self.plan["column"]], *(self.plan[x] for x in ("side", "ids", "groups")))
        rows = np.stack(list(values)) if self.plan["kind"] == "embeddings" else self.encode(list(values), rank or 0)
        names = [f"{side}:{place}" for place in places] if ids is None else [*map(str, batch[ids])]
        return {"embeddings": rows, "id": names} | ({} if groups is None else {"group": batch[groups]})

    def encode(self, values: list[Any], rank: int) -> np.ndarray:
        """Encode images or captions, on a share of the cores or on a GPU of its own."""
        if self.encoder is None:
            torch.set_num_threads(max(1, torch.get_num_threads() // self.plan["processes"]))
            gpus = torch.cuda.device_count()
            self.encoder = cc.load_encoder(self.plan["encoder"], f"cuda:{rank % gpus}" if gpus else "cpu")
        if self.plan["kind"] == "text":
            return self.encoder.encode_text(values).cpu().numpy()
        return self.encoder.encode_image([to_rgb(one) for one in values]).cpu().numpy()


def load(place: str, split: str) -> Any:
    """Open a folder of images, a file, or a dataset on the hub; code of datasets is not run."""
    from datasets import load_dataset

    path = Path(place)
    if path.is_dir():
        return load_dataset("imagefolder", data_dir=place, split="train")
    if path.suffix in BUILDERS:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file.")
        return load_dataset(BUILDERS[path.suffix], data_files=place, split="train")
    return load_dataset(place, split=split)


def find_kind(dataset: Any, options: argparse.Namespace) -> str:
    """Tell by the type of the column whether it holds images, captions or embeddings."""
    import datasets

    wanted = [name for name in (options.column, options.ids, options.groups) if name is not None]
    if lacking := [name for name in wanted if name not in dataset.features]:
        raise ValueError(f"expected a column {lacking[0]!r}, got {', '.join(dataset.features)}; name yours by option.")
    feature = dataset.features[options.column]
    text = isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
    kind = "image" if isinstance(feature, datasets.Image) else "text" if text else "embeddings"
    if kind != "embeddings" and options.encoder is None:
        raise ValueError(f"column {options.column!r} holds {kind}s, which need --encoder SPEC.")
    return kind


def write_side(side: str, place: str, folder: Path, options: argparse.Namespace) -> Any:
    """Embed one side with `map`, write it as files of embeddings, and give these as a source."""
    dataset = load(place, options.split)
    kind = find_kind(dataset, options)
    provenance = Provenance(options.encoder, None, options.modality)
    if kind == "embeddings":
        dataset = dataset.with_format("numpy")  # the numbers as they are, rather than as Python's
    else:
        provenance = Provenance.from_encoder(cc.load_encoder(options.encoder, "cpu"), kind)
    plan = {name: getattr(options, name) for name in ("column", "ids", "groups", "encoder", "processes")}
    plan |= {"kind": kind, "side": side}
    embedded = dataset.map(
        Embed(plan),
        batched=True,
        batch_size=options.batch_size,
        with_indices=True,
        with_rank=True,
        num_proc=options.processes if options.processes > 1 else None,
        remove_columns=dataset.column_names,
    ).with_format("numpy")
    folder.mkdir()
    for number, start in enumerate(range(0, len(embedded), options.rows)):
        part = embedded[start : start + options.rows]
        rows = check_matrix(torch.tensor(np.stack(list(part["embeddings"]))), f"column {options.column!r}")
        groups = hash_labels(part["group"].tolist(), len(rows), rows.device) if options.groups else None
        ids = part["id"].tolist()
        write_embeddings(folder / f"{number:05}.safetensors", rows, ids=ids, groups=groups, provenance=provenance)
    return embedding_source([folder])


def run(options: argparse.Namespace) -> None:
    """Embed both sides, and score one against the other."""
    import multiprocess

    multiprocess.set_start_method("spawn", force=True)  # a forked process can use neither CUDA nor OpenMP
    if options.output.exists():
        raise FileExistsError(f"{options.output} exists; name a new folder.")
    with TemporaryDirectory(dir=options.output.parent) as work:
        folder = Path(work, "output")
        folder.mkdir()
        real = write_side("real", options.real, folder / "real", options)
        reference = build_reference(real, dataset=options.real, allow_normalized=options.allow_normalized)
        reference.save(folder / "reference.safetensors")
        generated = write_side("generated", options.generated, folder / "generated", options)
        found = score(generated, reference, metrics=options.metrics)
        (folder / "score.json").write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
        folder.rename(options.output)
    print("\n".join([*found.sentences.values(), f"Written: {options.output}"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; what is given wrong is told in one line, with exit status 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    parser.add_argument("--real", required=True, metavar="SAMPLES", help="folder, file or name: the reference")
    parser.add_argument("--generated", required=True, metavar="SAMPLES", help="the same: what is scored")
    parser.add_argument("--column", default="image", help="images, captions or embeddings (default: %(default)s)")
    parser.add_argument("--ids", metavar="COLUMN", help="names of the rows (default: their places)")
    parser.add_argument("--groups", metavar="COLUMN", help="rows that belong together, such as captions of an image")
    parser.add_argument("--encoder", help="spec, as `clipconformity encoders` lists; for embeddings their origin")
    parser.add_argument("--modality", choices=("image", "text"), help="of embeddings")
    parser.add_argument("--split", default="train", help="of a dataset on the hub (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="rows encoded at once (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of a file (default: %(default)s)")
    parser.add_argument("--metrics", nargs="+", default=["conformity"], help="as of `score` (default: %(default)s)")
    parser.add_argument("--allow-normalized", action="store_true", help="accept L2-normalised embeddings")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to, which is not there yet")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
