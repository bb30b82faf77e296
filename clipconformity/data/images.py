"""Images: folders of files, and images of any mode, from files or arrays, as RGB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_FORMATS = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
"""Suffixes that count in a folder of images, and Pillow's names of their formats, the only ones that are opened."""
FORMATS = tuple(dict.fromkeys(IMAGE_FORMATS.values()))
"""Pillow goes by a file's content, and of the formats that it knows some start other programs, as EPS does."""


def image_files(root: Path) -> Iterator[Path]:
    """Find the image files in a folder and its subfolders, in no order, hidden ones left out."""
    return (p for p in root.rglob("*") if p.suffix.lower() in IMAGE_FORMATS and not p.name.startswith("."))


def list_images(root: Path | str) -> list[Path]:
    """List the image files in a folder and its subfolders, in the order of their paths.

    Raises:
        NotADirectoryError: If it is no folder.
        ValueError: If there is no image in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: expected a folder of images.")
    paths = sorted(image_files(root))
    if not paths:
        raise ValueError(f"{root}: no images in this folder (looked for {', '.join(IMAGE_FORMATS)}).")
    return paths


def open_image(path: Path | str) -> Image.Image:
    """Read an image file as upright RGB.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image in one of :data:`FORMATS`, or is truncated; names the file.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file.") from None
    except Exception as error:  # broken files make Pillow raise nearly anything
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"expected one in the format {', '.join(FORMATS)}" if unknown else str(error)
        raise ValueError(f"{path}: cannot be read as an image ({reason}).") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image of any mode upright and into RGB; 16 bits and floats in [0, 1] are scaled, not cut off.

    What is transparent shows the colour stored beneath it, as in the preprocessing of CLIP itself.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        top = (
            1.0
            if image.mode == "F" and values.max(initial=0) <= 1
            else 65535.0
            if values.max(initial=0) > 255
            else 255.0
        )
        return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def as_images(batch: Any) -> list[Image.Image]:
    """Turn a batch into RGB images.

    Args:
        batch: A PIL image, a ``pathlib.Path``, a tensor ``(3, H, W)`` or ``(N, 3, H, W)``, uint8 or float in [0, 1], an
            array ``(H, W, 3)`` or ``(N, H, W, 3)``, uint8, or a list of any of them but batches, of mixed sizes.

    Raises:
        TypeError: If it is nothing of the kind.
        ValueError: If a shape or range does not fit.
    """
    if isinstance(batch, (Tensor, np.ndarray)) and batch.ndim == 4:
        return [_from_array(part) for part in batch]
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return [_as_image(item) for item in batch]
    return [_as_image(batch)]


def _as_image(item: Any) -> Image.Image:
    if isinstance(item, Image.Image):
        return to_rgb(item)
    if isinstance(item, Path):
        return open_image(item)
    if isinstance(item, (Tensor, np.ndarray)):
        return _from_array(item)
    raise TypeError(
        f"images: expected PIL images, tensors (3, H, W), arrays (H, W, 3) or pathlib.Path, got {type(item).__name__}."
    )


def _from_array(item: Tensor | np.ndarray) -> Image.Image:
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
