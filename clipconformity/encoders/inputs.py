"""Inputs of encoders: texts and images are distinguished, and ambiguous ones refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipconformity.data.images import iterate_images
from clipconformity.data.limits import check_limit
from clipconformity.data.untrusted import check_words

NO_IMAGE = "images: expected at least one image, got an empty list."


def is_text(batch: Any) -> bool:
    """Whether a batch is a string or a list of strings, and not images.

    Raises:
        ValueError: If a string names an existing file: images are given as ``pathlib.Path``.
    """
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if not isinstance(first, str):
        return False
    for text in [batch] if isinstance(batch, str) else batch:
        if isinstance(text, str) and len(text) < 256 and Path(text).is_file():
            raise ValueError(
                f"texts: {text!r} is an existing file; give pathlib.Path for an image, or call encode_text if it "
                "is a caption."
            )
    return True


def join_inputs(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the inputs of single images into those of a batch."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def list_texts(texts: str | Sequence[str]) -> list[str]:
    """Convert a text or a sequence of texts to a list.

    Raises:
        TypeError: If they are not strings.
        ValueError: If there is none, or one is empty, too long or has an invalid character.
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        raise ValueError("texts: expected at least one text, got an empty list.")
    for text in listed:
        if not isinstance(text, str):
            raise TypeError(f"texts: expected strings, got {type(text).__name__}.")
        if not text.strip():
            raise ValueError("texts: expected words, got an empty text; leave out what has no caption.")
        check_words("texts", text)
    return listed


def list_images(images: Any) -> list[Image.Image]:
    """Convert a batch to a list of RGB images, as :func:`to_images` does.

    Raises:
        TypeError: If they are not images.
        ValueError: If there is none, or a shape or range does not fit.
    """
    listed, pixels = [], 0
    for image in iterate_images(images):
        pixels += image.width * image.height
        check_limit("images", "batch_pixels", pixels)
        listed.append(image)
    if not listed:
        raise ValueError(NO_IMAGE)
    return listed
