"""Sources of image files, each decoded once, for one encoder or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import tee
from pathlib import Path
from typing import TypeAlias, TypeVar

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipconformity.data.folders import ImageFolder
from clipconformity.data.images import open_image
from clipconformity.encoders import BaseEncoder, Encoder
from clipconformity.encoders.inputs import join_inputs
from clipconformity.evaluation.sources import EncodedBatch, Source, encode_batches, refuse_single
from clipconformity.provenance import Provenance

T = TypeVar("T")
Files: TypeAlias = "Sequence[tuple[Path, str]]"
"""Image files and their names."""
Failed: TypeAlias = "list[tuple[str, str]]"
"""Names of the files that could not be read, with the reason."""


def image_source(
    paths: Sequence[Path] | ImageFolder,
    encoder: Encoder,
    *,
    root: Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    skip_errors: bool = False,
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

    Raises:
        ValueError: While reading, if a file is not an image or truncated; names the file.
    """
    return image_sources(paths, [encoder], root=root, batch_size=batch_size, workers=workers, skip_errors=skip_errors)[
        0
    ]


def image_sources(
    paths: Sequence[Path] | ImageFolder,
    encoders: Sequence[Encoder],
    *,
    root: Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    skip_errors: bool = False,
) -> list[Source]:
    """Encode image files with several encoders, each file read and decoded once; arguments as of :func:`image_source`.

    Read the sources in step, as ``build_references`` does: batches that one is ahead of the others are held.

    Returns:
        A source for each encoder.
    """
    files = name_images(paths, root)
    sources = open_unread_images(paths, encoders, len(files))
    encoded = encode_images(files, encoders, batch_size, workers, range(-(-len(files) // batch_size)))
    for number, (source, stream) in enumerate(zip(sources, tee(encoded, len(sources)), strict=True)):
        source.batches = encode_batches(source, stream, number, skip_errors=skip_errors)
    return sources


def open_unread_images(paths: Sequence[Path] | ImageFolder, encoders: Sequence[Encoder], count: int) -> list[Source]:
    """Give the sources of so many images, one for each encoder, without their batches."""
    folder = paths if isinstance(paths, ImageFolder) else None
    missing = 0 if folder is None else len(folder.missing)
    return [
        Source(
            iter(()), count, Provenance.from_encoder(encoder, "image"), folder=folder, kind="images", missing=missing
        )
        for encoder in encoders
    ]


def encode_images(
    files: Files, encoders: Sequence[Encoder], batch_size: int, workers: int, numbers: Iterable[int]
) -> Iterator[EncodedBatch]:
    """Encode the batches of some numbers, in the order of these; the numbers may be asked for ahead."""
    wanted = [one for one in encoders if isinstance(one, BaseEncoder)]
    if len(wanted) == len(encoders):
        return _encode_preprocessed(files, wanted, batch_size, workers, numbers)
    return _encode_decoded(files, encoders, batch_size, numbers)


def name_images(paths: Sequence[Path] | ImageFolder, root: Path | None = None) -> Files:
    """Give each file its name; arguments as of :func:`image_source`."""
    return list(_name_files(paths, root))


def _name_files(paths: Sequence[Path] | ImageFolder, root: Path | None) -> Iterator[tuple[Path, str]]:
    """Name each file."""
    if isinstance(paths, ImageFolder):
        yield from zip(paths.paths, paths.ids, strict=True)
        return
    refuse_single(paths)
    listed = [Path(path) for path in paths]
    root = _find_common_folder(listed) if root is None else root
    yield from ((path, str(path.relative_to(root))) for path in listed)


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
    files: Files, encoders: Sequence[BaseEncoder], batch_size: int, workers: int, numbers: Iterable[int]
) -> Iterator[EncodedBatch]:
    """Encode images that other processes may decode ahead."""
    pin = any(encoder.device.type == "cuda" for encoder in encoders)
    batches = _ImageBatches(files, encoders, batch_size)
    for inputs, ids, failed in DataLoader(
        batches, batch_size=None, sampler=numbers, num_workers=workers, pin_memory=pin
    ):
        # None where no file could be read.
        found = [one.project_image(own) for one, own in zip(encoders, inputs, strict=bool(ids))]
        yield EncodedBatch(found, ids, failed)


def _encode_decoded(
    files: Files, encoders: Sequence[Encoder], batch_size: int, numbers: Iterable[int]
) -> Iterator[EncodedBatch]:
    """Encode images with encoders that take them as they are."""
    for number in numbers:
        images, ids, failed = _open_images(files[number * batch_size : (number + 1) * batch_size], lambda image: image)
        yield EncodedBatch([encoder(images) for encoder in encoders] if ids else [], ids, failed)


def _find_common_folder(paths: Sequence[Path]) -> Path:
    """Find the folder that all files are in."""
    return Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
