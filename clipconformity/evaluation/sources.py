"""Sources of samples: files of embeddings, images and captions, as streams of raw embeddings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipconformity.data.captions import Captions
from clipconformity.data.embeddings import read_embeddings
from clipconformity.data.folders import ImageFolder
from clipconformity.data.images import open_image
from clipconformity.encoders import BaseEncoder, Encoder
from clipconformity.encoders.inputs import joined
from clipconformity.functional.validation import check_same_dim
from clipconformity.provenance import UNKNOWN, Provenance
from clipconformity.stream.alignment import Partners
from clipconformity.stream.moments import Moments
from clipconformity.stream.reference import ReferenceSet, reference_layout
from clipconformity.stream.row_sample import Labels

T = TypeVar("T")
ROWS = 4096
"""Rows of an embedding file streamed at once."""


_Encoded: TypeAlias = "tuple[Tensor | None, list[str], list[tuple[str, str]]]"
"""Embeddings, None where there are none; names; and the files that could not be read, with the reason."""


class SourceBatch(NamedTuple):
    """A batch from a source: raw embeddings, the rows' names, and their groups."""

    embeddings: Tensor
    ids: Sequence[str]
    groups: Labels | None = None
    placed: bool = False
    """Whether the names are the rows' places alone."""
    partners: Partners | None = None
    """What belongs to each row, of the other modality, where the samples are of pairs."""


@dataclass
class Source:
    """Samples to be measured, as a stream that is read once.

    Attributes:
        batches: The stream.
        count: Number of samples that will come, but for the skipped ones.
        provenance: Encoder and modality, as far as they are known.
        groups: Group ids of all samples, or None.
        skipped: What was left out and why, filled as the stream is read.
        folder: What the folder of images holds, where the samples come from one.
        encoder: The encoder at work, if it counts the texts that it cuts.
        paired: Whether each sample has partners of the other modality; see ``paired_source``.
        with_references: Whether each has reference captions.
        partner_of: The id of each sample's first partner, filled as the stream is read.
        quiet: Show no progress.
    """

    batches: Iterator[SourceBatch]
    count: int
    provenance: Provenance = UNKNOWN
    groups: Labels | None = None
    skipped: list[dict[str, str]] = field(default_factory=list)
    encoder: BaseEncoder | None = None
    folder: ImageFolder | None = None
    paired: bool = False
    with_references: bool = False
    partner_of: dict[str, str] = field(default_factory=dict)
    quiet: bool = False

    @property
    def remarks(self) -> dict[str, Any]:
        """What was found, left out or cut, once the stream is read."""
        found: dict[str, Any] = {} if self.folder is None else {"folder": self.folder.describe()}
        if self.skipped:
            found["skipped"] = {"count": len(self.skipped), "files": self.skipped}
        if self.encoder is not None and self.encoder.truncated:
            found["truncated"] = self.encoder.truncated
        return found

    @property
    def nothing_read(self) -> str:
        """What to say where no sample came."""
        return f"no sample could be read: {len(self.skipped)} of {self.count} were skipped."

    def __iter__(self) -> Iterator[SourceBatch]:
        """Read the stream, with rate and time left on standard error where that is a terminal."""
        from tqdm import tqdm

        with tqdm(total=self.count, unit="sample", file=sys.stderr, disable=True if self.quiet else None) as bar:
            for batch in self.batches:
                yield batch
                bar.update(len(batch.ids))


def embedding_source(paths: Sequence[Path], *, spec: str | None = None, modality: str | None = None) -> Source:
    """Read raw embeddings from files, which may say what they are; what is told must agree.

    Raises:
        ValueError: If a file cannot be read, or files and arguments disagree.
    """
    files = [read_embeddings(path) for path in _listed(paths)]
    known = [file.groups for file in files if file.groups is not None]
    if known and len(known) < len(files):
        raise ValueError("embeddings: some files have groups and some have none; give them for all or for none.")
    origins = [file.provenance for file in files]
    Provenance.agreed(origins, "the files")
    provenance = Provenance.agreed([Provenance(spec, None, modality), *origins], "the options and the files")

    def batches() -> Iterator[SourceBatch]:
        for file in files:
            for start in range(0, len(file.embeddings), ROWS):
                rows = slice(start, start + ROWS)
                groups = None if file.groups is None else file.groups[rows]
                yield SourceBatch(file.embeddings[rows], file.ids[rows], groups, placed=not file.named)

    return Source(
        batches(),
        sum(len(file.embeddings) for file in files),
        provenance,
        torch.cat(known) if known else None,
    )


def _listed(paths: Sequence[Path]) -> list[Path]:
    """Refuse a single path, whose letters would be taken for files."""
    if isinstance(paths, str | Path):
        raise TypeError(
            f"paths: expected a list of files, got {str(paths)!r}; give it in a list, or list_images(folder)."
        )
    return [Path(path) for path in paths]


