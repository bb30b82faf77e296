"""Folders of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clipconformity._files import IMAGE_FORMATS


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
