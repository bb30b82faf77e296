"""Sources of image files, each decoded once, for one encoder or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import tee
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipconformity.data.folders import ImageFolder
from clipconformity.data.images import open_image
from clipconformity.encoders import BaseEncoder, Encoder
from clipconformity.encoders.inputs import join_inputs
from clipconformity.evaluation.sources import Source, SourceBatch, list_paths
from clipconformity.provenance import Provenance

T = TypeVar("T")
Files: TypeAlias = "Sequence[tuple[Path, str]]"
"""Image files and their names."""
Failed: TypeAlias = "list[tuple[str, str]]"
"""Names of the files that could not be read, with the reason."""


class _Encoded(NamedTuple):
    """A batch of files."""

    embeddings: list[Tensor]
    """Embeddings of each encoder; empty where no file could be read."""
    ids: list[str]
    failed: Failed


def image_source(
    paths: Sequence[Path] | ImageFolder,
    encoder: Encoder,
    *,
    root: Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    skip_errors: bool = False,
    start: int = 0,
) -> Source:
    """Encode image files.

    Args:
        paths: The files, in order; or the result of ``survey_images`` or ``read_image_list``, whose findings are then
            among the remarks.
        encoder: An encoder of ``load_encoder``, or any other.
        root: Folder that ids are relative to; by default the common folder of the files, so that the same images have
            the same ids in any place. A folder or a list has its own ids.
        batch_size: Images encoded at once.
        workers: Worker processes that decode and resize for a model of ``load_encoder``; 0 uses this process.
        skip_errors: Leave out files that cannot be read and list them in ``skipped``, instead of raising.
        start: Index of the first file to be encoded.

    Raises:
        ValueError: While reading, if a file is not an image or truncated; names the file.
    """
    return image_sources(
        paths, [encoder], root=root, batch_size=batch_size, workers=workers, skip_errors=skip_errors, start=start
    )[0]


def image_sources(
    paths: Sequence[Path] | ImageFolder,
    encoders: Sequence[Encoder],
    *,
    root: Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    skip_errors: bool = False,
    start: int = 0,
) -> list[Source]:
    """Encode image files with several encoders, each file read and decoded once; arguments as of :func:`image_source`.

    Read the sources in step, as ``build_references`` does: batches that one is ahead of the others are held.

    Returns:
        A source for each encoder.
    """
    folder = paths if isinstance(paths, ImageFolder) else None
    files = list(_name_files(paths, root))[start:]
    wanted = [one for one in encoders if isinstance(one, BaseEncoder)]
    if len(wanted) == len(encoders):
        encoded = _encode_preprocessed(files, wanted, batch_size, workers)
    else:
        encoded = _encode_decoded(files, encoders, batch_size)
    return [
        _make_source(stream, number, encoder, len(files), folder, skip_errors)
        for number, (encoder, stream) in enumerate(zip(encoders, tee(encoded, len(encoders)), strict=True))
    ]


def _name_files(paths: Sequence[Path] | ImageFolder, root: Path | None) -> Iterator[tuple[Path, str]]:
    """Name each file."""
    if isinstance(paths, ImageFolder):
        yield from zip(paths.paths, paths.ids, strict=True)
        return
    listed = list_paths(paths)
    root = _find_common_folder(listed) if root is None else root
    yield from ((path, str(path.relative_to(root))) for path in listed)


def _make_source(
    encoded: Iterator[_Encoded],
    number: int,
    encoder: Encoder,
    count: int,
    folder: ImageFolder | None,
    skip_errors: bool,
) -> Source:
    """Make the source of one of the encoders."""
    skipped: list[dict[str, str]] = []

    def batches() -> Iterator[SourceBatch]:
        for embeddings, ids, failed in encoded:
            if failed and not skip_errors:
                raise ValueError(failed[0][1])
            skipped.extend({"id": name, "reason": reason} for name, reason in failed)
            if ids:
                yield SourceBatch(embeddings[number], ids)

    missing = 0 if folder is None else len(folder.missing)
    provenance = Provenance.from_encoder(encoder, "image")
    return Source(batches(), count, provenance, skipped=skipped, folder=folder, kind="images", missing=missing)


def _open_images(files: Files, take: Callable[[Image.Image], T]) -> tuple[list[T], list[str], Failed]:
    """Open and convert images; return the results, names, and unreadable files with the reason."""
    taken, ids, failed = [], [], []
    for path, name in files:
        try:
            taken.append(take(open_image(path)))
            ids.append(name)
        except (OSError, ValueError) as error:
            failed.append((name, str(error)))
    return taken, ids, failed


class _ImageBatches(Dataset[tuple[list[dict[str, Tensor]], list[str], Failed]]):
    """Batches of files, decoded and preprocessed for each encoder: inputs, names, and unreadable files."""

    def __init__(self, files: Files, encoders: Sequence[BaseEncoder], batch_size: int) -> None:
        self.files, self.batch_size = files, batch_size
        self.preprocess = [encoder.preprocess_images for encoder in encoders]

    def __len__(self) -> int:
        return -(-len(self.files) // self.batch_size)

    def __getitem__(self, number: int) -> tuple[list[dict[str, Tensor]], list[str], Failed]:
        part = self.files[number * self.batch_size : (number + 1) * self.batch_size]
        # One at a time: decoded images are large.
        inputs, ids, failed = _open_images(part, lambda image: [preprocess([image]) for preprocess in self.preprocess])
        return [join_inputs(of_one) for of_one in zip(*inputs, strict=True)], ids, failed


def _encode_preprocessed(
    files: Files, encoders: Sequence[BaseEncoder], batch_size: int, workers: int
) -> Iterator[_Encoded]:
    """Encode images that worker processes may decode ahead."""
    pin = any(encoder.device.type == "cuda" for encoder in encoders)
    batches = _ImageBatches(files, encoders, batch_size)
    for inputs, ids, failed in DataLoader(batches, batch_size=None, num_workers=workers, pin_memory=pin):
        # Empty where no file could be read.
        yield _Encoded([one.project_image(own) for one, own in zip(encoders, inputs, strict=bool(ids))], ids, failed)


def _encode_decoded(files: Files, encoders: Sequence[Encoder], batch_size: int) -> Iterator[_Encoded]:
    """Encode images with encoders that preprocess them by themselves."""
    for start in range(0, len(files), batch_size):
        images, ids, failed = _open_images(files[start : start + batch_size], lambda image: image)
        yield _Encoded([encoder(images) for encoder in encoders] if ids else [], ids, failed)


def _find_common_folder(paths: Sequence[Path]) -> Path:
    """Find the folder that all files are in."""
    return Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
