"""Drive generators so that a run can be split, batched, stopped and resumed: text to image, and image to text."""

from clipconformity.generators.captions import CaptionRun, TransformersCaptioner, caption_images
from clipconformity.generators.images import ImageRun, generate_images, is_black, read_manifest
from clipconformity.generators.runs import rank_path, sample_seed

__all__ = [
    "CaptionRun",
    "ImageRun",
    "TransformersCaptioner",
    "caption_images",
    "generate_images",
    "is_black",
    "rank_path",
    "read_manifest",
    "sample_seed",
]
