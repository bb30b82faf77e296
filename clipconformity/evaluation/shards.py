"""Files of embeddings as a source: any number of them, a block of rows at a time, all of the rows or a part."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from clipconformity.data.addresses import Place
from clipconformity.data.embeddings import Columns, EmbeddingBlock, EmbeddingShard, open_embeddings
from clipconformity.data.layout import find_embeddings
from clipconformity.data.limits import RefusedError
from clipconformity.data.names import Names
from clipconformity.data.places import check_unchanged
from clipconformity.evaluation.sources import FileRows, Source, SourceBatch, refuse_single
from clipconformity.provenance import UNKNOWN, Provenance
from clipconformity.stream.checks import refuse_normalized
from clipconformity.stream.merging import Piece, find_missing_shares, parse_pieces, refuse_twice
from clipconformity.stream.row_sample import hash_labels

ROWS = 4096
"""Rows of a batch, also across files: the split of rows into files does not change figures by a single bit."""
MIN_ROWS = 16
"""Rows of norm 1 from which on a file counts as normalised while it is read; fewer may be by chance."""


def embedding_source(
    paths: Sequence[Place | str],
    *,
    spec: str | None = None,
    modality: str | None = None,
    column: str | None = None,
    ids: str | None = None,
    groups: str | None = None,
    skip_errors: bool = False,
) -> Source:
    """Read raw embeddings from files, which may describe themselves; given values must agree with that.

    Every header is checked before the first row is read. Of the rows a batch is held at a time.
    ``open_embedding_files`` takes the same arguments, and gives parts of the rows too.

    Args:
        paths: Files, folders and patterns, as in ``find_embeddings``: ``["img_emb/"]``, ``["shards/*.npy"]``,
            ``["s3://bucket/img_emb/"]``.
        spec: The encoder that made them.
        modality: ``"image"`` or ``"text"``; chooses from a folder of clip-retrieval with both.
        column: Name of the array or column of embeddings, where it is neither ``embeddings`` nor ``embedding``.
        ids: Name of the column of row names, where it is none of ``id``, ``image_path`` and ``url``.
        groups: Name of the column of groups, where it is not ``groups``.
        skip_errors: Leave out files that are empty or damaged, and list them in ``skipped``. Where damage shows only
            while rows are read, the rows before it are used.

    Raises:
        OSError: If a file does not exist, or a server does not give it.
        TypeError: If a file does not hold floating-point numbers.
        ValueError: If a file cannot be read, or files and arguments disagree; while reading, if one is damaged or,
            where ``allow_normalized`` of the source is not set, normalised.
        ImportError: If there are Parquet files and pyarrow is not installed, or what reads an address is not.
    """
    columns = Columns(column, ids, groups)
    return open_embedding_files(paths, columns, spec=spec, modality=modality, skip_errors=skip_errors).source()


def open_embedding_files(
    paths: Sequence[Place | str],
    columns: Columns,
    *,
    spec: str | None = None,
    modality: str | None = None,
    skip_errors: bool = False,
) -> OpenedFiles:
    """Read and check the headers of files of raw embeddings; arguments and errors as of :func:`embedding_source`."""
    refuse_single(paths)
    found = find_embeddings(paths, modality)
    skipped: list[dict[str, str]] = []
    named: list[tuple[str, EmbeddingShard]] = []
    for path, name in zip(found.paths, found.names, strict=True):
        try:
            named.append((name, open_embeddings(path, columns)))
        except (OSError, ValueError) as error:
            if not skip_errors or isinstance(error, (RefusedError, ConnectionError)):
                raise  # a file on a server that does not answer now is not damaged
            skipped.append({"id": str(path), "reason": str(error)})
    if not named:
        reason = (
            f"none of {len(skipped)} files could be read, such as {skipped[0]['reason']}" if skipped else "no files"
        )
        raise ValueError(f"embeddings: {reason}")
    shards = [shard for _, shard in named]
    _check_alike(shards)
    pieces = _check_pieces(shards)
    origins = [shard.provenance for shard in shards]
    Provenance.combine(origins, "the files")
    provenance = Provenance.combine([Provenance(spec, None, modality), *origins], "the options and the files")
    return OpenedFiles(shards, [name for name, _ in named], provenance, skip_errors, skipped, found.ignored, pieces)


@dataclass(frozen=True)
class OpenedFiles:
    """Files whose headers are read, with their rows numbered through.

    Attributes:
        shards: The files.
        names: What the rows of each are named by, where they have no ids.
        provenance: Encoder and modality, as far as they are known.
        skip_errors: Whether files that turn out to be damaged are left out.
        skipped: Files that were left out, and why.
        ignored: How many files of folders are no embeddings.
        pieces_of_files: The shares of samples that they say that they hold.
    """

    shards: Sequence[EmbeddingShard]
    names: Sequence[str]
    provenance: Provenance
    skip_errors: bool = False
    skipped: Sequence[dict[str, str]] = field(default_factory=list)
    ignored: int = 0
    pieces_of_files: Sequence[Piece] = ()

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(shard.count for shard in self.shards)

    def pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Cut some of the rows by file: number of the file, its first row, and the one behind the last."""
        ends = list(accumulate(shard.count for shard in self.shards))
        found = []
        number = bisect_right(ends, start)
        while start < stop:
            before = ends[number] - self.shards[number].count
            last = min(stop, ends[number])
            if last > start:
                found.append((number, start - before, last - before))
            start, number = last, number + 1
        return found

    def source(self, start: int = 0, stop: int | None = None) -> FileSource:
        """Give the rows as a source: all of them, or those from one to another."""
        stop = self.count if stop is None else stop
        files = [
            FileRows(name, str(shard.dtype).removeprefix("torch."))
            for name, shard in zip(self.names, self.shards, strict=True)
        ]
        skipped = list(self.skipped)
        source = FileSource(
            iter(()),
            stop - start,
            self.provenance,
            skipped=skipped,
            files=files,
            ignored=self.ignored,
            opened=self,
            first=start,
        )
        source.batches = _read_batches(source, self, self.pieces(start, stop))
        return source


