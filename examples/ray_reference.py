"""A reference of many embeddings, or of images, by Ray Data: a state for each batch of rows, merged in a tree.

    python ray_reference.py --embeddings laion/*.npy --modality image --allow-normalized -o laion.safetensors
    python ray_reference.py --images real/ --encoder open_clip:ViT-B-32/openai -o real.safetensors

Any command then takes the result as --reference. Needs Ray: pip install "clipconformity[ray]".

A state holds sums and a row sample, and travels as a safetensors file. It is no reference yet: that needs two rows, and
several groups. A state needs nothing, so a block of one row counts, and a block of none adds nothing; all samples are
checked together in the end. To try it offline, take `--encoder tiny --workers 2`, the model in the package.

Downloads (estimate): none with --embeddings; with --images CLIP ViT-B/32 of OpenAI, 0.6 GB.
Time (estimate): 1,000,000 embeddings in 2 minutes on 8 CPU cores, 100,000 images in 10 minutes on one A100 GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import clipconformity as cc
from clipconformity.data import open_image, survey_images
from clipconformity.data.embeddings import Columns, open_embeddings
from clipconformity.data.files import check_output
from clipconformity.data.layout import find_embeddings
from clipconformity.evaluation import embedding_source
from clipconformity.functional.validation import check_matrix, check_same_dim
from clipconformity.provenance import Provenance
from clipconformity.stream.moments import Moments
from clipconformity.stream.reference import reference_layout
from clipconformity.stream.reference_file import read_part, write_part

Batch = dict[str, np.ndarray]
FAN_IN = 8
"""States that are merged at once; one has 42 MB at 768 dimensions."""


class Encode:
    """Encodes image files; each worker of Ray holds one."""

    def __init__(self, spec: str) -> None:
        self.encoder = cc.load_encoder(spec)

    def __call__(self, batch: Batch) -> Batch:
        """Give the embeddings of a batch of files, with their names."""
        images = [open_image(Path(path)) for path in batch["path"]]
        return {"id": batch["id"], "embeddings": self.encoder.encode_image(images).cpu().numpy()}


def pack(states: Sequence[Moments]) -> Batch:
    """Give states as a column of bytes; of Python objects, since an array of bytes would lose zeros at the end."""
    column = np.empty(len(states), dtype=object)
    with TemporaryDirectory() as folder:
        for number, state in enumerate(states):
            write_part(path := Path(folder, f"{number}.safetensors"), state, {})
            column[number] = path.read_bytes()
    return {"state": column}


def unpack(packed: bytes) -> Moments:
    with TemporaryDirectory() as folder:
        path = Path(folder, "state.safetensors")
        path.write_bytes(packed)
        return read_part(path)


def read_files(batch: Batch, columns: Columns, rows: int) -> Iterator[Batch]:
    """Read files of embeddings, some rows at a time, with ids and groups where a file has them."""
    for path in batch["path"]:
        shard = open_embeddings(path, columns)
        for block in shard.blocks(rows):
            vectors = block.embeddings
            found = {"embeddings": (vectors if vectors.element_size() > 2 else vectors.float()).numpy()}
            found |= {"id": np.array(list(block.ids), dtype=object)} if shard.named else {}
            found |= {} if block.groups is None else {"group": np.asarray(block.groups)}
            yield found


def take_in(
    batch: Batch, max_samples: int, vectors: str = "embeddings", ids: str = "id", groups: str = "group"
) -> Batch:
    """Accumulate a batch of rows, with ids and groups where there are such columns, into a state."""
    if not len(batch[vectors]):
        return pack([])
    rows = check_matrix(torch.tensor(np.stack(batch[vectors])), f"column {vectors!r}")
    labels = {name: batch[name].tolist() for name in (groups, ids) if name in batch}
    if lacking := [name for name, column in labels.items() if None in column]:
        raise ValueError(f"column {lacking[0]!r}: expected a value in every row; give them in all files or in none.")
    state = Moments(reference_layout(rows.shape[1], max_samples))
    state.update(rows, labels.get(groups), labels.get(ids))
    return pack([state])


def merge(batch: Batch) -> Batch:
    """Merge states into one: they add up, and their order changes the last bits alone."""
    merged, *others = map(unpack, batch["state"])
    for other in others:
        check_same_dim(other["raw_sum"], merged.layout.dim, "a block of rows", "another")
        merged = merged.merge(other)
    return pack([merged])


def merge_in_tree(states: Any) -> Moments:
    """Merge a dataset of states, some at once, until one is left."""
    states = states.materialize()
    while (count := states.count()) > 1:
        states = states.repartition(-(-count // FAN_IN)).map_batches(merge, batch_size=None).materialize()
    if not count:
        raise ValueError("expected at least 2 samples, got none.")
    return unpack(states.take_batch(1)["state"][0])


def find_samples(options: argparse.Namespace) -> tuple[list[dict[str, str]], Provenance]:
    """List the files, and say what their embeddings come from; what is wrong with them shows before Ray starts."""
    if options.images is None:
        named = {"column": options.column, "ids": options.ids, "groups": options.groups}
        source = embedding_source(options.embeddings, spec=options.encoder, modality=options.modality, **named)
        paths = find_embeddings(options.embeddings, options.modality).paths
        return [{"path": str(path.resolve())} for path in paths], source.provenance
    found, encoder = survey_images(options.images), cc.load_encoder(options.encoder, "cpu")
    named = zip(found.paths, found.ids, strict=True)
    return [{"path": str(path.resolve()), "id": name} for path, name in named], Provenance.from_encoder(
        encoder, "image"
    )


def open_rows(files: list[dict[str, str]], options: argparse.Namespace) -> Any:
    """Give the dataset of embeddings, of which nothing is read yet."""
    import ray.data

    if options.images is None:
        read = {"columns": Columns(options.column, options.ids, options.groups), "rows": options.rows}
        return ray.data.from_items(files).map_batches(read_files, batch_size=1, fn_kwargs=read)
    workers = {"compute": ray.data.ActorPoolStrategy(size=options.workers), "num_gpus": options.gpus}
    encode = {"fn_constructor_args": [options.encoder], "batch_size": options.batch_size}
    return ray.data.from_items(files).map_batches(Encode, **encode, **workers)


def explain(error: Exception) -> str:
    """Tell an error in one line; of one that a worker raised Ray keeps only the traceback, as text."""
    traceback, above, _ = str(error).partition("\n\nThe above exception")
    return traceback.splitlines()[-1] if above else " ".join(traceback.split())


def run(options: argparse.Namespace) -> None:
    """Take in the rows on the workers, merge what they came to, and write the reference."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report on its use
    import ray

    files, provenance = find_samples(options)
    output = check_output(options.output)
    ray.init(options.address, num_cpus=None if options.address else options.workers, include_dashboard=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
        rows = open_rows(files, options)
        keep = {"max_samples": options.max_samples}
        state = merge_in_tree(rows.map_batches(take_in, batch_size=options.rows, fn_kwargs=keep))
    finally:
        ray.shutdown()
    make = cc.ReferenceSet.from_moments
    reference = make(state, provenance, dataset=options.dataset, allow_normalized=options.allow_normalized)
    reference.save(output)
    print(f"{reference}, self-conformity {float(reference.self_conformity):.6f}: {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; what is given wrong is told in one line, with exit status 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    samples = parser.add_mutually_exclusive_group(required=True)
    samples.add_argument("--embeddings", nargs="+", type=Path, metavar="FILE", help="files, folders or patterns")
    samples.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    parser.add_argument("--encoder", help="loaded for --images; of --embeddings it names the origin")
    parser.add_argument("--modality", choices=("image", "text"), help="of --embeddings")
    parser.add_argument("--column", help="of the embeddings in the files")
    parser.add_argument("--ids", metavar="COLUMN", help="names of the rows")
    parser.add_argument("--groups", metavar="COLUMN", help="rows that belong together, such as captions of an image")
    parser.add_argument("--rows", type=int, default=100_000, help="embeddings of a state (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images encoded at once (default: %(default)s)")
    parser.add_argument("--max-samples", type=int, default=10_000, help="rows kept (default: %(default)s)")
    parser.add_argument("--allow-normalized", action="store_true", help="accept L2-normalised embeddings")
    parser.add_argument("--dataset", help="name of the samples")
    parser.add_argument("--workers", type=int, default=2, help="processes on this machine (default: %(default)s)")
    parser.add_argument("--address", help="of a Ray cluster, in place of this machine; `auto` finds it")
    gpus = 1 if torch.cuda.is_available() else 0
    parser.add_argument(
        "--gpus", type=float, default=gpus, help="of each worker that encodes (default here: %(default)s)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help=".safetensors file to write")
    options = parser.parse_args(argv)
    if options.images is not None and options.encoder is None:
        parser.error("--images needs --encoder SPEC; list specs with `clipconformity encoders`.")
    try:
        run(options)
    except Exception as error:  # Ray gives what a worker raised in an error of its own
        parser.error(explain(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
