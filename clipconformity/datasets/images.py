"""Folders of images."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def list_images(root: Path | str) -> list[Path]:
    """List the image files in a folder and its subfolders, in the order of their paths.

    Raises:
        NotADirectoryError: If it is no folder.
        ValueError: If there is no image in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: expected a folder of images.")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise ValueError(f"{root}: no images in this folder (looked for {', '.join(sorted(SUFFIXES))}).")
    return paths
