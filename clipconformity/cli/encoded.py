"""Samples that are encoded, in parts and in a folder for other runs: each part holds whole batches, bit for bit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, cast

from clipconformity import __version__
from clipconformity.cli.encoders import choose_image_settings
from clipconformity.cli.parts import PART, Job, Parts, cut, digest, read_key
from clipconformity.data.strict_json import to_json

if TYPE_CHECKING:
    from clipconformity.data import Captions, ImageFolder
    from clipconformity.encoders import BaseEncoder, Encoder
    from clipconformity.evaluation import Source
    from clipconformity.evaluation.sources import EncodedBatch
    from clipconformity.stream.state_file import StateKind

SAMPLES = 512
"""Of a part, or as many as fill whole batches: what a kill costs at most, of each process."""
MOST = 4096
"""Parts of a job; of more samples they are larger."""
FORMAT = "clipconformity-part"
Encoded = list["EncodedBatch"]


@dataclass(frozen=True)
class Encoding:
    """Samples and how they are encoded.

    Attributes:
        encoders: Each of which encodes all samples.
        samples: For each sample what identifies it.
        settings: What else embeddings depend on.
        batch_size: Samples encoded at once.
        encode: Encodes the batches of some numbers, which may be asked for ahead.
        skip_errors: Whether samples that cannot be read are left out.
    """

    encoders: Sequence[Encoder]
    samples: Sequence[str]
    settings: Sequence[object]
    batch_size: int
    encode: Callable[[Iterable[int]], Iterator[EncodedBatch]]
    skip_errors: bool = False

    @property
    def about(self) -> str:
        """What embeddings depend on beside the samples."""
        ids = [dict(encoder.id) for encoder in self.encoders]
        return digest(FORMAT, __version__, ids, [str(one) for one in (*self.settings, self.batch_size)])

    def job(self) -> Job[Encoded]:
        """Cut it into parts."""
        size = self.batch_size * max(1, SAMPLES // self.batch_size)
        spans = cut(len(self.samples), size, MOST)
        return Job(
            keys=[digest(self.about, *self.samples[start:stop]) for start, stop in spans],
            sizes=[stop - start for start, stop in spans],
            make=lambda numbers, advance: self._make(spans, numbers, advance),
            write=write_encoded,
            read=read_encoded,
            alike={"encoder": str([dict(encoder.id) for encoder in self.encoders])},
        )

    def _make(
        self, spans: Sequence[tuple[int, int]], numbers: Iterable[int], advance: Callable[[int], None]
    ) -> Iterator[Encoded]:
        """Encode parts: one stream of batches for all of them, so that images are decoded ahead over their ends."""
        waiting: list[int] = []

        def batches() -> Iterator[int]:
            for number in numbers:
                start, stop = spans[number]
                own = range(start // self.batch_size, -(-stop // self.batch_size))
                waiting.append(len(own))
                yield from own

        found: Encoded = []
        for batch in self.encode(batches()):
            if batch.failed and not self.skip_errors:
                raise ValueError(batch.failed[0][1])
            if batch.truncated:  # they count where the part is given, whichever process made it
                cast("BaseEncoder", self.encoders[0]).truncated -= batch.truncated
            found.append(batch)
            advance(len(batch.ids) + len(batch.failed))
            if len(found) == waiting[0]:
                yield found
                found = []
                del waiting[0]


def read_in_parts(parts: Parts, encoding: Encoding, sources: Sequence[Source]) -> None:
    """Give the source of each encoder its batches: those of parts that are finished, and those that are encoded now."""
    _give(sources, _batches(parts, encoding), encoding.skip_errors)


def _batches(parts: Parts, encoding: Encoding) -> Iterator[EncodedBatch]:
    """Give the batches of all parts, which are to be made."""
    made = parts.run(encoding.job())
    return (batch for part in made for batch in part)


def _give(sources: Sequence[Source], batches: Iterator[EncodedBatch], skip_errors: bool) -> None:
    from clipconformity.evaluation.sources import encode_batches

    counts = sources[0].encoder

    def counted() -> Iterator[EncodedBatch]:
        """Count the texts that were cut, whenever, and by whichever process they were encoded."""
        for batch in batches:
            if counts is not None:
                counts.truncated += batch.truncated
            yield batch

    for number, (source, stream) in enumerate(zip(sources, tee(counted(), len(sources)), strict=True)):
        source.batches = encode_batches(source, stream, number, skip_errors=skip_errors)
        source.progress = _ignore_progress


def _ignore_progress(count: int) -> None:
    """Show nothing: the parts have the bar."""


def read_images_in_parts(
    options: argparse.Namespace,
    parts: Parts,
    images: ImageFolder | Sequence[Path],
    encoders: Sequence[Encoder],
    *,
    root: Path | None = None,
    cache: Cache | None = None,
) -> list[Source]:
    """Open images as a source for each encoder, each file decoded once; what is encoded is kept in parts."""
    from clipconformity.evaluation.images import encode_images, name_images, open_unread_images

    files = name_images(images, root)
    settings = choose_image_settings(options, len(files))
    sources = open_unread_images(images, encoders, len(files))

    def encode(numbers: Iterable[int]) -> Iterator[EncodedBatch]:
        return encode_images(files, encoders, settings["batch_size"], settings["workers"], numbers)

    identities = [_identify_image(path, name) for path, name in files]
    encoding = Encoding(encoders, identities, ("image",), options.batch_size, encode, settings["skip_errors"])
    if cache is None:
        read_in_parts(parts, encoding, sources)
    else:
        cache.read(encoding, sources[0])
    return sources


def read_captions_in_parts(
    options: argparse.Namespace, parts: Parts, captions: Captions, encoder: Encoder, cache: Cache | None = None
) -> Source:
    """Open captions as a source; what is encoded is kept in parts."""
    from clipconformity.evaluation.sources import encode_captions, open_unread_captions

    source = open_unread_captions(captions, encoder)
    groups = captions.groups or [""] * len(captions.ids)
    identities = [
        f"{name} {group} {text}" for name, group, text in zip(captions.ids, groups, captions.texts, strict=True)
    ]
    encode = partial(encode_captions, captions, encoder, options.batch_size)
    encoding = Encoding([encoder], identities, ("text",), options.batch_size, encode)
    if cache is None:
        read_in_parts(parts, encoding, [source])
    else:
        cache.read(encoding, source)
    return source


def _identify_image(path: Path, name: str) -> str:
    """Identify an image file without reading it."""
    found = path.stat()
    return f"{name} {found.st_size} {found.st_mtime_ns}"


class Cache:
    """A folder in which samples are kept encoded, for every run with the same samples, encoder and settings."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self.folder, self.parts = folder, parts

    def read(self, encoding: Encoding, source: Source) -> None:
        """Give a source its batches: those that lie here, else what is encoded and then kept."""
        key = digest(encoding.about, *encoding.samples)
        path = self.folder / f"{key}.safetensors"
        found = _read_kept(path, key)
        self.parts.agree(found is not None)
        batches = iter(found) if found is not None else self._keep(path, key, _batches(self.parts, encoding))
        _give([source], batches, encoding.skip_errors)

    def _keep(self, path: Path, key: str, batches: Iterator[EncodedBatch]) -> Iterator[EncodedBatch]:
        """Keep all, once the last has come."""
        kept: Encoded = []
        for batch in batches:
            kept.append(batch)
            yield batch
        if any(len(batch.ids) for batch in kept):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_encoded(path, kept, {PART: key})


