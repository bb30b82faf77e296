"""Any other model: a pair of functions as an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipconformity.encoders.inputs import is_text, listed_images, listed_texts
from clipconformity.functional.validation import check_matrix


class CallableEncoder:
    """An encoder made of two functions that give *raw* embeddings.

    Args:
        encode_image: From a list of RGB images to ``(N, D)``.
        encode_text: From a list of strings to ``(N, D)``.
        embed_dim: Dimension D.
        spec: A name for it; reference sets record it, and a metric's pickle needs the encoder given anew.
        id: What must agree between two uses, such as ``{"weights": "..."}``; by default the spec.

    Example:
        >>> import torch
        >>> encoder = CallableEncoder(
        ...     lambda images: torch.ones(len(images), 4), lambda texts: torch.ones(len(texts), 4), 4, spec="mine"
        ... )
        >>> encoder(["a dog", "a cat"]).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        encode_image: Callable[[list[Image.Image]], Tensor],
        encode_text: Callable[[list[str]], Tensor],
        embed_dim: int,
        *,
        spec: str,
        id: dict[str, str] | None = None,
    ) -> None:
        self._encode_image = encode_image
        self._encode_text = encode_text
        self.embed_dim = embed_dim
        self.spec = spec
        self.id = {"weights": spec} if id is None else id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r})"

    def encode_image(self, images: Any) -> Tensor:
        """Encode images, given as of :meth:`BaseEncoder.encode_image`."""
        return self._checked(self._encode_image, listed_images(images))

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Encode a text or a list of texts."""
        return self._checked(self._encode_text, listed_texts(texts))

    def __call__(self, batch: Any) -> Tensor:
        """Encode a batch of images, or of texts where it is a string or a list of strings."""
        return self.encode_text(batch) if is_text(batch) else self.encode_image(batch)

    def _checked(self, function: Callable[[list[Any]], Tensor], items: list[Any]) -> Tensor:
        with torch.no_grad():
            matrix = check_matrix(function(items), f"{self.spec}: the encoder's output").float()
        if matrix.shape != (len(items), self.embed_dim):
            raise ValueError(
                f"{self.spec}: expected embeddings of shape {(len(items), self.embed_dim)}, got {tuple(matrix.shape)}."
            )
        return matrix
