"""Sources of samples: embedding files, image folders, caption files, and a procedural world."""

from clipconformity.datasets.captions import Captions, read_captions
from clipconformity.datasets.coco import Coco, read_coco
from clipconformity.datasets.embeddings import EmbeddingFile, read_embeddings, write_embeddings
from clipconformity.datasets.images import list_images
from clipconformity.datasets.results import coco_image_id, merge_results, read_results, write_results
from clipconformity.datasets.scenes import (
    Scene,
    caption_is_true,
    draw_scene,
    generic_caption,
    sample_scenes,
    scene_captions,
    scene_log_frequency,
    specific_caption,
    write_coco_scenes,
)

__all__ = [
    "Captions",
    "Coco",
    "EmbeddingFile",
    "Scene",
    "caption_is_true",
    "coco_image_id",
    "draw_scene",
    "generic_caption",
    "list_images",
    "merge_results",
    "read_captions",
    "read_coco",
    "read_embeddings",
    "read_results",
    "sample_scenes",
    "scene_captions",
    "scene_log_frequency",
    "specific_caption",
    "write_coco_scenes",
    "write_embeddings",
    "write_results",
]