def _read_kept(path: Path, key: str) -> Encoded | None:
    if read_key(path) != key:
        return None
    try:
        return read_encoded(path)
    except Exception:  # a damaged file makes its reader fail in any way; it is made anew
        return None


def _kind() -> StateKind:
    from clipconformity.stream.state_file import StateKind

    return StateKind(FORMAT, "part", "part", "a command that encodes makes it", "let the command make it again")


def write_encoded(path: Path, batches: Encoded, further: Mapping[str, str]) -> None:
    """Write batches with all that is known of them; whole or not at all."""
    import torch

    from clipconformity.stream.state_file import write_state

    several = max((len(batch.embeddings) for batch in batches), default=0)
    tensors = {
        f"embeddings-{number}": torch.cat([batch.embeddings[number].cpu() for batch in batches if batch.embeddings])
        for number in range(several)
    }
    header = [
        [list(batch.ids), batch.failed, None if batch.groups is None else list(batch.groups), batch.truncated]
        for batch in batches
    ]
    write_state(path, tensors, {"format": FORMAT, "batches": to_json(header)} | dict(further))


def read_encoded(path: Path) -> Encoded:
    """Read what :func:`write_encoded` wrote.

    Raises:
        ValueError: If it cannot be read, or its checksum does not fit.
    """
    from clipconformity.evaluation.sources import EncodedBatch
    from clipconformity.stream.state_file import check_whole, read_state

    tensors, metadata = read_state(path, _kind())
    check_whole(path, _kind(), tensors, metadata)
    header = json.loads(metadata["batches"])
    sizes = [len(ids) for ids, *_ in header]
    rows = [tensors[f"embeddings-{number}"].split(sizes) for number in range(len(tensors))]
    return [
        EncodedBatch([own[place] for own in rows] if ids else [], ids, [(a, b) for a, b in failed], groups, truncated)
        for place, (ids, failed, groups, truncated) in enumerate(header)
    ]
