"""Stored embeddings: of an interrupted run beside its output, and in a cache folder for runs with the same samples."""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipconformity.data.locks import FOLDER_SUFFIX, LOCK_NAME, Lock, Workplace, try_lock
from clipconformity.data.strict_json import to_json

if TYPE_CHECKING:
    from clipconformity.encoders import Encoder
    from clipconformity.evaluation import Source
    from clipconformity.evaluation.sources import SourceBatch

INTERVAL = 30.0
"""Largest time of encoding, in seconds, that is lost when the process is killed."""
FORMAT = "clipconformity-part"
_NAME = re.compile(r"\d{9}\.safetensors")


class Parts:
    """The folder ``OUTPUT.parts`` of a command that encodes; it is removed when the command is done.

    A part holds whole batches with their origin: the encoder, the batch size, and of each sample its name and content,
    or of an image file its size and time. Resumed embeddings are therefore bit for bit those that would be computed
    again; changed samples, and all after them, are encoded again.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(output.name + ".parts")
        self._lock: Lock | None = None

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._lock is None:
            return
        if kind is None:
            Workplace(self.folder, self._lock).remove()
            return
        self._lock.release()
        with suppress(OSError):  # it is empty
            self.folder.rmdir()
        if self.folder.exists():
            warnings.warn(
                f"the embeddings so far are kept in {self.folder}; run the same command to continue.", stacklevel=2
            )

    def make_source(
        self, encoder: Encoder, samples: Sequence[str], settings: Sequence[object], rest: Callable[[int], Source]
    ) -> Source:
        """Return a source of all samples: those stored here first, then newly encoded ones, which are stored here.

        Args:
            encoder: The encoder.
            samples: What identifies each sample.
            settings: Other settings that embeddings depend on.
            rest: Opens the source of the samples from an index on.
        """
        if not self._enter():
            return rest(0)
        about = _describe_settings(encoder, settings)
        stored = list(self._read_stored(about, samples))
        done = stored[-1][0]["end"] if stored else 0
        source = rest(done)
        if done:
            warnings.warn(
                f"{done} of {len(samples)} samples are read from {self.folder}, where an earlier run stored them.",
                stacklevel=2,
            )
            source.skipped[:0] = [one for header, _ in stored for one in header["skipped"]]
            _add_truncated(source, sum(header["truncated"] for header, _ in stored))
            source.count = len(samples)
        old = (batch for _, batches in stored for batch in batches)
        source.batches = chain(old, self._store_parts(source, source.batches, about, samples, done))
        return source

    def _enter(self) -> bool:
        """Lock the folder, unless another run has it or it holds other files."""
        with suppress(FileExistsError):
            self.folder.mkdir()
        if not self.folder.is_dir():
            return False
        for path in self.folder.iterdir():
            if not (_NAME.fullmatch(path.name) or path.name == LOCK_NAME or path.name.endswith(FOLDER_SUFFIX)):
                return False
        with suppress(OSError):
            self._lock = try_lock(self.folder / LOCK_NAME)
        return self._lock is not None

    def _read_stored(
        self, about: dict[str, Any], samples: Sequence[str]
    ) -> Iterator[tuple[dict[str, Any], list[SourceBatch]]]:
        """Read the parts from the first sample on, as long as they are of these samples; remove the others."""
        done = 0
        while (found := _read(self._path(done), about, samples, done)) is not None:
            done = found[0]["end"]
            yield found
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name) and int(path.stem) >= done:
                path.unlink()

    def _store_parts(
        self,
        source: Source,
        batches: Iterator[SourceBatch],
        about: dict[str, Any],
        samples: Sequence[str],
        done: int,
    ) -> Iterator[SourceBatch]:
        """Store the batches that come, at intervals."""
        skipped, cut = len(source.skipped), source.encoder.truncated if source.encoder else 0
        waiting: list[SourceBatch] = []
        since = time.monotonic()
        for batch in batches:
            waiting.append(batch)
            if time.monotonic() - since >= INTERVAL:
                new, now = source.skipped[skipped:], source.encoder.truncated if source.encoder else 0
                end = done + sum(len(one.ids) for one in waiting) + len(new)
                header = {"start": done, "end": end, "samples": _hash_samples(samples[done:end])}
                _write(self._path(done), waiting, about | header | {"skipped": new, "truncated": now - cut})
                done, skipped, cut, waiting = end, skipped + len(new), now, []
                since = time.monotonic()
            yield batch

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:09d}.safetensors"


class Cache:
    """A folder of embeddings, reused by every run with the same samples, encoder and settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make_source(
        self, encoder: Encoder, samples: Sequence[str], settings: Sequence[object], rest: Callable[[int], Source]
    ) -> Source:
        """Return a source of all samples: the stored ones, else newly encoded ones, which are then stored."""
        about, source = _describe_settings(encoder, settings), rest(0)
        path = self.folder / f"{_hash_samples([to_json(about), *samples])}.safetensors"
        found = _read(path, about, samples)
        if found is None:
            source.batches = self._store_all(path, source, source.batches, about, samples)
            return source
        header, batches = found
        source.skipped[:] = header["skipped"]
        _add_truncated(source, header["truncated"])
        source.batches = iter(batches)
        return source

    def _store_all(
        self, path: Path, source: Source, batches: Iterator[SourceBatch], about: dict[str, Any], samples: Sequence[str]
    ) -> Iterator[SourceBatch]:
        """Store all batches after the last one."""
        cut, kept = source.encoder.truncated if source.encoder else 0, []
        for batch in batches:
            kept.append(batch)
            yield batch
        if kept:
            self.folder.mkdir(parents=True, exist_ok=True)
            now = source.encoder.truncated if source.encoder else 0
            header = {"start": 0, "end": len(samples), "samples": _hash_samples(samples)}
            _write(path, kept, about | header | {"skipped": source.skipped, "truncated": now - cut})


