"""Files in and out: images, captions, MS-COCO, captioners' results, embeddings, and writing whole files or none."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipconformity.data.captions import Captions, read_captions
    from clipconformity.data.classes import read_classes
    from clipconformity.data.coco import Coco, read_coco
    from clipconformity.data.embeddings import EmbeddingFile, read_embeddings, write_embeddings
    from clipconformity.data.folders import ImageFolder, list_images, survey_images
    from clipconformity.data.image_lists import read_image_list
    from clipconformity.data.images import open_image
    from clipconformity.data.results import coco_image_id, merge_results, read_results, write_results

__all__ = [
    "Captions",
    "Coco",
    "EmbeddingFile",
    "ImageFolder",
    "coco_image_id",
    "list_images",
    "merge_results",
    "open_image",
    "read_captions",
    "read_classes",
    "read_coco",
    "read_embeddings",
    "read_image_list",
    "read_results",
    "survey_images",
    "write_embeddings",
    "write_results",
]

_HOMES = {
    "Captions": "captions",
    "Coco": "coco",
    "EmbeddingFile": "embeddings",
    "ImageFolder": "folders",
    "coco_image_id": "results",
    "list_images": "folders",
    "merge_results": "results",
    "open_image": "images",
    "read_captions": "captions",
    "read_classes": "classes",
    "read_coco": "coco",
    "read_embeddings": "embeddings",
    "read_image_list": "image_lists",
    "read_results": "results",
    "survey_images": "folders",
    "write_embeddings": "embeddings",
    "write_results": "results",
}
"""They load when first used: the help of the commands shows the formats without torch."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