@dataclass(repr=False)
class FileSource(Source):
    """Rows of files as a source, which can be read in parts too.

    Attributes:
        opened: The files.
        first: The first of their rows that it gives.
    """

    opened: OpenedFiles = field(default_factory=lambda: OpenedFiles([], [], UNKNOWN))
    first: int = 0

    def identify(self, number: int, begin: int, end: int) -> list[object]:
        """Tell rows of a file by its name, its size and time, those of its metadata, and their places."""
        stamps = self.opened.shards[number].stamps
        return [self.opened.names[number], [[stamp.size, stamp.version] for _, stamp in stamps], begin, end]


def _check_alike(shards: Sequence[EmbeddingShard]) -> None:
    """Refuse files that do not fit together, and warn of different types of values."""
    first = shards[0]
    for shard in shards:
        if shard.dim != first.dim:
            raise ValueError(
                f"{shard.path} has dimension {shard.dim} and {first.path} has dimension {first.dim}; all files must "
                "come from the same encoder."
            )
        if shard.grouped != first.grouped:
            with_groups, without = (shard, first) if shard.grouped else (first, shard)
            raise ValueError(
                f"embeddings: some files have groups and some have none: {with_groups.path} has and {without.path} has "
                "not; give them for all or for none."
            )
    other = next((shard for shard in shards if shard.dtype != first.dtype), None)
    if other is not None:
        mine, theirs = (str(one.dtype).removeprefix("torch.") for one in (first, other))
        warnings.warn(f"{other.path} holds {theirs}, and {first.path} {mine}: both are used as they are.", stacklevel=3)


