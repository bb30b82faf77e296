"""Examples of each command, for its help."""

from __future__ import annotations

EXAMPLES = {
    "encoders": ("clipconformity encoders", "clipconformity encoders ViT-B-32"),
    "demo": ("clipconformity demo -o demo-output",),
    "embed": (
        "clipconformity embed --images samples/ --encoder tiny -o samples.safetensors",
        "clipconformity embed --captions captions.json --encoder open_clip:ViT-B-32/openai -o captions.safetensors",
    ),
    "reference": (
        "clipconformity reference --images real/ --encoder tiny --dataset 'my photographs' -o real.safetensors",
        "clipconformity reference --images test.txt --encoder tiny -o test.safetensors",
        "clipconformity reference --coco coco/ --encoder tiny --encoder open_clip:ViT-B-32/openai -o coco.safetensors",
    ),
    "score": (
        "clipconformity score --images samples/ --encoder tiny --reference real.safetensors --report report.html",
        "clipconformity score --embeddings samples.safetensors --reference real.safetensors --metrics all",
        "clipconformity score --images samples/ --encoder hf:openai/clip-vit-base-patch32 "
        "--reference hf://user/repo/coco.safetensors",
    ),
    "compare": (
        "clipconformity compare a=samples/ b=others/ --encoder tiny --reference real.safetensors",
        "clipconformity compare a=samples/ b=others/ --encoder tiny --reference real.safetensors --format latex",
    ),
    "geometry": ("clipconformity geometry --image-embeddings samples.safetensors --text-embeddings words.safetensors",),
    "merge": ("clipconformity merge real.safetensors test.safetensors -o whole.safetensors",),
}
"""By command; each example may read outputs of earlier ones."""
