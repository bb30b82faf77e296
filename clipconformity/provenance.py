"""Provenance of a set of embeddings, and whether two sets can be compared."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

MODALITIES = ("image", "text")
DECISIVE = ("weights", "preprocessing")
"""Parts of an encoder's identity that must agree for a comparison; the others change only the last digits."""


OUTSIDE_PATH = re.compile(r"(?:^|(?<=[=:/]))(?:/|~[^/]*/|(?:[^/]+/)*?\.\.(?:/|$))")
"""Start of a path that leads out of the working directory: at the beginning, or behind ``--option=`` or ``hf:``."""
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)(\S*)")
"""An address in a text, also one that lost a slash as a path."""
_SHOWN_ADDRESS = re.compile(r"(?:^|=)(?!file:)[A-Za-z][A-Za-z0-9+.-]+://")
"""Start of an address that says nothing of this machine."""
_HOST = re.compile(r"(?:.*@)?(?:\[[^\]]*\]|[^:@]*)(?::\d*)?")


class Identified(Protocol):
    """An encoder's spec and identity."""

    @property
    def spec(self) -> str:
        """The spec, as ``load_encoder`` takes it."""

    @property
    def id(self) -> dict[str, str]:
        """What identifies the encoder: hash of the weights, preprocessing, precision, backend."""


