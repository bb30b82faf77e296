"""Sources of samples: files of embeddings, images and captions, as streams of raw embeddings."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from clipconformity.data.addresses import RemotePath
from clipconformity.data.brief import format_brief
from clipconformity.data.captions import Captions
from clipconformity.data.folders import ImageFolder
from clipconformity.data.untrusted import format_value
from clipconformity.encoders import BaseEncoder, Encoder
from clipconformity.functional.validation import check_same_dim
from clipconformity.provenance import UNKNOWN, Provenance, hide_secrets
from clipconformity.stream.alignment import Partners
from clipconformity.stream.merging import Piece
from clipconformity.stream.moments import Moments
from clipconformity.stream.reference import ReferenceSet, reference_layout
from clipconformity.stream.row_sample import Labels

EXAMPLES = 5
"""Largest number of named captions and files, where all are counted."""
ROUNDING_REMARKS = {
    "float16": "each entry is rounded to 11 bits, 3 digits, and below 0.00006 to fewer",
    "bfloat16": "each entry is rounded to 8 bits, 2 digits",
}
"""Types of rounded embeddings, with their precision in words."""


class SourceBatch(NamedTuple):
    """A batch from a source: raw embeddings, the rows' names, and their groups."""

    embeddings: Tensor
    ids: Sequence[str]
    groups: Labels | None = None
    placed: bool = False
    """Whether the names are only row numbers."""
    partners: Partners | None = None
    """Partners of each row in the other modality, where the samples are pairs."""

    def __repr__(self) -> str:
        count, dim = self.embeddings.shape
        return format_brief(self, count=count, embed_dim=dim, first=self.ids[0] if count else None)


class EncodedBatch(NamedTuple):
    """What came of a batch of samples: the embeddings of each encoder, and what could not be read."""

    embeddings: list[Tensor]
    """None where no sample could be read."""
    ids: Sequence[str]
    failed: list[tuple[str, str]]
    """Names of the samples that could not be read, with the reason."""
    groups: Labels | None = None
    truncated: int = 0
    """Texts that the encoder cut."""


@dataclass
class FileRows:
    """A file of embeddings that a source reads.

    Attributes:
        name: Name of its rows without ids.
        dtype: The type of its values, such as ``"float32"``.
        used: How many of its rows have come.
        damage: What was wrong with it, as its rows were read.
    """

    name: str
    dtype: str
    used: int = 0
    damage: str | None = None


