"""Images of any mode, from files or arrays, as RGB."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from clipconformity.data.folders import IMAGE_FORMATS
from clipconformity.data.limits import LimitError, check_limit
from clipconformity.data.untrusted import check_input

FORMATS = tuple(
    name for name in dict.fromkeys(IMAGE_FORMATS.values()) if name != "AVIF" or find_spec("PIL.AvifImagePlugin")
)
"""Pillow detects formats by content, and some of its formats start other programs, as EPS does.

An older Pillow has no AVIF.
"""


def open_image(path: Path | str) -> Image.Image:
    """Read an image file as upright RGB.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it is not a regular file.
        ValueError: If it is in none of :data:`FORMATS`, is truncated, or has too many pixels; names the file.
    """
    check_input(Path(path), "image file")
    try:
        with _open_limited(path) as image:
            check_limit(path, "pixels", image.width * image.height)  # before any pixel is decoded
            # Resized by its short side, a thin image would grow to gigabytes.
            check_limit(path, "aspect", max(image.size) // max(min(image.size), 1))
            return to_rgb(image)
    except LimitError:
        raise
    except Exception as error:  # broken files raise errors of many types
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"expected one in the format {', '.join(FORMATS)}" if unknown else " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: cannot be read as an image ({reason or type(error).__name__}).") from None


def _open_limited(path: Path | str) -> Image.Image:
    """Open an image, with the library's limit in place of Pillow's warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(path, formats=FORMATS)
        except Image.DecompressionBombError as error:
            size, most = (int(number) for number in re.findall(r"\d+", str(error))[:2])
            check_limit(path, "pixels", size)
            raise ValueError(f"its {size:,} pixels are over Pillow's own limit of {most:,}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to upright RGB; 16 bits and floats in [0, 1] are scaled, not clipped.

    Transparent pixels show their stored colour, as in CLIP's own preprocessing.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _scale(np.asarray(image), image.mode == "F").convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _scale(values: np.ndarray, floats: bool) -> Image.Image:
    """Scale values to 8 bits, a few rows at once, so that little is held as float64."""
    largest = values.max(initial=0)
    top = 1.0 if floats and largest <= 1 else 65535.0 if largest > 255 else 255.0
    scaled = np.empty(values.shape, np.uint8)
    rows = max(2**20 // max(values.shape[1], 1), 1)
    for start in range(0, len(values), rows):
        part = values[start : start + rows].astype(np.float64)
        scaled[start : start + rows] = (part.clip(0, top) * (255 / top)).round()
    return Image.fromarray(scaled)


def to_images(batch: Any) -> list[Image.Image]:
    """Convert a batch to RGB images.

    Args:
        batch: A PIL image, a ``pathlib.Path``, a tensor ``(3, H, W)`` or ``(N, 3, H, W)``, uint8 or float in [0, 1], an
            array ``(H, W, 3)`` or ``(N, H, W, 3)``, uint8, or a list of any of them but batches, of mixed sizes.

    Raises:
        TypeError: If it is none of these.
        ValueError: If a shape or range does not fit.
    """
    return list(iterate_images(batch))


def iterate_images(batch: Any) -> Iterator[Image.Image]:
    """Convert a batch to RGB images one by one, as :func:`to_images` does; each file is opened when its turn comes."""
    if isinstance(batch, (Tensor, np.ndarray)) and batch.ndim == 4:
        yield from map(_convert_array, batch)
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        yield from map(_to_image, batch)
    else:
        yield _to_image(batch)


def _to_image(item: Any) -> Image.Image:
    if isinstance(item, Image.Image):
        return to_rgb(item)
    if isinstance(item, Path):
        return open_image(item)
    if isinstance(item, (Tensor, np.ndarray)):
        return _convert_array(item)
    raise TypeError(
        f"images: expected PIL images, tensors (3, H, W), arrays (H, W, 3) or pathlib.Path, got {type(item).__name__}."
    )


def _convert_array(item: Tensor | np.ndarray) -> Image.Image:
    if isinstance(item, np.ndarray):
        if item.ndim != 3 or item.shape[2] != 3 or item.dtype != np.uint8:
            raise ValueError(f"images: expected uint8 arrays (H, W, 3), got {item.dtype} of shape {item.shape}.")
        return Image.fromarray(item)
    if item.ndim != 3 or item.shape[0] != 3:
        raise ValueError(f"images: expected tensors (3, H, W) or (N, 3, H, W), got shape {tuple(item.shape)}.")
    if item.is_floating_point():
        low, high = float(item.min()), float(item.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images: expected float tensors in [0, 1], got values from {low:.3g} to {high:.3g}; "
                "undo the normalisation, or pass uint8."
            )
        item = (item.detach() * 255).round().to(torch.uint8)
    elif item.dtype != torch.uint8:
        raise TypeError(f"images: expected uint8 or floating-point tensors, got {item.dtype}.")
    return Image.fromarray(item.detach().permute(1, 2, 0).cpu().numpy())
