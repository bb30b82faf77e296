"""Examples of each command, for its help."""

from __future__ import annotations

EXAMPLES = {
    "encoders": ("clipconformity encoders", "clipconformity encoders ViT-B-32"),
    "demo": ("clipconformity demo -o demo-output",),
    "embed": (
        "clipconformity embed --images samples/ --encoder tiny -o samples-embeddings.safetensors",
        "clipconformity embed --captions captions.json --encoder open_clip:ViT-B-32/openai "
        "-o captions-embeddings.safetensors",
    ),
    "reference": (
        "clipconformity reference --images real/ --encoder tiny --dataset 'my photographs' "
        "-o real-reference.safetensors",
        "clipconformity reference --images test.txt --encoder tiny -o test-reference.safetensors",
        "clipconformity reference --coco coco/ --encoder tiny --encoder open_clip:ViT-B-32/openai "
        "-o coco-reference.safetensors",
    ),
    "score": (
        "clipconformity score --images samples/ --encoder tiny --reference real-reference.safetensors "
        "--report report.html",
        "clipconformity score --embeddings samples-embeddings.safetensors --reference real-reference.safetensors "
        "--metrics all",
        "clipconformity score --images samples/ --encoder hf:openai/clip-vit-base-patch32 "
        "--reference hf://user/repo/coco-reference.safetensors",
    ),
    "compare": (
        "clipconformity compare a=samples/ b=others/ --encoder tiny --reference real-reference.safetensors",
        "clipconformity compare a=samples/ b=others/ --encoder tiny --reference real-reference.safetensors "
        "--format latex",
    ),
    "geometry": (
        "clipconformity geometry --image-embeddings samples-embeddings.safetensors "
        "--text-embeddings words-embeddings.safetensors",
    ),
    "merge": (
        "clipconformity merge real-reference.safetensors test-reference.safetensors -o whole-reference.safetensors",
    ),
}
"""By command; each example may read outputs of earlier ones."""
