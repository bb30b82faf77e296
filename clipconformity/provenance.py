"""What a set of embeddings comes from, and whether two sets fit together."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

MODALITIES = ("image", "text")
DECISIVE = ("weights", "preprocessing")
"""Parts of an encoder's identity without which two sets do not compare; the others move the last digits."""


class Identified(Protocol):
    """An encoder, as far as its origin goes."""

    @property
    def spec(self) -> str:
        """Where it comes from, as ``load_encoder`` takes it."""

    @property
    def id(self) -> dict[str, str]:
        """What must agree between two uses: hash of the weights, preprocessing, precision, backend."""


@dataclass(frozen=True)
class Provenance:
    """Where embeddings come from; None is what is not known.

    Attributes:
        spec: The encoder, as ``load_encoder`` takes it.
        encoder_id: What the encoder was: hash of its weights, preprocessing, precision, backend.
        modality: ``"image"`` or ``"text"``.

    Raises:
        ValueError: If the modality is another.
    """

    spec: str | None = None
    encoder_id: Mapping[str, str] | None = None
    modality: str | None = None

    def __post_init__(self) -> None:
        if self.modality not in (None, *MODALITIES):
            raise ValueError(f"modality: expected 'image', 'text' or None, got {self.modality!r}.")

    @classmethod
    def of(cls, encoder: str | Identified | None, modality: str | None = None) -> Provenance:
        """Describe embeddings by their encoder, or by its spec alone.

        Raises:
            TypeError: If it is neither.
        """
        if encoder is None or isinstance(encoder, str):
            return cls(encoder, None, modality)
        if not isinstance(getattr(encoder, "spec", None), str):
            raise TypeError(f"spec: expected an encoder or its spec in words, got {type(encoder).__name__}.")
        return cls(encoder.spec, dict(getattr(encoder, "id", {})) or None, modality)

    @classmethod
    def agreed(cls, parts: Iterable[Provenance], what: str = "the files") -> Provenance:
        """Settle what several descriptions say of one set.

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
        """Compare samples with this reference.

        Returns:
            What differs without mattering much, precision or backend, in words; a warning says it too.

        Raises:
            ValueError: If modality, weights or preprocessing differ, or where only specs are known, these.
        """
        if None not in (self.modality, other.modality) and self.modality != other.modality:
            raise ValueError(
                f"the samples are {other.modality} and the reference is {self.modality}: they lie in different "
                f"places, so conformity between them says nothing; give {_article(other.modality)} reference."
            )
        if self.encoder_id is None or other.encoder_id is None:
            if None not in (self.spec, other.spec) and self.spec != other.spec:
                raise ValueError(
                    f"the samples come from encoder {other.spec!r} and the reference from {self.spec!r}; "
                    "encode both with the same one."
                )
            return []
        remarks = []
        for part in sorted(set(self.encoder_id) | set(other.encoder_id)):
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

    def same_encoder(self, other: Provenance) -> bool:
        """Whether nothing that is known of the two encoders tells them apart; the same weights may have two names."""
        mine, theirs = ((one.encoder_id or {}).get("weights") for one in (self, other))
        if None in (mine, theirs):
            mine, theirs = self.spec, other.spec
        return None in (mine, theirs) or mine == theirs

    def describe(self) -> dict[str, Any]:
        """Give the fields as plain values, for JSON."""
        encoder_id = None if self.encoder_id is None else dict(self.encoder_id)
        return {"spec": self.spec, "encoder_id": encoder_id, "modality": self.modality}


def _article(modality: str | None) -> str:
    return f"an {modality}" if modality == "image" else f"a {modality}"


UNKNOWN = Provenance()
"""Of embeddings of which nothing is known."""