@dataclass
class Source:
    """Samples to be scored, as a stream that is read once.

    Attributes:
        batches: The stream of batches.
        count: Number of samples, including those that may be skipped.
        provenance: Encoder and modality, as far as they are known.
        groups: Group ids of all samples; None where they have none, or only the batches hold them.
        skipped: Samples that were left out, with the reason; filled as the stream is read.
        folder: Content of the folder of images, where the samples come from one.
        encoder: The encoder, if it counts the texts that it cuts.
        paired: Whether each sample has partners of the other modality; see ``paired_source``.
        with_references: Whether each has reference captions.
        partner_of: The id of each sample's first partner, filled as the stream is read.
        quiet: Show no progress.
        progress: Told of the samples of each batch, in place of a bar of its own.
        name: What they are read from, for messages.
        kind: What they are, for messages: images, captions or rows.
        missing: How many samples are named and are not there.
        unknown: Ids of the captions that the encoder's tokenizer does not know.
        beside: Sources of the other modality that are read with this one.
        files: The files of embeddings, where the samples come from such.
        ignored: How many files of folders are no embeddings.
        allow_normalized: Whether whoever reads it takes L2-normalised files; else the first of them is refused.
        made_of: The share of some samples that these are, where others have the rest.
        used: How many samples have come.
        seconds: That reading and encoding them took.
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
    progress: Callable[[int], None] | None = None
    name: str = "samples"
    kind: str = "rows"
    missing: int = 0
    unknown: Sequence[str] = ()
    beside: Sequence[Source] = ()
    files: Sequence[FileRows] = ()
    ignored: int = 0
    allow_normalized: bool = True
    made_of: Sequence[Piece] = ()
    used: int = 0
    seconds: float = 0.0

    def __repr__(self) -> str:
        origin = {"spec": self.provenance.spec, "modality": self.provenance.modality}
        return format_brief(self, name=self.name, kind=self.kind, count=self.count, used=self.used, **origin)

    @property
    def remarks(self) -> dict[str, Any]:
        """Samples that were found, left out or cut, after the stream was read."""
        found: dict[str, Any] = {} if self.folder is None else {"folder": self.folder.describe()}
        if self.skipped:
            found["skipped"] = {"count": len(self.skipped), "files": self.skipped}
        if self.encoder is not None and self.encoder.truncated:
            found["truncated"] = self.encoder.truncated
        if self.unknown:
            found["unknown_words"] = {"count": len(self.unknown), "examples": list(self.unknown[:EXAMPLES])}
        if len(self.files) > 1:
            found["files"] = {one.name: one.used for one in self.files}
        if rough := {one.dtype: ROUNDING_REMARKS[one.dtype] for one in self.files if one.dtype in ROUNDING_REMARKS}:
            found["rounded"] = rough
        return found

    @property
    def summary(self) -> str:
        """Summarise in a line what was found, used and ignored, after the stream was read."""
        line = f"{self.name}: {self.count} {self.kind} found, {self.used} used{self._by_file}"
        ignored = self.ignored if self.folder is None else self.folder.ignored
        for number, words in (
            (len(self.skipped), "files left out" if self.files else "left out"),
            (self.missing, "missing"),
            (ignored, "files and folders ignored"),
        ):
            line += f", {number} {words}" if number else ""
        return f"{line}."

    @property
    def _by_file(self) -> str:
        """Describe how many rows came from each of several files, and rounded values."""
        files = self.files
        rough = "".join(f", rounded to {name}" for name in ROUNDING_REMARKS if any(one.dtype == name for one in files))
        if len(files) < 2:
            return rough
        listed = [f"{one.name} {one.used}" for one in files[:EXAMPLES]]
        if len(files) > EXAMPLES:
            rest = sum(one.used for one in files[EXAMPLES:])
            listed.append(f"and {rest} of {len(files) - EXAMPLES} more")
        return f", of {len(files)} files ({', '.join(listed)}){rough}"

    @property
    def nothing_read(self) -> str:
        """Message for a stream without samples."""
        return f"no sample could be read: {len(self.skipped)} of {self.count} were skipped."

    def __iter__(self) -> Iterator[SourceBatch]:
        """Read the stream, with rate and time left on standard error where that is a terminal."""
        from tqdm import tqdm

        hidden = True if self.quiet or self.progress is not None else None
        with tqdm(total=self.count, unit="sample", file=sys.stderr, disable=hidden) as bar:
            since = time.monotonic()
            for batch in self.batches:
                self.seconds += time.monotonic() - since
                self.used += len(batch.ids)
                yield batch
                bar.update(len(batch.ids))
                if self.progress is not None:
                    self.progress(len(batch.ids))
                since = time.monotonic()
            self.seconds += time.monotonic() - since


def refuse_single(paths: object) -> None:
    """Refuse a single path, whose letters would be read as files.

    Raises:
        TypeError: If it is one.
    """
    if isinstance(paths, str | Path | RemotePath):
        raise TypeError(
            f"paths: expected a list of files, got {hide_secrets(str(paths))!r}; give it in a list, or "
            "list_images(folder), or read_image_list(file)."
        )


def check_source(source: object) -> None:
    """Refuse anything but a source.

    Raises:
        TypeError: If it is not a source.
    """
    if not isinstance(source, Source):
        raise TypeError(
            f"source: expected a Source, got {type(source).__name__}; make one with embedding_source, image_source or "
            "caption_source."
        )


def encode_batches(
    source: Source, encoded: Iterable[EncodedBatch], number: int = 0, *, skip_errors: bool = False
) -> Iterator[SourceBatch]:
    """Give what one of the encoders made as the batches of a source, which counts what was left out.

    Raises:
        ValueError: If a sample could not be read, and these are not to be left out.
    """
    for batch in encoded:
        if batch.failed and not skip_errors:
            raise ValueError(batch.failed[0][1])
        source.skipped.extend({"id": name, "reason": reason} for name, reason in batch.failed)
        if len(batch.ids):
            yield SourceBatch(batch.embeddings[number], batch.ids, batch.groups)


def caption_source(captions: Captions, encoder: Encoder, *, batch_size: int = 256) -> Source:
    """Encode captions; those of one image form a group.

    Captions in words that the encoder's tokenizer does not know give a warning, and are counted in the remarks; see
    :meth:`BaseEncoder.unknown_texts`.

    Args:
        captions: All captions.
        encoder: An encoder of ``load_encoder``, or any other.
        batch_size: Captions encoded at once.
    """
    source = open_unread_captions(captions, encoder)
    numbers = range(-(-len(captions.texts) // batch_size))
    source.batches = encode_batches(source, encode_captions(captions, encoder, batch_size, numbers))
    return source


def open_unread_captions(captions: Captions, encoder: Encoder) -> Source:
    """Give the source of captions without its batches; what the tokenizer does not know is looked for and warned of."""
    counts = encoder if isinstance(encoder, BaseEncoder) else None
    return Source(
        iter(()),
        len(captions.texts),
        Provenance.from_encoder(encoder, "text"),
        captions.groups,
        encoder=counts,
        kind="captions",
        unknown=[] if counts is None else _find_unknown(captions, counts),
    )


def encode_captions(
    captions: Captions, encoder: Encoder, batch_size: int, numbers: Iterable[int]
) -> Iterator[EncodedBatch]:
    """Encode the batches of some numbers, in the order of these."""
    for number in numbers:
        rows = slice(number * batch_size, (number + 1) * batch_size)
        groups: Any = None if captions.groups is None else captions.groups[rows]
        texts = captions.texts[rows]
        if isinstance(encoder, BaseEncoder):
            before = encoder.truncated
            embeddings = encoder.encode_text(texts)
            yield EncodedBatch([embeddings], captions.ids[rows], [], groups, encoder.truncated - before)
        else:
            yield EncodedBatch([encoder(texts)], captions.ids[rows], [], groups)


def _find_unknown(captions: Captions, encoder: BaseEncoder) -> list[str]:
    """Find the ids of the captions that the tokenizer does not know, and warn of them."""
    found = [captions.ids[number] for number in encoder.unknown_texts(captions.texts)]
    if found:
        warnings.warn(
            f"{len(found)} of {len(captions.texts)} captions are mostly of words that the tokenizer of {encoder.spec} "
            f"does not know, such as that with the id {format_value(found[0])}: what it makes of them says little. "
            "Is the encoder one for their language and script?",
            stacklevel=3,
        )
    return found


def build_reference(
    source: Source, *, dataset: str | None = None, max_samples: int = 10_000, allow_normalized: bool = False
) -> ReferenceSet:
    """Build a reference set from a source; arguments and errors as of ``ReferenceSet.fit``."""
    return build_references([source], dataset=dataset, max_samples=max_samples, allow_normalized=allow_normalized)[0]


def build_references(
    sources: Sequence[Source], *, dataset: str | None = None, max_samples: int = 10_000, allow_normalized: bool = False
) -> list[ReferenceSet]:
    """Build a reference set from each source, a batch of each in turn: :func:`image_sources` reads its files once.

    Args:
        sources: Sources with batches of the same samples.
        dataset: As in ``ReferenceSet.fit``, like the other arguments and the errors.
        max_samples: Kept rows of each source.
        allow_normalized: Take L2-normalised rows.
    """
    for source in sources:
        check_source(source)
        source.allow_normalized = allow_normalized
    found = []
    for source, moments in zip(sources, accumulate(sources, max_samples), strict=True):
        if moments is None:
            raise ValueError(sources[0].nothing_read)
        reference = ReferenceSet.from_moments(
            moments, source.provenance, dataset=dataset, allow_normalized=allow_normalized
        )
        reference.made_of = tuple(source.made_of)
        found.append(reference)
    return found


def accumulate(sources: Sequence[Source], max_samples: int) -> list[Moments | None]:
    """Accumulate what a reference of each source is made of, a batch of each in turn; None of a source without."""
    found: list[Moments | None] = [None] * len(sources)
    for batches in zip(*sources, strict=True):
        for number, batch in enumerate(batches):
            moments = found[number]
            if moments is None:
                moments = found[number] = Moments(reference_layout(batch.embeddings.shape[1], max_samples))
            check_same_dim(batch.embeddings, moments.layout.dim, "a later batch", "the first")
            moments.update(batch.embeddings.cpu(), batch.groups, batch.ids, placed=batch.placed)
    return found