def _add_truncated(source: Source, truncated: int) -> None:
    """Add to the number of texts that were cut when they were encoded."""
    if source.encoder is not None:
        source.encoder.truncated += truncated


def _describe_settings(encoder: Encoder, settings: Sequence[object]) -> dict[str, Any]:
    """Describe what embeddings depend on beside the samples."""
    return {"format": FORMAT, "encoder": encoder.id, "settings": [str(one) for one in settings]}


def _hash_samples(samples: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(samples).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _write(path: Path, batches: Sequence[SourceBatch], about: dict[str, Any]) -> None:
    import torch

    from clipconformity.data.files import write_tensors

    tensors = {"embeddings": torch.cat([batch.embeddings.cpu() for batch in batches])}
    groups = [None if batch.groups is None else list(batch.groups) for batch in batches]
    header = about | {"ids": [list(batch.ids) for batch in batches], "groups": groups}
    write_tensors(path, tensors, {"about": to_json(header)})


def _read(
    path: Path, about: dict[str, Any], samples: Sequence[str], first: int = 0
) -> tuple[dict[str, Any], list[SourceBatch]] | None:
    """Read the part that begins with a sample; None where it is missing, damaged or of other samples."""
    from safetensors import safe_open

    from clipconformity.evaluation.sources import SourceBatch

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["about"])
            embeddings = file.get_tensor("embeddings")
        start, end = header["start"], header["end"]
        same = all(header.get(name) == value for name, value in about.items()) and start == first < end
        if not same or header["samples"] != _hash_samples(samples[start:end]):
            return None
        sizes = [len(names) for names in header["ids"]]
        parts = zip(embeddings.split(sizes), header["ids"], header["groups"], strict=True)
        return header, [SourceBatch(*part) for part in parts]
    except Exception:  # a damaged file may fail in any way; it is computed again
        return None
