"""What all encoders share: dispatch of inputs, raw float32 out, truncation counted, an identity."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipconformity.encoders.images import as_images
from clipconformity.functional._checks import check_matrix


class BaseEncoder(ABC):
    """An image and a text tower that give *raw* embeddings, before L2 normalisation.

    Attributes:
        spec: Where it comes from, as ``load_encoder`` takes it.
        device: Where the model runs.
        dtype: Precision of the model's arithmetic; below float32 by autocast.
        context_length: Most tokens of a text, its start and end tokens included.
        logit_scale: The trained scale of cosines in the contrastive loss.
        truncated: Number of texts cut to the context length so far.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        spec: str,
        device: torch.device,
        dtype: torch.dtype,
        context_length: int,
        logit_scale: float,
    ) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.context_length = context_length
        self.logit_scale = logit_scale
        self.truncated = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r}, device={str(self.device)!r})"

    @cached_property
    def embed_dim(self) -> int:
        """Dimension D of the embeddings."""
        return self._run(self._project_text, ["a"]).shape[1]

    @cached_property
    def id(self) -> dict[str, str]:
        """Hash of the weights, preprocessing, precision and backend."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        precision = str(self.dtype).removeprefix("torch.")
        return {"weights": digest.hexdigest(), "precision": precision} | self._preprocessing()

    def encode_image(self, images: Any) -> Tensor:
        """Encode images.

        Args:
            images: PIL images, ``pathlib.Path``, uint8 or float tensors ``(N, 3, H, W)``, uint8 arrays
                ``(N, H, W, 3)``, or a list of mixed sizes.

        Returns:
            Raw float32 embeddings ``(N, D)`` on the encoder's device.

        Raises:
            TypeError: If they are no images.
            ValueError: If a shape or range does not fit, the list is empty, or a file cannot be read.
        """
        prepared = as_images(images)
        if not prepared:
            raise ValueError("images: expected at least one image, got an empty list.")
        return self.project_image(self.preprocess_images(prepared))

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Encode texts; those beyond the context length are cut, with their end token kept, and counted.

        Args:
            texts: A text or a list of texts.

        Returns:
            Raw float32 embeddings ``(N, D)`` on the encoder's device.

        Raises:
            TypeError: If they are no strings.
            ValueError: If the list is empty, or a text is empty.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        if not listed:
            raise ValueError("texts: expected at least one text, got an empty list.")
        for text in listed:
            if not isinstance(text, str):
                raise TypeError(f"texts: expected strings, got {type(text).__name__}.")
            if not text.strip():
                raise ValueError("texts: expected words, got an empty text; leave out what has no caption.")
        return self._run(self._project_text, listed)

    def __call__(self, batch: Any) -> Tensor:
        """Encode a batch of images, or of texts where it is a string or a list of strings.

        Raises:
            TypeError: If the batch is neither.
            ValueError: If a string names an existing file: images are given as ``pathlib.Path``.
        """
        first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
        if not isinstance(first, str):
            return self.encode_image(batch)
        for text in [batch] if isinstance(batch, str) else batch:
            if isinstance(text, str) and len(text) < 256 and Path(text).is_file():
                raise ValueError(
                    f"texts: {text!r} is an existing file; give pathlib.Path for an image, or call encode_text if it "
                    "is a caption."
                )
        return self.encode_text(batch)

    def project_image(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the image tower on what :meth:`preprocess_images` made; raw float32 ``(N, D)``."""
        moved = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
        return self._run(self._project_image, moved)

    @torch.inference_mode()
    def _run(self, project: Callable[[Any], Tensor], prepared: Any) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            embeddings = project(prepared)
        return check_matrix(embeddings.float(), "the encoder's output").clone()

    @abstractmethod
    def preprocess_images(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """Turn RGB images into the image tower's inputs, on the CPU; worker processes call it too."""

    @abstractmethod
    def _project_image(self, inputs: dict[str, Tensor]) -> Tensor:
        """Project preprocessed images."""

    @abstractmethod
    def _project_text(self, texts: list[str]) -> Tensor:
        """Tokenise and project texts."""

    @abstractmethod
    def _preprocessing(self) -> dict[str, str]:
        """Describe preprocessing and backend for the identity."""