@dataclass(frozen=True)
class Provenance:
    """Where embeddings come from; None stands for unknown.

    Attributes:
        spec: The encoder, as ``load_encoder`` takes it; of a folder elsewhere only its name, since files and reports
            are passed on and must not reveal the machine.
        encoder_id: Identity of the encoder: hash of its weights, preprocessing, precision, backend.
        modality: ``"image"`` or ``"text"``.

    Raises:
        ValueError: If the modality is invalid.
    """

    spec: str | None = None
    encoder_id: Mapping[str, str] | None = None
    modality: str | None = None

    def __post_init__(self) -> None:
        if self.modality not in (None, *MODALITIES):
            raise ValueError(f"modality: expected 'image', 'text' or None, got {self.modality!r}.")
        if self.spec is not None:
            object.__setattr__(self, "spec", shorten_paths(self.spec))

    @classmethod
    def from_encoder(cls, encoder: str | Identified | None, modality: str | None = None) -> Provenance:
        """Make the provenance of embeddings from their encoder, or its spec alone.

        Raises:
            TypeError: If it is neither.
        """
        if encoder is None or isinstance(encoder, str):
            return cls(encoder, None, modality)
        if not isinstance(getattr(encoder, "spec", None), str):
            raise TypeError(f"spec: expected an encoder or its spec in words, got {type(encoder).__name__}.")
        return cls(encoder.spec, dict(getattr(encoder, "id", {})) or None, modality)

    @classmethod
    def combine(cls, parts: Iterable[Provenance], what: str = "the files") -> Provenance:
        """Combine several descriptions of one set, which must agree.

        Raises:
            ValueError: If two of them disagree.
        """
        known = list(parts)
        found: dict[str, Any] = {}
        for name, words in (("spec", "encoder"), ("encoder_id", "encoder"), ("modality", "modality")):
            values = [value for part in known if (value := getattr(part, name)) is not None]
            if any(value != values[0] for value in values):
                raise ValueError(f"{words}: {what} disagree: {' and '.join(sorted({str(v) for v in values}))}.")
            found[name] = values[0] if values else None
        return cls(**found)

    def check(self, other: Provenance) -> list[str]:
        """Refuse samples that cannot be compared with this reference.

        Returns:
            Description of a minor difference, in precision or backend, which is also given as a warning.

        Raises:
            ValueError: If modality, weights or preprocessing differ; if only specs are known, if these differ.
        """
        if None not in (self.modality, other.modality) and self.modality != other.modality:
            raise ValueError(
                f"the samples are {other.modality} and the reference is {self.modality}: they lie in different "
                f"places, so conformity between them says nothing; give {_choose_article(other.modality)} reference."
            )
        if self.encoder_id is None or other.encoder_id is None:
            if None not in (self.spec, other.spec) and self.spec != other.spec:
                raise ValueError(
                    f"the samples come from encoder {other.spec!r} and the reference from {self.spec!r}; "
                    "encode both with the same one."
                )
            return []
        remarks = []
        # Decisive parts come first: no warning before an error, and weights say more than preprocessing.
        minor = sorted((set(self.encoder_id) | set(other.encoder_id)) - set(DECISIVE))
        for part in (*DECISIVE, *minor):
            mine, theirs = self.encoder_id.get(part), other.encoder_id.get(part)
            if mine == theirs:
                continue
            message = (
                f"{part} of the encoder: the reference ({self.spec}) has {mine}, the samples ({other.spec}) {theirs}"
            )
            if part in DECISIVE:
                raise ValueError(f"{message}; encode both with the same one.")
            warnings.warn(f"{message}; conformities may differ slightly.", stacklevel=3)
            remarks.append(message)
        return remarks

    def is_same_encoder(self, other: Provenance) -> bool:
        """Whether the two encoders agree in all that is known; the same weights may have two names."""
        mine, theirs = ((one.encoder_id or {}).get("weights") for one in (self, other))
        if None in (mine, theirs):
            mine, theirs = self.spec, other.spec
        return None in (mine, theirs) or mine == theirs

    def describe(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        encoder_id = None if self.encoder_id is None else dict(self.encoder_id)
        return {"spec": self.spec, "encoder_id": encoder_id, "modality": self.modality}


def hide_secrets(text: str) -> str:
    """Leave out of the addresses in a text what may be secret: user, password, and the query, which may be a signature.

    Example:
        >>> hide_secrets("--embeddings https://ann:pass@host/e.npy?X-Amz-Signature=1f")
        '--embeddings https://host/e.npy'
        >>> hide_secrets("s3://bucket/e?.npy"), hide_secrets("hf://ann/coco@v1/e.npy")
        ('s3://bucket/e?.npy', 'hf://ann/coco@v1/e.npy')
    """
    return _ADDRESS.sub(_hide_secrets, text)


def _hide_secrets(found: re.Match[str]) -> str:
    protocol, slashes, rest = found.groups()
    web = protocol.lower() in ("http", "https")
    shown, _, query = rest.partition("?")
    if not web and "=" not in query:  # of a pattern
        shown = rest
    host, slash, path = (shown.partition("#")[0] if web else shown).partition("/")
    if web and not _HOST.fullmatch(host):  # a slash in a password: the host comes later, or is unknown
        before, _, after = shown.rpartition("@")
        host, slash, path = after.partition("/") if before else ("...", "", "")
    return f"{protocol}:{slashes}{host.rpartition('@')[2]}{slash}{path}"


def shorten_paths(word: str, inside: Path | None = None) -> str:
    """Shorten a path in a word that reveals the machine: absolute, of a home folder, or with ``..``.

    An address is kept, without what may be secret in it.

    Args:
        word: An argument of a command, or a spec.
        inside: Folder below which paths are kept, relative to it.

    Example:
        >>> shorten_paths("/home/ann/images"), shorten_paths("open_clip:ViT-B-32//mnt/a/b.pt")
        ('images', 'open_clip:ViT-B-32/b.pt')
        >>> shorten_paths("hf:openai/clip-vit-base-patch32")
        'hf:openai/clip-vit-base-patch32'
    """
    if _SHOWN_ADDRESS.search(word):
        return hide_secrets(word)
    start = OUTSIDE_PATH.search(word)
    if start is None:
        return word
    path = Path(word[start.start() :])
    if inside is not None:
        try:
            return word[: start.start()] + str(path.expanduser().resolve().relative_to(inside.resolve()))
        except (OSError, RuntimeError, ValueError):
            pass
    return word[: start.start()] + (path.name if path.name not in ("", "..") else "...")


def _choose_article(modality: str | None) -> str:
    return f"an {modality}" if modality == "image" else f"a {modality}"


UNKNOWN = Provenance()
"""Provenance of embeddings of which nothing is known."""