def _check_pieces(shards: Sequence[EmbeddingShard]) -> list[Piece]:
    """Refuse files that hold the same share of some samples, and warn where shares are not there."""
    known: list[tuple[Place, tuple[Piece, ...]]] = []
    for shard in shards:
        if shard.made_of is None:
            continue
        try:
            pieces = parse_pieces(shard.made_of)
        except ValueError as error:
            raise ValueError(f"{shard.path}: damaged: {error}.") from None
        for path, others in known:
            try:
                refuse_twice(others, pieces)
            except ValueError as error:
                raise ValueError(f"embeddings: {path} and {shard.path}: {error}") from None
        known.append((shard.path, pieces))
    found = [piece for _, pieces in known for piece in pieces]
    for lacking in find_missing_shares(found):
        warnings.warn(lacking, stacklevel=4)
    return found


def _read_batches(source: Source, files: OpenedFiles, pieces: Sequence[tuple[int, int, int]]) -> Iterator[SourceBatch]:
    """Read the files one after the other, in batches that do not end where they end."""
    waiting: list[SourceBatch] = []
    for number, begin, end in pieces:
        file, shard = source.files[number], files.shards[number]
        if waiting and not _can_join(shard, waiting[-1]):
            yield _join_parts(waiting)
            waiting = []
        held = sum(len(batch.ids) for batch in waiting)
        try:
            for block in _blocks(shard, file.name, ROWS - held, begin, end):
                if not file.used and not begin and not source.allow_normalized:
                    _refuse_normalized(shard, block)
                file.used += len(block.ids)
                waiting.append(_make_batch(shard, block))
                held += len(block.ids)
                if held == ROWS:
                    yield _join_parts(waiting)
                    waiting, held = [], 0
        except _NormalizedError:
            raise
        except ValueError as error:
            if not files.skip_errors:
                raise
            file.damage = str(error)
            source.skipped.append(damaged(shard, file))
    if waiting:
        yield _join_parts(waiting)


def damaged(shard: EmbeddingShard, file: FileRows) -> dict[str, str]:
    """Tell of a file whose damage showed as its rows were read."""
    used = f" {file.used} of its rows are used." if file.used else ""
    return {"id": str(shard.path), "reason": f"{file.damage}{used}"}


def _blocks(shard: EmbeddingShard, name: str, first: int, begin: int, end: int) -> Iterator[EmbeddingBlock]:
    """Read the rows from one to another, of a file that stays the same."""
    place = begin
    for block in shard.blocks(ROWS, first, name, begin):
        wanted = min(end - place, len(block.ids))
        whole = wanted == len(block.ids)
        groups = None if block.groups is None else block.groups[:wanted]
        yield block if whole else EmbeddingBlock(block.embeddings[:wanted], block.ids[:wanted], groups)
        place += wanted
        if place == end and end < shard.count:
            break
    check_unchanged(shard.path, shard.stamps)


class _NormalizedError(ValueError):
    """A file is normalised, which is not damage."""


def _refuse_normalized(shard: EmbeddingShard, block: EmbeddingBlock) -> None:
    rows = len(block.embeddings)
    if rows >= MIN_ROWS:
        part = f", first {rows} rows" if rows < shard.count else ""
        try:
            refuse_normalized(block.embeddings, f"{shard.path}{part}")
        except ValueError as error:
            raise _NormalizedError(str(error)) from None


def _can_join(shard: EmbeddingShard, batch: SourceBatch) -> bool:
    """Whether rows of a file can be in one batch with these."""
    return shard.named != batch.placed and shard.dtype == batch.embeddings.dtype


def _make_batch(shard: EmbeddingShard, block: EmbeddingBlock) -> SourceBatch:
    groups = block.groups
    if groups is not None:
        groups = hash_labels(groups, len(block.ids), block.embeddings.device)
    return SourceBatch(block.embeddings, block.ids, groups, placed=not shard.named)


def _join_parts(batches: Sequence[SourceBatch]) -> SourceBatch:
    if len(batches) == 1:
        return batches[0]
    ids = Names()
    for batch in batches:
        ids.extend(batch.ids)
    groups = [batch.groups for batch in batches if isinstance(batch.groups, Tensor)]
    return SourceBatch(
        torch.cat([batch.embeddings for batch in batches]),
        ids,
        torch.cat(groups) if groups else None,
        placed=batches[0].placed,
    )
