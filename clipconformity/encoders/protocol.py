"""The interface of encoders that metrics need."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """Turns images and texts into *raw* embeddings: the projection output before L2 normalisation.

    Anything with these attributes and this call can be given to a metric as ``encoder``.
    """

    @property
    def spec(self) -> str:
        """The spec, as ``load_encoder`` takes it."""

    @property
    def id(self) -> dict[str, str]:
        """What identifies the encoder: hash of the weights, preprocessing, precision, backend."""

    @property
    def embed_dim(self) -> int:
        """Dimension D of the embeddings."""

    def __call__(self, batch: Any) -> Tensor:
        """Encode a batch of images or a list of texts to raw float32 embeddings ``(N, D)``."""
