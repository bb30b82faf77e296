"""Files in and out: images, captions, MS-COCO, captioners' results, embeddings, and writing whole files or none."""

from clipconformity.data.captions import Captions, read_captions
from clipconformity.data.coco import Coco, read_coco
from clipconformity.data.embeddings import EmbeddingFile, read_embeddings, write_embeddings
from clipconformity.data.images import list_images, open_image
from clipconformity.data.results import coco_image_id, merge_results, read_results, write_results

__all__ = [
    "Captions",
    "Coco",
    "EmbeddingFile",
    "coco_image_id",
    "list_images",
    "merge_results",
    "open_image",
    "read_captions",
    "read_coco",
    "read_embeddings",
    "read_results",
    "write_embeddings",
    "write_results",
]