def check_source(source: object) -> None:
    """Refuse what is no source.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(source, Source):
        raise TypeError(
            f"source: expected a Source, got {type(source).__name__}; make one with embedding_source, image_source or "
            "caption_source."
        )


def _opened(
    paths: Sequence[Path], root: Path, take: Callable[[Image.Image], T]
) -> tuple[list[T], list[str], list[tuple[str, str]]]:
    """Open images and take what is wanted of each; names, and the files that could not be read, with the reason."""
    taken, ids, failed = [], [], []
    for path in paths:
        name = str(path.relative_to(root))
        try:
            taken.append(take(open_image(path)))
            ids.append(name)
        except (OSError, ValueError) as error:
            failed.append((name, str(error)))
    return taken, ids, failed


class _ImageBatches(Dataset[tuple[dict[str, Tensor], list[str], list[tuple[str, str]]]]):
    """Batches of files, decoded and preprocessed: inputs, names, and the files that could not be read."""

    def __init__(self, paths: Sequence[Path], encoder: BaseEncoder, root: Path, batch_size: int) -> None:
        self.paths, self.root, self.batch_size = paths, root, batch_size
        self.preprocess = encoder.preprocess_images

    def __len__(self) -> int:
        return -(-len(self.paths) // self.batch_size)

    def __getitem__(self, number: int) -> tuple[dict[str, Tensor], list[str], list[tuple[str, str]]]:
        part = self.paths[number * self.batch_size : (number + 1) * self.batch_size]
        # One at a time: decoded images are large.
        inputs, ids, failed = _opened(part, self.root, lambda image: self.preprocess([image]))
        return (joined(inputs) if inputs else {}), ids, failed


def image_source(
    paths: Sequence[Path],
    encoder: Encoder,
    *,
    root: Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    skip_errors: bool = False,
    folder: ImageFolder | None = None,
) -> Source:
    """Encode image files.

    Args:
        paths: The files, in order.
        encoder: Turns them into embeddings: one of ``load_encoder``, or any other.
        root: Folder that ids are relative to; by default the one that all of the files are in, so that the same images
            have the same ids wherever they lie.
        batch_size: Images encoded at once.
        workers: Processes that decode and resize ahead of a model of ``load_encoder``; 0 does it in this one.
        skip_errors: Leave out files that cannot be read and list them in ``skipped``, instead of raising.
        folder: What else there is in the folder that they were found in, to be told among the remarks.

    Raises:
        ValueError: While reading, if a file is no image or truncated; names the file.
    """
    paths = _listed(paths)
    skipped: list[dict[str, str]] = []
    root = _common_folder(paths) if root is None else root
    encoded = (
        _preprocessed(paths, encoder, root, batch_size, workers)
        if isinstance(encoder, BaseEncoder)
        else _one_by_one(paths, encoder, root, batch_size)
    )

    def batches() -> Iterator[SourceBatch]:
        for embeddings, ids, failed in encoded:
            if failed and not skip_errors:
                raise ValueError(failed[0][1])
            skipped.extend({"id": name, "reason": reason} for name, reason in failed)
            if embeddings is not None:
                yield SourceBatch(embeddings, ids)

    return Source(batches(), len(paths), Provenance.of(encoder, "image"), skipped=skipped, folder=folder)


def _preprocessed(
    paths: Sequence[Path], encoder: BaseEncoder, root: Path, batch_size: int, workers: int
) -> Iterator[_Encoded]:
    """Encode images that other processes may decode ahead."""
    pin = encoder.device.type == "cuda"
    batches = _ImageBatches(paths, encoder, root, batch_size)
    for inputs, ids, failed in DataLoader(batches, batch_size=None, num_workers=workers, pin_memory=pin):
        yield (encoder.project_image(inputs) if ids else None), ids, failed


def _one_by_one(paths: Sequence[Path], encoder: Encoder, root: Path, batch_size: int) -> Iterator[_Encoded]:
    """Encode images with an encoder that takes them as they are."""
    for start in range(0, len(paths), batch_size):
        images, ids, failed = _opened(paths[start : start + batch_size], root, lambda image: image)
        yield (encoder(images) if ids else None), ids, failed


def _common_folder(paths: Sequence[Path]) -> Path:
    """Give the folder that all files are in."""
    return Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()


def caption_source(captions: Captions, encoder: Encoder, *, batch_size: int = 256) -> Source:
    """Encode captions; those of one image form a group."""

    def batches() -> Iterator[SourceBatch]:
        for start in range(0, len(captions.texts), batch_size):
            rows = slice(start, start + batch_size)
            groups: Any = None if captions.groups is None else captions.groups[rows]
            texts = captions.texts[rows]
            embeddings = encoder.encode_text(texts) if isinstance(encoder, BaseEncoder) else encoder(texts)
            yield SourceBatch(embeddings, captions.ids[rows], groups)

    provenance, counts = Provenance.of(encoder, "text"), encoder if isinstance(encoder, BaseEncoder) else None
    return Source(batches(), len(captions.texts), provenance, captions.groups, encoder=counts)


def build_reference(
    source: Source, *, dataset: str | None = None, max_samples: int = 10_000, allow_normalized: bool = False
) -> ReferenceSet:
    """Build a reference set from a source; arguments and errors as of ``ReferenceSet.fit``."""
    check_source(source)
    moments: Moments | None = None
    for batch in source:
        if moments is None:
            moments = Moments(reference_layout(batch.embeddings.shape[1], max_samples))
        check_same_dim(batch.embeddings, moments.layout.dim, "a later batch", "the first")
        moments.update(batch.embeddings.cpu(), batch.groups, batch.ids, placed=batch.placed)
    if moments is None:
        raise ValueError(source.nothing_read)
    return ReferenceSet.from_moments(moments, source.provenance, dataset=dataset, allow_normalized=allow_normalized)
