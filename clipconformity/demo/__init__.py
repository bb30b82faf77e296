"""The procedural scenes in the layout of MS-COCO, and the demo on them."""

from clipconformity.demo.scenes import (
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
    "Scene",
    "caption_is_true",
    "draw_scene",
    "generic_caption",
    "sample_scenes",
    "scene_captions",
    "scene_log_frequency",
    "specific_caption",
    "write_coco_scenes",
]
