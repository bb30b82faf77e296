"""What an encoder is given: texts told from images, and refused where they cannot be meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from clipconformity.data.images import as_images


def is_text(batch: Any) -> bool:
    """Tell a string or a list of strings from images.

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


def listed_texts(texts: str | Sequence[str]) -> list[str]:
    """Turn a text or a sequence of texts into a list.

    Raises:
        TypeError: If they are no strings.
        ValueError: If there is none, or one is empty.
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        raise ValueError("texts: expected at least one text, got an empty list.")
    for text in listed:
        if not isinstance(text, str):
            raise TypeError(f"texts: expected strings, got {type(text).__name__}.")
        if not text.strip():
            raise ValueError("texts: expected words, got an empty text; leave out what has no caption.")
    return listed


def listed_images(images: Any) -> list[Image.Image]:
    """Turn a batch into a list of RGB images, as :func:`as_images` does.

    Raises:
        TypeError: If they are no images.
        ValueError: If there is none, or a shape or range does not fit.
    """
    listed = as_images(images)
    if not listed:
        raise ValueError("images: expected at least one image, got an empty list.")
    return listed
