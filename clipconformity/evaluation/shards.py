"""Files of embeddings as a source: any number of files, read in blocks of rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clipconformity.data.embeddings import Columns, EmbeddingBlock, EmbeddingShard, open_embeddings
from clipconformity.data.layout import find_embeddings
from clipconformity.data.limits import RefusedError
from clipconformity.data.names import Names
from clipconformity.evaluation.sources import FileRows, Source, SourceBatch, list_paths
from clipconformity.provenance import Provenance
from clipconformity.stream.checks import refuse_normalized
from clipconformity.stream.row_sample import hash_labels

ROWS = 4096
"""Rows of a batch, also across files: the split of rows into files does not change figures by a single bit."""
MIN_ROWS = 16
"""Rows of norm 1 from which on a file counts as normalised while it is read; fewer may be by chance."""


def embedding_source(
    paths: Sequence[Path | str],
    *,
    spec: str | None = None,
    modality: str | None = None,
    column: str | None = None,
    ids: str | None = None,
    groups: str | None = None,
    skip_errors: bool = False,
) -> Source:
    """Read raw embeddings from files, which may describe themselves; given values must agree with that.

    Every header is checked before the first row is read. One batch of rows is held at a time.

    Args:
        paths: Files, folders and patterns, as in ``find_embeddings``: ``["img_emb/"]``, ``["shards/*.npy"]``.
        spec: The encoder that made them.
        modality: ``"image"`` or ``"text"``; chooses from a folder of clip-retrieval with both.
        column: Name of the array or column of embeddings, where it is neither ``embeddings`` nor ``embedding``.
        ids: Name of the column of row names, where it is none of ``id``, ``image_path`` and ``url``.
        groups: Name of the column of groups, where it is not ``groups``.
        skip_errors: Leave out files that are empty or damaged, and list them in ``skipped``. Where damage shows only
            while rows are read, the rows before it are used.

    Raises:
        OSError: If a file does not exist.
        TypeError: If a file does not hold floating-point numbers.
        ValueError: If a file cannot be read, or files and arguments disagree; while reading, if one is damaged or,
            where ``allow_normalized`` of the source is not set, normalised.
        ImportError: If there are Parquet files and pyarrow is not installed.
    """
    found = find_embeddings(list_paths(paths), modality)
    skipped: list[dict[str, str]] = []
    named: list[tuple[str, EmbeddingShard]] = []
    for path, name in zip(found.paths, found.names, strict=True):
        try:
            named.append((name, open_embeddings(path, Columns(column, ids, groups))))
        except (OSError, ValueError) as error:
            if not skip_errors or isinstance(error, RefusedError):
                raise
            skipped.append({"id": str(path), "reason": str(error)})
    if not named:
        reason = (
            f"none of {len(skipped)} files could be read, such as {skipped[0]['reason']}" if skipped else "no files"
        )
        raise ValueError(f"embeddings: {reason}")
    shards = [shard for _, shard in named]
    _check_alike(shards)
    origins = [shard.provenance for shard in shards]
    Provenance.combine(origins, "the files")
    provenance = Provenance.combine([Provenance(spec, None, modality), *origins], "the options and the files")
    files = [FileRows(name, str(shard.dtype).removeprefix("torch.")) for name, shard in named]
    count = sum(shard.count for shard in shards)
    source = Source(iter(()), count, provenance, skipped=skipped, files=files, ignored=found.ignored)
    source.batches = _read_batches(source, shards, skip_errors)
    return source


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


def _read_batches(source: Source, shards: Sequence[EmbeddingShard], skip_errors: bool) -> Iterator[SourceBatch]:
    """Read the files one after the other, in batches that may span several files."""
    waiting: list[SourceBatch] = []
    for file, shard in zip(source.files, shards, strict=True):
        if waiting and not _can_join(shard, waiting[-1]):
            yield _join_parts(waiting)
            waiting = []
        held = sum(len(batch.ids) for batch in waiting)
        try:
            for block in shard.blocks(ROWS, ROWS - held, file.name):
                if not file.used and not source.allow_normalized:
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
            if not skip_errors:
                raise
            used = f" Its first {file.used} rows are used." if file.used else ""
            source.skipped.append({"id": str(shard.path), "reason": f"{error}{used}"})
    if waiting:
        yield _join_parts(waiting)


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
